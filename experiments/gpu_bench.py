"""How much of a GPU does lm use, and what do its clever paths gain there?

python experiments/gpu_bench.py                          within 8 minutes on one H100 or H200
python experiments/gpu_bench.py --small                  the same code on small models: 4 minutes on two CPU cores
python experiments/gpu_bench.py --sections torch tiny    some of it
Each section is a process of its own with a time budget, and what one leaves the next may use; what does not fit into
the time, the memory or this machine says so in its row and costs no other row. Models are GPT-2s on random tokens, in
bfloat16 (float32 on a CPU). A ratio is of neighbouring turns, a share is of what the same run measured as the machine's
best; shown are medians (quartiles). Prints a markdown table and draws experiments/figures/gpu_bench.svg.
Expected results: experiments/RESULTS.md.
"""

import argparse
import dataclasses
import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

# Memory that PyTorch does not find taken, beside JAX in one process.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import matplotlib.pyplot as plt
from matplotlib import ticker

import lm
from lm.bench import Contestant, Program, compare
from lm.figures import STYLE, save

FIGURE = Path(__file__).parent / "figures" / "gpu_bench.svg"
SECONDS, SMALL_SECONDS = 465, 900
"""For everything; small models on a busy CPU may take their time."""
LEAST = 20
"""Seconds below which no section is begun."""
TINY = dict(layers=2, width=64, heads=2, context=64, vocab=256)
STEPS, RUNS = 32, 64
"""Of the tiny model: steps in a dispatch, runs in a pack."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is; sizes: name -> (shape, batch)."""

    sizes: dict[str, tuple[dict, int]]
    runs: int
    rows: int
    """Generated side by side."""
    tokens: int
    """Generated in each row."""


SMALL = Scale(
    {
        "10M": (dict(layers=2, width=64, heads=2, context=128, vocab=257), 4),
        "124M": (dict(layers=2, width=128, heads=4, context=128, vocab=257), 4),
        "350M": (dict(layers=3, width=192, heads=4, context=128, vocab=257), 4),
    },
    runs=8, rows=8, tokens=32,
)  # fmt: skip
WHOLE = Scale(
    {
        "10M": (dict(layers=6, width=384, heads=6, vocab=257), 64),
        "124M": (dict(), 16),
        "350M": (dict(layers=24, width=1024, heads=16), 16),
    },
    runs=RUNS, rows=64, tokens=256,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure: a "share" of what the machine can do, a "ratio" of two speeds, or the reason why there is none."""

    work: str
    kind: str
    against: str
    median: float = 0.0
    low: float = 0.0
    high: float = 0.0
    rate: float = 0.0
    unit: str = ""

    def markdown(self) -> str:
        form = {"share": ".1%", "ratio": ".2f"}.get(self.kind)
        figure = f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})" if form else "not measured"
        rate = f"{self.rate:,.0f}" if self.rate else "-"
        return f"| {self.work} | {figure} | {self.against} | {rate} | {self.unit} |"


@dataclasses.dataclass(frozen=True)
class Turns:
    """How long to measure."""

    rounds: int
    seconds: float


Part = Callable[[Scale, Turns], Iterator[Row]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A process, and the seconds it may count on. Each part yields a row as soon as it is known."""

    seconds: float
    parts: dict[str, Part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small models, for a CPU")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS), metavar="SECTION",
                        help=", ".join(SECTIONS))  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, help="seconds of a turn: 0.6, or 0.3 when small")
    parser.add_argument("--budget", type=float, help=f"seconds for everything: {SECONDS}, or {SMALL_SECONDS} if small")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in the section's own process
    options = parser.parse_args()
    turn = options.turn or (0.3 if options.small else 0.6)
    if options.here:
        tell(options.sections[0], SMALL if options.small else WHOLE, Turns(options.rounds, turn))
        return

    end = time.monotonic() + (options.budget or (SMALL_SECONDS if options.small else SECONDS))
    how = ["--small"] * options.small + ["--rounds", str(options.rounds), "--turn", str(turn)]
    rows, programs = [], tempfile.TemporaryDirectory()  # sections share what they compile
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs.name)
    for i, name in enumerate(options.sections):
        start = time.monotonic()
        kept = 0 if options.small else sum(SECTIONS[later].seconds for later in options.sections[i + 1 :])
        rows += measured(name, how, max(min(SECTIONS[name].seconds, end - start), end - start - kept))
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print(f"{where(rows)}\n\n| work | result (quartiles) | against | lm | unit |\n|---|---|---|---|---|")
    print("\n".join(row.markdown() for row in rows if row.kind != "machine"))
    if any(row.kind in ("share", "ratio") for row in rows):
        draw(rows, options.figure)
        print(options.figure)


