"""How do the time and memory of training, and the time of a generated token, grow with model, context and batch?

python experiments/growth.py                     5 minutes on two CPU cores, nothing else running
python experiments/growth.py --most 3 --rounds 3 the three smallest sizes of each sweep: 2 minutes
Each sweep varies one thing. Its slope in a log-log plot, by least squares, stands beside the slope of what theory
counts at the same sizes: FLOPs of a step (lm.model.cost), numbers held at once, bytes read for a token. Prints the
points, both slopes, both over the last doubling, and why they differ where they do; draws
experiments/figures/growth.svg. Expected: experiments/RESULTS.md.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

import lm
from lm.bench import Contestant, compare
from lm.figures import STYLE, save

FIGURE = Path(__file__).parent / "figures" / "growth.svg"
BASE, BATCH = dict(layers=4, width=128, heads=4, context=128, vocab=257), 8
SWEEPS = {
    "N by width": [dict(width=D) for D in (32, 64, 128, 256, 512)],
    "N by layers": [dict(layers=L) for L in (1, 2, 4, 8, 16)],
    "T": [dict(context=T, batch=4) for T in (32, 64, 128, 256, 512, 1024)],
    "batch": [dict(batch=B) for B in (1, 2, 4, 8, 16, 32)],
}
SLOTS = (128, 256, 512, 1024, 2048, 4096)
"""Sizes of the decoder's cache, which a generation fills."""
FAR = 0.1
"""A difference of slopes that is worth a word."""
WHY = {
    "N by width": "products with narrow matrices run far below the processor's peak",
    "N by layers": "beyond 8 layers a CPU's loop is not written out, and their numbers outgrow its caches",
    "T": "softmax and masks touch each of T scores a token, in memory, and count no FLOPs",
    "batch": "the optimizer's update comes with any batch and counts no FLOPs; large ones outgrow the caches",
    "memory": "XLA gives the room of what is read no more to what comes next, and copies some of what it loops over",
    "decode": "a small model's token costs mostly the calls of many small operations; a cache adds to that only once"
    " it outgrows the processor's own",
}


@dataclasses.dataclass(frozen=True)
class Series:
    """Something measured at several sizes, and what theory counts there."""

    name: str
    sizes: list[float]
    measured: list[float]
    counted: list[float]
    why: str
    """The known reason for another slope than theory's."""

    def slopes(self, values: list[float]) -> tuple[float, float]:
        """Of log value against log size: by least squares, and over the last two sizes."""
        x, y = np.log(self.sizes), np.log(values)
        return float(np.polyfit(x, y, 1)[0]), float((y[-1] - y[-2]) / (x[-1] - x[-2]))

    def text(self) -> str:
        """The points in a line, the slopes in another, and a reason where they differ."""
        points = "  ".join(f"{x:,.0f}: {y:.3g}" for x, y in zip(self.sizes, self.measured, strict=True))
        (whole, last), (theory, theory_last) = self.slopes(self.measured), self.slopes(self.counted)
        slopes = f"slope {whole:.2f}, theory {theory:.2f}; over the last two {last:.2f}, theory {theory_last:.2f}"
        far = max(abs(whole - theory), abs(last - theory_last)) > FAR
        return f"  {self.name}  {points}\n    {slopes}" + (f"\n    they differ: {self.why}" if far else "")


@dataclasses.dataclass(frozen=True)
class Panel:
    """What is plotted against what."""

    title: str
    x: str
    y: str
    series: list[Series]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=6, help="sizes of each sweep, from the smallest; at least 2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a turn")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    start = time.perf_counter()
    with lm.Display() as display:
        sweeps = {name: [changed(**change) for change in changes[: options.most]] for name, changes in SWEEPS.items()}
        steps = measure_steps(sweeps, options.rounds, options.seconds, display)
        panels = [*panels_of_training(steps), decoding(SLOTS[: options.most], options.rounds, display)]
    for panel in panels:
        print(f"{panel.title} [{panel.y}]", *(series.text() for series in panel.series), sep="\n")
    draw(panels, options.figure)
    print(f"{options.figure}, after {time.perf_counter() - start:.0f} s")


