"""How much of a GPU does lm use, and what do its clever paths gain there?

python experiments/gpu_bench.py                          within 8 minutes on one H100 or H200
python experiments/gpu_bench.py --small                  the same code on small models: 2 minutes on two CPU cores
python experiments/gpu_bench.py --sections train-124M    some of it
Each section is a process of its own with a time budget; what does not fit into the budget, the memory or this machine
says so in its row and costs no other row. Models are GPT-2s on random tokens, in bfloat16 (float32 on a CPU). A ratio
is of neighbouring turns, a share is of what the same run measured as the machine's best; shown are medians (quartiles).
Prints a markdown table and draws experiments/figures/gpu_bench.svg. Expected results: experiments/RESULTS.md.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Memory that PyTorch does not find taken, beside JAX in one process.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import lm
from lm.scaling.flops import train_flops

FIGURE = Path(__file__).parent / "figures" / "gpu_bench.svg"
SECONDS, SMALL_SECONDS = 470, 180
"""For everything. A section has its own limit too, but a small one on a CPU."""
LEAST = 20
"""Seconds below which no section is begun."""
TINY = dict(layers=2, width=64, heads=2, context=64, vocab=256)
STEPS, RUNS = 32, 64
"""Of the tiny model: steps in a dispatch, runs in a pack."""


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
class Section:
    """A part of the bench: rows(scale, rounds, seconds) yields each row as soon as it is known."""

    seconds: float
    rows: Callable[..., Iterator[Row]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small models, for a CPU")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=list(SECTIONS), metavar="SECTION",
                        help=", ".join(SECTIONS))  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, help="seconds of a turn: 1, or 0.3 when small")
    parser.add_argument("--budget", type=float, help=f"seconds for everything: {SECONDS}, or {SMALL_SECONDS} if small")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in the section's own process
    options = parser.parse_args()
    turn = options.turn or (0.3 if options.small else 1.0)
    if options.here:
        tell(options.sections[0], options.small, options.rounds, turn)
        return

    end = time.monotonic() + (options.budget or (SMALL_SECONDS if options.small else SECONDS))
    rows, how = [], ["--small"] * options.small + ["--rounds", str(options.rounds), "--turn", str(turn)]
    programs = tempfile.TemporaryDirectory()  # sections share what they compile
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs.name)
    for name in options.sections:
        start = time.monotonic()
        rows += measured(name, how, end - start if options.small else min(SECTIONS[name].seconds, end - start))
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


def measured(name: str, how: list[str], seconds: float) -> list[Row]:
    """What the section's process tells within its seconds, and a row that says so if it told less than all."""
    if seconds < LEAST:
        return [Row(name, "missing", "the time was out before it began")]
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, __file__, "--here", "--sections", name, *how]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )  # with its helpers, torch.compile's for one
        try:
            told, why = process.communicate(timeout=seconds)[0], None
        except subprocess.TimeoutExpired:
            why = f"stopped after its {seconds:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if why:
            told = process.communicate()[0]
        errors.seek(0)
        if why is None and process.returncode:
            last = [line for line in errors.read().splitlines() if line.strip()][-1:]
            why = f"ended with status {process.returncode}: {''.join(last)}"
    rows = [Row(**json.loads(line.removeprefix(MARK))) for line in told.splitlines() if line.startswith(MARK)]
    return rows + ([Row(name, "missing", why)] if why else [])


def tell(name: str, small: bool, rounds: int, seconds: float) -> None:
    """In the section's process: print each row as it is known; an error is a row."""
    scale = SMALL if small else WHOLE
    device = jax.devices()[0]
    if device.platform == "cpu" and not small:
        raise SystemExit("JAX sees no accelerator here; --small is for a CPU")
    report(Row(f"{device.device_kind}, jax {jax.__version__}", "machine", ""))
    try:
        for row in SECTIONS[name].rows(scale, rounds, seconds):
            report(row)
    except Exception as error:  # whatever it is, the other sections go on
        report(Row(name, "missing", reason(error)))


def report(row: Row) -> None:
    print(MARK + json.dumps(dataclasses.asdict(row)), flush=True)


def reason(error: Exception) -> str:
    """One line of an error."""
    first = next(iter(str(error).strip().splitlines()), "").replace("|", "/")
    return "out of memory" if out_of_memory(error) else f"{type(error).__name__}: {first}"


def out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


# --- training --------------------------------------------------------------------------------------------------------
SMALL = {  # name: shape and batch
    "10M": (dict(layers=2, width=64, heads=2, context=128, vocab=257), 4),
    "124M": (dict(layers=2, width=128, heads=4, context=128, vocab=257), 4),
    "350M": (dict(layers=3, width=192, heads=4, context=128, vocab=257), 4),
}
WHOLE = {
    "10M": (dict(layers=6, width=384, heads=6, vocab=257), 64),
    "124M": (dict(), 32),
    "350M": (dict(layers=24, width=1024, heads=16), 16),
}


