"""How far a fit can be trusted: refits of resamples, asymptotic errors and profile likelihood."""

import dataclasses

import numpy as np
from scipy.special import ndtri, stdtrit

from lm.scaling.points import Points
from lm.scaling.problem import Problem, jacobian, refit, residuals_at
from lm.scaling.resampling import redrawn_losses, resampled_counts

OFFSETS = np.geomspace(0.3, 60, 14)
"""Where a profile is taken, in asymptotic standard errors from the fit, on either side."""


def bootstrap(problem: Problem, theta_P: np.ndarray, points: Points, count: int, cluster: str, seed: int) -> np.ndarray:
    """theta_RP of `count` refits, each from the fit's own place. cluster: see `lm.scaling.resampling.CLUSTERS`."""
    p, w, y = problem, problem.w_n, problem.y_n
    if cluster == "noise":
        r_n = residuals_at(p, theta_P) / p.x["precision"]
        fitted_n = p.y_n * np.exp(r_n) if p.misfit.log else p.y_n + r_n
        y = np.stack(list(redrawn_losses(points, fitted_n, count, seed)))
    else:
        w = np.stack(list(resampled_counts(points, [np.arange(len(points))], count, cluster, seed)))
    return refit(p, np.broadcast_to(theta_P, (count, len(theta_P))), theta_P, y=y, w=w)[0]


@dataclasses.dataclass(frozen=True)
class Spread:
    """The scatter of residuals, as an M-estimator sees it: scores psi = h'(r).

    sd: a robust standard deviation of the residuals; score2 = E psi^2; slope = E psi'.
    """

    sd: float
    score2: float
    slope: float


def spread(problem: Problem, theta_P: np.ndarray) -> Spread:
    """The residuals' scatter as of Huber 1981, chapter 7, with n - U degrees of freedom.

    The objective is over delta: psi lies in [-1, 1].

    E psi' is the share of residuals within delta, over delta. With delta far below the scatter few are, and as many as
    there are parameters are always near zero: so the share is taken from a window half as wide as the scatter, and
    without that many of the smallest.
    """
    r_n, delta = residuals_at(problem, theta_P), problem.delta
    n, P = len(r_n), int(problem.free_P.sum())
    if np.isinf(delta):
        variance = max(float(np.sum(r_n**2)) / max(n - P, 1), 1e-30)
        return Spread(np.sqrt(variance), variance, 1.0)
    size = np.sort(np.abs(r_n))[P if n > 3 * P else 0 :]
    sd = max(float(np.median(size)) / ndtri(0.75), 1e-15)
    window = max(delta, 0.5 * sd)
    score2 = max(float(np.sum(np.minimum(np.abs(r_n) / delta, 1) ** 2)) / max(n - P, 1), 1e-30)
    return Spread(sd, score2, max(float(np.mean(size <= window)), 1 / n) / window)


def covariance(problem: Problem, theta_P: np.ndarray, s: Spread, *, robust: bool = True) -> np.ndarray:
    """Asymptotic covariance of the free parameters: E psi^2 / (E psi')^2 (J' J)^-1.

    robust: with each point's own psi^2 in the middle (White 1980), as noise is seldom the same everywhere; squares are
    corrected for leverage, by which a point draws the fit to itself.
    """
    J_nU = jacobian(problem, theta_P)
    inverse_Un = np.linalg.pinv(J_nU, rcond=3e-8)  # J' J would square its condition, and a variance come out negative
    if not robust:
        return s.score2 / s.slope**2 * inverse_Un @ inverse_Un.T
    r_n = residuals_at(problem, theta_P)
    if np.isinf(problem.delta):
        leverage_n = np.einsum("np,pn->n", J_nU, inverse_Un)
        score2_n = np.maximum(r_n**2, 1e-30) / np.maximum(1 - leverage_n, 1e-3) ** 2
    else:
        freedom = len(r_n) / max(len(r_n) - J_nU.shape[1], 1)
        score2_n = freedom * np.maximum(np.minimum(np.abs(r_n) / problem.delta, 1) ** 2, 1e-30)
    return (inverse_Un * score2_n) @ inverse_Un.T / s.slope**2