def where(rows: list[Row]) -> str:
    """The machine, as the first section that got so far says it."""
    return next((row.work for row in rows if row.kind == "machine"), "no section reached the device")


# --- a section in a process of its own -------------------------------------------------------------------------------
MARK = "row: "
LINES = 60
"""Of a section's own errors, shown where something is missing."""


def measured(name: str, how: list[str], seconds: float) -> list[Row]:
    """What the section's process tells within its seconds, and a row for each part it did not come to the end of."""
    if seconds < LEAST:
        return [Row(part, "missing", "the time was out before it began") for part in SECTIONS[name].parts]
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, __file__, "--here", "--sections", name, *how]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )  # with its helpers, torch.compile's for one
        try:
            told, why = process.communicate(timeout=seconds)[0], None
        except subprocess.TimeoutExpired:
            why = f"{name} was stopped after its {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if why:
            told = process.communicate()[0]
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.strip()]
    if why is None:
        why = f"{name} ended with status {process.returncode}: {''.join(lines[-1:])}"
    rows = [Row(**json.loads(line.removeprefix(MARK))) for line in told.splitlines() if line.startswith(MARK)]
    ended = {row.work for row in rows if row.kind == "end"}
    rows = [row for row in rows if row.kind != "end"]
    rows += [Row(part, "missing", why) for part in SECTIONS[name].parts if part not in ended]
    if any(row.kind == "missing" for row in rows):  # for whoever wants to know more
        print(*lines[-LINES:], sep="\n", file=sys.stderr, flush=True)
    return rows


def tell(name: str, scale: Scale, turns: Turns) -> None:
    """In the section's process: print each row as it is known; an error is a row, and the next part goes on."""
    device = jax.devices()[0]
    if device.platform == "cpu" and scale is WHOLE:
        raise SystemExit("JAX sees no accelerator here; --small is for a CPU")
    report(Row(f"{device.device_kind}, jax {jax.__version__}", "machine", ""))
    for part, rows in SECTIONS[name].parts.items():
        try:
            for row in rows(scale, turns):
                report(row)
        except Exception as error:  # whatever it is, the other parts go on
            report(Row(part, "missing", reason(error)))
            traceback.print_exc(limit=-3)
        report(Row(part, "end", ""))
        free_memory()


def report(row: Row) -> None:
    print(MARK + json.dumps(dataclasses.asdict(row)), flush=True)


def reason(error: Exception) -> str:
    """One line of an error."""
    first = next(iter(str(error).strip().splitlines()), "").replace("|", "/")
    return "out of memory" if out_of_memory(error) else f"{type(error).__name__}: {first}"


def out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def free_memory() -> None:
    """What a part held is garbage by now; give it back, PyTorch's too."""
    gc.collect()
    jax.clear_caches()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()


# --- training --------------------------------------------------------------------------------------------------------
def experiment(shape: dict, batch: int, **changes) -> lm.Experiment:
    model = lm.ModelConfig.gpt2("124M", **(shape | changes))
    return lm.Experiment(model=model, train=lm.TrainConfig(batch=batch), optimizer=lm.OptimizerConfig(name="adamw"))


def fitting(shape: dict, batch: int, *changes: dict) -> tuple[lm.Experiment, list[Program]]:
    """A program for each set of changes, all with this batch, or with the largest half, quarter... of it that fits.

    Where nothing else is asked for and cuDNN's attention fails after all, with plain attention.
    """
    while True:
        each = [experiment(shape, batch, **change) for change in changes or ({},)]
        try:
            return each[0], [Program(e) for e in each]
        except Exception as error:  # cuDNN is refused by whoever first sees that it will not do
            if out_of_memory(error) and batch > 1:
                batch //= 2
            elif not out_of_memory(error) and all(e.model.attention == "auto" for e in each):
                shape = shape | dict(attention="plain")
            else:
                raise
        free_memory()


def described(e: lm.Experiment) -> str:
    parameters = lm.build(e.model).parameter_count()[0]
    size = f"{parameters / 1e6:.0f}M" if parameters >= 1e7 else f"{parameters / 1e3:,.0f}k"
    plain = ", plain attention" if e.model.attention == "plain" else ""
    return f"train {size}, B={e.train.batch} T={e.model.context}{plain}"


