"""Each law's formula against one written with plain powers, and its linear terms against its formula."""

import numpy as np
import pytest

from lm.errors import UserError
from lm.scaling.laws import LAWS, double, evaluate, form_of

N, D, U = np.array([1e6, 3e7, 1e9]), np.array([4e7, 2e8, 5e10]), np.array([4e7, 1e8, 1e9])
COLUMNS = {"params": N, "tokens": D, "flops": 6 * N * D, "unique_tokens": U}


def muennighoff(p, n, d, u):
    """Equations 5 to 7 as the paper prints them, in powers and exponentials."""
    fed = (p["alpha"] * p["A"] / (p["beta"] * p["B"]) * u ** p["beta"]) ** (1 / p["alpha"])
    u_n = np.minimum(fed, n)
    n_eff = u_n + u_n * p["R_N"] * (1 - np.exp(-(n / u_n - 1) / p["R_N"]))
    d_eff = u + u * p["R_D"] * (1 - np.exp(-(d / u - 1) / p["R_D"]))
    return p["E"] + p["A"] / n_eff ** p["alpha"] + p["B"] / d_eff ** p["beta"]


CASES = {
    "kaplan_n": (dict(N_c=8.8e13, alpha_N=0.076), lambda p: (p["N_c"] / N) ** p["alpha_N"]),
    "kaplan_d": (dict(D_c=5.4e13, alpha_D=0.095), lambda p: (p["D_c"] / D) ** p["alpha_D"]),
    "kaplan_c": (dict(C_c=1.6e22, alpha_C=0.057), lambda p: (p["C_c"] / (6 * N * D)) ** p["alpha_C"]),
    "kaplan_nd": (
        dict(N_c=6.4e13, D_c=1.8e13, alpha_N=0.076, alpha_D=0.103),
        lambda p: ((p["N_c"] / N) ** (p["alpha_N"] / p["alpha_D"]) + p["D_c"] / D) ** p["alpha_D"],
    ),
    "chinchilla": (
        dict(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
        lambda p: p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"],
    ),
    "overtraining": (
        dict(E=1.5, a=141.0, b=190.0, eta=0.121),
        lambda p: p["E"] + (p["a"] * (D / N) ** p["eta"] + p["b"] * (D / N) ** -p["eta"]) * (6 * N * D) ** -p["eta"],
    ),
    "repeated": (
        dict(E=1.87, A=521.0, B=1488.0, alpha=0.35, beta=0.36, R_D=15.4, R_N=5.3),
        lambda p: muennighoff(p, N, D, U),
    ),
    "power": (dict(E=1.2, K=300.0, gamma=0.15), lambda p: p["E"] + p["K"] / (6 * N * D) ** p["gamma"]),
    "learning_rate": (dict(k=1.79, p=-0.713, q=0.307), lambda p: p["k"] * N ** p["p"] * D ** p["q"]),
    "batch": (dict(k=0.58, q=0.571), lambda p: p["k"] * D ** p["q"]),
}


def test_every_law_has_a_case():
    assert set(CASES) == set(LAWS)


@pytest.mark.parametrize("name", CASES)
def test_a_law_is_its_formula(name):
    p, plain = CASES[name]
    np.testing.assert_allclose(evaluate(form_of(name), p, COLUMNS), plain(p), rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if name != "repeated"])
def test_the_linear_terms_add_up_to_the_law(name):
    """prediction^(1/outer) = sum of coefficient x term, for coefficients drawn at random."""
    form, (p, _) = form_of(name), CASES[name]
    g = {key: p[key] for key in form.grid}
    with double():
        terms = form.terms(g, {key: np.log(COLUMNS[key]) for key in form.inputs})
        k = np.random.default_rng(0).uniform(0.5, 2, len(terms)) / [float(np.mean(term)) for term in terms]
        total = sum(float(c) * np.asarray(term) for c, term in zip(k, terms, strict=True)) ** float(form.outer(g))
        assembled = {key: float(value) for key, value in form.assemble(g, list(k)).items()}
    np.testing.assert_allclose(evaluate(form, g | assembled, COLUMNS), total, rtol=1e-10)


def test_data_seen_once_are_worth_what_they_are():
    """With D = U and few parameters the repeated-data law is chinchilla's."""
    p, _ = CASES["repeated"]
    once = {"params": N[:1], "tokens": 1e12 * N[:1], "unique_tokens": 1e12 * N[:1]}
    plain = {name: p[name] for name in ("E", "A", "B", "alpha", "beta")}
    np.testing.assert_allclose(
        evaluate(form_of("repeated"), p, once), evaluate(form_of("chinchilla"), plain, once), rtol=1e-12
    )


def test_an_unknown_law_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean chinchilla"):
        form_of("chinchila")