def profiles(problem: Problem, theta_P: np.ndarray, level: float) -> dict[str, tuple[float, float]]:
    """Ends of profile-likelihood intervals by parameter.

    They are where 2 (Q(value) - Q) E psi' / E psi^2 passes F's quantile with (1, n - P).

    The rise is rescaled by plain over robust variance, so that noise that differs between points counts (Kent 1982).
    An end that is never passed is infinite (or 0, for a positive parameter's lower end): the points do not bound it.
    """
    p, s = problem, spread(problem, theta_P)
    free = np.flatnonzero(p.free_P)
    V_UU, plain_UU = covariance(p, theta_P, s), covariance(p, theta_P, s, robust=False)
    offset_Z = np.concatenate([-OFFSETS[::-1], OFFSETS])
    value_UZ = theta_P[free][:, None] + np.sqrt(np.diag(V_UU))[:, None] * offset_Z
    rise_UZ = _rises(p, theta_P, value_UZ, V_UU) * s.slope / s.score2
    rise_UZ *= (np.diag(plain_UU) / np.diag(V_UU))[:, None]
    limit = stdtrit(max(len(p.y_n) - len(free), 1), (1 + level) / 2) ** 2
    found, middle = {}, len(OFFSETS)
    for index, value_Z, rise_Z in zip(free, value_UZ, rise_UZ, strict=True):
        name = p.form.parameters[index]
        natural = np.exp if name in p.form.logs else np.asarray
        low = _crossing(theta_P[index], value_Z[:middle][::-1], rise_Z[:middle][::-1], limit)
        high = _crossing(theta_P[index], value_Z[middle:], rise_Z[middle:], limit)
        low, high = (-np.inf if low is None else low), (np.inf if high is None else high)
        with np.errstate(over="ignore"):  # what no float holds is infinite
            found[name] = float(natural(low)), float(natural(high))
    return found


def _rises(p: Problem, theta_P: np.ndarray, value_UZ: np.ndarray, V_UU: np.ndarray) -> np.ndarray:
    """Twice the objective's rise, [U, Z], with each free parameter in turn at its values and the others refitted.

    The others begin both along the valley and where they are: far out one of the two starts may lead nowhere.
    """
    free = np.flatnonzero(p.free_P)
    U, Z = value_UZ.shape
    start_SUZP = np.tile(theta_P, (2, U, Z, 1))
    for j, index in enumerate(free):
        start_SUZP[0, j][:, free] += (value_UZ[j] - theta_P[index])[:, None] * V_UU[:, j] / V_UU[j, j]
        start_SUZP[:, j, :, index] = value_UZ[j]
    others_UP = p.free_P & (np.arange(len(theta_P)) != free[:, None])
    rows = np.broadcast_to(others_UP[None, :, None], start_SUZP.shape).reshape(-1, len(theta_P))
    start_RP = np.concatenate([theta_P[None], start_SUZP.reshape(-1, len(theta_P))])
    _, cost = refit(p, start_RP, theta_P, free=np.concatenate([p.free_P[None], rows]))
    lowest_UZ = np.fmin(*cost[1:].reshape(2, U, Z))  # nan only where neither start led anywhere
    return 2 * (lowest_UZ - cost[0])


def _crossing(centre: float, value_Z: np.ndarray, rise_Z: np.ndarray, limit: float) -> float | None:
    """Where the rise first passes the limit going outwards; its square root is nearly straight in between.

    None where it does not, or where the objective is no number before it does: that bounds nothing.
    """
    known = np.isfinite(rise_Z)
    last = len(rise_Z) if known.all() else int(np.argmin(known))
    root = np.sqrt(np.maximum(np.concatenate([[0], rise_Z[:last]]), 0))
    values = np.concatenate([[centre], value_Z])
    above = np.flatnonzero(root > np.sqrt(limit))
    if not len(above):
        return None
    k = above[0]
    share = (np.sqrt(limit) - root[k - 1]) / (root[k] - root[k - 1])
    return float(values[k - 1] + share * (values[k] - values[k - 1]))


def normal_draws(problem: Problem, theta_P: np.ndarray, count: int, seed: int) -> np.ndarray:
    """theta_RP drawn from the asymptotic normal, which stands in for resamples where none were asked for."""
    V_UU = covariance(problem, theta_P, spread(problem, theta_P))
    theta_RP = np.tile(theta_P, (count, 1))
    values, vectors = np.linalg.eigh(V_UU)
    z = np.random.RandomState(seed).standard_normal((count, len(V_UU)))
    theta_RP[:, problem.free_P] += z * np.sqrt(np.maximum(values, 0)) @ vectors.T
    return theta_RP
