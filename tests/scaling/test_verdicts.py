"""What counts as identified, and which standard errors are shown."""

import math

import numpy as np
import pytest

from lm.scaling import Estimate
from lm.scaling.verdicts import bounded, condition_number, consistent, scatters_beyond, verdict


@pytest.mark.parametrize(
    ("estimate", "positive", "expected"),
    [
        (Estimate(2.0, 0.3, 1.5, 2.5), True, "yes"),
        (Estimate(0.3, 0.05, 0.2, 0.4), False, "yes"),
        (Estimate(2.0, 0.3, 0.5, 11.0), True, "weakly: the interval spans a factor of 22"),
        (Estimate(0.3, 0.2, 0.1, 0.5), False, "weakly: the interval [0.1, 0.5] is wider than the value"),
        (Estimate(2.0, 0.3, 1.5, math.inf), True, "no: not bounded above"),
        (Estimate(2.0, 0.3, 0.0, 2.5), True, "no: not bounded below"),
        (Estimate(0.3, 0.3, -math.inf, math.inf), False, "no: not bounded below or above"),
        (Estimate(math.nan, 0.3, 1.0, 2.0), True, "no: not a finite number"),
        (Estimate(2.0, math.nan, math.nan, 2.5), True, "no: not a finite number"),
    ],
)
def test_verdicts(estimate, positive, expected):
    assert verdict(estimate, positive=positive) == expected


def test_the_condition_number_knows_no_lengths_of_columns():
    """It is 1 for orthogonal columns, and the root of (1 + cos) / (1 - cos) for two of them at an angle."""
    assert condition_number(np.diag([1.0, 1e6, 1e-6])) == pytest.approx(1)
    assert condition_number(np.array([[1.0, 500.0], [0.0, 500 * 3**0.5]])) == pytest.approx(3**0.5)
    assert condition_number(np.array([[1.0, 0.0], [2.0, 0.0]])) == math.inf


def test_an_end_a_million_times_away_bounds_nothing():
    e = bounded(Estimate(40.0, 1.0, 31.0, 2.9e30), positive=True)
    assert e.high == math.inf and e.low == 31.0
    assert verdict(e, positive=True) == "no: not bounded above"
    assert bounded(Estimate(-0.1, 1.0, -9e9, 2.0), positive=False).low == -9e9


@pytest.mark.parametrize("se", [9.7e7, 1e-9, math.nan, math.inf])
def test_a_standard_error_that_its_interval_contradicts_is_not_shown(se):
    assert consistent(Estimate(480.0, se, 335.0, 653.0), 0.9).se is None
    assert consistent(Estimate(480.0, 123.0, 335.0, 653.0), 0.9).se == 123.0
    assert consistent(Estimate(480.0, 123.0, 335.0, math.inf), 0.9).se is None


def test_resamples_far_beyond_the_interval_make_a_parameter_weak():
    e = Estimate(480.0, 9.7e7, 335.0, 653.0)
    assert scatters_beyond(e, 0.9) and not scatters_beyond(Estimate(480.0, 123.0, 335.0, 653.0), 0.9)
    assert scatters_beyond(Estimate(480.0, math.nan, 335.0, 653.0), 0.9)
    assert verdict(e, positive=True, scattered=True).startswith("weakly: resamples")
