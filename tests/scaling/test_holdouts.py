"""Rolling hold-outs: refits are plain fits, their scale is recovered, their intervals hold where the law does not."""

import numpy as np
import pytest
from synthetic import chinchilla_loss, synthetic

from lm.scaling import fit, make_points
from lm.scaling.holdouts import HoldOuts, roll, scale_of
from lm.scaling.predictions import predict_at, rolled

pytestmark = pytest.mark.usefixtures("polished")

BUDGETS = tuple(np.geomspace(1e17, 1e21, 8))


def branched(seed: int, own: float, noise: float = 0.003):
    """Seven sizes, six token counts each; every size is off by its own share of the loss, and every run by noise."""
    params = np.repeat(np.geomspace(2e7, 2e9, 7), 6)
    tokens = params * np.tile(np.geomspace(4, 300, 6), 7)
    random = np.random.default_rng(seed)
    off = own * np.repeat(random.standard_normal(7), 6) + noise * random.standard_normal(42)
    return make_points(params, tokens, chinchilla_loss(params, tokens) * np.exp(off))


def coverage(seeds: range, own: float) -> tuple[float, float, float]:
    """Shares of the upper 40% by compute inside each interval, and how much wider the second is."""
    rows = []
    for seed in seeds:
        points = branched(seed, own)
        rows += fit(points, hold_out=points.flops > np.quantile(points.flops, 0.6), bootstraps=0).held_out
    width = [(row["calibrated_high"] - row["calibrated_low"]) / (row["high"] - row["low"]) for row in rows]
    return (*(float(np.mean([row[name] for row in rows])) for name in ("inside", "inside_calibrated")), np.mean(width))


def test_intervals_hold_where_sizes_differ_by_what_no_law_says():
    before, after, _ = coverage(range(6), own=0.02)
    assert before < 0.7 and 0.8 <= after


def test_intervals_are_not_absurd_where_the_law_holds():
    before, after, wider = coverage(range(6), own=0.0)
    assert before > 0.75 and after > 0.85 and wider < 4


@pytest.mark.slow
def test_coverage_over_many_replicates():
    before, after, _ = coverage(range(60), own=0.02)
    assert before < 0.7 and 0.82 <= after <= 0.98
    before, after, wider = coverage(range(60), own=0.0)
    assert before > 0.8 and 0.9 <= after and wider < 3


@pytest.fixture(scope="module")
def law():
    return rolled(fit(synthetic(0.01, budgets=BUDGETS, sizes=6), bootstraps=0))


def test_a_refit_is_a_plain_fit_to_the_points_below_the_cut(law):
    cut = law.hold_outs.cuts[2]
    below = law.data.flops <= cut["flops"] * (1 + 1e-9)
    assert cut["fitted"] == below.sum() and cut["predicted"] == (~below).sum()
    above = law.data.where(~below)
    plain = fit(law.data.where(below), bootstraps=0).predict(above.params, above.tokens)
    error, distance = np.log(plain / above.loss), np.log(above.flops / cut["flops"])
    assert cut["error"] == pytest.approx(np.expm1(error.mean()), abs=1e-7)
    assert cut["slope"] == pytest.approx(error @ distance / (distance @ distance), abs=1e-7)
    assert cut["furthest"] == pytest.approx(above.flops.max() / cut["flops"])


def test_the_scale_of_errors_is_recovered_and_outliers_do_not_decide():
    random = np.random.default_rng(0)
    distance = random.uniform(0, 4, 4000)
    error = np.hypot(0.01, 0.02 * distance) * random.standard_t(5, 4000)
    weight = np.full(4000, 1 / 4000)
    s0, s1 = scale_of(error, distance, weight, scatter=0.005)
    assert s0 == pytest.approx(0.01, rel=0.15) and s1 == pytest.approx(0.02, rel=0.1)
    error[:40] = 3.0  # 1% diverged
    assert scale_of(error, distance, weight, scatter=0.005)[1] < 0.03


def test_intervals_widen_with_the_distance_alone_and_never_below_the_first():
    found = HoldOuts([{}] * 3, scatter=0.01, growth=0.02)
    inside, near, far = found.half_width(np.array([-3.0, 0.0, 5.0]), 0.9)
    assert inside == near == pytest.approx(2.3534 * 0.01, rel=1e-4)  # Student's, 3 degrees of freedom
    assert far == pytest.approx(2.3534 * np.hypot(0.01, 0.1), rel=1e-4)
    assert found.widened(2.0, 1.0, 2.01, 0.0, 0.9) == (1.0, pytest.approx(2 * np.exp(near)))


def test_points_of_one_budget_below_a_cut_are_no_refit(law):
    """Six points at a budget are too few, and twelve at one could not tell N from D."""
    assert law.hold_outs.cuts[0]["fitted"] == 12 and len(law.hold_outs.cuts) == 6
    wide = roll(fit(synthetic(0.01, budgets=(1e17, 1e19, 1e20), sizes=14), bootstraps=0))
    assert not wide.cuts and "2 cuts" in wide.why and "have 1" in wide.why


def test_too_few_points_have_the_first_interval_alone_and_say_why():
    few = fit(synthetic(0.01, budgets=(1e17, 1e18, 1e19), sizes=3), bootstraps=0)
    rows, _ = predict_at(few, [{"params": 1e9, "tokens": 2e10}])
    assert rows[0]["low"] < rows[0]["high"] and rows[0]["calibrated_low"] is None is rows[0]["calibrated_high"]
    said = [text for text in rolled(few).warnings if "no rolling hold-outs" in text]
    assert len(said) == 1 and "10 below" in said[0] and "9 points" in said[0]


def test_errors_to_one_side_are_warned_of():
    """Losses that fall faster, the more compute there is, than any sum of powers: each refit predicts too high."""
    points = synthetic(0.0, budgets=BUDGETS, sizes=6)
    bent = make_points(points.params, points.tokens, points.loss * np.exp(-0.004 * np.log(points.flops / 1e17) ** 2))
    found = rolled(fit(bent, bootstraps=0))
    assert found.hold_outs.bias() > 0 and any("too high" in text and "below" in text for text in found.warnings)
    assert HoldOuts([{"slope": 0.1}, {"slope": 0.2}, {"slope": -0.1}]).bias() is None