def utilisation(size: str) -> Part:
    """Of the machine's FLOP/s: the fastest matrix product in the same rounds, and the data sheet's."""

    def rows(scale: Scale, turns: Turns) -> Iterator[Row]:
        e, [program] = fitting(*scale.sizes[size])
        dtype = str(lm.build(e.model).dtype)
        limits = lm.bench.matmul_limits(dtype)
        contestants = [Contestant("lm", program.run), *(limit.contestant for limit in limits)]
        timings = compare(contestants, turns.seconds, turns.rounds)
        rates, peak = timings[0].seconds.per(e.batch_tokens), lm.bench.fastest(limits, timings)
        peaks = {f"fastest matrix product, {peak / 1e12:,.3g} TFLOP/s": peak}
        published, known = lm.bench.peak_flops(dtype)
        if known == "looked up":
            peaks[f"published peak, {published / 1e12:,.0f} TFLOP/s"] = published
        flops = lm.build(e.model).cost().training_flops
        for against, peak in peaks.items():
            share = [rate * flops / peak for rate in (rates.median, rates.low, rates.high)]
            yield Row(described(e), "share", against, *share, rates.median, "tokens/s")

    return rows


def variants(what: str, against: str, change: dict, other: dict) -> Part:
    """Training of 124M with one change beside training with another."""

    def rows(scale: Scale, turns: Turns) -> Iterator[Row]:
        e, (ours, theirs) = fitting(*scale.sizes["124M"], change, other)
        yield raced(f"{described(e)}, {what}", against, ours.run, theirs.run, turns, e.batch_tokens, "tokens/s")

    return rows


def raced(work: str, against: str, ours, theirs, turns: Turns, amount: float, unit: str,
          their_amount: float | None = None) -> Row:  # fmt: skip
    """Ours over theirs, in `amount` of work for each unit of a contestant."""
    one, other = compare([Contestant("ours", ours), Contestant("theirs", theirs)], turns.seconds, turns.rounds)
    theirs_each = amount if their_amount is None else their_amount
    ratio = [value * amount / theirs_each for value in (other.ratio.median, other.ratio.low, other.ratio.high)]
    against = f"{against}: {theirs_each / other.seconds.median:,.0f} {unit}"
    return Row(work, "ratio", against, *ratio, amount / one.seconds.median, unit)


def beside_torch(compiled: bool) -> Part:
    """124M beside PyTorch as nanoGPT uses it, on the device that JAX uses."""

    def rows(scale: Scale, turns: Turns) -> Iterator[Row]:
        if importlib.util.find_spec("torch") is None:
            raise lm.UserError("not installed: pip install -e '.[bench]'")
        import torch

        device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        if device == "cuda" and not torch.cuda.is_available():
            raise lm.UserError(f"torch {torch.__version__} is installed without CUDA")
        e, [ours] = fitting(*scale.sizes["124M"])
        theirs = lm.bench.torch_trainer(e, compiled, device)
        theirs(3)  # compiles; a second call may do so again
        name = "PyTorch, torch.compile" if compiled else "PyTorch, eager"
        yield raced(described(e), name, ours.run, theirs, turns, e.batch_tokens, "tokens/s")

    return rows


# --- tiny models, and generation -------------------------------------------------------------------------------------
TINY_SHAPE = "L=2 D=64 T=64 B=8"


def dispatches(_: Scale, turns: Turns) -> Iterator[Row]:
    """Many steps in one call of the program against one."""
    many, one = (Program(experiment(TINY, 8), dispatch=steps) for steps in (STEPS, 1))
    work = f"{STEPS} steps a dispatch, {TINY_SHAPE}"
    yield raced(work, "1 step a dispatch", many.run, one.run, turns, 1, "steps/s")


def packs(scale: Scale, turns: Turns) -> Iterator[Row]:
    """Many runs in one program against one after another."""
    e, runs = experiment(TINY, 8), scale.runs
    packed, alone = Program(*[e] * runs, how="vmap", dispatch=STEPS), Program(e, dispatch=STEPS)
    work = f"{runs} runs packed, {TINY_SHAPE}"
    yield raced(work, "one after another", packed.run, alone.run, turns, runs, "runs x steps/s", 1)


