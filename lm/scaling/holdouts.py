"""How far predictions from these very points have been off: hold-outs that roll up through their compute.

An interval from resamples or from a likelihood supposes that the law holds. Real losses leave it: residuals are alike
along a size or a trunk, and the law's form is not the truth's, so predictions are off by more the further they go. By
how much, the points themselves can say. For cuts c_1 < c_2 < ... in compute, the law is fitted to the points up to the
cut and predicts those above it. An error e = ln(predicted / actual) at the distance d = ln(C / c) is taken to have
the scale

    s(d) = sqrt(s0^2 + (s1 d)^2)

s0 is how runs scatter, s1 how wrong the slope d ln L / d ln C tends to be. Both are those of the largest likelihood
under Student's distribution, so that a few diverged runs or one wild refit do not decide, with s0 at least the scatter
of the fitted points about their law. Errors behind one cut share a fit and are off together: every cut weighs the same,
however many points it predicts. The scale is about zero, so that a bias counts in full.

The interval of a prediction at the distance d from the largest fitted compute is exp(+-t s(d)) about it, t being
Student's quantile for as many degrees of freedom as there are cuts, but not more than TAILS. It is never narrower than
the interval that supposes the law.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from lm.scaling.law import TAILS, HoldOuts, Law
from lm.scaling.laws import double
from lm.scaling.problem import Problem, refit
from lm.scaling.solve import starts, unpack
from lm.scaling.verdicts import PARALLEL

SAME = 1e-3
"""Computes that differ by no more than this share are one budget."""
CUTS = 8
"""At most so many, evenly spread over the points: more would repeat their neighbours."""
FEWEST_CUTS = 2
NEAR = 1.2
"""Times a cut's compute that the furthest point above it must have: nearer, there is no distance to speak of."""
POINTS_PER_PARAMETER = 2
"""Below the lowest cut: refits of fewer points say more about themselves than about the law."""
SCATTERS = np.geomspace(1, 10, 24)
"""Where s0 is looked for, in units of the fitted points' scatter."""
GROWTHS = np.concatenate([[0.0], np.geomspace(1e-4, 1, 93)])
"""Where s1 is looked for: neighbours are 10% apart."""


def roll(law: Law) -> HoldOuts:
    """Rolling hold-outs of the points that a law was fitted to, by its own method; parameters held stay held."""
    problem, flops_n = law.problem, np.log(law.data.flops)
    cut_Q = _cuts(problem, flops_n)
    if len(cut_Q) < FEWEST_CUTS:
        fewest = POINTS_PER_PARAMETER * int(problem.free_P.sum())
        why = (
            f"it takes {FEWEST_CUTS} cuts in compute with points above and at least {fewest} below that vary in "
            f"{' and '.join(problem.form.inputs)}; these {len(flops_n)} points have {len(cut_Q)}"
        )
        return HoldOuts([], why=why)
    above_Qn, distance_Qn = flops_n > cut_Q[:, None], flops_n - cut_Q[:, None]
    error_Qn = _log_predictions(problem, _refit(problem, ~above_Qn)) - np.log(problem.y_n)
    cuts = []
    for cut, above_n, d_n, e_n in zip(cut_Q, above_Qn, distance_Qn, error_Qn, strict=True):
        d, e = d_n[above_n], e_n[above_n]
        cuts.append({
            "flops": float(np.exp(cut)), "fitted": int(np.sum(~above_n)), "predicted": len(d),
            "furthest": float(np.exp(d.max())), "error": float(np.expm1(e.mean())), "slope": float(e @ d / (d @ d)),
        })  # fmt: skip
    weight_Qn = above_Qn / np.sum(above_Qn, axis=1, keepdims=True)
    s0, s1 = scale_of(error_Qn[above_Qn], distance_Qn[above_Qn], weight_Qn[above_Qn], _scatter(law))
    return HoldOuts(cuts, s0, s1)


