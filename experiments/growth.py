"""How do the time and memory of training, and the time of a generated token, grow with the model and its context?

python experiments/growth.py                    5 minutes on two CPU cores, nothing else running
python experiments/growth.py --panels decode    some panels
Each panel varies one thing, and compares the slope in a log-log plot, from end to end and over the last doubling, with
the slope of what theory counts at the same points: FLOPs of a step (lm.scaling.flops), numbers held, bytes read. Prints
the points and, where slopes differ, the known reason. Draws experiments/figures/growth.svg.
Expected: time grows with FLOPs once they outweigh what every step and layer costs anyway, memory as counted.
"""

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import lm
from lm.scaling.flops import train_flops

FIGURE = Path(__file__).parent / "figures" / "growth.svg"
BASE = dict(layers=4, width=128, heads=4, context=128, vocab=257)
BATCH = 8
WIDTHS, LAYERS = (32, 64, 128, 256, 512), (1, 2, 4, 8, 16)
CONTEXTS, BATCHES = (32, 64, 128, 256, 512, 1024), (1, 2, 4, 8, 16, 32)
HELD = (128, 256, 512, 1024, 2048, 4096)
"""Slots of the decoder's cache, filled to the end."""
DECODED = 64
FAR = 0.1
"""A difference of slopes that is worth a word."""


@dataclasses.dataclass(frozen=True)
class Series:
    """Something measured at several sizes, and what theory counts there."""

    name: str
    sizes: list[float]
    measured: list[float]
    counted: list[float]
    why: str
    """The usual reason for another slope than theory's."""

    def slopes(self, values: list[float]) -> tuple[float, float]:
        """Least squares over all points, and over the last two."""
        x, y = np.log(self.sizes), np.log(values)
        return float(np.polyfit(x, y, 1)[0]), float((y[-1] - y[-2]) / (x[-1] - x[-2]))


@dataclasses.dataclass(frozen=True)
class Panel:
    """What is plotted against what."""

    title: str
    x: str
    y: str
    series: list[Series]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panels", nargs="+", default=list(SWEEPS), choices=list(SWEEPS))
    parser.add_argument("--most", type=int, default=6, help="sizes of each sweep, from the smallest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a turn")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    start, panels = time.perf_counter(), []
    for name in options.panels:
        panels += SWEEPS[name](options.most, options.rounds, options.seconds)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    for panel in panels:
        for series in panel.series:
            print_series(panel, series)
    draw(panels, options.figure)
    print(options.figure)


def print_series(panel: Panel, series: Series) -> None:
    """The points in a line, the slopes in another, and a reason where they differ."""
    points = "  ".join(f"{x:,.0f}: {y:.3g}" for x, y in zip(series.sizes, series.measured, strict=True))
    (whole, last), (theory, theory_last) = series.slopes(series.measured), series.slopes(series.counted)
    print(f"{panel.title}{', ' + series.name if series.name else ''} [{panel.y}]  {points}")
    print(f"  slope {whole:.2f}, theory {theory:.2f}; over the last doubling {last:.2f}, theory {theory_last:.2f}")
    if max(abs(whole - theory), abs(last - theory_last)) > FAR and series.why:
        print(f"  they differ: {series.why}")


# --- training --------------------------------------------------------------------------------------------------------
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
        return train_flops(self.e.model) * self.e.batch_tokens

    @property
    def counted_bytes(self) -> float:
        """Numbers of four bytes held at once: parameters, Adam's two moments and gradients; for each token and layer
        what the backward pass reads again; and the logits, their exponentials and their gradient."""
        c = self.e.model
        blocks = 4 if c.context > 64 else 1  # of queries, which skip the future
        seen = c.context * (1 + 1 / blocks) / 2
        layer = 9 * c.width + 2 * c.F + c.heads * seen  # residuals, norms, q, k, v, mixture; hidden; weights
        return 4 * (4 * self.parameters + self.e.batch_tokens * (c.layers * layer + 3 * c.V))


def steps(changes: list[dict], rounds: int, seconds: float) -> list[Step]:
    """Time a training step after each change to the base model, in alternating turns."""
    made = []
    for change in changes:
        model = lm.ModelConfig(**(BASE | {name: value for name, value in change.items() if name != "batch"}))
        e = lm.Experiment(model=model, train=lm.TrainConfig(batch=change.get("batch", BATCH)))
        made.append((e, lm.bench.Program(e)))
    contestants = [lm.bench.Contestant(str(i), program.run) for i, (_, program) in enumerate(made)]
    timings = lm.bench.compare(contestants, seconds, rounds)
    return [
        Step(
            e, sum(leaf.size for leaf in jax.tree.leaves(program.state.params)), timing.seconds.median,
            program.memory_bytes - program.tokens.nbytes,
        )
        for (e, program), timing in zip(made, timings, strict=True)
    ]  # fmt: skip


def time_of(name: str, sizes, made: list[Step], why: str) -> Series:
    return Series(name, list(sizes), [1e3 * step.seconds for step in made], [step.flops for step in made], why)


def memory_of(name: str, sizes, made: list[Step], why: str) -> Series:
    return Series(name, list(sizes), [step.bytes / 1e6 for step in made], [step.counted_bytes for step in made], why)


SMALL_PRODUCTS = "small matrix products run far below the processor's peak, and each layer has a fixed cost"
ATTENTION = "softmax and masks touch every score, T of them per token, and count no FLOPs here"
IN_TURN = "XLA reuses the memory of what is no longer needed; gradients and activations do not all live at once"