def decoding(many: bool) -> Part:
    """Greedy generation by 124M against reading the parameters and the cache once a step."""

    def rows(scale: Scale, turns: Turns) -> Iterator[Row]:
        e, batch = experiment(scale.sizes["124M"][0], 1), scale.rows if many else 1
        how = dict(batch=batch, tokens=scale.tokens, rounds=turns.rounds, seconds=turns.seconds, peers=False)
        found = lm.bench.decode(e, **how)
        rates = found.tokens_per_second, *found.quartiles
        shares = [found.utilization * rate / found.tokens_per_second for rate in rates]
        read, speed = found.bytes_per_step / 1e6, found.read_bytes_per_second / 1e9
        work = f"decode {described(e).split(',')[0].removeprefix('train ')}, batch {batch}"
        yield Row(work, "share", f"reading {read:,.3g} MB a step at {speed:,.3g} GB/s", *shares, rates[0], "tokens/s")

    return rows


BFLOAT16 = dict(dtype="bfloat16", attention="plain")
SECTIONS = {
    "tiny": Section(65, {"many steps a dispatch": dispatches, "packed runs": packs}),
    "decode": Section(110, {"decode, batch 1": decoding(many=False), "decode, many rows": decoding(many=True)}),
    "torch": Section(
        100, {"beside torch.compile": beside_torch(compiled=True), "beside eager PyTorch": beside_torch(compiled=False)}
    ),
    "train": Section(
        190,
        {
            "train 124M": utilisation("124M"),
            "train 350M": utilisation("350M"),
            "cuDNN attention": variants(
                "cuDNN attention", "attention by XLA", dict(attention="cudnn"), dict(attention="plain")
            ),
            "train 10M": utilisation("10M"),
            "bfloat16": variants("bfloat16", "float32", BFLOAT16, BFLOAT16 | dict(dtype="float32")),
            "layers": variants("layers written out", "layers in a loop", dict(unroll=12), dict(unroll=1)),
        },
    ),
}


# --- the figure ------------------------------------------------------------------------------------------------------
PANELS = {"share": ("of what the machine can do, %", 100), "ratio": ("times as fast", 1)}
"""Kind: label and scale."""


def draw(rows: list[Row], path: Path) -> None:
    """A panel of shares of what the machine can do, and one of ratios of speeds."""
    chosen = {kind: [row for row in rows if row.kind == kind] for kind in PANELS}
    chosen = {kind: of for kind, of in chosen.items() if of}
    heights = [len(of) + 1 for of in chosen.values()]
    style = STYLE | {"font.size": 11, "axes.grid": False}
    with plt.rc_context(style):
        size = (8.4, 1 + 0.55 * sum(heights))
        figure, axes = plt.subplots(len(chosen), 1, figsize=size, squeeze=False, height_ratios=heights,
                                    layout="constrained")  # fmt: skip
        for panel, (kind, of) in zip(axes[:, 0], chosen.items(), strict=True):
            draw_bars(panel, kind, of)
        figure.suptitle(where(rows), fontsize=11)
        save(figure, path)


def draw_bars(panel, kind: str, rows: list[Row]) -> None:
    """Medians with quartiles; ratios on a log scale, from 1 on."""
    (label, scale), start = PANELS[kind], int(kind == "ratio")
    high = scale * max(row.high for row in rows)
    for place, row in enumerate(rows):
        error = [[scale * (row.median - row.low)], [scale * (row.high - row.median)]]
        colour = "C1" if kind == "ratio" else "C2" if "published" in row.against else "C0"
        panel.barh(place, scale * row.median - start, 0.7, start, xerr=error, color=colour, alpha=0.8, capsize=2.5)
        text = f"{row.median:.0%}" if kind == "share" else f"{row.median:.2f}x"
        panel.annotate(f"{text}  {row.against.split(':')[0]}", (max(start, scale * row.high), place), (6, 0),
                       textcoords="offset points", va="center", fontsize=9.5, backgroundcolor="white")  # fmt: skip
    panel.set_yticks(range(len(rows)), [textwrap.fill(row.work, 30) for row in rows])
    panel.tick_params(axis="y", length=0)
    panel.invert_yaxis()
    panel.set_xlabel(label)
    if kind == "share":
        panel.set_xticks(range(0, 101, 20 if high > 25 else 5))
        panel.set_xlim(0, 2.6 * high)
    else:
        panel.axvline(1, color="black", linewidth=1, zorder=0)
        panel.set_xscale("log")
        panel.set_xlim(min(0.8, 0.8 * min(row.low for row in rows)), max(2, high) ** 2)
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high > 5 else (1, 1.5, 2, 3, 5, 7)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")


if __name__ == "__main__":
    main()
