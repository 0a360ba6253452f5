"""Intervals cover what they claim, on noisy tables made from a known law."""

import numpy as np
import pytest
from synthetic import HOFFMANN, synthetic

from lm.scaling import fit

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
