"""Resamples: the same stream for laws and for valleys, whatever is resampled."""

import numpy as np
import pytest
from synthetic import synthetic

import lm
from lm.errors import UserError
from lm.scaling import make_points
from lm.scaling.resampling import redrawn_losses, resampled_counts


@pytest.fixture
def points():
    made = synthetic(0.01, sizes=3)
    return make_points(made.params, made.tokens, made.loss, sd=0.01, run=np.tile(["a", "b", "c"], 5))


def test_points_are_resampled_within_their_groups(points):
    """Each group keeps its size; with one group the counts are those of numpy's legacy generator."""
    groups = np.split(np.arange(15), [4, 9])
    for count_n in resampled_counts(points, groups, 5, "point", seed=7):
        assert [int(count_n[group].sum()) for group in groups] == [4, 5, 6]
    rows = np.random.RandomState(7).randint(0, 15, (5, 15))
    drawn = list(resampled_counts(points, [np.arange(15)], 5, "point", seed=7))
    assert [count_n.tolist() for count_n in drawn] == [np.bincount(row, minlength=15).tolist() for row in rows]


def test_points_of_a_run_are_drawn_together(points):
    for count_n in resampled_counts(points, [], 20, "run", seed=1):
        by_run = count_n.reshape(5, 3)
        assert (by_run == by_run[0]).all() and by_run[0].sum() == 3
    alone = points.where(points.run == "a")
    with pytest.raises(UserError, match="all points are of one run"):
        next(resampled_counts(alone, [], 1, "run", seed=1))


def test_losses_are_redrawn_by_their_seed_noise(points):
    drawn_Rn = np.stack(list(redrawn_losses(points, points.loss, 4000, seed=3)))
    np.testing.assert_allclose(drawn_Rn.std(0), points.sd, rtol=0.06)
    np.testing.assert_allclose(drawn_Rn.mean(0), points.loss, rtol=5e-4)


@pytest.mark.parametrize("room", ["scaling", "sweep"])
def test_every_public_name_is_there(room):
    face = getattr(lm, room)
    assert {name for name in face.__all__ if getattr(face, name, None) is None} == set()
