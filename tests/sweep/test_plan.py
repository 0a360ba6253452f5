"""Designs of sweeps: what they cost, what they keep to, and whether they will tell what they promise."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.optimize import least_squares

from lm import settings
from lm.config import Experiment, ModelConfig, RecurrentConfig
from lm.errors import UserError
from lm.model.api import build
from lm.scaling.chinchilla import Chinchilla
from lm.sweep import precision
from lm.sweep.design import Design, shape
from lm.sweep.grids import grid
from lm.sweep.planning import (
    BYTES,
    NOISE,
    SHARED,
    Rates,
    Rules,
    batch_of,
    layers_of,
    pilot_law,
    plan,
    residual_noise,
    size,
)

BASE = Experiment(model=ModelConfig(context=128, vocab=257, tied=True))
LAW = Chinchilla(E=0.7, A=12.0, B=50.0, alpha=0.33, beta=0.28)
N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e4, 4e5, 5), np.geomspace(5e5, 4e7, 5)))


def points(design: Design) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array([[row.params_total, row.tokens] for row in design.rows], float).T)


# --- predicted errors ------------------------------------------------------------------------------------------------
def refits(law: Chinchilla, run: np.ndarray, shared: float, sd: float, repeats: int) -> np.ndarray:
    """ln E, ln A, ln B, alpha and beta fitted to losses whose noise is partly common to a run: [repeats, 5]."""
    rng, start = np.random.default_rng(0), np.array([*np.log([law.E, law.A, law.B]), law.alpha, law.beta])
    theta = lambda p: Chinchilla(*np.exp(p[:3]), *p[3:])  # noqa: E731
    found = []
    for _ in range(repeats):
        common = rng.normal(size=run.max() + 1)[run] * math.sqrt(shared)
        y = np.log(law.loss(N, D)) + sd * (common + rng.normal(size=len(N)) * math.sqrt(1 - shared))
        residual = lambda p, y=y: np.log(theta(p).loss(N, D)) - y  # noqa: E731
        slope = lambda p: theta(p).gradient(N, D)  # noqa: E731
        found.append(least_squares(residual, start, slope, method="lm", x_scale="jac").x)
    return np.array(found)


@pytest.mark.parametrize("shared", [0.0, 0.6])
def test_predicted_errors_are_those_of_refits(shared):
    """Standard deviations over 400 refits of noisy synthetic points, within 12% (four of their own errors)."""
    run, sd = np.unique(N, return_inverse=True)[1], 0.002
    found = refits(LAW, run, shared, sd, 400)
    V = precision.covariance(LAW, N, D, sd, run, shared)
    assert np.sqrt(np.diag(V)) == pytest.approx(found.std(axis=0), rel=0.12)
    a = found[:, 4] / (found[:, 3] + found[:, 4])
    assert precision.standard_errors(LAW, V)["a"] == pytest.approx(a.std(), rel=0.12)
    ahead = LAW.optimum(1e15)
    predicted = [math.log(Chinchilla(*np.exp(p[:3]), *p[3:]).loss(*ahead)) for p in found]
    assert precision.prediction_error(LAW, V, *ahead) == pytest.approx(np.std(predicted), rel=0.12)


def test_gradient_equals_differences():
    p = np.array([*np.log([LAW.E, LAW.A, LAW.B]), LAW.alpha, LAW.beta])
    log_loss = lambda p: np.log(Chinchilla(*np.exp(p[:3]), *p[3:]).loss(N, D))  # noqa: E731
    for i in range(5):
        h = 1e-6 * np.eye(5)[i]
        assert LAW.gradient(N, D)[:, i] == pytest.approx((log_loss(p + h) - log_loss(p - h)) / 2e-6, rel=1e-4, abs=1e-8)


def test_errors_follow_noise_and_repeats():
    """In proportion to the noise; doubling every point divides by the root of two."""
    one = precision.standard_errors(LAW, precision.covariance(LAW, N, D, 0.01))
    louder = precision.standard_errors(LAW, precision.covariance(LAW, N, D, 0.02))
    twice = precision.standard_errors(LAW, precision.covariance(LAW, np.tile(N, 2), np.tile(D, 2), 0.01))
    for name, value in one.items():
        assert louder[name] == pytest.approx(2 * value) and twice[name] == pytest.approx(value / math.sqrt(2))


def test_the_optimum_is_the_lowest_loss_of_its_compute():
    n, d = LAW.optimum(1e14, per=7.0)
    assert 7 * n * d == pytest.approx(1e14)
    others = n * np.geomspace(0.5, 2, 101)
    assert LAW.loss(n, d) == pytest.approx(np.min(LAW.loss(others, 1e14 / 7 / others)), rel=1e-12)
    more, _ = LAW.optimum(1e16, per=7.0)
    assert math.log(more / n) / math.log(100) == pytest.approx(LAW.a)


# --- what cannot tell ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "params, tokens, why",
    [
        (np.geomspace(1e4, 1e6, 12), 20 * np.geomspace(1e4, 1e6, 12), "tokens per parameter hardly vary"),
        (np.full(12, 1e5), np.geomspace(1e5, 1e8, 12), "1 model size"),
        (np.geomspace(1e4, 1e6, 12), np.full(12, 1e7), "1 token count"),
        (np.repeat([1e4, 1e5], 6), np.tile(np.geomspace(1e5, 1e8, 6), 2), "2 model size"),
        (N[::6], D[[0, 8, 13, 21, 2]], "5 points for 5 parameters"),
        (1e5 * np.geomspace(1, 1.5, 25), 1e7 * np.tile(np.geomspace(1, 1.5, 5), 5), "too close together"),
    ],
)
@pytest.mark.parametrize("law", [LAW, dataclasses.replace(LAW, beta=LAW.alpha)])
def test_collinear_points_are_refused(params, tokens, why, law):
    found = precision.obstacle(law, params, tokens)
    assert why in found and "condition number" in found
    assert len(params) < 6 or precision.condition(law, params, tokens) > 20 * precision.condition(law, N, D)
    assert precision.obstacle(law, N, D) is None


def test_the_condition_number_knows_no_units():
    """Counting parameters in thousands and tokens in millions changes nothing."""
    scaled = dataclasses.replace(LAW, A=LAW.A * 1e3**-LAW.alpha, B=LAW.B * 1e6**-LAW.beta)
    assert precision.condition(scaled, N / 1e3, D / 1e6) == pytest.approx(precision.condition(LAW, N, D))


@pytest.mark.parametrize(
    "options, why",
    [
        (dict(rules=Rules(ratios=(20.0,))), "tokens per parameter hardly vary"),
        (dict(sizes=[size(BASE.model, 32)]), "1 model size"),
        (dict(flops=1e9), "largest is empty"),
        (dict(corpus_tokens=100_000), "one epoch of 100,000 tokens"),
        (dict(flops=None), "which budget"),
        (dict(flops=None, seconds=60.0), "needs a rate"),
        (dict(noise=0.0), "noise 0.0"),
        (dict(shared_noise=1.0), "shared noise 1.0"),
    ],
)
def test_what_cannot_be_planned_is_refused(options, why):
    with pytest.raises(UserError, match=why):
        plan(BASE, **dict(flops=3e13) | options)


def test_a_large_vocabulary_is_refused():
    with pytest.raises(UserError, match=r"vocabulary of 50,257 is too large.*bytes"):
        plan(settings.replace(BASE, {"model.vocab": 50257}), flops=1e13)


# --- designs ---------------------------------------------------------------------------------------------------------
RATES = Rates((1e4, 1e6), (4e9, 4e10), setup_seconds=5.0)


@pytest.fixture(scope="module", params=["flops", "minutes", "target"])
def design(request) -> Design:
    budget = dict(seconds=900.0, rates=RATES) if request.param == "minutes" else dict(flops=1.1e13)
    return plan(BASE, **budget, corpus_tokens=9_000_000, target=1e14 if request.param == "target" else None)


def test_a_design_keeps_to_its_budget(design):
    """And spends most of it, or of the text."""
    spent, most = (design.seconds, 900) if design.seconds else (design.flops, 1.1e13)
    assert 0.5 * most < spent <= most
    assert design.flops == pytest.approx(sum(row.flops_added for row in design.rows))
    if design.seconds:
        assert design.seconds == pytest.approx(sum(row.seconds for row in design.rows))


def test_rows_keep_to_the_rules(design):
    for row in design.rows:
        assert row.steps >= 400 and row.tokens <= 9_000_000
        assert 15 * 0.99 <= row.tokens / row.params_total <= 480
        assert row.tokens == row.steps * row.batch * 128
        assert row.cooldown_steps == round(0.15 * row.steps) and row.branch_step + row.cooldown_steps == row.steps
    sizes = [row.params_total for row in design.rows]
    assert max(sizes) <= 64 * min(sizes)


def test_rows_say_what_the_experiment_is(design):
    """The settings of a row make a model of its size and cost, trained for its tokens."""
    base = settings.from_dict(design.experiment)
    for row in design.rows[::4]:
        e = settings.replace(base, row.changes(base.model))
        assert build(e.model).parameter_count() == (row.params_total, row.params_nonembedding)
        assert e.steps(9_000_000).total * e.batch_tokens == row.tokens
        assert e.steps(9_000_000).decay == row.cooldown_steps
        assert row.flops == pytest.approx(build(e.model).cost().training_flops * row.tokens)


def test_a_trunk_costs_its_longest_branch_and_all_cooldowns(design):
    for trunk in {row.trunk for row in design.rows}:
        rows = [row for row in design.rows if row.trunk == trunk]
        assert len({(row.batch, row.width, row.layers) for row in rows}) == 1
        steps = max(row.branch_step for row in rows) + sum(row.cooldown_steps for row in rows)
        per_step = rows[0].flops / rows[0].steps
        assert sum(row.flops_added for row in rows) == pytest.approx(steps * per_step)
    assert design.flops_without_trunks / design.flops > 1.2


def test_rows_lie_on_lines_of_equal_compute(design):
    """Within the rounding of steps, each C is the largest over a power of the spacing, so isoFLOP fits can use them."""
    levels = np.log2([row.flops / max(row.flops for row in design.rows) for row in design.rows]) * 2
    assert np.abs(levels - np.round(levels)).max() < 0.02
    on_line = np.unique(np.round(levels), return_counts=True)[1]
    assert on_line.max() >= 3


def test_the_batch_grows_with_the_run():
    """2,048 tokens at a million or what is asked for, as D^0.38."""
    assert batch_of(1e6, 128) == 16 and batch_of(1e6, 128, batch_tokens=1024) == 8
    assert batch_of(1e9, 128) / batch_of(1e6, 128) == pytest.approx(1000**0.38, rel=0.05)
    assert [layers_of(width) for width in (16, 48, 80, 256, 768)] == [2, 2, 4, 8, 12]


@pytest.mark.parametrize("width", [16, 24, 32, 40, 80, 1024])
def test_sizes_are_models(width):
    s = size(BASE.model, width)
    assert width % s.heads == 0 and (width // s.heads) % 2 == 0 and 8 <= width / s.heads <= 40
    assert s.params_total > 12 * s.layers * width**2


def test_predictions_are_those_of_the_rows(design):
    V = precision.covariance(BYTES, *points(design), NOISE, np.array([row.trunk for row in design.rows]), SHARED)
    assert design.standard_errors == pytest.approx(precision.standard_errors(BYTES, V))
    t = design.target
    assert t["error"] == pytest.approx(precision.prediction_error(BYTES, V, t["params"], t["tokens"]))
    assert t["flops"] >= 4 * max(row.flops for row in design.rows) * 0.999


def test_a_target_is_predicted_better_when_asked_for():
    plain, aimed = (plan(BASE, flops=3e13, target=target) for target in (None, 1e15))
    V = precision.covariance(BYTES, *points(plain), NOISE, np.array([row.trunk for row in plain.rows]), SHARED)
    there = aimed.target["params"], aimed.target["tokens"]
    assert aimed.target["error"] <= precision.prediction_error(BYTES, V, *there)
    assert plain.standard_errors["a"] <= aimed.standard_errors["a"]


def test_more_budget_tells_more():
    quick, hour = (plan(BASE, flops=flops) for flops in (5e12, 5e13))
    assert hour.standard_errors["a"] < 0.8 * quick.standard_errors["a"]


def test_the_standard_recipe_tells_a_as_published():
    """Six sizes at 15 to 480 tokens per parameter, largest run 3.6e12 by 6ND, seed noise of 0.15 to 0.3% of the loss:
    a within .018 to .036."""
    shapes = ((16, 2), (24, 2), (32, 2), (48, 2), (64, 3), (80, 4))
    sizes = [size(BASE.model, *shape).params_total for shape in shapes]
    rows = [(n, ratio * n) for n in sizes for ratio in (15, 30, 60, 120, 240, 480)]
    kept = [(n, d) for n, d in rows if 6 * n * d <= 3.6e12 and d >= 400 * 2048]
    n, d = np.array(kept).T
    for noise, expected in ((0.0015, 0.018), (0.003, 0.036)):
        a = precision.standard_errors(BYTES, precision.covariance(BYTES, n, d, noise))["a"]
        assert a == pytest.approx(expected, rel=0.25)


def test_rates_are_interpolated_in_logarithms():
    assert RATES.at(1e5) == pytest.approx(math.sqrt(4e9 * 4e10))
    assert RATES.at(1e3) == pytest.approx(4e9) and RATES.at(1e8) == pytest.approx(4e10)


def test_a_pilot_gives_its_noise():
    """Residuals about the law over n - 5 degrees of freedom."""

    @dataclasses.dataclass
    class Trained:
        params: np.ndarray
        tokens: np.ndarray
        loss: np.ndarray

    noisy = LAW.loss(N, D) * np.exp(0.01 * np.tile([1, -1, 1, -1, 0], 5))
    assert residual_noise(LAW, Trained(N, D, noisy)) == pytest.approx(0.01 * math.sqrt(20 / 20))
    with pytest.raises(UserError, match="5 points leave no residual"):
        residual_noise(LAW, Trained(N[:5], D[:5], noisy[:5]))


def test_a_plan_starts_from_a_pilot(tmp_path):
    """Points of a known law give it back, with the noise they were made with, and the plan says where it is from."""
    path, rng = tmp_path / "points.csv", np.random.default_rng(3)
    loss = LAW.loss(N, D) * np.exp(0.001 * rng.normal(size=len(N)))
    rows = [f"{n},{d},{6 * n * d},{value}" for n, d, value in zip(N, D, loss, strict=True)]
    path.write_text("\n".join(["params_total,tokens,flops_exact,loss", *rows]))
    pilot = pilot_law(path)
    assert 0.0006 < pilot["noise"] < 0.0014
    se = precision.standard_errors(LAW, precision.covariance(LAW, N, D, 0.001))
    assert abs(pilot["law"].a - LAW.a) < 4 * se["a"] and abs(pilot["law"].E - LAW.E) < 4 * se["E"]
    design = plan(BASE, flops=1e13, **pilot)
    assert design.noise == pilot["noise"] and design.law_from == f"fitted to {path}"
    assert "(fitted to" in design.table()
    assert not any("assumptions" in warning for warning in design.warnings)


# --- files -----------------------------------------------------------------------------------------------------------
def test_a_design_is_written_and_read_again(design, tmp_path):
    path = tmp_path / "sweeps" / "design.json"
    design.write(path)
    assert Design.read(path) == design
    assert json.loads(path.read_text())["rows"][0]["trunk"] == design.rows[0].trunk


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [{"layers": 2}]}'])
def test_what_is_not_a_design_is_refused(text, tmp_path):
    path = tmp_path / "design.json"
    with pytest.raises(UserError, match="no design at"):
        Design.read(path)
    path.write_text(text)
    with pytest.raises(UserError, match="is not a design"):
        Design.read(path)


def test_the_table_says_what_matters(design):
    table = design.table()
    assert f"{len(design.rows)} from" in table and "predicted a = beta / (alpha + beta)" in table
    assert all(f"{row.tokens:,}" in table for row in design.rows)
    assert "law and noise are assumptions" in table


def test_a_model_without_heads_is_sized_by_its_layers_and_width():
    """And a grid has the settings of the experiment's own architecture."""
    base = Experiment(model=RecurrentConfig(context=128, vocab=257))
    found = size(base.model, 48, 2)
    sized = settings.replace(base, shape(base.model, found.layers, found.width, found.heads))
    assert (sized.model.layers, sized.model.width) == (2, 48)
    assert build(sized.model).parameter_count() == (found.params_total, found.params_nonembedding)
    assert [e.model.cell for e in grid([base], ["model.cell=lstm,rnn"])] == ["lstm", "rnn"]
    with pytest.raises(UserError, match=r"model\.heads=1,2: no such setting"):
        grid([base], ["model.heads=1,2"])
