"""The laws: each a formula with its paper, a function of parameters `p` and of the natural logarithms `x` of columns.

A law that is linear in some of its parameters once the others are given says so by `terms`: the fit then needs a grid
of starts over those others only (see `lm.scaling.solve`).
"""

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import UserError, nearest
from lm.scaling.chinchilla import chinchilla_loss, chinchilla_terms, frontier_exponents


@contextlib.contextmanager
def double():
    """Float64 on the host, here only: fits need it, and the rest of the project computes in float32."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


EXPONENTS = tuple(np.geomspace(0.015, 2.0, 40))
"""Starts for an exponent. Neighbours are 13% apart, several standard errors less than a basin is wide."""
SIGNED = tuple(np.linspace(-1.5, 1.5, 31))


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """A law's formula.

    parameters: their public names; those in `logs` are positive and searched for by their logarithm.
    inputs: the columns it reads, as logarithms. target: the column it predicts.
    predict(p, x): the prediction, [n].
    grid: starts of the parameters it is not linear in. terms(g, x): for given g, a list of [n] columns of which
    prediction^(1/outer(g)) is a sum with non-negative coefficients. assemble(g, coefficients): those as parameters.
    """

    name: str
    formula: str
    source: str
    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    predict: Callable
    grid: dict[str, tuple[float, ...]]
    terms: Callable = lambda g, x: []
    outer: Callable = lambda g: 1.0
    assemble: Callable = lambda g, coefficients: {}
    logs: frozenset[str] = frozenset()
    target: str = "loss"
    base: tuple[str, ...] = ()
    """Parameters that it shares with a law of data seen once, where a fit of that law lets the search begin."""
    derived: Callable = lambda p: {}
    """Quantities computed from the parameters that people quote, such as the exponent a of N*(C)."""


def _sum_of_terms(coefficients: tuple[str, ...], terms: Callable, grid: dict[str, tuple[float, ...]], **rest) -> Form:
    """A law that is a sum of positive coefficients times terms: said once, it is predicted from and fitted by."""
    return Form(
        parameters=(*coefficients, *grid), grid=grid, terms=terms, logs=frozenset(coefficients),
        predict=lambda p, x: sum(p[name] * term for name, term in zip(coefficients, terms(p, x), strict=True)),
        assemble=lambda g, found: dict(zip(coefficients, found, strict=True)), **rest,
    )  # fmt: skip


# Kaplan et al. 2020, equations 1.1, 1.2 and 1.5: no irreducible loss.


def _single(column: str, scale: str, exponent: str, label: str, equation: str) -> Form:
    """L = (X_c / X)^alpha: one resource limits, the others are plentiful."""
    return Form(
        name=f"kaplan_{label.lower()}", formula=f"L = ({scale} / {label})^{exponent}",
        source=f"Kaplan et al. 2020, {equation}", parameters=(scale, exponent), inputs=(column,),
        predict=lambda p, x: jnp.exp(p[exponent] * (jnp.log(p[scale]) - x[column])),
        grid={exponent: EXPONENTS}, terms=lambda g, x: [jnp.exp(-x[column])], outer=lambda g: g[exponent],
        assemble=lambda g, k: {scale: k[0]}, logs=frozenset({scale}),
    )  # fmt: skip


KAPLAN_ND = Form(
    name="kaplan_nd",
    formula="L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D",
    source="Kaplan et al. 2020, equation 1.5",
    parameters=("N_c", "D_c", "alpha_N", "alpha_D"),
    inputs=("params", "tokens"),
    predict=lambda p, x: (
        (jnp.exp(p["alpha_N"] / p["alpha_D"] * (jnp.log(p["N_c"]) - x["params"])) + p["D_c"] * jnp.exp(-x["tokens"]))
        ** p["alpha_D"]
    ),
    grid={"alpha_N": EXPONENTS, "alpha_D": EXPONENTS},
    terms=lambda g, x: [jnp.exp(-g["alpha_N"] / g["alpha_D"] * x["params"]), jnp.exp(-x["tokens"])],
    outer=lambda g: g["alpha_D"],
    assemble=lambda g, k: {"N_c": k[0] ** (g["alpha_D"] / g["alpha_N"]), "D_c": k[1]},
    logs=frozenset({"N_c", "D_c"}),
)

# Hoffmann et al. 2022, equation 2 and approach 3.

CHINCHILLA = _sum_of_terms(
    ("E", "A", "B"),
    lambda g, x: chinchilla_terms(
        g | {"E": jnp.ones_like(x["params"]), "A": 1.0, "B": 1.0}, x["params"], x["tokens"], jnp.exp
    ),
    {"alpha": EXPONENTS, "beta": EXPONENTS},
    name="chinchilla", formula="L = E + A / N^alpha + B / D^beta", source="Hoffmann et al. 2022, equation 2",
    inputs=("params", "tokens"), derived=frontier_exponents,
)  # fmt: skip

# Gadre et al. 2024, equation 4: over-training at M tokens per parameter. C = 6 N D, so that (C/M)^eta = (6 N^2)^eta.


def _overtraining_terms(g: dict, x: dict) -> list:
    c, m = jnp.log(6.0) + x["params"] + x["tokens"], x["tokens"] - x["params"]
    return [jnp.ones_like(c), jnp.exp(-g["eta"] * (c - m)), jnp.exp(-g["eta"] * (c + m))]


OVERTRAINING = _sum_of_terms(
    ("E", "a", "b"), _overtraining_terms, {"eta": tuple(np.geomspace(0.005, 1.0, 80))},
    name="overtraining", formula="L = E + (a M^eta + b M^-eta) C^-eta, M = D/N, C = 6ND",
    source="Gadre et al. 2024, equation 4", inputs=("params", "tokens"),
)  # fmt: skip

# Muennighoff et al. 2023, equations 5 to 7: tokens seen again, and parameters beyond what they feed, count for less.


def _effective(total, unique, half_life):
    """ln of U + U R* (1 - exp(-R/R*)), R = total/unique - 1, from ln total and ln unique."""
    repeats = jnp.expm1(total - unique)
    return unique + jnp.log1p(-half_life * jnp.expm1(-repeats / half_life))


def _repeated(p: dict, x: dict):
    # The parameters that the unique tokens alone would call for: compute-optimal for U_D under the same law.
    fed = (jnp.log(p["alpha"] * p["A"] / (p["beta"] * p["B"])) + p["beta"] * x["unique_tokens"]) / p["alpha"]
    n = _effective(x["params"], jnp.minimum(fed, x["params"]), p["R_N"])
    d = _effective(x["tokens"], x["unique_tokens"], p["R_D"])
    return chinchilla_loss(p, n, d, jnp.exp)


REPEATED = Form(
    name="repeated",
    formula="L = E + A / N'^alpha + B / D'^beta, D' = U_D + U_D R_D (1 - exp(-(D/U_D - 1) / R_D)), N' alike with R_N",
    source="Muennighoff et al. 2023, equations 5 to 7",
    parameters=("E", "A", "B", "alpha", "beta", "R_D", "R_N"),
    inputs=("params", "tokens", "unique_tokens"),
    predict=_repeated,
    grid={"R_D": tuple(np.geomspace(0.1, 1000, 40)), "R_N": tuple(np.geomspace(0.1, 1000, 40))},
    logs=frozenset({"E", "A", "B", "R_D", "R_N"}),
    base=("E", "A", "B", "alpha", "beta"),
)

# Power laws, with and without a floor.

POWER = _sum_of_terms(
    ("E", "K"), lambda g, x: [jnp.ones_like(x["flops"]), jnp.exp(-g["gamma"] * x["flops"])],
    {"gamma": tuple(np.geomspace(0.005, 1.5, 100))},
    name="power", formula="L = E + K / C^gamma", source="Henighan et al. 2020, equation 1.1", inputs=("flops",),
)  # fmt: skip


def _setting(name: str, target: str, formula: str, source: str, columns: dict[str, str]) -> Form:
    """k times powers of columns: `columns` maps exponent to column. Linear in logarithms, so one basin."""
    return _sum_of_terms(
        ("k",), lambda g, x: [jnp.exp(sum(g[exponent] * x[column] for exponent, column in columns.items()))],
        dict.fromkeys(columns, SIGNED),
        name=name, formula=formula, source=source, inputs=tuple(columns.values()), target=target,
    )  # fmt: skip


_LAWS = [
    _single("params", "N_c", "alpha_N", "N", "equation 1.1"),
    _single("tokens", "D_c", "alpha_D", "D", "equation 1.2"),
    _single("flops", "C_c", "alpha_C", "C", "equation 1.3"),
    KAPLAN_ND,
    CHINCHILLA,
    OVERTRAINING,
    REPEATED,
    POWER,
    _setting(
        "learning_rate", "learning_rate", "rate = k N^p D^q", "Li et al. 2025 (step law), equation 1",
        {"p": "params", "q": "tokens"},
    ),
    _setting("batch", "batch_tokens", "batch = k D^q", "Li et al. 2025 (step law), equation 1", {"q": "tokens"}),
]  # fmt: skip
LAWS = {form.name: form for form in _LAWS}


def form_of(name: str) -> Form:
    """The law of that name; UserError, with the nearest one, where there is none."""
    if name not in LAWS:
        raise UserError(f"{name}: no such law{nearest(name, LAWS)} (there are {', '.join(LAWS)})")
    return LAWS[name]


def logs_of(form: Form, columns: dict) -> dict[str, np.ndarray]:
    """The logarithms that a law reads, from columns by name."""
    return {name: np.log(np.asarray(columns[name], np.float64)) for name in form.inputs}


def evaluate(form: Form, p: dict, columns: dict) -> np.ndarray:
    """A law's prediction from parameters and columns by name, which broadcast together; in float64."""
    with double():
        return np.asarray(form.predict(p, logs_of(form, columns)))
