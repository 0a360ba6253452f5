"""Fits recover what tables were made from, agree with scipy, cover the truth, and refuse what cannot be known."""

import jax
import numpy as np
import pytest
from scipy.optimize import least_squares, linprog, minimize
from synthetic import HOFFMANN, chinchilla_loss, grid, synthetic

from lm.errors import UserError
from lm.scaling import Unidentifiable, fit, fit_frontier, make_points
from lm.scaling.fitting import against_law
from lm.scaling.laws import evaluate, form_of
from lm.scaling.predictions import matching

pytestmark = pytest.mark.usefixtures("polished")

STEEP = dict(E=1.8, A=4000.0, B=900.0, alpha=0.52, beta=0.26)


@pytest.mark.parametrize("method", ["huber", "l1", "squares", "log-squares"])
@pytest.mark.parametrize("truth", [HOFFMANN, STEEP], ids=["hoffmann", "alpha twice beta"])
def test_noise_free_points_give_the_law_back(method, truth):
    law = fit(synthetic(truth=truth), method=method, bootstraps=0)
    for name, value in truth.items():
        assert law.parameters[name].value == pytest.approx(value, rel=1e-6), name
    assert law.derived["a"].value == pytest.approx(truth["beta"] / (truth["alpha"] + truth["beta"]), rel=1e-6)


LAWS = {
    "kaplan_n": dict(N_c=8.8e13, alpha_N=0.076),
    "kaplan_d": dict(D_c=5.4e13, alpha_D=0.095),
    "kaplan_c": dict(C_c=1.6e22, alpha_C=0.057),
    "kaplan_nd": dict(N_c=6.4e13, D_c=1.8e13, alpha_N=0.076, alpha_D=0.103),
    "overtraining": dict(E=1.5, a=141.0, b=190.0, eta=0.121),
    "power": dict(E=1.2, K=300.0, gamma=0.15),
    "learning_rate": dict(k=1.79, p=-0.713, q=0.307),
    "batch": dict(k=0.58, q=0.571),
}


@pytest.mark.parametrize("name", LAWS)
def test_every_law_is_recovered(name):
    params, tokens = grid()
    form, truth = form_of(name), LAWS[name]
    columns = {"params": params, "tokens": tokens, "flops": 6 * params * tokens}
    value = evaluate(form, truth, columns)
    loss, more = (value, {}) if form.target == "loss" else (np.ones_like(params), {form.target: value})
    law = fit(make_points(params, tokens, loss, columns=more), name, bootstraps=0)
    for parameter, expected in truth.items():
        assert law.parameters[parameter].value == pytest.approx(expected, rel=1e-5), parameter


def test_repeated_data_builds_on_a_fit_to_data_seen_once():
    params, tokens = grid()
    truth = HOFFMANN | dict(R_D=12.0, R_N=4.0)
    n, d = np.tile(params, 3), np.tile(tokens, 3)
    unique = d / np.repeat([1, 8, 40], len(params))
    loss = evaluate(form_of("repeated"), truth, {"params": n, "tokens": d, "unique_tokens": unique})
    points = make_points(n, d, loss, columns={"unique_tokens": unique})
    known = fit(points, "repeated", bootstraps=0, fixed=HOFFMANN)
    assert known.values() == pytest.approx(truth, rel=1e-5)
    assert known.identifiable["A"] == "fixed" and known.parameters["A"].se == 0
    with pytest.raises(UserError, match="unique_tokens"):
        fit(make_points(n, d, loss), "repeated")

    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(len(loss)))
    noisy = make_points(n, d, loss * noise, columns={"unique_tokens": unique})
    exact, joint = (fit(noisy, "repeated", method="log-squares", bootstraps=0, fixed=f) for f in (HOFFMANN, {}))
    assert joint.objective < exact.objective
    for name in truth:
        e = joint.parameters[name]
        assert e.low < truth[name] < e.high and e.low < e.value < e.high, name
    for name in ("R_D", "R_N"):
        widths = [fit.parameters[name].high / fit.parameters[name].low for fit in (exact, joint)]
        assert widths[1] > widths[0], "what the base does not know is in the interval"