def experiment(shape: dict, batch: int, **changes) -> lm.Experiment:
    model = lm.ModelConfig.gpt2("124M", **shape, **changes)
    return lm.Experiment(model=model, train=lm.TrainConfig(batch=batch), optimizer=lm.OptimizerConfig(name="adamw"))


def fitting(shape: dict, batch: int) -> tuple[lm.Experiment, lm.bench.Program]:
    """The program with this batch, or with the largest half, quarter... of it that fits."""
    while True:
        e = experiment(shape, batch)
        try:
            return e, lm.bench.Program(e)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error) or batch == 1:
                raise
        batch //= 2


def described(e: lm.Experiment, program: lm.bench.Program) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
    size = f"{parameters / 1e6:.0f}M" if parameters >= 1e7 else f"{parameters / 1e3:,.0f}k"
    return f"train {size}, B={e.train.batch} T={e.model.context}"


def utilisation(scale: dict, rounds: int, seconds: float, *, size: str) -> Iterator[Row]:
    """Of the machine's FLOP/s: the fastest matrix product in the same rounds, and the data sheet's."""
    e, program = fitting(*scale[size])
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    limits = lm.bench.matmul_limits(dtype)
    contestants = [lm.bench.Contestant("lm", program.run), *(limit.contestant for limit in limits)]
    timings = lm.bench.compare(contestants, seconds, rounds)
    rates, peak = timings[0].seconds.per(e.batch_tokens), lm.bench.fastest(limits, timings)
    published, known = lm.bench.peak_flops(dtype)
    peaks = {f"fastest matrix product, {peak / 1e12:,.3g} TFLOP/s": peak}
    if known == "looked up":
        peaks[f"published peak, {published / 1e12:,.0f} TFLOP/s"] = published
    for against, peak in peaks.items():
        share = [rate * train_flops(e.model) / peak for rate in (rates.median, rates.low, rates.high)]
        yield Row(described(e, program), "share", against, *share, rates.median, "tokens/s")


def kernels(scale: dict, rounds: int, seconds: float) -> Iterator[Row]:
    """Of 124M, the utilisation, and the speed with attention by cuDNN and without."""
    yield from utilisation(scale, rounds, seconds, size="124M")
    e = beside(scale)
    fused = lm.bench.Program(lm.replace(e, {"model.attention": "cudnn"}))
    plain = lm.bench.Program(lm.replace(e, {"model.attention": "plain"}))
    work = f"{described(e, fused)}, cuDNN attention"
    yield raced(work, "attention by XLA", fused.run, plain.run, rounds, seconds, e.batch_tokens, "tokens/s")


