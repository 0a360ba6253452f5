"""Fit a scaling law to trained models: `fit(points, "chinchilla")` gives a `Law` that says how far it can be trusted."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm.errors import UserError, require
from lm.scaling import intervals
from lm.scaling.laws import Form, evaluate, form_of, logs_of
from lm.scaling.points import Points
from lm.scaling.solve import Misfit, double, metric, pack, polish, residuals, starts, unpack

METHODS = ("huber", "l1", "squares", "log-squares")
"""huber: of ln(prediction/L), delta as given; l1: delta to nothing; squares: of prediction - L; log-squares: of the logs."""
COLLINEAR = 1e4
"""Condition number from which exponents are refused: good designs have some hundreds, constant D/N has 1e5 and more."""


class Unidentifiable(UserError):
    """The points do not determine the law's parameters."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value with its standard error and the interval [low, high]; se, low and high may be None or infinite."""

    value: float
    se: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Problem:
    """A law to be fitted to points: what the solver needs, on the host."""

    misfit: Misfit
    x: dict[str, np.ndarray]
    y_n: np.ndarray
    w_n: np.ndarray
    held: dict[str, float]
    method: str
    delta: float
    deltas: tuple[float, ...]

    @property
    def form(self) -> Form:
        return self.misfit.form

    @property
    def free_P(self) -> np.ndarray:
        return np.array([name not in self.held for name in self.form.parameters])

    @property
    def unit(self) -> float:
        """What the solver's objective is to be multiplied with."""
        return self.delta if self.method == "huber" else 1.0


def make_problem(points: Points, form: Form, method: str, delta: float, held: Mapping[str, float]) -> Problem:
    """Residuals with a known seed noise are divided by it, relative to its mean, so that delta keeps its unit."""
    require(method in METHODS, f"--method {method}: one of {', '.join(METHODS)}")
    require(delta > 0, f"--delta {delta:g}: must be positive")
    for name in held:
        require(name in form.parameters, f"{name}: not a parameter of {form.name} ({', '.join(form.parameters)})")
    y_n = points.column(form.target).astype(float)
    log = method != "squares"
    if points.sd is None or form.target != "loss":
        w_n = np.ones(len(points))
    else:
        sd_n = points.sd / y_n if log else points.sd
        w_n = np.exp(np.mean(np.log(sd_n))) / sd_n  # Huber is linear far out: a weight 1/sd there, 1/sd^2 for squares
        w_n = w_n if method in ("huber", "l1") else w_n**2
    final = {"huber": delta, "l1": 1e-9}.get(method, np.inf)
    deltas = tuple(np.geomspace(1e-3, final, 10)) if method == "l1" else (final,)
    columns = {name: points.column(name) for name in form.inputs}
    return Problem(Misfit(form, log), logs_of(form, columns), y_n, w_n, dict(held), method, final, deltas)


def solve(problem: Problem) -> tuple[np.ndarray, float, dict[str, int]]:
    """The lowest basin's bottom: theta_P, the objective, and how many starts were tried, polished and ended there."""
    first = problem.deltas[0]
    with double():
        theta_RP, tried = starts(problem.misfit, problem.x, problem.y_n, problem.w_n, problem.held, first)
        M_PP = metric(problem.misfit, jnp.asarray(theta_RP[0]), problem.x, problem.y_n, problem.w_n, first)
    ended_RP, cost_R = polish(
        problem.misfit, theta_RP, problem.x, problem.y_n, problem.w_n, problem.free_P, np.asarray(M_PP), problem.deltas
    )
    cost_R = np.where(np.isfinite(cost_R), cost_R, np.inf)
    best = int(np.argmin(cost_R))
    require(np.isfinite(cost_R[best]), f"{problem.form.name}: no start leads anywhere finite; are the columns right?")
    there = np.abs(cost_R - cost_R[best]) <= 1e-6 * cost_R[best] + 1e-14
    moved = int(np.any(np.abs(ended_RP[best] - theta_RP[best]) > 1e-9))
    counts = {"tried": tried, "polished": len(cost_R), "agreed": int(there.sum()), "moved": moved}
    return ended_RP[best], float(cost_R[best]) * problem.unit, counts
