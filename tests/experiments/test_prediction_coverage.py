"""The study of intervals: its shares and means are those of the splits, and its figure is drawn."""

import dataclasses

import numpy as np
import pytest

SCRIPT = "prediction_coverage"


@pytest.fixture
def splits(script):
    one = script.Split(
        table="Gadre", share=0.4, fitted=4, predicted=30, farther=8.0, inside=0.5, width=0.02, calibrated=0.9,
        calibrated_width=0.06, error=0.01, hold_outs=True,
    )  # fmt: skip
    other = dataclasses.replace(one, share=0.8, predicted=10, inside=0.1, calibrated=0.5, hold_outs=False)
    return [one, other, dataclasses.replace(one, table=script.MADE[0], inside=0.9, calibrated=1.0)]


def test_runs_and_splits_are_weighed_as_said(script, splits):
    before, after, *by_split = script.summary(splits[:2])
    assert (before, after) == pytest.approx((0.4, 0.8))  # (30 * .5 + 10 * .1) / 40
    assert by_split == pytest.approx([0.3, 0.7, 0.02, 0.06, 0.01])


def test_what_was_made_here_is_not_counted_as_published(script, splits):
    total = next(line for line in script.report(splits).splitlines() if line.startswith("published"))
    assert total.split()[2:5] == ["40", "40.0%", "80.0%"]
    assert script.report(splits).endswith("without hold-outs: 1 of 3 splits")


def test_tables_made_here_are_the_same_again_and_differ_as_said(script):
    first, again = dict(script.made(1)), dict(script.made(1))
    law, sizes = (np.log(first[name].loss / script.law(first[name].params, first[name].tokens)) for name in script.MADE)
    assert all(np.array_equal(first[name].loss, again[name].loss) for name in script.MADE)
    assert 0.003 < law.std() < 0.005
    assert sizes.reshape(9, 8).std(axis=1).max() < 0.006 < sizes.reshape(9, 8).mean(axis=1).std()


def test_the_figure_is_drawn(script, splits, tmp_path):
    assert script.figure(splits, tmp_path / "figure.svg").read_text().startswith("<?xml")
