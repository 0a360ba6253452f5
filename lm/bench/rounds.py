"""Who is faster: contestants take turns of about the same length, round after round, and are compared within a round.

A machine's speed drifts (heat, neighbours), by more than the differences that matter. Neighbouring turns share most of
the drift, so the ratio within a round is steadier than the ratio of two long measurements; every other round runs in
reverse, so nobody always follows the same one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lm.errors import require

MOST_UNITS = 1 << 30


@dataclass(frozen=True)
class Contestant:
    """Something to time: run(n) does n units of work and returns when they are done."""

    name: str
    run: Callable[[int], object]
    share: float = 1.0
    """Length of its turns, as a fraction of the others'."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def over(cls, values) -> "Spread":
        """The spread of one value a round."""
        low, median, high = np.quantile(np.asarray(values, float), (0.25, 0.5, 0.75))
        return cls(median=float(median), low=float(low), high=float(high))

    def per(self, amount: float) -> "Spread":
        """The spread of a rate a second, of `amount` a unit, where this is of seconds a unit."""
        return Spread(median=amount / self.median, low=amount / self.high, high=amount / self.low)


@dataclass(frozen=True)
class Timing:
    """One contestant over all rounds."""

    name: str
    seconds: Spread
    """A unit."""
    ratio: Spread
    """Its time over the first contestant's in the same round: how many times faster the first one is."""
    units: int
    """Of work in one of its turns."""


def compare(
    contestants: Sequence[Contestant],
    seconds: float,
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Timing]:
    """Time contestants against the first of them, in turns of about `seconds`; each is warmed up already.

    report: called as report(turns done, turns in all) before each turn.
    """
    check_turns(rounds, seconds)
    total = (rounds + 1) * len(contestants)
    units = []
    for i, one in enumerate(contestants):
        report(i, total)
        units.append(calibrate(one, seconds, clock))
    times = np.zeros((rounds, len(contestants)))
    for r in range(rounds):
        order = range(len(contestants)) if r % 2 == 0 else reversed(range(len(contestants)))
        for turn, i in enumerate(order, (r + 1) * len(contestants)):
            report(turn, total)
            times[r, i] = timed(contestants[i], units[i], clock) / units[i]
    return [
        Timing(one.name, Spread.over(times[:, i]), Spread.over(times[:, i] / times[:, 0]), units[i])
        for i, one in enumerate(contestants)
    ]


def check_turns(rounds: int, seconds: float) -> None:
    """Refuse nonsense; for callers too, who prepare for long."""
    require(rounds >= 1, f"--rounds {rounds}: must be at least 1")
    require(seconds > 0, f"--seconds {seconds}: must be positive")


def calibrate(one: Contestant, seconds: float, clock: Callable[[], float] = time.perf_counter) -> int:
    """Units that take about `seconds`, or the contestant's share of it: doubled until a trial is long enough to judge.

    At least 1, however long that takes.
    """
    wanted, n = seconds * one.share, 1
    while (took := timed(one, n, clock)) < wanted / 4 and n < MOST_UNITS:
        n *= 2
    return max(1, round(n * wanted / max(took, 1e-9)))


def timed(one: Contestant, n: int, clock: Callable[[], float]) -> float:
    start = clock()
    one.run(n)
    return clock() - start