def beside(scale: dict) -> lm.Experiment:
    """124M with a batch that fits into memory twice."""
    shape, batch = scale["124M"]
    return experiment(shape, max(1, batch // 2))


def against_torch(scale: dict, rounds: int, seconds: float) -> Iterator[Row]:
    """124M beside PyTorch as nanoGPT uses it."""
    e = beside(scale)
    theirs, ours = torch(e), lm.bench.Program(e)
    yield raced(described(e, ours), TORCH, ours.run, theirs, rounds, seconds, e.batch_tokens, "tokens/s")


TORCH = "PyTorch, torch.compile"


def torch(e: lm.Experiment) -> Callable[[int], None]:
    """PyTorch's run(n), warmed up, on the device that JAX uses."""
    if importlib.util.find_spec("torch") is None:
        raise lm.UserError("not installed: pip install 'lm[bench]'")
    import torch

    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise lm.UserError(f"torch {torch.__version__} is installed without CUDA")
    run = lm.bench.torch_trainer(e, True, device)
    run(3)
    return run


def raced(work: str, against: str, ours, theirs, rounds: int, seconds: float, amount: float, unit: str,
          their_amount: float | None = None) -> Row:  # fmt: skip
    """Ours over theirs, in `amount` of work for each unit of a contestant."""
    contestants = [lm.bench.Contestant("ours", ours), lm.bench.Contestant("theirs", theirs)]
    one, other = lm.bench.compare(contestants, seconds, rounds)
    theirs_each = amount if their_amount is None else their_amount
    ratio = [value * amount / theirs_each for value in (other.ratio.median, other.ratio.low, other.ratio.high)]
    against = f"{against}: {theirs_each / other.seconds.median:,.0f} {unit}"
    return Row(work, "ratio", against, *ratio, amount / one.seconds.median, unit)


# --- tiny models, and generation -------------------------------------------------------------------------------------
def tiny(scale: dict, rounds: int, seconds: float) -> Iterator[Row]:
    """Many steps in one call of the program against one; many runs in one program against one after another."""
    e = experiment(TINY, 8)
    alone, one = (lm.bench.Program(e, dispatch=steps) for steps in (STEPS, 1))
    shape = "L=2 D=64 T=64 B=8"
    yield raced(
        f"{STEPS} steps a dispatch, {shape}", "1 step a dispatch", alone.run, one.run, rounds, seconds, 1, "steps/s"
    )
    runs = 8 if scale is SMALL else RUNS
    packed = lm.bench.PackProgram(e, runs, how="vmap", dispatch=STEPS)
    unit = "runs x steps/s"
    yield raced(
        f"{runs} runs packed, {shape}", "one after another", packed.run, alone.run, rounds, seconds, runs, unit, 1
    )


def decoding(scale: dict, rounds: int, seconds: float) -> Iterator[Row]:
    """Greedy generation by 124M against reading the parameters and the cache once a step."""
    small = scale is SMALL
    for batch in (1, 8 if small else 64):
        e = experiment(scale["124M"][0], 1)
        how = dict(batch=batch, tokens=32 if small else 256, rounds=rounds, seconds=seconds, peers=False)
        found = lm.bench.decode(e, **how)
        rates = found.tokens_per_second, *found.quartiles
        shares = [found.utilization * rate / found.tokens_per_second for rate in rates]
        against = (
            f"reading {found.bytes_per_step / 1e6:,.3g} MB a step at {found.read_bytes_per_second / 1e9:,.3g} GB/s"
        )
        yield Row(
            f"decode {'small' if small else '124M'}, batch {batch}", "share", against, *shares, rates[0], "tokens/s"
        )


SECTIONS = {
    "train-124M": Section(160, kernels),
    "train-10M": Section(70, lambda *how: utilisation(*how, size="10M")),
    "train-350M": Section(110, lambda *how: utilisation(*how, size="350M")),
    "tiny": Section(90, tiny),
    "decode": Section(130, decoding),
    "torch-124M": Section(160, against_torch),
}


# --- the figure ------------------------------------------------------------------------------------------------------
def draw(rows: list[Row], path: Path) -> None:
    """Two panels of bars with quartiles: shares of what the machine can do, and ratios of speeds, from 1 on."""
    panels = {"share": ("of what the machine can do, %", 100), "ratio": ("times as fast", 1)}
    chosen = {kind: [row for row in rows if row.kind == kind] for kind in panels}
    chosen = {kind: of for kind, of in chosen.items() if of}
    style = {"font.size": 11, "svg.hashsalt": "lm", "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            len(chosen), 1, figsize=(8.4, 1.2 * len(chosen) + 0.5 * sum(map(len, chosen.values()))), squeeze=False,
            height_ratios=[len(of) + 1 for of in chosen.values()], layout="constrained",
        )  # fmt: skip
        for panel, (kind, of) in zip(axes[:, 0], chosen.items(), strict=True):
            (label, scale), start = panels[kind], int(kind == "ratio")
            for place, row in enumerate(of):
                error = [[scale * (row.median - row.low)], [scale * (row.high - row.median)]]
                colour = "C2" if "published" in row.against else "C0" if kind == "share" else "C1"
                panel.barh(
                    place, scale * row.median - start, 0.7, start, xerr=error, color=colour, alpha=0.8, capsize=2.5
                )
                text = f"{row.median:.0%}" if kind == "share" else f"{row.median:.2f}x"
                against = row.against.split(":")[0]
                place = max(start, scale * row.high), place
                panel.annotate(f"{text}  {against}", place, (6, 0), textcoords="offset points", va="center",
                               fontsize=9.5, backgroundcolor="white")  # fmt: skip
            panel.set_yticks(
                range(len(of)), [row.work.replace(", L=", "\nL=").replace(", cuDNN", "\ncuDNN") for row in of]
            )
            panel.tick_params(axis="y", length=0)
            panel.invert_yaxis()
            low, high = min(scale * row.low for row in of), max(scale * row.high for row in of)
            if kind == "share":
                panel.set_xticks(range(0, 101, 20 if high > 25 else 5))
                panel.set_xlim(0, 2.6 * high)
            else:
                panel.axvline(1, color="black", linewidth=1, zorder=0)
                panel.set_xscale("log")
                panel.set_xlim(min(0.8, 0.8 * low), max(2, high) ** 2)
                panel.xaxis.set_major_formatter("{x:g}")
                panel.xaxis.set_minor_formatter("")
            panel.set_xlabel(label)
        figure.suptitle(where(rows), fontsize=11)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


if __name__ == "__main__":
    main()
