"""Turns, rounds and ratios, with a clock that only the contestants move."""

import numpy as np
import pytest

from lm.bench.rounds import Contestant, Spread, calibrate, compare
from lm.errors import UserError


class Clock:
    """A world in which work takes exactly as long as it says, times how slow the machine is just then."""

    def __init__(self, slowness=lambda now: 1.0):
        self.now, self.slowness, self.turns = 0.0, slowness, []

    def __call__(self) -> float:
        return self.now

    def contestant(self, name: str, seconds: float, **options) -> Contestant:
        def run(n: int) -> None:
            self.turns.append((name, n))
            self.now += n * seconds * self.slowness(self.now)

        return Contestant(name, run, **options)


@pytest.mark.parametrize("unit", [1e-6, 3e-4, 0.7, 40.0])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_turn_lasts_about_as_long_as_asked(unit, share):
    """Or one unit, where that alone takes longer."""
    clock = Clock()
    n = calibrate(clock.contestant("a", unit, share=share), 2.0, clock)
    assert n == max(1, round(2.0 * share / unit)) or n * unit == pytest.approx(2.0 * share, rel=1e-3)


def test_the_ratio_is_theirs_over_the_first_and_the_order_turns_round():
    clock = Clock()
    ours, slow, fast = compare(
        [clock.contestant("ours", 0.01), clock.contestant("slow", 0.03), clock.contestant("fast", 0.005)],
        1.0,
        4,
        clock=clock,
    )
    assert (ours.ratio.median, slow.ratio.median, fast.ratio.median) == pytest.approx((1.0, 3.0, 0.5))
    assert (ours.seconds.median, slow.seconds.median, fast.seconds.median) == pytest.approx((0.01, 0.03, 0.005))
    assert ours.units == 100 and slow.units == 33 and fast.units == 200
    turns = [name for name, _ in clock.turns[-12:]]
    assert turns == ["ours", "slow", "fast", "fast", "slow", "ours"] * 2


def test_drift_of_the_machine_leaves_the_ratio_alone():
    """A machine that is three times slower now and then: the times scatter, the ratios within a round hardly do."""
    clock = Clock(lambda now: 1 + 2 * (np.sin(now / 40) > 0))
    _, theirs = compare([clock.contestant("ours", 0.01), clock.contestant("theirs", 0.02)], 1.0, 101, clock=clock)
    assert theirs.ratio.low == pytest.approx(2.0) and theirs.ratio.high == pytest.approx(2.0)
    assert theirs.seconds.high == pytest.approx(3 * theirs.seconds.low)


def test_spread_is_median_and_quartiles_and_rates_turn_it_over():
    spread = Spread.over([5.0, 1.0, 2.0, 3.0, 4.0])
    assert spread == Spread(3.0, 2.0, 4.0)
    assert spread.per(12.0) == Spread(4.0, 3.0, 6.0)


def test_progress_counts_every_turn_and_the_calibration():
    clock, seen = Clock(), []
    compare(
        [clock.contestant("a", 0.1), clock.contestant("b", 0.1)], 1.0, 3, clock=clock, report=lambda *x: seen.append(x)
    )
    assert seen == [(i, 8) for i in range(8)]


@pytest.mark.parametrize("wrong", [dict(seconds=0.0, rounds=3), dict(seconds=1.0, rounds=0)])
def test_nonsense_is_refused(wrong):
    with pytest.raises(UserError, match=r"--(seconds|rounds) 0"):
        compare([], **wrong)
