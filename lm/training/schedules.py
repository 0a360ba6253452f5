"""Learning-rate schedules: a fraction of the peak for every step, a pure function of numbers.

They take the arrays of any namespace: training traces them in JAX, in float32; two lengths of a run are compared in
NumPy, in float64, which tells apart rates that differ at all.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lm.config import Steps

Array = Any
"""Floating point, of NumPy or JAX."""
STRETCH = 1 << 20
"""Steps compared at once."""


def cosine(left: Array, h: dict) -> Array:
    """Falls by half a cosine from the peak to the final fraction (Loshchilov and Hutter 2017)."""
    xp = left.__array_namespace__()
    return h["final"] + (1 - h["final"]) * 0.5 * (1 - xp.cos(np.pi * left))


def linear(left: Array, h: dict) -> Array:
    """Falls in a straight line from the peak to the final fraction."""
    return h["final"] + (1 - h["final"]) * left


def constant(left: Array, h: dict) -> Array:
    """Stays at the peak."""
    return left.__array_namespace__().ones_like(left)


def wsd(left: Array, h: dict) -> Array:
    """Stays at the peak, then falls in a straight line over the last `decay` steps (Hu et al. 2024)."""
    xp = left.__array_namespace__()
    decaying = xp.clip(left * (h["total"] - h["warmup"]) / xp.maximum(h["decay"], 1), 0, 1)
    return linear(decaying, h)


SCHEDULES: dict[str, Callable[[Array, dict], Array]] = {
    "cosine": cosine, "linear": linear, "constant": constant, "wsd": wsd,
}  # fmt: skip


def rate(name: str, step: Array, h: dict) -> Array:
    """Returns the fraction of the peak rate that update number `step` (from 0, floating point) uses.

    h: total, warmup and decay in steps, final as a fraction; all traced, so a longer run compiles nothing. Warm-up is
    linear and its last step is the first at the peak. Each schedule sees the part of the run after warm-up that is
    left, from 1 down to 0.
    """
    xp = step.__array_namespace__()
    left = (h["total"] - step) / xp.maximum(h["total"] - h["warmup"], 1)
    warm = (step + 1) / xp.maximum(h["warmup"], 1)
    return xp.where(step < h["warmup"], warm, SCHEDULES[name](xp.clip(left, 0, 1), h))


def agreement(name: str, final: float, one: Steps, other: Steps) -> int:
    """Counts the updates, from the first on, that have the same rate in two lengths of a run; at most the shorter's."""
    shorter = min(one.total, other.total)
    if name == "wsd":  # the first update of a decay is at the peak but for rounding, which the length decides
        shorter = min(one.total - one.decay, other.total - other.decay)
    lengths = [dict(final=final, total=s.total, warmup=s.warmup, decay=s.decay) for s in (one, other)]
    for start in range(0, shorter, STRETCH):
        step = np.arange(start, min(start + STRETCH, shorter), dtype=np.float64)
        before, after = (rate(name, step, h) for h in lengths)
        if (before != after).any():
            return start + int((before != after).argmax())
    return shorter
