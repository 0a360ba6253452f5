"""How fast is lm beside PyTorch, transformers and llama.cpp, on the same machine at the same time?

python experiments/bench_peers.py                                  every row, about an hour on two CPU cores
python experiments/bench_peers.py --rows train-small start-up      some of them again; the others stay as they were
python experiments/bench_peers.py --rows                           none: table and figure from what was measured
Needs the extra `bench` (pip install -e '.[bench]'), and for torch.compile a C++ compiler. Both sides do the same work
in float32 (bfloat16 on accelerators, and where a row says so), in alternating turns of several steps a dispatch, as
`lm train` makes them; training is by AdamW. A ratio is of neighbouring turns, shown as median (quartiles). Each row is
kept with its date, command and machine in experiments/figures/bench_peers.json, from which the markdown table that is
printed and experiments/figures/bench_peers.svg are made. Expected results: experiments/RESULTS.md.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

import lm
from lm.errors import require
from lm.figures import STYLE, plt, save
from lm.files import whole
from lm.hardware import processor

FIGURE = Path(__file__).parent / "figures" / "bench_peers.svg"
CHARACTERS = dict(vocab=65, vocab_multiple=8)
STARTS = 5


@dataclasses.dataclass(frozen=True)
class Work:
    """What both sides do; kind: train, decode or start-up."""

    kind: str
    act: str
    model: lm.ModelConfig
    batch: int
    much: str
    """How much is read or written at once, in a reader's words."""
    seconds: float = 2.0
    """Of a turn: long enough for several training steps."""
    tokens: int | None = None
    """To decode; None: what is usual."""

    @property
    def words(self) -> str:
        return f"{self.act}, {lm.build(self.model).parameter_count()[0] / 1e6:.1f}M parameters, {self.much}"

    @property
    def shape(self) -> str:
        c = self.model
        return f"L={c.layers} D={c.width} N={c.heads} T={c.context} V={c.vocab} B={self.batch}"

    @property
    def experiment(self) -> lm.Experiment:
        optimizer, batch = lm.OptimizerConfig(name="adamw"), 1 if self.kind == "decode" else self.batch
        return lm.Experiment(model=self.model, train=lm.TrainConfig(batch=batch), optimizer=optimizer)


def gpt2(**shape) -> lm.ModelConfig:
    return lm.ModelConfig.gpt2("124M", **shape)


