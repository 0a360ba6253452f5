"""The truth that feedback is measured against, by brute force; labels that are drawn; a figure of what was found."""

import json
import math

import numpy as np
import pytest

from lm.training import Measured

SCRIPT = "feedback"


@pytest.mark.parametrize("p0", [0.1, 0.4])
@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_the_optimum_is_the_best_of_all_shares(script, p0, beta):
    p = np.linspace(1e-4, 1 - 1e-4, 20001)
    worth = [script.worth(x, script.least_divergence(x, p0), beta) for x in p]
    assert p[np.argmax(worth)] == pytest.approx(script.best_reward(beta, p0), abs=1e-3)
    assert script.least_divergence(p0, p0) == 0


def test_the_least_divergence_is_that_of_a_tilted_policy(script):
    """Of answers that are alike but for their reward, any other policy with that reward costs more."""
    start, rewarded = np.array([0.1, 0.2, 0.3, 0.4]), np.array([1, 1, 0, 0])
    p0, p = 0.3, 0.6
    tilted = np.where(rewarded, start * p / p0, start * (1 - p) / (1 - p0))
    assert np.sum(tilted * np.log(tilted / start)) == pytest.approx(script.least_divergence(p, p0))
    other = tilted + np.array([0.05, -0.05, 0.0, 0.0])
    assert np.sum(other * np.log(other / start)) > script.least_divergence(p, p0)


def test_labels_are_drawn_by_the_difference_of_rewards(script, tmp_path):
    said, rewards = [f"good {i}" for i in range(2000)] + [f"bad {i}" for i in range(2000)], np.repeat([1.0, 0.0], 2000)
    files = script.write_preferences(tmp_path, 0, said, rewards)
    drawn, hard = ([json.loads(line) for line in files[name].open()] for name in ("drawn", "hard"))
    assert all(row["chosen"].startswith("good") and row["rejected"].startswith("bad") for row in hard)
    unequal = [row for row in drawn if row["chosen"][0] != row["rejected"][0]]
    assert len(drawn) == 2000 and len(unequal) == len(hard) > 900
    share = np.mean([row["chosen"].startswith("good") for row in unequal])
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=0.05)


def test_the_reward_is_a_function_of_the_answer(script, tmp_path):
    (tmp_path / "reward.py").write_text(script.REWARD)
    reward = script.rewarded(tmp_path / "reward.py")
    assert [reward(text) for text in ("She ran.", "the herring", "to her.", "he sat")] == [1, 0, 1, 0]


def test_what_was_found_is_shown(script, tmp_path):
    points = [
        script.Point(method, beta, seed, Measured(0.5 + 0.01 * seed, 0.01, 0.2, 0.01))
        for method in script.METHODS
        for beta in script.BETAS
        for seed in (0, 1)
    ]
    found = script.Found(0.3, points, {2: 0.5, 4: 0.7})
    table = script.table(found)
    assert table.count("\n| ") == 1 + len(script.METHODS) * len(script.BETAS) + 2
    assert "0.505 (0.500 to 0.510)" in table
    script.draw(found, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 5000
