"""Approaches 1 and 2 on valleys whose bottom is known."""

import numpy as np
import pytest
from scipy.special import stdtrit
from synthetic import HOFFMANN, chinchilla_loss, grid, synthetic

from lm.errors import UserError
from lm.scaling import fit_frontier, make_points
from lm.scaling.isoflop import VALLEYS, bottom, budgets, scatter_about, valleys

pytestmark = pytest.mark.usefixtures("polished")

TRUE_A = HOFFMANN["beta"] / (HOFFMANN["alpha"] + HOFFMANN["beta"])


@pytest.mark.parametrize("valley", VALLEYS)
def test_noise_free_valleys_give_the_exponent(valley):
    law = fit_frontier(synthetic(sizes=15), valley=valley, bootstraps=0)
    assert law.values()["a"] == pytest.approx(TRUE_A, abs=1e-3)
    assert law.values()["a"] + law.values()["b"] == pytest.approx(1, abs=1e-9)
    best = law.optimum(1e20)
    assert 6 * best["params"] * best["tokens"] == pytest.approx(1e20, rel=1e-6)
    with pytest.raises(UserError, match="not the loss"):
        law.predict(1e6, 1e7)


def test_a_parabola_through_everything_is_biased_where_the_valley_is_skewed():
    """alpha != beta: the full-range parabola's N0 is off by more than the window's (Porian's pitfall)."""
    points = synthetic(sizes=15)
    total = HOFFMANN["alpha"] + HOFFMANN["beta"]
    g = (HOFFMANN["alpha"] * HOFFMANN["A"] / (HOFFMANN["beta"] * HOFFMANN["B"])) ** (1 / total)
    off = {}
    for valley in VALLEYS:
        optimum = valleys(points, valley)[2]
        off[valley] = abs(optimum.params - np.log(g * (np.exp(optimum.flops) / 6) ** TRUE_A))
    assert off["quadratic"] < off["quadratic-all"]
    assert off["akima"] < off["quadratic-all"]


def test_the_bottom_of_a_parabola_is_found_exactly_and_an_end_is_not_a_bottom():
    n = np.linspace(10, 14, 9)
    loss = 3 + (n - 12.3) ** 2
    for valley in ("quadratic", "quadratic-all"):
        assert bottom(n, loss, valley) == pytest.approx(12.3, abs=1e-9)
    assert bottom(n, loss, "akima") == pytest.approx(12.3, abs=0.05)
    for valley in VALLEYS:
        assert bottom(n, n, valley) is None


def test_budgets_are_found_in_any_order_and_when_they_differ_a_little():
    params, tokens = grid(sizes=5)
    order = np.random.default_rng(0).permutation(len(params))
    wobble = 1 + 0.01 * np.random.default_rng(1).standard_normal(len(params))
    points = make_points(params[order], tokens[order], np.ones(len(order)), 6 * (params * tokens)[order] * wobble)
    groups = budgets(points)
    assert [len(group) for group in groups] == [5] * 5
    assert all((np.diff(points.params[group]) > 0).all() for group in groups)


def test_approach_1_finds_the_envelope():
    params, tokens = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e10, 41), np.geomspace(1e7, 1e12, 60)))
    points = make_points(params, tokens, chinchilla_loss(params, tokens))
    law = fit_frontier(points, "frontier", bootstraps=0)
    assert law.values()["a"] == pytest.approx(TRUE_A, abs=0.02)


def test_intervals_by_seed_noise_cover_and_all_windows_are_reported():
    clean = synthetic(sizes=11)
    noise = 0.003 * np.random.default_rng(5).standard_normal(len(clean))
    points = make_points(clean.params, clean.tokens, clean.loss * np.exp(noise), sd=0.003 * clean.loss)
    law = fit_frontier(points, valley="quadratic", bootstraps=200, cluster="noise", level=0.99)
    assert law.parameters["a"].low < TRUE_A < law.parameters["a"].high
    assert set(VALLEYS) < set(law.alternatives)


@pytest.mark.parametrize("cluster", ["point", "run", "noise"])
@pytest.mark.parametrize("valley", VALLEYS)
def test_values_depend_neither_on_the_number_of_resamples_nor_on_the_seed(valley, cluster):
    """At this noise budgets lose their bottom in many resamples: weights from those would move the exponent."""
    noisy = synthetic(0.02, seed=4, budgets=np.geomspace(1e17, 1e21, 7))
    points = make_points(noisy.params, noisy.tokens, noisy.loss, sd=0.02, run=np.tile(np.arange(9), 7))
    fits = [
        fit_frontier(points, valley=valley, bootstraps=count, cluster=cluster, seed=seed)
        for count, seed in ((0, 1), (2, 1), (40, 1), (40, 2), (70, 3))
    ]
    assert all(fit.values() == fits[0].values() for fit in fits)
    assert fits[0].values()["a"] == fits[0].alternatives[valley]
    if cluster == "point":
        assert all(fit.parameters == fits[0].parameters for fit in fits)


