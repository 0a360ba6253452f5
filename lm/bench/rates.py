"""How fast models of several sizes train here, so that a sweep can be planned in minutes."""

import functools
from collections.abc import Sequence

from lm import settings
from lm.bench.rounds import Contestant, compare
from lm.bench.training import Program
from lm.config import Experiment
from lm.hardware import peak_flops
from lm.model.api import build
from lm.sweep.design import shape
from lm.sweep.planning import Rates, Rules, Size, affordable_sizes, batch_of
from lm.training.display import Display

TOKENS_PER_PARAMETER = 80
"""Of the runs whose batch the rates are measured with: the middle of a design's."""


def training_rates(
    e: Experiment, sizes: Sequence[Size], *, runs: int = 1, seconds: float = 1.0, rounds: int = 3,
    display: Display | None = None,
) -> Rates:  # fmt: skip
    """FLOP/s (exact) of the experiment's training step on random tokens at each of these sizes, and seconds to compile.

    runs: trained side by side as a pack, which is faster than one after another; their FLOPs add up. The sizes take
    turns (lm.bench.rounds); the median counts. e: its vocabulary known.
    """
    with display or Display(quiet=True) as display:
        measured, programs = [_sized(e, s) for s in sizes], []
        for one in measured:
            display.stage("compiling", len(programs), len(measured))
            programs.append(Program(*[one] * runs))
        contestants = [Contestant(f"{s.layers} x {s.width}", p.run) for s, p in zip(sizes, programs, strict=True)]
        report = functools.partial(display.stage, "measuring the rate")
        timings = compare(contestants, seconds, rounds, report=report)
    work = [runs * s.flops * one.batch_tokens for s, one in zip(sizes, measured, strict=True)]
    speeds = [flops / timing.seconds.median for flops, timing in zip(work, timings, strict=True)]
    setup = sum(program.compile_seconds for program in programs) / len(programs)
    return Rates(tuple(float(s.params_total) for s in sizes), tuple(speeds), setup)


def sizes_to_measure(e: Experiment, seconds: float, rules: Rules) -> list[Size]:
    """The smallest, the middle and the largest size that this machine at its peak could train in the time."""
    peak, _ = peak_flops(str(build(e.model).product_dtype))
    sizes = affordable_sizes(e.model, seconds * peak, rules)
    return [sizes[i] for i in sorted({0, len(sizes) // 2, len(sizes) - 1})] if sizes else []


def _sized(e: Experiment, s: Size) -> Experiment:
    batch = batch_of(TOKENS_PER_PARAMETER * s.params_total, e.model.context)
    return settings.replace(e, shape(e.model, s.layers, s.width, s.heads) | {"train.batch": batch})
