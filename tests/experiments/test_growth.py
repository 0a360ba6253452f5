"""Slopes are those of the numbers given; what theory counts of memory is near what XLA plans; it draws its panels."""

import dataclasses
import sys

import numpy as np
import pytest

from lm.model.api import build

SCRIPT = "growth"


def test_slopes_are_those_of_a_power_law(script):
    sizes = [1.0, 2.0, 4.0, 8.0]
    series = script.Series("s", sizes, [3 * x**0.75 for x in sizes], [x + x**2 for x in sizes], "because")
    assert series.slopes(series.measured) == (pytest.approx(0.75), pytest.approx(0.75))
    counted = np.array(series.counted)
    by_hand = np.cov(np.log(sizes), np.log(counted))
    assert series.slopes(series.counted) == (
        pytest.approx(by_hand[0, 1] / by_hand[0, 0]), pytest.approx(np.log2(72 / 20)),
    )  # fmt: skip
    assert "slope 0.75" in series.text() and "because" in series.text()
    assert "because" not in dataclasses.replace(series, counted=series.measured).text()


def test_the_sizes_vary_one_thing_each_and_the_base_is_among_them(script):
    base = script.changed()
    for name, changes in script.SWEEPS.items():
        sweep = [script.changed(**change) for change in changes]
        assert len(set(sweep)) == len(sweep) >= 5
        if name != "T":
            assert base in sweep
        costs = [build(e.model).cost().training_flops * e.batch_tokens for e in sweep]
        assert costs == sorted(costs)


@pytest.mark.slow
def test_the_smallest_of_it_measures_and_draws(script, monkeypatch, tmp_path, capsys):
    """Two sizes of each sweep: memory grows as it is counted, and all four panels are there."""
    small = dict(width=16, layers=1, heads=2, context=16, vocab=31)
    monkeypatch.setattr(script, "BASE", small)
    sweeps = {
        "N by width": [dict(width=16), dict(width=32)], "N by layers": [dict(layers=1), dict(layers=2)],
        "T": [dict(context=16), dict(context=32)], "batch": [dict(batch=8), dict(batch=64)],
    }  # fmt: skip
    monkeypatch.setattr(script, "SWEEPS", sweeps)
    monkeypatch.setattr(script, "SLOTS", (16, 32))
    figure = tmp_path / "made" / "growth.svg"
    monkeypatch.setattr(sys, "argv", ["growth", "--rounds", "1", "--seconds", "0.01", "--figure", str(figure)])
    script.main()
    printed = capsys.readouterr().out
    for title in ("time against N", "time against T and B", "memory", "time against context"):
        assert title in printed and title in figure.read_text()
    steps = script.measure_steps(
        {"batch": [script.changed(batch=B) for B in (8, 64)]}, 1, 0.01, script.lm.Display(True)
    )
    one, many = steps["batch"]
    assert 0.5 < (many.bytes - one.bytes) / (many.counted_bytes - one.counted_bytes) < 2