def test_the_scatter_about_a_line_by_hand():
    """HC2 of the slope: sum of (c - mean)^2 r^2 / (1 - h) over (sum of (c - mean)^2)^2, h the leverage."""
    random = np.random.default_rng(0)
    c, y = np.array([1.0, 2.0, 4.0, 7.0, 11.0]), random.standard_normal(5)
    found = scatter_about(c, y)
    d = c - c.mean()
    residual = y - np.polyval(np.polyfit(c, y, 1), c)
    leverage = 1 / 5 + d**2 / np.sum(d**2)
    assert found.covariance_KK[1, 1] == pytest.approx(
        np.sum(d**2 * residual**2 / (1 - leverage)) / np.sum(d**2) ** 2, rel=1e-9
    )
    assert (1 <= found.freedom_K).all() and (found.freedom_K < 3).all()
    moved = scatter_about(c + 50, y)
    assert moved.covariance_KK[1, 1] == pytest.approx(found.covariance_KK[1, 1], rel=1e-9)


def test_t_intervals_about_a_line_cover_where_noise_grows_along_it():
    """Plain least squares holds 80% of these at a nominal 90%."""
    random, c, hits = np.random.default_rng(1), np.arange(6.0), 0
    for _ in range(2000):
        y = 0.5 * c + np.exp(0.6 * c) * random.standard_normal(6)
        s = scatter_about(c, y)
        half = stdtrit(s.freedom_K[1], 0.95) * np.sqrt(s.covariance_KK[1, 1])
        hits += abs(np.polyfit(c, y, 1)[0] - 0.5) <= half
    assert 0.86 <= hits / 2000 <= 0.94


def test_runs_that_differ_in_their_seed_count_with_their_mean():
    n = np.linspace(10, 14, 9)
    loss = 3 + (n - 12.3) ** 2
    twice = np.concatenate([loss - 0.1, loss + 0.1])
    order = np.argsort(np.tile(n, 2), kind="stable")
    assert bottom(np.tile(n, 2)[order], twice[order], "quadratic") == pytest.approx(12.3, abs=1e-9)


def test_budgets_without_a_bottom_are_told():
    params, tokens = grid()
    one_sided = 1 + params / params.max()
    with pytest.raises(UserError, match="only 0 of 5 budgets"):
        fit_frontier(make_points(params, tokens, one_sided), bootstraps=0)
    with pytest.raises(UserError, match="at least 3 sizes"):
        fit_frontier(make_points(params, tokens, one_sided), "frontier", bootstraps=0)


def test_budgets_that_lie_close_do_not_chain():
    """Each 4% above the last: every group stays within 10% of its median, and none takes in all."""
    flops = 1e18 * 1.04 ** np.arange(30)
    params = np.geomspace(1e7, 1e9, 30)
    points = make_points(params, flops / (6 * params), np.full(30, 3.0))
    groups = budgets(points)
    assert sorted(np.concatenate(groups).tolist()) == list(range(30))
    log_c = np.log(points.flops)
    assert all(np.abs(log_c[group] - np.median(log_c[group])).max() <= 0.1 for group in groups)
    assert 5 <= len(groups) <= 8


def test_a_budget_whose_runs_are_all_left_out_has_no_bottom():
    """Every budget has a run of its own, so that resampled runs leave some budgets empty."""
    noisy = synthetic(0.002)
    points = make_points(noisy.params, noisy.tokens, noisy.loss, run=np.repeat(np.arange(5), 9))
    law = fit_frontier(points, bootstraps=40, cluster="run")
    assert law.values() == fit_frontier(points, bootstraps=0).values()
    assert bottom(np.array([]), np.array([]), "quadratic") is None


def test_an_envelope_of_one_size_has_no_exponent():
    """Of three sizes over a wide range of budgets the middle one alone is ever lowest between others."""
    params, tokens = (axis.ravel() for axis in np.meshgrid([1e7, 1e8, 1e9], np.geomspace(1e8, 1e11, 30)))
    with pytest.raises(UserError, match="fewer than 3 sizes make the envelope"):
        fit_frontier(make_points(params, tokens, chinchilla_loss(params, tokens)), "frontier", bootstraps=0)
