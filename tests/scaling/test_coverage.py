"""Intervals cover what they claim, on noisy tables made from a known law."""

import numpy as np
import pytest
from synthetic import HOFFMANN, synthetic

from lm.errors import UserError
from lm.scaling import fit, fit_frontier
from lm.scaling.isoflop import VALLEYS

pytestmark = pytest.mark.usefixtures("polished")

TRIALS = 200


@pytest.mark.slow
@pytest.mark.parametrize("method", ["huber", "log-squares"])
def test_ninety_percent_intervals_cover_85_to_95_percent(method):
    truth = HOFFMANN | {"a": HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"])}
    hits = dict.fromkeys(truth, 0)
    for seed in range(TRIALS):
        law = fit(synthetic(0.004, seed=seed), method=method, bootstraps=300, seed=seed)
        estimates = law.parameters | law.derived
        for name, value in truth.items():
            hits[name] += estimates[name].low <= value <= estimates[name].high
    coverage = {name: hit / TRIALS for name, hit in hits.items()}
    assert all(0.85 <= share <= 0.95 for share in coverage.values()), coverage
    assert 0.87 <= np.mean(list(coverage.values())) <= 0.93, coverage


def valleys_that_cover(valley: str, noise: float, trials: int) -> float:
    """The share of 90% intervals of the exponent a, of tables with 6 budgets of 9 sizes, that hold the truth."""
    truth, holds = HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"]), []
    for seed in range(trials):
        points = synthetic(noise, seed=seed, budgets=np.geomspace(1e17, 1e21, 6))
        try:
            a = fit_frontier(points, valley=valley, bootstraps=0).parameters["a"]
        except UserError:  # too few bottoms
            continue
        holds.append(a.low <= truth <= a.high)
    return float(np.mean(holds))


@pytest.mark.parametrize("valley", VALLEYS)
def test_most_intervals_of_valleys_cover(valley):
    assert 0.8 <= valleys_that_cover(valley, 0.003, trials=40)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.001, 0.003, 0.01])
@pytest.mark.parametrize("valley", VALLEYS)
def test_ninety_percent_intervals_of_valleys_cover_85_to_95_percent(valley, noise):
    assert 0.85 <= valleys_that_cover(valley, noise, TRIALS) <= 0.95
