"""How fast is lm beside PyTorch, transformers and llama.cpp, on the same machine at the same time?

python experiments/bench_peers.py                                  every row, about 25 minutes on two CPU cores
python experiments/bench_peers.py --rows train-small start-up      some of them
Needs the extra `bench` (pip install -e '.[bench]'), and for torch.compile a C++ compiler. Both sides train or decode a
GPT-2 of the same shape in float32 (bfloat16 on accelerators), in alternating turns; a ratio is of neighbouring turns,
shown as median (quartiles). Prints a markdown table and draws experiments/figures/bench_peers.svg.
Expected results: experiments/RESULTS.md.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt

import lm
from lm.figures import STYLE, save

FIGURE = Path(__file__).parent / "figures" / "bench_peers.svg"
TINY = dict(layers=2, width=64, heads=2, context=128, vocab=256)
SMALL = dict(layers=4, width=128, heads=4, context=64, vocab=65, vocab_multiple=8)
MIDDLE = dict(layers=6, width=384, heads=6, context=256, vocab=65, vocab_multiple=8)
LONG = MIDDLE | dict(context=512)
WHOLE: dict = {}  # GPT-2 124M as it is
ROWS = {
    "train-tiny": ("train", TINY, dict(batch=32)),
    "train-small": ("train", SMALL, dict(batch=12)),
    "train-middle": ("train", MIDDLE, dict(batch=16)),
    "decode-1": ("decode", LONG, dict(batch=1)),
    "decode-16": ("decode", LONG, dict(batch=16)),
    "decode-124M": ("decode", WHOLE, dict(batch=1, tokens=64)),
    "start-up": ("start-up", SMALL, dict(batch=12)),
}
STARTS = 5
COLOURS = {"PyTorch, eager": "C1", "PyTorch, torch.compile": "C3", "transformers": "C0", "llama.cpp": "C2"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison: `ours` and `theirs` in tokens a second, or in seconds where `unit` says so."""

    what: str
    peer: str
    ratio: lm.bench.Spread
    ours: float
    theirs: float
    unit: str = "tokens/s"

    def markdown(self) -> str:
        r = self.ratio
        number = ".1f" if self.ours < 100 else ",.0f"
        cells = self.what, self.peer, f"{r.median:.2f} ({r.low:.2f} to {r.high:.2f})"
        return f"| {' | '.join(cells)} | {self.ours:{number}} | {self.theirs:{number}} | {self.unit} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()

    rows = []
    for name in options.rows:
        rows += measured(*ROWS[name], rounds=options.rounds, seconds=options.seconds)
    print("| work | peer | lm is faster by (quartiles) | lm | peer | unit |\n|---|---|---|---|---|---|")
    print("\n".join(row.markdown() for row in rows))
    draw(rows, options.figure)
    print(options.figure)


def measured(kind: str, shape: dict, how: dict, rounds: int, seconds: float) -> list[Row]:
    """A row for each peer that takes part; the absent are named on standard error."""
    c = lm.ModelConfig.gpt2("124M", **shape)
    what = f"{kind}, L={c.layers} D={c.width} T={c.context} V={c.vocab} B={how['batch']}"
    if kind == "start-up":
        return [start_up(what, shape, how["batch"])]
    settings = dict(rounds=rounds, seconds=seconds, display=lm.Display())
    if kind == "train":
        found = lm.bench.train(experiment(shape, how["batch"]), **settings)
    else:
        found = lm.bench.decode(experiment(shape, 1), **how, **settings)
    for absent in found.absent:
        print(f"{what}: {absent.name} {absent.why}", file=sys.stderr)
    print(found.table(), file=sys.stderr)
    return [Row(what, p.name, p.ratio, found.tokens_per_second, p.tokens_per_second) for p in found.peers]


def experiment(shape: dict, batch: int) -> lm.Experiment:
    model = lm.ModelConfig.gpt2("124M", **shape)
    return lm.Experiment(model=model, train=lm.TrainConfig(batch=batch), optimizer=lm.OptimizerConfig(name="adamw"))


# --- start-up --------------------------------------------------------------------------------------------------------
EXPERIMENT = "lm.Experiment(model=lm.ModelConfig.gpt2('124M', **{shape}), train=lm.TrainConfig(batch={batch}))"
FIRST_STEP = {
    "lm": f"import lm; lm.bench.Program({EXPERIMENT})",  # which ends with one step
    "PyTorch, torch.compile": f"import lm; lm.bench.torch_trainer({EXPERIMENT}, True)(1)",
}


def start_up(what: str, shape: dict, batch: int) -> Row:
    """Seconds from the start of a process to the end of its first training step, all compiled programs being cached."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/jax", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/torch",
        }  # fmt: skip

        def start(name: str) -> subprocess.Popen:
            code = FIRST_STEP[name].format(shape=shape, batch=batch) + "; print('stepped', flush=True)"
            command = [sys.executable, "-c", code]
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
        ours, theirs = lm.bench.compare(contestants, 1e-3, STARTS)  # one process a turn
        print(f"{what}: {time.perf_counter() - began:.0f} s of processes", file=sys.stderr)
    return Row(what, theirs.name, theirs.ratio, ours.seconds.median, theirs.seconds.median, "seconds")


# --- the figure ------------------------------------------------------------------------------------------------------
def draw(rows: list[Row], path: Path) -> None:
    """Bars of the ratio with quartiles, grouped by work; right of 1, lm is faster."""
    works = list(dict.fromkeys(row.what for row in rows))
    with plt.rc_context(STYLE | {"font.size": 11, "axes.grid": False}):
        figure, axes = plt.subplots(figsize=(8.4, 1.3 + 0.36 * (len(rows) + 0.7 * len(works))), layout="constrained")
        place, ticks, furthest = 0.0, [], max(row.ratio.high for row in rows)
        for work in works:
            for row in (row for row in rows if row.what == work):
                r = row.ratio
                error = [[r.median - r.low], [r.high - r.median]]
                axes.barh(place, r.median, 0.8, xerr=error, color=COLOURS[row.peer], alpha=0.8, capsize=2.5)
                label = f"{r.median:.2f}x  {row.peer}"
                axes.annotate(
                    label,
                    (r.high, place),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=10,
                    backgroundcolor="white",
                )
                ticks.append((place, work if row is next(x for x in rows if x.what == work) else ""))
                place += 1
            place += 0.7
        axes.axvline(1, color="black", linewidth=1, zorder=0)
        axes.set_yticks(*zip(*ticks, strict=True))
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.7 * furthest)  # room for the labels
        axes.set_xlabel("speed of lm over the peer's (median, quartiles)")
        save(figure, path)


if __name__ == "__main__":
    main()