def test_huber_ends_where_scipy_ends_from_the_truth():
    """The same objective, written here, minimised by another library from the best possible start."""
    points = synthetic(0.01, seed=3)

    def objective(t):
        E, A, B = np.exp(t[:3])
        r = np.abs(np.log(E + A / points.params ** t[3] + B / points.tokens ** t[4]) - np.log(points.loss))
        return np.sum(np.where(r <= 1e-3, r**2 / 2, 1e-3 * (r - 5e-4))) / 1e-3

    start = [*np.log([HOFFMANN["E"], HOFFMANN["A"], HOFFMANN["B"]]), HOFFMANN["alpha"], HOFFMANN["beta"]]
    theirs = minimize(objective, start, method="Nelder-Mead", options=dict(maxiter=20000, maxfev=20000, xatol=1e-10))
    ours = fit(points, bootstraps=0)
    assert ours.objective <= theirs.fun * 1e-3 * (1 + 1e-9)
    assert ours.objective == pytest.approx(theirs.fun * 1e-3, rel=1e-3)


def test_squares_weighted_by_seed_noise_agree_with_scipy():
    """Weights are 1/sd^2: the same as dividing each residual by its sd."""
    clean = synthetic()
    sd = np.geomspace(1e-3, 5e-2, len(clean))
    loss = clean.loss + sd * np.random.default_rng(0).standard_normal(len(clean))
    points = make_points(clean.params, clean.tokens, loss, sd=sd)

    def residual(t):
        E, A, B = np.exp(t[:3])
        return (E + A / points.params ** t[3] + B / points.tokens ** t[4] - loss) / sd

    start = [*np.log([HOFFMANN["E"], HOFFMANN["A"], HOFFMANN["B"]]), HOFFMANN["alpha"], HOFFMANN["beta"]]
    theirs = least_squares(residual, start, xtol=1e-15, ftol=1e-15, gtol=1e-15).x
    ours = fit(points, method="squares", bootstraps=0).values()
    assert [ours["alpha"], ours["beta"]] == pytest.approx(theirs[3:].tolist(), rel=1e-5)


def test_l1_of_a_power_law_is_the_linear_programme():
    """In logarithms the power law is linear, and least absolute deviations are a linear programme: exact by scipy."""
    n = np.geomspace(1e6, 1e9, 25)
    y = np.log(30 * n**-0.08) + 0.02 * np.random.default_rng(1).standard_t(2, 25)
    law = fit(make_points(n, 20 * n, np.exp(y)), "kaplan_n", method="l1", bootstraps=0)
    X = np.stack([np.ones_like(n), np.log(n)], 1)
    eye = np.eye(25)
    exact = linprog(
        [0, 0, *np.ones(50)], A_eq=np.hstack([X, eye, -eye]), b_eq=y, bounds=[(None, None)] * 2 + [(0, None)] * 50
    )
    assert law.objective == pytest.approx(exact.fun, rel=1e-6)
    assert law.values()["alpha_N"] == pytest.approx(-exact.x[1], abs=1e-6)


def test_a_fit_leaves_the_project_in_single_precision():
    fit(synthetic(0.01), bootstraps=8)
    assert jax.numpy.ones(1).dtype == jax.numpy.float32


def test_bootstraps_are_repeatable_and_match_a_plain_refit():
    """A resample's fit is the fit of a table with those rows."""
    from lm.scaling import intervals
    from lm.scaling.problem import make_problem, named, solve

    points = synthetic(0.01)
    problem = make_problem(points, form_of("chinchilla"))
    theta, _, _ = solve(problem)
    drawn = intervals.bootstrap(problem, theta, points, 5, "point", 7)
    assert np.array_equal(drawn, intervals.bootstrap(problem, theta, points, 5, "point", 7))
    among_others = intervals.bootstrap(problem, theta, points, 200, "point", 7)  # who take turns, as they are done
    assert np.array_equal(drawn, among_others[:5])
    rows = np.random.RandomState(7).randint(0, len(points), (5, len(points)))
    for row, theta_P in zip(rows, drawn, strict=True):
        again = fit(points.where(row), bootstraps=0)
        found = {name: float(value) for name, value in named(problem.form, theta_P).items()}
        assert found == pytest.approx(again.values(), rel=1e-4)


