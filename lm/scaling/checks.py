"""What every fit checks of its options, for the library and the command alike."""

import math
import numbers
from collections.abc import Iterable

from lm.errors import nearest, require
from lm.scaling.points import Points

CLUSTERS = ("point", "run", "noise")
MOST_BOOTSTRAPS = 100_000
"""More would tell nothing more of an interval, and fill the memory."""
SEEDS = 2**32
"""numpy's legacy generator takes seeds below this."""
SMALLEST_DELTA, LARGEST_DELTA = 1e-9, 1e3


def check_choice(option: str, value: str, choices: Iterable[str]) -> None:
    """One of several words, or an error that lists them."""
    known = [str(choice) for choice in choices]
    require(value in known, f"{option} {value}: one of {', '.join(known)}{nearest(str(value), known)}")


def check_resampling(points: Points, *, bootstraps: int, cluster: str, level: float, seed: int) -> None:
    """Options that all fits share: resamples, what is resampled, coverage and seed."""
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
    check_level(level)
    require(
        isinstance(seed, numbers.Integral) and 0 <= seed < SEEDS, f"--seed {seed}: a whole number from 0 to {SEEDS - 1}"
    )


def check_level(level: float) -> None:
    require(_is_number(level) and 0 < level < 1, f"--level {_shown(level)}: between 0 and 1, such as 0.9")


def check_delta(delta: float) -> None:
    require(
        _is_number(delta) and SMALLEST_DELTA <= delta <= LARGEST_DELTA,
        f"--delta {_shown(delta)}: from {SMALLEST_DELTA:g} (--method l1 goes to nothing) to {LARGEST_DELTA:g}",
    )


def check_held(name: str, value: float, *, parameters: Iterable[str], positive: Iterable[str], law: str) -> None:
    """One parameter that is to be held."""
    known = list(parameters)
    require(name in known, f"{name[:60]}: not a parameter of {law}{nearest(name, known)} ({', '.join(known)})")
    require(_is_number(value) and math.isfinite(value), f"--fix {name}={_shown(value)}: must be a finite number")
    require(value > 0 or name not in positive, f"--fix {name}={_shown(value)}: must be positive")


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _shown(value) -> str:
    return f"{value:g}" if _is_number(value) else repr(value)[:60]