def recipe(width: int, heads: int, context: int, seconds: float, **changes) -> Work:
    """Training of the architecture that the configurations for characters train, 4,096 tokens a step."""
    shape = dict(layers=6, width=width, heads=heads, context=context, **CHARACTERS)
    model = lm.ModelConfig(**shape | dict(activation="swiglu", embedding_norm=True, dropout=0.1) | changes)
    much = (
        f"{context} characters"
        + ", no dropout" * (model.dropout == 0)
        + ", bfloat16" * model.dtype.startswith("bfloat16")
    )
    return Work("train", "train the recipe", model, 4096 // context, much, seconds)


TINY = gpt2(layers=2, width=64, heads=2, context=128, vocab=256)
SMALL = gpt2(layers=4, width=128, heads=4, context=64, **CHARACTERS)
MIDDLE = gpt2(layers=6, width=384, heads=6, context=256, **CHARACTERS)
LONG = dataclasses.replace(MIDDLE, context=512)
WORKS = {
    "train-tiny": Work("train", "train GPT-2", TINY, 32, "128 bytes"),
    "train-small": Work("train", "train GPT-2", SMALL, 12, "64 characters"),
    "train-middle": Work("train", "train GPT-2", MIDDLE, 16, "256 characters", seconds=10),
    "recipe-128": recipe(128, 4, 256, seconds=3),
    "recipe-192-short": recipe(192, 6, 128, seconds=5),
    "recipe-192": recipe(192, 6, 256, seconds=5),
    "recipe-192-long": recipe(192, 6, 512, seconds=6),
    "recipe-192-no-dropout": recipe(192, 6, 256, seconds=5, dropout=0.0),
    "recipe-192-bfloat16": recipe(192, 6, 256, seconds=5, dtype="bfloat16_products"),
    "recipe-256": recipe(256, 8, 256, seconds=9),
    "recipe-384": recipe(384, 6, 256, seconds=12),
    "decode-1": Work("decode", "write 256 characters", LONG, 1, "one text"),
    "decode-16": Work("decode", "write 256 characters", LONG, 16, "16 texts at once"),
    "decode-124M": Work("decode", "write 64 tokens", gpt2(), 1, "one text", seconds=3, tokens=64),
    "start-up": Work("start-up", "start a process, make a step", SMALL, 12, "64 characters"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: `ours` and `theirs` in tokens a second, or in seconds where `unit` says so."""

    name: str
    """In WORKS."""
    work: str
    shape: str
    peer: str
    ratio: lm.bench.Spread
    """How many times faster lm is; below 1 it loses."""
    ours: float
    theirs: float
    unit: str
    rounds: int
    seconds: float
    date: str
    hardware: str
    command: str

    @property
    def loses(self) -> bool:
        return self.ratio.median < 1

    def markdown(self) -> str:
        r, number = self.ratio, ".1f" if self.ours < 100 else ",.0f"
        ratio = f"**{r.median:.2f}**" if self.loses else f"{r.median:.2f}"
        turns = f"{self.rounds} x {self.seconds:g} s" if self.unit == "tokens/s" else f"{self.rounds} starts"
        cells = (
            self.work, self.shape, self.peer, f"{ratio} ({r.low:.2f} to {r.high:.2f})", f"{self.ours:{number}}",
            f"{self.theirs:{number}}", self.unit, f"`{self.name}`, {turns}, {self.date}",
        )  # fmt: skip
        return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="*", default=list(WORKS), choices=list(WORKS), metavar="ROW", help=", ".join(WORKS)
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, help="length of a turn, instead of the row's own")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="beside it the rows are kept, as .json")
    o = parser.parse_args()
    kept = o.figure.with_suffix(".json")
    rows = read(kept)
    for name in o.rows:
        rows = merged(rows, name, measured(name, o.rounds, o.seconds or WORKS[name].seconds))
        o.figure.parent.mkdir(parents=True, exist_ok=True)
        with whole(kept) as file:  # as soon as it is known
            file.write(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    require(bool(rows), f"{kept}: no rows were measured yet, and none are asked for")
    print(table(rows))
    draw(rows, o.figure)
    print(o.figure)


def read(kept: Path) -> list[Row]:
    """The rows that were measured before."""
    made = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    return [Row(**row | {"ratio": lm.bench.Spread(**row["ratio"])}) for row in made]


def merged(rows: list[Row], name: str, fresh: list[Row]) -> list[Row]:
    """A work's rows in the place of its former ones, all in the order of WORKS; no fresh ones leave the former."""
    rest = [row for row in rows if row.name in WORKS and not (fresh and row.name == name)]
    return sorted([*rest, *fresh], key=lambda row: list(WORKS).index(row.name))


def table(rows: list[Row]) -> str:
    head = ("work", "shape", "peer", "lm is faster by (quartiles)", "lm", "peer", "unit", "measured")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(row.markdown() for row in rows)]
    return "\n".join([*lines, "", f"Machines: {'; '.join(dict.fromkeys(row.hardware for row in rows))}."])


# --- measuring -------------------------------------------------------------------------------------------------------
def measured(name: str, rounds: int, seconds: float) -> list[Row]:
    """A row for each peer that takes part; the absent are named on standard error."""
    work = WORKS[name]
    if work.kind == "start-up":
        ours, theirs = start_up(work)
        found = [(theirs.name, theirs.ratio, ours.seconds.median, theirs.seconds.median)]
    else:
        how = dict(rounds=rounds, seconds=seconds, display=lm.Display())
        if work.kind == "train":
            bench = lm.bench.train(work.experiment, **how)
        else:
            bench = lm.bench.decode(work.experiment, batch=work.batch, tokens=work.tokens, **how)
        for absent in bench.absent:
            print(f"{name}: {absent.name} {absent.why}", file=sys.stderr)
        print(bench.table(), file=sys.stderr)
        found = [(p.name, p.ratio, bench.tokens_per_second, p.tokens_per_second) for p in bench.peers]
    starts = work.kind == "start-up"
    about = dict(
        name=name, work=work.words, shape=work.shape, unit="seconds" if starts else "tokens/s",
        rounds=STARTS if starts else rounds, seconds=seconds, date=f"{datetime.date.today()}", hardware=hardware(),
        command=f"python experiments/bench_peers.py --rows {name} --rounds {rounds} --seconds {seconds:g}",
    )  # fmt: skip
    return [Row(peer=peer, ratio=ratio, ours=ours, theirs=theirs, **about) for peer, ratio, ours, theirs in found]


def hardware() -> str:
    """The machine and the libraries, as far as they decide about speed."""
    device = jax.devices()[0]
    machine = f"{os.cpu_count()} cores, {processor()}" if device.platform == "cpu" else device.device_kind
    versions = []
    for package in ("jax", "torch", "transformers", "llama-cpp-python"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join([machine, *versions])


FIRST_STEP = {
    "lm": "lm.bench.Program(experiment)",  # which ends with one step
    "PyTorch, torch.compile": "lm.bench.torch_trainer(experiment, True)(1)",
}


def start_up(work: Work) -> list[lm.bench.Timing]:
    """Seconds from the start of a process to the end of its first training step, all compiled programs being cached."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/jax", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/torch",
        }  # fmt: skip

        def start(name: str) -> subprocess.Popen:
            made = f"import lm; from lm.config import *; experiment = {work.experiment!r}"
            command = [sys.executable, "-c", f"{made}; {FIRST_STEP[name]}; print('stepped', flush=True)"]
            return subprocess.Popen(command, env=os.environ | caches, stdout=subprocess.PIPE, text=True)

        def until_first_step(name: str) -> None:
            with start(name) as process:
                lines = iter(process.stdout.readline, "")
                if not any(line == "stepped\n" for line in lines):
                    raise SystemExit(f"{name}: the process ended before its first step")
                process.kill()

        contestants = [lm.bench.Contestant(name, lambda n, name=name: [until_first_step(name) for _ in range(n)])
                       for name in FIRST_STEP]  # fmt: skip
        for name in [*FIRST_STEP, *FIRST_STEP]:  # fills the caches; some keys settle only in the second process
            start(name).communicate()
        began = time.perf_counter()
        timings = lm.bench.compare(contestants, 1e-3, STARTS)  # one process a turn
        print(f"start-up: {time.perf_counter() - began:.0f} s of processes", file=sys.stderr)
    return timings


# --- the figure ------------------------------------------------------------------------------------------------------
WINS, LOSES = "#2a7f62", "#c1442d"


def shown(rows: list[Row]) -> list[Row]:
    """Of PyTorch eager and compiled the faster one, for each work."""
    best = {}
    for row in rows:
        key = row.name, row.peer.split(",")[0]
        if key not in best or row.ratio.median < best[key].ratio.median:
            best[key] = row
    return list(best.values())


def draw(rows: list[Row], path: Path) -> None:
    """Bars from 1, to the right where lm is faster and to the left, in red, where it loses; quartiles. By work."""
    rows = shown(rows)
    lowest, highest = min(row.ratio.low for row in rows), max(row.ratio.high for row in rows)
    with plt.rc_context(STYLE | {"font.size": 16, "axes.grid": False}):
        figure, axes = plt.subplots(figsize=(12, 1.4 + 0.5 * len(rows)), layout="constrained")
        place, ticks = 0.0, {}
        for row, before in zip(rows, [None, *rows], strict=False):
            place += 1 + 0.6 * (before is not None and WORKS[row.name].act != WORKS[before.name].act)
            r, colour = row.ratio, LOSES if row.loses else WINS
            error = [[r.median - r.low], [r.high - r.median]]
            axes.barh(place, r.median - 1, 0.72, left=1, color=colour, alpha=0.85)
            axes.errorbar(r.median, place, xerr=error, color="0.25", capsize=3, linewidth=1.2)
            peer = row.peer.split(",")[0]
            axes.annotate(f"{r.median:.2f}  {peer}", (max(1, r.high), place), (8, 0), textcoords="offset points",
                          va="center", color=LOSES if row.loses else "black")  # fmt: skip
            ticks[place] = "" if before is not None and before.name == row.name else row.work.replace(" parameters", "")
        axes.axvline(1, color="black", linewidth=1.5)
        axes.set_yticks(list(ticks), list(ticks.values()))
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(place + 0.7, 0.3)
        axes.set_xscale("log")
        axes.set_xlim(0.9 * min(lowest, 0.95), 2.4 * highest)  # room for the labels
        marks = [x for x in (0.5, 0.7, 1, 1.5, 2, 3, 5) if 0.9 * lowest <= x <= 1.1 * highest]
        axes.set_xticks(marks, [f"{x:g}" for x in marks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("times as fast as the peer (median, quartiles)")
        save(figure, path)


if __name__ == "__main__":
    try:
        main()
    except lm.UserError as error:
        print(f"bench_peers: {error}", file=sys.stderr)
        sys.exit(2)