def test_resampling_runs_keeps_their_points_together():
    points = synthetic(0.01)
    run = np.repeat(np.arange(len(points) // 3), 3)
    together = make_points(points.params, points.tokens, points.loss, run=run)
    law = fit(together, bootstraps=50, cluster="run")
    assert not any("share a run" in text for text in law.warnings)
    assert any("share a run" in text for text in fit(together, bootstraps=0).warnings)
    with pytest.raises(UserError, match="--run-column"):
        fit(points, bootstraps=5, cluster="run")


def test_seed_noise_gives_errors_in_proportion():
    """Twice the seed noise, twice the standard error; and about what points scattered by it show."""
    clean = synthetic()
    errors = []
    for sd in (0.002, 0.004):
        points = make_points(clean.params, clean.tokens, clean.loss, sd=sd)
        errors.append(fit(points, method="squares", bootstraps=300, cluster="noise").parameters["alpha"].se)
    assert errors[1] / errors[0] == pytest.approx(2, rel=0.1)
    with pytest.raises(UserError, match="seed noise"):
        fit(clean, bootstraps=5, cluster="noise")


@pytest.mark.parametrize("ratio", [20.0, 300.0])
def test_constant_tokens_per_parameter_is_refused_with_the_condition_number(ratio):
    params = np.geomspace(1e6, 1e10, 30)
    loss = chinchilla_loss(params, ratio * params) * np.exp(0.003 * np.random.default_rng(0).standard_normal(30))
    with pytest.raises(Unidentifiable, match=r"condition number \d.*tokens per parameter"):
        fit(make_points(params, ratio * params, loss))


@pytest.mark.filterwarnings("error")
def test_one_number_of_tokens_for_all_sizes_is_refused():
    params = np.geomspace(1e6, 1e10, 30)
    with pytest.raises(Unidentifiable, match="every point has the same number of tokens"):
        fit(make_points(params, np.full(30, 1e9), chinchilla_loss(params, 1e9)))


def test_warnings_in_words():
    """Few points, no floor, and what dropping changed."""
    few = synthetic(0.005, sizes=3, budgets=(1e18, 1e20, 1e21))
    assert any("few points" in text for text in fit(few, bootstraps=0).warnings)
    no_floor = synthetic(truth=HOFFMANN | {"E": 1e-12})
    assert any("E is zero" in text for text in fit(no_floor, bootstraps=0).warnings)
    points = synthetic(0.001)
    bad = points.drop(np.arange(len(points)) < 2, "for the test")
    law = fit(bad, bootstraps=0)
    assert law.dropped == 2
    assert law.dropping["alpha"] == pytest.approx(
        [law.values()["alpha"], fit(points, bootstraps=0).values()["alpha"]], rel=1e-3
    )


def test_a_parameter_the_points_do_not_bound_is_called_so():
    """Data so plentiful that D's term is lost in noise: B and beta are not identified, alpha is."""
    params = np.tile(np.geomspace(1e6, 1e9, 12), 3)
    tokens = np.repeat([1e14, 3e14, 1e15], 12)
    loss = chinchilla_loss(params, tokens) * np.exp(0.002 * np.random.default_rng(0).standard_normal(36))
    try:
        law = fit(make_points(params, tokens, loss), method="squares", bootstraps=0)
    except Unidentifiable:
        return
    assert law.identifiable["beta"] != "yes"
    assert law.identifiable["alpha"] == "yes"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "least"}, "--method least"),
        ({"delta": 0}, "--delta 0"),
        ({"level": 90}, "--level 90"),
        ({"cluster": "row"}, "--cluster row"),
        ({"fixed": {"gamma": 1.0}}, "gamma: not a parameter"),
        ({"fixed": {"E": -1.0}}, "must be positive"),
    ],
)
def test_wrong_options_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        fit(synthetic(0.01), **({"bootstraps": 5} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bootstraps": 1}, "--bootstraps 1: 0 for asymptotic errors, or 2 to"),
        ({"bootstraps": -5}, "--bootstraps -5"),
        ({"bootstraps": 10**9}, "--bootstraps 1000000000"),
        ({"bootstraps": 2.5}, "--bootstraps 2.5"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**32}, "--seed 4294967296"),
        ({"level": float("nan")}, "--level nan"),
        ({"level": 1}, "--level 1"),
        ({"cluster": "rows"}, "--cluster rows"),
    ],
)
def test_options_out_of_range_are_refused_by_every_fit(change, message):
    for law in (fit, fit_frontier):
        with pytest.raises(UserError, match=message):
            law(synthetic(0.01), **({"bootstraps": 0} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": float("inf")}, "--delta inf"),
        ({"delta": 1e-300}, "--delta 1e-300"),
        ({"fixed": {"E": float("nan")}}, "--fix E=nan: must be a finite number"),
        ({"fixed": {"E": "1"}}, "--fix E='1': must be a finite number"),
        ({"hold_out": [True]}, "hold_out is a mask"),
        ({"law": "repeated"}, "no column 'unique_tokens'"),
    ],
)
def test_options_of_laws_are_checked_too(change, message):
    with pytest.raises(UserError, match=message):
        fit(synthetic(0.01), **({"bootstraps": 0} | change))


