"""Which settings pay in a small model? Time to a loss, one change at a time, on two corpora and at two sizes.

python experiments/recipe.py --corpus input.txt         trains what is missing; over an hour on two idle cores
python experiments/recipe.py --corpus input.txt --time  then: how long a step takes, 10 minutes, nothing else running
python experiments/recipe.py --variants cosine GELU --cells tiny-stdlib --seeds 0                         a part of it
Without --corpus (or LM_DATA, a folder with shakespeare/input.txt in it) only the corpus that needs no file is used.

Every variant differs from the baseline in one thing and is trained in full twice, once twice as long. A line through
its two losses over log(steps) says how many steps it needs for the loss that the baseline, with the same seed, reaches
in sqrt(2) times the shorter run. Times a step's time, measured apart beside the baseline's, that is the time to a loss.
Below 1 is faster than the baseline. Prints a table and draws experiments/figures/recipe.svg.
Stopped, it goes on where it was. Expected: experiments/RESULTS.md.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

import lm
from lm.figures import STYLE, save
from lm.files import whole
from lm.hardware import keep_compiled_programs
from lm.settings import FREE, PACKABLE, flatten, to_dict

FIGURE = Path(__file__).parent / "figures" / "recipe.svg"
BASELINE = lm.Experiment(
    data=lm.DataConfig(validation=0.1),
    model=lm.ModelConfig(activation="swiglu", embedding_norm=True),
    optimizer=lm.OptimizerConfig(
        name="muon", learning_rate=12e-3, matrix_learning_rate=0.03, momentum=0.9, beta2=0.95, newton_schulz=3
    ),
    schedule=lm.ScheduleConfig(name="wsd", warmup="2%", decay="60%"),
    train=lm.TrainConfig(eval_tokens=50_000, log_every="100%", eval_every="100%", checkpoint_every="100%", keep=1),
)
"""The recipe of configs/quickstart.py. Zero initialisation, QK-norm, RMSNorm, rotary positions and an untied head are
ModelConfig's own."""
PACK = 4
"""Most runs side by side: few enough that little is lost when the command is stopped."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A model, its batch, and the steps of the shorter run."""

    model: dict
    batch: int
    steps: int