# --- training --------------------------------------------------------------------------------------------------------
def changed(batch: int = BATCH, **model) -> lm.Experiment:
    return lm.Experiment(model=lm.ModelConfig(**(BASE | model)), train=lm.TrainConfig(batch=batch))


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step of one size."""

    e: lm.Experiment
    parameters: int
    seconds: float
    bytes: float
    """Arguments and temporaries as XLA plans them, without the text."""

    @property
    def flops(self) -> float:
        return lm.build(self.e.model).cost().training_flops * self.e.batch_tokens

    @property
    def counted_bytes(self) -> float:
        """Numbers of four bytes held at once: parameters, Adam's two moments and gradients; for each token and layer
        what the backward pass reads again; and the logits, their exponentials and their gradient."""
        c = self.e.model
        blocks = 4 if c.context > 64 else 1  # of queries, which skip the future
        seen = c.context * (1 + 1 / blocks) / 2
        layer = 9 * c.width + 2 * c.F + c.heads * seen  # residuals, norms, q, k, v, mixture; hidden; weights
        return 4 * (4 * self.parameters + self.e.batch_tokens * (c.layers * layer + 3 * c.V))


def measure_steps(
    sweeps: dict[str, list[lm.Experiment]], rounds: int, seconds: float, display: lm.Display
) -> dict[str, list[Step]]:
    """Compile each size once, then time all of them in alternating turns."""
    sizes = list(dict.fromkeys(e for sweep in sweeps.values() for e in sweep))
    programs = []
    for i, e in enumerate(sizes):
        display.stage("compiling training", i, len(sizes))
        programs.append(lm.bench.Program(e))
    contestants = [Contestant(str(i), program.run) for i, program in enumerate(programs)]
    report = lambda done, total: display.stage("timing training", done, total)  # noqa: E731
    timings = compare(contestants, seconds, rounds, report=report)
    made = {}
    for e, program, timing in zip(sizes, programs, timings, strict=True):
        parameters = sum(leaf.size for leaf in jax.tree.leaves(program.pack.state(0).params))
        made[e] = Step(e, parameters, timing.seconds.median, program.memory_bytes - program.tokens.nbytes)
    return {name: [made[e] for e in sweep] for name, sweep in sweeps.items()}


def panels_of_training(steps: dict[str, list[Step]]) -> list[Panel]:
    """Time against N, time against tokens, and memory against whatever was varied."""

    def size(name: str, step: Step) -> float:
        return step.parameters if name.startswith("N") else step.e.batch_tokens

    def times(label: str, name: str) -> Series:
        sizes, milliseconds = zip(*((size(name, s), 1e3 * s.seconds) for s in steps[name]), strict=True)
        return Series(label, list(sizes), list(milliseconds), [s.flops for s in steps[name]], WHY[name])

    memories = []
    for name, of in steps.items():
        sizes = [size(name, s) / size(name, of[0]) for s in of]
        memories.append(Series(name, sizes, [s.bytes / 1e6 for s in of], [s.counted_bytes for s in of], WHY["memory"]))
    of_n = [times("by width", "N by width"), times("by layers", "N by layers")]
    of_tokens = [times(f"by T (B={steps['T'][0].e.train.batch})", "T"), times(f"by B (T={BASE['context']})", "batch")]
    return [
        Panel("Training: time against N", "parameters N", "ms per step", of_n),
        Panel("Training: time against T and B", "tokens in a batch", "ms per step", of_tokens),
        Panel("Training: memory", "N, T or batch, over its smallest", "MB", memories),
    ]


# --- decoding --------------------------------------------------------------------------------------------------------
def decoding(slots: Sequence[int], rounds: int, display: lm.Display) -> Panel:
    """Fill the caches token by token; each token reads the parameters and all of its cache's slots."""
    c = lm.ModelConfig(**(BASE | dict(context=max(slots))))
    params = lm.build(c).init(0)
    m = lm.Generator(lm.Trained(params, lm.bench.AnyText(c.vocab, 1), lm.Experiment(model=c), step=0))

    def filling(capacity: int) -> Callable[[int], None]:
        def run(n: int) -> None:
            for _ in range(n):
                lm.generate(m, [""], lm.Sampler(temperature=0), max_tokens=capacity)

        return run

    contestants = [Contestant(str(capacity), filling(capacity)) for capacity in slots]
    for i, one in enumerate(contestants):
        display.stage("compiling decoding", i, len(contestants))
        one.run(1)
    report = lambda done, total: display.stage("timing decoding", done, total)  # noqa: E731
    timings = compare(contestants, 1e-3, rounds, report=report)  # one generation a turn
    measured = [1e3 * timing.seconds.median / capacity for timing, capacity in zip(timings, slots, strict=True)]
    read_once = sum(leaf.size for leaf in jax.tree.leaves(params)) - c.V * c.width  # the embedding is looked up
    counted = [4 * (read_once + 2 * c.layers * c.K * c.H * capacity) for capacity in slots]
    series = Series("batch 1", list(slots), measured, counted, WHY["decode"])
    x = "slots of the cache, all read for each token"
    return Panel("Decoding: time against context", x, "ms per token", [series])


LARGE = (1e6, "M"), (1e3, "k")


# --- the figure ------------------------------------------------------------------------------------------------------
def draw(panels: list[Panel], path: Path) -> None:
    """Points as measured; dashed, what theory counts, scaled to meet the last point."""
    style = STYLE | {"font.size": 13, "axes.grid": False}
    with plt.rc_context(style):
        figure, axes = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
        for axis, panel in zip(axes.flat, panels, strict=True):
            draw_panel(axis, panel)
        save(figure, path)


def draw_panel(axis, panel: Panel) -> None:
    for i, series in enumerate(panel.series):
        (slope, _), (theory, _) = series.slopes(series.measured), series.slopes(series.counted)
        counted = np.array(series.counted) * series.measured[-1] / series.counted[-1]
        label = f"{series.name}: slope {slope:.2f}, theory {theory:.2f}"
        axis.plot(series.sizes, series.measured, marker="os^D"[i], color=f"C{i}", label=label)
        axis.plot(series.sizes, counted, linestyle="--", color=f"C{i}", linewidth=1.2, alpha=0.8)
    axis.set(xscale="log", yscale="log", xlabel=panel.x, ylabel=panel.y)
    axis.set_title(panel.title, fontsize=14)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * (high / low) ** (0.1 + 0.08 * len(panel.series)))  # room for the legend
    axis.legend(frameon=False, fontsize=11.5, loc="upper left", handlelength=1.2, borderaxespad=0.1)
    for which in (axis.xaxis, axis.yaxis):
        lowest, highest = which.get_view_interval()
        which.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if highest < 100 * lowest else (1, 3)))
        which.set_major_formatter(lambda x, _: next((f"{x / k:g}{of}" for k, of in LARGE if x >= k), f"{x:g}"))
        which.set_minor_formatter(ticker.NullFormatter())
    axis.grid(alpha=0.25)


if __name__ == "__main__":
    main()