def growth_with_n(most: int, rounds: int, seconds: float) -> list[Panel]:
    times, memories = [], []
    for name, changes in (
        ("by width", [dict(width=width) for width in WIDTHS]),
        ("by layers", [dict(layers=layers) for layers in LAYERS]),
    ):
        made = steps(changes[:most], rounds, seconds)
        parameters = [step.parameters for step in made]
        times.append(time_of(name, parameters, made, SMALL_PRODUCTS))
        memories.append(memory_of(name, parameters, made, IN_TURN))
    x = "parameters N"
    return [Panel("Time against N", x, "ms per step", times), Panel("Memory against N", x, "MB", memories)]


def growth_with_tokens(most: int, rounds: int, seconds: float) -> list[Panel]:
    contexts, batches = CONTEXTS[:most], BATCHES[:most]
    longer = steps([dict(context=T, batch=4) for T in contexts], rounds, seconds)
    wider = steps([dict(batch=B) for B in batches], rounds, seconds)
    fixed = "the optimizer's update and other fixed costs do not grow with B"
    memories = [
        memory_of("by T (B=4)", [step.e.batch_tokens for step in longer], longer, IN_TURN),
        memory_of("by B (T=128)", [step.e.batch_tokens for step in wider], wider, IN_TURN),
    ]
    return [
        Panel("Time against T", "context T (B=4)", "ms per step", [time_of("", contexts, longer, ATTENTION)]),
        Panel("Time against B", "batch B (T=128)", "ms per step", [time_of("", batches, wider, fixed)]),
        Panel("Memory against tokens", "tokens in a batch", "MB", memories),
    ]


# --- decoding --------------------------------------------------------------------------------------------------------
def growth_of_decoding(most: int, rounds: int, seconds: float) -> list[Panel]:
    """A generation of DECODED tokens less one of a single token, which reads the same prompt into as large a cache."""
    slots = HELD[:most]
    c = lm.ModelConfig(**(BASE | dict(context=slots[-1])))
    e = lm.Experiment(model=c)
    program = lm.bench.Program(lm.Experiment(model=lm.ModelConfig(**BASE), train=lm.TrainConfig(batch=1)))
    params = program.state.params  # rotary positions: they fit any context
    read_once = sum(leaf.size for leaf in jax.tree.leaves(params)) - c.V * c.width  # the embedding is looked up

    def generation(prompt: int, tokens: int) -> Callable[[int], None]:
        m = lm.Model(params, lm.bench.AnyText(c.vocab, prompt), e, 0)

        def run(n: int) -> None:
            for _ in range(n):
                lm.generate(m, [""], lm.Sampler(temperature=0), max_tokens=tokens)

        run(1)
        return run

    held, measured, counted = [], [], []
    for capacity in slots:
        prompt = capacity - DECODED
        many, one = generation(prompt, DECODED), generation(prompt, 1)
        differences = []
        for _ in range(rounds):
            differences.append(took(many, seconds) - took(one, seconds))
        held.append(prompt + DECODED / 2)
        measured.append(1e3 * statistics.median(differences) / (DECODED - 1))
        counted.append(4 * (read_once + 2 * c.layers * c.K * c.H * held[-1]))
    why = "scores, softmax and writing the cache cost more than reading; a small cache is hidden by fixed costs"
    return [Panel("A token against what is held", "tokens in the cache", "ms per token",
                  [Series("", held, measured, counted, why)])]  # fmt: skip


def took(run: Callable[[int], None], seconds: float) -> float:
    """Seconds a call, of as many as fit."""
    start, made, passed = time.perf_counter(), 0, 0.0
    while passed < seconds / 2:
        run(1)
        made, passed = made + 1, time.perf_counter() - start
    return passed / made


SWEEPS = {"N": growth_with_n, "tokens": growth_with_tokens, "decode": growth_of_decoding}


# --- the figure ------------------------------------------------------------------------------------------------------
def draw(panels: list[Panel], path: Path) -> None:
    """Points as measured; dashed, what theory counts, scaled to meet the largest."""
    order = sorted(panels, key=lambda panel: (panel.y == "MB", panel.title.startswith("A ")))
    columns = min(3, len(order))
    lines = math.ceil(len(order) / columns)
    style = {"font.size": 13, "svg.hashsalt": "lm", "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            lines, columns, figsize=(4.6 * columns, 4.1 * lines), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(order) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes.flat, order, strict=False):
            draw_panel(axis, panel)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def draw_panel(axis, panel: Panel) -> None:
    for i, series in enumerate(panel.series):
        (slope, _), (theory, _) = series.slopes(series.measured), series.slopes(series.counted)
        counted = np.array(series.counted) * series.measured[-1] / series.counted[-1]
        label = f"{series.name + ': ' if series.name else ''}slope {slope:.2f}, theory {theory:.2f}"
        axis.plot(series.sizes, series.measured, marker="os"[i], color=f"C{i}", label=label)
        axis.plot(series.sizes, counted, linestyle="--", color=f"C{i}", linewidth=1.2, alpha=0.8)
    axis.set(xscale="log", yscale="log", xlabel=panel.x, ylabel=panel.y)
    axis.set_title(panel.title, fontsize=14)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * (high / low) ** (0.12 + 0.1 * len(panel.series)))  # room for the legend
    axis.legend(frameon=False, fontsize=11.5, loc="upper left", handlelength=1.2, borderaxespad=0.1)
    for which in (axis.xaxis, axis.yaxis):
        which.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axis.grid(alpha=0.25)


if __name__ == "__main__":
    main()
