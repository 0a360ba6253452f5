"""What every fit resamples, and what it checks of the options that say so.

The stream is numpy's frozen legacy generator, the one that Besiroglu et al. (2024) drew from.
"""

import math
import numbers
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.errors import nearest, require
from lm.scaling.points import Points

CLUSTERS = ("point", "run", "noise")
"""point: the points, each group of them for itself; run: whole runs, whose points share a trunk and so are not
independent; noise: no point, but each one's loss anew, by its sd from seed to seed."""
MOST_BOOTSTRAPS = 100_000
"""More would tell nothing more of an interval, and fill the memory."""
SEEDS = 2**32
"""numpy's legacy generator takes seeds below this."""


def resampled_counts(
    points: Points, groups: Sequence[np.ndarray], count: int, cluster: str, seed: int
) -> Iterator[np.ndarray]:  # fmt: skip
    """How often each of `count` resamples has each point, [n]. cluster: "point", within each group's rows, or "run"."""
    random = np.random.RandomState(seed)
    names, run_n = np.unique(points.run, return_inverse=True) if cluster == "run" else ((), None)
    require(cluster != "run" or len(names) > 1, f"--cluster {cluster}: all points are of one run")
    for _ in range(count):
        if cluster == "run":
            yield np.bincount(random.randint(0, len(names), len(names)), minlength=len(names))[run_n]
        else:
            drawn = [group[random.randint(0, len(group), len(group))] for group in groups]
            yield np.bincount(np.concatenate(drawn), minlength=len(points))


def redrawn_losses(points: Points, loss_n: np.ndarray, count: int, seed: int) -> Iterator[np.ndarray]:
    """`count` times losses [n] that scatter about these by the points' sd."""
    random = np.random.RandomState(seed)
    for _ in range(count):
        yield loss_n * np.exp(points.sd / loss_n * random.standard_normal(len(loss_n)))


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a word that is none of the choices, with an error that lists them."""
    known = [str(choice) for choice in choices]
    require(value in known, f"{option} {value}: one of {', '.join(known)}{nearest(str(value), known)}")


def check_resampling(points: Points, *, bootstraps: int, cluster: str, level: float, seed: int) -> None:
    """Check the options that all fits share: resamples, what is resampled, coverage and seed."""
    check_choice("--cluster", cluster, CLUSTERS)
    require(cluster != "run" or points.run is not None, "--cluster run needs to know each point's run: --run-column")
    require(
        cluster != "noise" or points.sd is not None,
        "--cluster noise needs the seed noise of each point: --sd-column or --seed-noise",
    )
    require(
        isinstance(bootstraps, numbers.Integral) and (bootstraps == 0 or 2 <= bootstraps <= MOST_BOOTSTRAPS),
        f"--bootstraps {bootstraps}: 0 for asymptotic errors, or 2 to {MOST_BOOTSTRAPS:,} refits (one has no spread)",
    )
    require(is_number(level) and 0 < level < 1, f"--level {shown_number(level)}: between 0 and 1, such as 0.9")
    require(
        isinstance(seed, numbers.Integral) and 0 <= seed < SEEDS, f"--seed {seed}: a whole number from 0 to {SEEDS - 1}"
    )


def check_held(name: str, value: float, *, parameters: Iterable[str], positive: Iterable[str], law: str) -> None:
    """Check one parameter that is to be held."""
    known = list(parameters)
    require(name in known, f"{name[:60]}: not a parameter of {law}{nearest(name, known)} ({', '.join(known)})")
    right = is_number(value) and math.isfinite(value)
    require(right, f"--fix {name}={shown_number(value)}: must be a finite number")
    require(value > 0 or name not in positive, f"--fix {name}={shown_number(value)}: must be positive")


def is_number(value) -> bool:
    """Whether it is a real number, which truth values are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def shown_number(value) -> str:
    """A value in a message about what should be a number."""
    return f"{value:g}" if is_number(value) else repr(value)[:60]