def test_a_floor_above_every_loss_identifies_nothing():
    law = fit(synthetic(0.01), bootstraps=20, fixed={"E": 100.0})
    assert law.identifiable.pop("E") == "fixed"
    assert set(law.identifiable.values()) == {"no: the law fits no better than one constant"}
    assert any("no better than one constant" in text for text in law.warnings)
    for name in ("A", "B", "alpha", "beta"):
        e = law.parameters[name]
        assert e.se is None or np.isfinite(e.se)


def test_a_floor_is_not_spoken_of_where_a_law_has_none():
    params, tokens = grid()
    batch = evaluate(form_of("batch"), LAWS["batch"], {"tokens": tokens})
    law = fit(make_points(params, tokens, np.ones_like(params), columns={"batch_tokens": batch}), "batch", bootstraps=0)
    assert not any("E is zero" in text for text in law.warnings)


def test_copies_of_the_points_change_nothing_but_a_warning():
    points = synthetic(0.01)
    thrice = make_points(*(np.tile(a, 3) for a in (points.params, points.tokens, points.loss)))
    once, again = fit(points, bootstraps=0), fit(thrice, bootstraps=0)
    assert again.parameters == once.parameters
    assert "90 rows repeat another in every column; each is counted once" in again.warnings


def test_approaches_that_disagree_say_so():
    """At each budget one run, of a size that drifts, is lucky: the law passes it by, and the valley follows it."""
    points = synthetic(0.002)
    assert not any("approaches disagree" in text for text in fit(points, bootstraps=0).warnings)
    loss = points.loss.copy()
    loss[9 * np.arange(5) + 2 + np.arange(5)] *= 0.85
    law = fit(make_points(points.params, points.tokens, loss), bootstraps=0)
    [said] = [text for text in law.warnings if "approaches disagree" in text]
    assert "a = 0.450" in said and "0.569" in said
    assert any("approaches disagree" in text for text in against_law(fit_frontier(law.data, bootstraps=0)))


def test_too_few_points_are_refused():
    with pytest.raises(UserError, match=r"5 points cannot determine the 5 parameters"):
        fit(synthetic().where(np.arange(5)))


def test_held_out_points_are_predicted_and_scored():
    points = synthetic(0.003, seed=2)
    law = fit(points, bootstraps=200, hold_out=matching(points, "flops > 5e19"))
    rows = law.held_out
    assert len(rows) == 18 and law.points == 27
    assert all(row["error"] == pytest.approx(row["predicted"] / row["actual"] - 1) for row in rows)
    assert max(abs(row["error"]) for row in rows) < 0.03
    assert sum(row["inside"] for row in rows) >= 12
    assert any("largest fitted" in text for text in law.warnings)


def test_the_optimum_is_the_closed_form():
    """Hoffmann et al. 2022, equation 4; and with FLOPs that grow faster than 6ND, its generalisation."""
    params, tokens = grid()
    loss = chinchilla_loss(params, tokens)
    p = HOFFMANN
    law = fit(make_points(params, tokens, loss), bootstraps=0)
    g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    best = law.optimum([1e20, 1e22])
    expected = g * (np.array([1e20, 1e22]) / 6) ** (p["beta"] / (p["alpha"] + p["beta"]))
    np.testing.assert_allclose(best["params"], expected, rtol=1e-4)
    np.testing.assert_allclose(6 * best["params"] * best["tokens"], [1e20, 1e22], rtol=1e-6)
    assert (best["params_low"] <= best["params"]).all() and (best["params"] <= best["params_high"]).all()
    flops = 9 * params**0.9 * tokens
    law = fit(make_points(params, tokens, loss, flops), bootstraps=0)
    ratio = p["alpha"] * p["A"] / (0.9 * p["beta"] * p["B"]) * (1e20 / 9) ** p["beta"]
    assert law.optimum(1e20)["params"][0] == pytest.approx(ratio ** (1 / (p["alpha"] + 0.9 * p["beta"])), rel=1e-4)