def scale_of(e_m: np.ndarray, d_m: np.ndarray, w_m: np.ndarray, scatter: float) -> tuple[float, float]:
    """s0 and s1 of the largest likelihood of m errors at their distances, w the weight of each, over a grid of both."""
    scatters, worst = scatter * SCATTERS, np.empty((len(SCATTERS), len(GROWTHS)))
    for i, s0 in enumerate(scatters):
        scale2_Gm = s0**2 + (GROWTHS[:, None] * d_m) ** 2
        worst[i] = (np.log(scale2_Gm) + (TAILS + 1) * np.log1p(e_m**2 / (TAILS * scale2_Gm))) @ w_m
    i, j = np.unravel_index(int(worst.argmin()), worst.shape)
    return float(scatters[i]), float(GROWTHS[j])


def _cuts(problem: Problem, flops_n: np.ndarray) -> np.ndarray:
    """ln C of the cuts: budgets below which there is enough to fit and above which there is something to predict."""
    fewest = POINTS_PER_PARAMETER * int(problem.free_P.sum())
    x_In = np.stack([problem.x[name] for name in problem.form.inputs])
    budgets = np.unique(flops_n)
    budgets = budgets[np.append(np.diff(budgets) > SAME, True)]
    budgets = budgets[budgets <= flops_n.max() - np.log(NEAR)]
    fitted = np.array([np.sum(flops_n <= c) for c in budgets])
    usable = [i for i, c in enumerate(budgets) if fitted[i] >= fewest and _varied(x_In[:, flops_n <= c])]
    if not usable:
        return np.array([])
    wanted = np.linspace(fitted[usable[0]], fitted[usable[-1]], CUTS)
    chosen = {usable[int(np.abs(fitted[usable] - count).argmin())] for count in wanted}
    return budgets[sorted(chosen)]


def _varied(x_In: np.ndarray) -> bool:
    """Whether columns of logarithms vary, and not all alike; at one budget alone, for example, they do not."""
    if np.ptp(x_In, axis=1).min() < 1e-6:
        return False
    correlation_II = np.atleast_2d(np.corrcoef(x_In))
    return bool(np.abs(correlation_II - np.eye(len(x_In))).max() <= PARALLEL)


def _refit(problem: Problem, fitted_Qn: np.ndarray) -> np.ndarray:
    """theta_QP of the law fitted to each row's points alone, from a grid of starts each.

    The others have weight 0: with one shape for all, nothing is compiled that the fit itself had not needed.
    """
    p, w_Qn = problem, fitted_Qn.astype(float)
    with double():
        theta_QSP = np.stack([starts(p.misfit, p.x, p.y_n, w_n, p.held, p.deltas[0])[0] for w_n in w_Qn])
    Q, S, P = theta_QSP.shape
    start_RP, w_Rn = theta_QSP.reshape(Q * S, P), np.repeat(w_Qn, S, axis=0)
    ended, cost = refit(p, start_RP, theta_QSP[-1, 0], w=w_Rn, centre_w=w_Qn[-1])
    best_Q = np.where(np.isfinite(cost), cost, np.inf).reshape(Q, S).argmin(1)
    return ended.reshape(Q, S, P)[np.arange(Q), best_Q]


def _log_predictions(problem: Problem, theta_QP: np.ndarray) -> np.ndarray:
    """ln of what each row's law predicts for every point, [Q, n]."""
    form = problem.form
    with double():
        x = {name: jnp.asarray(column) for name, column in problem.x.items()}
        return np.asarray(jax.vmap(lambda theta: jnp.log(form.predict(unpack(form, theta), x)))(jnp.asarray(theta_QP)))


def _scatter(law: Law) -> float:
    """A robust standard deviation of ln(predicted / actual) of the fitted points, for the fit's degrees of freedom."""
    n, free = len(law.data), int(law.problem.free_P.sum())
    columns = {name: law.data.column(name) for name in law.form.inputs}
    e_n = np.log(law.predict(**columns)) - np.log(law.problem.y_n)
    sd = np.median(np.abs(e_n)) / ndtri(0.75) * np.sqrt(n / max(n - free, 1))
    return max(float(sd), 1e-9)
