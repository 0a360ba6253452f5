"""A law to be fitted to points, and its solution in the lowest basin."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from lm.errors import require
from lm.scaling.laws import Form, double, logs_of
from lm.scaling.points import Points, check_column
from lm.scaling.solve import (
    Misfit,
    cost,
    filled,
    huber,
    metric,
    pack,
    polish,
    residual_slopes,
    residuals,
    starts,
    table,
    unpack,
)

METHODS = ("huber", "l1", "squares", "log-squares")
"""huber: of ln(prediction/L); l1: the same with delta to nothing; squares: of prediction - L; log-squares: of logs."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """What the solver needs, on the host. x: logarithms of the inputs; y_n: the target; held: fixed values.

    delta: Huber's, infinite for squares; deltas: the stages on the way to it.
    """

    misfit: Misfit
    method: str
    x: dict[str, np.ndarray]
    y_n: np.ndarray
    w_n: np.ndarray
    """Ones; a resample has counts."""
    held: dict[str, float]
    delta: float
    deltas: tuple[float, ...]

    @property
    def form(self) -> Form:
        """The law that is fitted."""
        return self.misfit.form

    @property
    def free_P(self) -> np.ndarray:
        """Which parameters are not held."""
        return np.array([name not in self.held for name in self.form.parameters])

    @property
    def unit(self) -> float:
        """The factor from the solver's objective to the published one, as the solver divides Huber's by delta."""
        return {"huber": self.delta, "l1": 1.0}.get(self.method, 2.0)  # squares: sum of r^2, not of r^2/2


def make_problem(
    points: Points, form: Form, method: str = "huber", delta: float = 1e-3, held: Mapping[str, float] | None = None
) -> Problem:
    """Residuals of points that carry their seed noise are divided by it: a weight 1/sd^2 in a sum of squares."""
    held = dict(held or {})
    for name in (*form.inputs, form.target):
        check_column(points, name)
    y_n = points.column(form.target).astype(float)
    log = method != "squares"
    precision_n = np.ones(len(points))
    if points.sd is not None and form.target == "loss":
        sd_n = points.sd / y_n if log else points.sd
        precision_n = np.exp(np.mean(np.log(sd_n))) / sd_n  # relative to their mean, so that delta keeps its meaning
    final = {"huber": delta, "l1": 1e-9}.get(method, np.inf)
    deltas = tuple(np.geomspace(1e-3, final, 10)) if method == "l1" else (final,)
    x = logs_of(form, {name: points.column(name) for name in form.inputs}) | {"precision": precision_n}
    return Problem(
        misfit=Misfit(form, log), method=method, x=x, y_n=y_n, w_n=np.ones(len(points)), held=held, delta=final,
        deltas=deltas,
    )  # fmt: skip


def solve(problem: Problem, begin: Mapping[str, float] | None = None) -> tuple[np.ndarray, float, dict[str, int]]:
    """The lowest basin's bottom: theta_P, the objective, and how many starts were tried, polished and ended there.

    begin: where free parameters begin that no grid searches.
    """
    p, first = problem, problem.deltas[0]
    with double():
        theta_RP, tried = starts(p.misfit, p.x, p.y_n, p.w_n, {**(begin or {}), **p.held}, first)
    ended_RP, cost_R = refit(p, theta_RP, theta_RP[0])
    cost_R = np.where(np.isfinite(cost_R), cost_R, np.inf)
    best = int(np.argmin(cost_R))
    require(np.isfinite(cost_R[best]), f"{p.form.name}: no start leads anywhere finite; are the columns right?")
    agreed = np.abs(cost_R - cost_R[best]) <= 1e-6 * cost_R[best] + 1e-14
    moved = np.any(np.abs(ended_RP[best] - theta_RP[best]) > 1e-9)
    counts = {"tried": tried, "polished": len(cost_R), "agreed": int(agreed.sum()), "moved": int(moved)}
    return ended_RP[best], float(cost_R[best]) * p.unit, counts


def objective_at(problem: Problem, p: Mapping[str, float]) -> float:
    """The objective at given parameters: to set a published fit beside one's own."""
    with double():
        theta_P = pack(problem.form, {name: jnp.float64(p[name]) for name in problem.form.parameters})
        value = cost(problem.misfit, theta_P, *table(problem.x, problem.y_n, problem.w_n), problem.delta)
        return float(value) * problem.unit


def objective_of_constant(problem: Problem) -> float:
    """The objective of the best of three constants (median, mean, geometric mean): what a law must beat."""
    y_n, x = problem.y_n, problem.x
    values = []
    for constant in (np.median(y_n), np.mean(y_n), np.exp(np.mean(np.log(y_n)))):
        r_n = x["precision"] * (np.log(constant / y_n) if problem.misfit.log else constant - y_n)
        with double():
            values.append(float(np.asarray(huber(filled(r_n), problem.delta))[: len(r_n)] @ problem.w_n))
    return min(values) * problem.unit


def refit(
    problem: Problem, start_RP, centre_P, *, y=None, w=None, free=None, centre_w=None
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """theta_RP and cost_R (over delta) at the bottoms of the basins in which R starts are.

    y, w, free: other targets, weights and free parameters, for all or a row a start. centre_P, centre_w: parameters and
    weights at which the length of steps is measured.
    """
    p = problem
    at = table(p.x, p.y_n, p.w_n if centre_w is None else centre_w)
    with double():
        M_PP = np.asarray(metric(p.misfit, jnp.asarray(centre_P), *at, p.deltas[0]))
    y, w, free = p.y_n if y is None else y, p.w_n if w is None else w, p.free_P if free is None else free
    return polish(p.misfit, start_RP, p.x, y, w, free, M_PP, p.deltas)


def residuals_at(problem: Problem, theta_P) -> np.ndarray:
    """Residuals of the points, [n], as the objective sees them."""
    with double():
        x, y_n, _ = table(problem.x, problem.y_n, problem.w_n)
        return np.asarray(residuals(problem.misfit, jnp.asarray(theta_P), x, y_n))[: len(problem.y_n)]


def jacobian(problem: Problem, theta_P) -> np.ndarray:
    """Derivatives of the residuals by the free parameters: [n, U]."""
    with double():
        x, y_n, _ = table(problem.x, problem.y_n, problem.w_n)
        J_nP = np.asarray(residual_slopes(problem.misfit, jnp.asarray(theta_P), x, y_n))
    return J_nP[: len(problem.y_n), problem.free_P]


def named(form: Form, theta_RP: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters by name from search coordinates, one or many rows."""
    with double():
        return {name: np.asarray(value) for name, value in unpack(form, np.asarray(theta_RP).T).items()}