SIZES = {
    "tiny": Size(dict(layers=2, width=64, heads=2, context=128), batch=32, steps=80),
    "small": Size(dict(layers=4, width=128, heads=4, context=64), batch=12, steps=120),
}
CELLS = {
    f"{size}-{corpus}": (size, corpus) for size, corpus in
    (("small", "shakespeare"), ("tiny", "stdlib"), ("small", "stdlib"), ("tiny", "shakespeare"))
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Variant:
    """One change to the baseline."""

    changes: dict = dataclasses.field(default_factory=dict)
    """Dotted settings."""
    rates: float = 1.0
    """All learning rates times this."""
    batch: float = 1.0
    """Sequences in a batch times this, and steps of a run by this: the same tokens."""
    steps: float = 1.0
    """Steps of a run times this, for a variant so slow that its line would be drawn too far."""
    short_windows: bool = False
    """The first half of the run reads windows of half the length, twice as many: schedule.context_start."""


def rate(learning_rate: float, matrix_learning_rate: float = 0.03) -> dict:
    return {"optimizer.learning_rate": learning_rate, "optimizer.matrix_learning_rate": matrix_learning_rate}


VARIANTS = {
    "baseline": Variant(),
    "AdamW 2e-3": Variant({"optimizer.name": "adamw", **rate(2e-3)}, steps=2),
    "AdamW 4e-3": Variant({"optimizer.name": "adamw", **rate(4e-3)}, steps=2),
    "AdamW 8e-3": Variant({"optimizer.name": "adamw", **rate(8e-3)}, steps=2),
    "matrix rate x 0.5": Variant(rate(12e-3, 0.015)),
    "matrix rate x 2": Variant(rate(12e-3, 0.06)),
    "other rate x 0.5": Variant(rate(6e-3)),
    "other rate x 2": Variant(rate(24e-3)),
    "momentum 0.95": Variant({"optimizer.momentum": 0.95}),
    "beta2 0.99": Variant({"optimizer.beta2": 0.99}),
    "5 Newton-Schulz steps": Variant({"optimizer.newton_schulz": 5}),
    "no clipping": Variant({"optimizer.clip": None}),
    "no weight decay": Variant({"optimizer.weight_decay": 0.0}),
    "cosine": Variant({"schedule.name": "cosine"}),
    "decay 20%": Variant({"schedule.decay": "20%"}),
    "decay 40%": Variant({"schedule.decay": "40%"}),
    "decay 80%": Variant({"schedule.decay": "80%"}),
    "decay 98%": Variant({"schedule.decay": "98%"}),
    "warm-up 10%": Variant({"schedule.warmup": "10%"}),
    "batch x 2": Variant(rates=2**0.5, batch=2),
    "batch x 0.5": Variant(rates=0.5**0.5, batch=0.5),
    "short windows first": Variant(short_windows=True),
    "no zero initialisation": Variant({"model.zero_init": False}),
    "no QK-norm": Variant({"model.qk_norm": False}),
    "GELU": Variant({"model.activation": "gelu"}),
    "squared ReLU": Variant({"model.activation": "relu2"}),
    "tied head": Variant({"model.tied": True}),
    "learned positions": Variant({"model.positions": "learned"}),
    "LayerNorm": Variant({"model.norm": "layernorm"}),
    "value residuals": Variant({"model.value_residual": True}),
    "no embedding norm": Variant({"model.embedding_norm": False}),
    "logit softcap 15": Variant({"model.logit_softcap": 15.0}),
}


# --- experiments -----------------------------------------------------------------------------------------------------
def experiment(cell: str, name: str, longer: bool, seed: int, corpus: str | None) -> lm.Experiment:
    """One run: a variant in a cell, of the shorter or the longer length."""
    (size_name, corpus_name), variant = CELLS[cell], VARIANTS[name]
    size = SIZES[size_name]
    data = {"data.corpus": "stdlib", "data.tokenizer": "bytes"}
    if corpus_name == "shakespeare":
        data = {"data.corpus": corpus or "shakespeare", "data.tokenizer": "chars"}
    steps = round(size.steps * (1 + longer) * variant.steps / variant.batch)
    e = lm.replace(BASELINE, {f"model.{key}": value for key, value in size.model.items()} | data)
    e = lm.replace(e, {"train.steps": steps, "train.batch": round(size.batch * variant.batch)} | variant.changes)
    if variant.short_windows:
        e = lm.replace(e, {"schedule.context_start": e.model.context // 2})
    rates = rate(variant.rates * e.optimizer.learning_rate, variant.rates * e.optimizer.matrix_learning_rate)
    slug = name.replace(" ", "-").replace("%", "")
    return lm.replace(e, rates | {"train.seed": seed, "name": f"{cell}/{slug}/{steps}-seed{seed}"})


def validation_loss(folder: Path, e: lm.Experiment) -> float | None:
    """The last one of a finished run; None while there is none."""
    file = folder / e.name / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return next((r["val_loss"] for r in records if r["step"] == e.train.steps and "val_loss" in r), None)


def program_of(e: lm.Experiment) -> str:
    """What decides which program is compiled, and for how long it runs; equal for runs that make a pack."""
    traced = PACKABLE | (FREE - {"model.unroll", "train.steps"})
    return json.dumps({key: value for key, value in flatten(to_dict(e)).items() if key not in traced})


def train(cells: Sequence[str], names: Sequence[str], seeds: Sequence[int], folder: Path, corpus: str | None) -> None:
    """Train what is not trained yet, in packs of runs that share a program."""
    for cell in cells:
        packs: dict[str, list[lm.Experiment]] = {}
        for name, longer, seed in itertools.product(names, (False, True), seeds):
            e = experiment(cell, name, longer, seed, corpus)
            if validation_loss(folder, e) is None:
                packs.setdefault(program_of(e), []).append(e)
        for runs in packs.values():
            for start in range(0, len(runs), PACK):
                pack = runs[start : start + PACK]
                train_pack(pack, folder)
                for e in pack:
                    print(f"{e.name:<55}{validation_loss(folder, e) or math.nan:8.4f}", flush=True)


def train_pack(pack: list[lm.Experiment], folder: Path) -> None:
    """Train and keep the losses alone; a run that diverges has none."""
    with contextlib.suppress(lm.Diverged):
        runs = lm.train_pack(pack, folder=folder)
        if any(run.steps()[-1] < run.record["steps"]["total"] for run in runs):
            raise SystemExit("stopped; the same command goes on from there")
    for e in pack:
        shutil.rmtree(lm.Run(folder / e.name).checkpoint_folder, ignore_errors=True)  # one that diverged has none


# --- how long a step takes -------------------------------------------------------------------------------------------
class Steps:
    """Optimizer steps of an experiment, half of them on short windows if it has any, as a unit of work."""

    def __init__(self, e: lm.Experiment):
        e = lm.replace(e, {"model.vocab": 257 if e.data.tokenizer == "bytes" else 65})
        self.programs = [lm.bench.Program(e, pieces=n) for n in ([2, 1] if e.schedule.context_start else [1])]

    def run(self, n: int) -> None:
        """n times as many steps as there are programs."""
        for program in self.programs:
            program.run(n)


def time_steps(cells: Sequence[str], names: Sequence[str], folder: Path, rounds: int, seconds: float) -> None:
    """Write times.json: for each cell and variant its step's time over the baseline's, median and quartiles."""
    file = folder / "times.json"
    for cell in cells:
        made = {name: experiment(cell, name, False, 0, None) for name in names}
        programs = {name: program_of(e) for name, e in made.items()}
        distinct = {kind: name for name, kind in reversed(programs.items())}  # the first of each kind
        steps = {name: Steps(made[name]) for name in names if name in distinct.values()}
        contestants = [lm.bench.Contestant(name, of.run) for name, of in steps.items()]  # the baseline first
        timings = {timing.name: timing for timing in lm.bench.compare(contestants, seconds, rounds)}
        ratios = {}
        for name, kind in programs.items():
            spread, parts = timings[distinct[kind]].ratio, len(steps[distinct[kind]].programs)
            ratios[name] = [spread.median / parts, spread.low / parts, spread.high / parts]
            print(f"{cell:<20}{name:<25}{ratios[name][0]:.3f} ({ratios[name][1]:.3f} to {ratios[name][2]:.3f})")
        times = json.loads(file.read_text()) if file.is_file() else {}
        with whole(file) as target:
            target.write(json.dumps(times | {cell: times.get(cell, {}) | ratios}, indent=2) + "\n")


# --- time to a loss --------------------------------------------------------------------------------------------------
def steps_to(target: float, steps: Sequence[int], losses: Sequence[float]) -> float:
    """Where the line through two (log(steps), loss) meets the target; infinite where the longer run is no better."""
    gained = losses[0] - losses[1]
    if not gained > 0:
        return math.inf
    return steps[0] * (steps[1] / steps[0]) ** ((losses[0] - target) / gained)


def target(losses: Sequence[float]) -> float:
    """The baseline's loss at sqrt(2) times its shorter run, from those of a run and of one twice as long."""
    return sum(losses) / 2


def steps_ratios(cell: str, name: str, seeds: Sequence[int], folder: Path) -> list[float]:
    """Steps to the baseline's loss over the baseline's steps, for each seed that both were trained with.

    The baseline itself is held against the mean loss of its seeds, which shows what seeds alone do.
    """

    def runs(name: str, seed: int) -> tuple[list[int], list[float | None]]:
        both = [experiment(cell, name, longer, seed, None) for longer in (False, True)]
        return [e.train.steps for e in both], [validation_loss(folder, e) for e in both]

    base = {seed: runs("baseline", seed) for seed in seeds}
    base = {seed: run for seed, run in base.items() if None not in run[1]}
    ratios = []
    for seed, (steps, losses) in base.items():
        wanted = target(losses) if name != "baseline" else statistics.mean(target(run[1]) for run in base.values())
        theirs, their_losses = runs(name, seed)
        if None not in their_losses:
            ratios.append(steps_to(wanted, theirs, their_losses) / (math.sqrt(2) * steps[0]))
    return ratios


@dataclasses.dataclass(frozen=True)
class Cost:
    """A variant in a cell: steps to the target loss for each seed and the time of a step, over the baseline's."""

    steps: list[float]
    step: float

    @property
    def time(self) -> list[float]:
        return [ratio * self.step for ratio in self.steps]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.mean(map(math.log, values)))


def gather(cells: Sequence[str], names: Sequence[str], seeds: Sequence[int], folder: Path) -> dict[str, dict]:
    """{variant: {cell: Cost}} of what was trained; a step that was not timed counts as the baseline's."""
    file = folder / "times.json"
    times = json.loads(file.read_text()) if file.is_file() else {}
    costs = {}
    for name in names:
        steps = {cell: steps_ratios(cell, name, seeds, folder) for cell in cells}
        costs[name] = {
            cell: Cost(ratios, times.get(cell, {}).get(name, [1.0])[0]) for cell, ratios in steps.items() if ratios
        }
    return {name: of for name, of in costs.items() if of}


def overall(of: dict[str, Cost]) -> float:
    """Geometric mean of the time ratio over cells and seeds."""
    return geometric_mean([geometric_mean(cost.time) for cost in of.values()])


def table(costs: dict[str, dict[str, Cost]], cells: Sequence[str]) -> str:
    """Markdown, the fastest first: time to the loss, its least and most over the seeds, and the ratio of steps."""

    def entry(cost: Cost | None) -> str:
        if cost is None:
            return ""
        time = geometric_mean(cost.time)
        spread = f" ({min(cost.time):.2f} to {max(cost.time):.2f})" if len(cost.time) > 1 else ""
        return f"{time:.2f}{spread}; {geometric_mean(cost.steps):.2f} x {cost.step:.2f}"

    lines = ["| variant | " + " | ".join(cells) + " | all |", "|---" * (len(cells) + 2) + "|"]
    for name, of in sorted(costs.items(), key=lambda item: overall(item[1])):
        lines.append(f"| {name} | " + " | ".join(entry(of.get(cell)) for cell in cells) + f" | {overall(of):.2f} |")
    return "\n".join(lines)


def draw(costs: dict[str, dict[str, Cost]], cells: Sequence[str], path: Path) -> None:
    """A line a variant: each cell's mean over seeds with its least and most; grey, what seeds do to the baseline."""
    style = STYLE | {"font.size": 12, "axes.grid": False}
    order = sorted((name for name in costs if name != "baseline"), key=lambda name: overall(costs[name]), reverse=True)
    with plt.rc_context(style):
        figure, axes = plt.subplots(figsize=(8.4, 1.6 + 0.31 * len(order)), layout="constrained")
        seeds = [time for cost in costs["baseline"].values() for time in cost.time]
        axes.axvspan(min(seeds), max(seeds), color="0.85", linewidth=0, label="the baseline's seeds")
        axes.axvline(1, color="black", linewidth=1)
        for i, cell in enumerate(cells):
            places = [place for place, name in enumerate(order) if cell in costs[name]]
            times = [costs[order[place]][cell].time for place in places]
            middle = np.array([geometric_mean(time) for time in times])
            around = [middle - [min(time) for time in times], [max(time) for time in times] - middle]
            shifted = np.array(places) + 0.16 * ((len(cells) - 1) / 2 - i)
            axes.errorbar(middle, shifted, xerr=around, fmt="osD^"[i], markersize=4.5, linewidth=1.2, label=cell)
        axes.set(xscale="log", xlabel="time to the baseline's loss, over the baseline's time (below 1: faster)")
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(-0.7, len(order) - 0.3)
        ticks = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 4, 6]
        axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.grid(alpha=0.25)
        axes.legend(frameon=True, framealpha=1, edgecolor="none", fontsize=11, loc="upper right")
        save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="Shakespeare's text, the file input.txt of char-rnn and nanoGPT")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--time", action="store_true", help="time steps instead of training")
    parser.add_argument("--show", action="store_true", help="only show what there is")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    if not options.corpus and "LM_DATA" in os.environ:
        options.corpus = str(Path(os.environ["LM_DATA"]) / "corpora" / "shakespeare" / "input.txt")
    training = not (options.time or options.show)  # the others need no text
    possible = [cell for cell in CELLS if options.corpus or not training or not cell.endswith("shakespeare")]
    cells = options.cells or possible
    names = list(dict.fromkeys(["baseline", *options.variants]))
    keep_compiled_programs(options.runs / "programs")
    if options.time:
        time_steps(cells, names, options.runs, options.rounds, options.seconds)
    elif training:
        train(cells, names, options.seeds, options.runs, options.corpus)
    costs = gather(cells, names, options.seeds, options.runs)
    print(table(costs, cells))
    draw(costs, cells, options.figure)
    print(options.figure)


if __name__ == "__main__":
    main()
