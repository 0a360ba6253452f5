"""Minimise a law's misfit: starts that find the basin, and damped Newton steps that end at its bottom.

Search coordinates theta_P: parameters in the law's order, those in `form.logs` as logarithms.
"""

import functools
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import minimum_filter

from lm.scaling.laws import Form, double

STARTS = 24
"""Grid nodes that are polished."""
BATCH = 64
"""Problems whose steps are taken together: few enough for their arrays to stay in the cache."""
STRIDE = 10
"""Steps between two looks at which problems are solved: half are after 15 steps, and the slowest take 50 or more."""
ROWS = 48
"""Tables are filled up to multiples of so many points, without weight: one compiled program serves all such lengths."""


class Misfit(NamedTuple):
    """The objective: sum_i w_i h(v_i r_i), h Huber's function divided by delta; infinite delta is least squares.

    log: r = ln(prediction/y), otherwise the difference. v: `x["precision"]`, 1 over the noise of each point relative to
    its mean. w: how often a resample has the point.
    """

    form: Form
    log: bool


def unpack(form: Form, theta_P) -> dict:
    """Parameters by name from search coordinates."""
    return {name: jnp.exp(theta_P[i]) if name in form.logs else theta_P[i] for i, name in enumerate(form.parameters)}


def pack(form: Form, p: dict):
    """Search coordinates from parameters by name."""
    return jnp.stack([jnp.log(p[name]) if name in form.logs else p[name] for name in form.parameters], axis=-1)


def filled(array) -> np.ndarray:
    """The array with its last axis, points, filled up to a multiple of ROWS with copies of the last one."""
    array = np.asarray(array)
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % ROWS)], mode="edge")


def table(x: dict, y, w) -> tuple[dict, np.ndarray, np.ndarray]:
    """Columns, targets and weights of as many points as programs are compiled for: those that fill up weigh nothing."""
    w_n = filled(np.asarray(w, float))  # counts, too: whole numbers would be another program
    w_n = w_n * (np.arange(w_n.shape[-1]) < np.shape(w)[-1])
    return {name: filled(column) for name, column in x.items()}, filled(y), w_n


@functools.partial(jax.jit, static_argnames=("misfit",))
def residuals(misfit: Misfit, theta_P, x: dict, y_n):
    """Differences between the law and the points, [n], in units of each point's relative noise."""
    prediction_n = misfit.form.predict(unpack(misfit.form, theta_P), x)
    return x["precision"] * (jnp.log(prediction_n) - jnp.log(y_n) if misfit.log else prediction_n - y_n)


@functools.partial(jax.jit, static_argnames=("misfit",))
def residual_slopes(misfit: Misfit, theta_P, x: dict, y_n):
    """Derivatives of the residuals by theta: [n, P]."""
    return jax.jacfwd(lambda theta: residuals(misfit, theta, x, y_n))(theta_P)


@jax.jit
def huber(r, delta):
    """Huber's function over delta: r^2 / (2 delta) within delta, |r| - delta/2 outside; r^2/2 for infinite delta."""
    size = jnp.abs(r)
    return jnp.where(size <= delta, r * r / (2 * _unit(delta)), size - _unit(delta) / 2)


def _unit(delta):
    """Huber's delta, or 1 for squares."""
    return jnp.where(jnp.isinf(delta), 1.0, delta)


@functools.partial(jax.jit, static_argnames=("misfit",))
def cost(misfit: Misfit, theta_P, x: dict, y_n, w_n, delta):
    """The objective, over delta. Summed, not averaged: a mean is small enough for tolerances to stop at the start."""
    return jnp.sum(w_n * huber(residuals(misfit, theta_P, x, y_n), delta))


@functools.partial(jax.jit, static_argnames=("misfit",))
def metric(misfit: Misfit, theta_P, x: dict, y_n, w_n, delta):
    """J' W J with the weights of iterated least squares: how far a step goes, in the units of the objective."""
    J_nP = residual_slopes(misfit, theta_P, x, y_n)
    r_n = jnp.abs(residuals(misfit, theta_P, x, y_n))
    v_n = w_n / jnp.where(jnp.isinf(delta), 1.0, jnp.maximum(r_n, delta))
    M_PP = J_nP.T @ (v_n[:, None] * J_nP)
    return M_PP + 1e-12 * jnp.trace(M_PP) * jnp.eye(M_PP.shape[0])


class _Descent(NamedTuple):
    """Where searches are: the objective with its slopes there, their damping, and whether they are over. [R, ...]"""

    theta: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    damping: np.ndarray
    done: np.ndarray


def _begun(theta_RP: np.ndarray) -> _Descent:
    """Searches before their first step, which goes nowhere, from worse than anything: so `expand` is compiled once."""
    R, P = theta_RP.shape
    return _Descent(
        theta=np.array(theta_RP, float), value=np.full(R, np.inf), gradient=np.zeros((R, P)),
        hessian=np.tile(np.eye(P), (R, 1, 1)), damping=np.full(R, 0.05), done=np.zeros(R, bool),
    )  # fmt: skip


def _descend(misfit: Misfit, start: _Descent, x, y_n, w_n, free_P, M_PP, delta) -> _Descent:
    """STRIDE steps of one search, or as many as it takes.

    Levenberg-damped Newton on the exact Hessian: a step is kept only if it lowers the objective.
    """
    both = free_P[:, None] & free_P[None, :]
    P = free_P.shape[0]

    def one(carry):
        step, s = carry
        move = -_solve(jnp.where(both, s.hessian + s.damping * M_PP, jnp.eye(P)), s.gradient)
        theta = s.theta + move
        value, gradient, hessian = expand(misfit, theta, x, y_n, w_n, delta)
        better = (value < s.value) & jnp.all(jnp.isfinite(hessian))
        no_more = jnp.isfinite(s.value) & (jnp.abs(jnp.dot(move, s.gradient)) <= 1e-13 * s.value)
        damping = jnp.where(better, jnp.maximum(s.damping / 5, 1e-9), s.damping * 4)
        done = (no_more & (better | (s.damping <= 1))) | (damping > 1e9)
        return step + 1, _Descent(
            theta=jnp.where(better, theta, s.theta),
            value=jnp.where(better, value, s.value),
            gradient=jnp.where(better, jnp.where(free_P, gradient, 0), s.gradient),
            hessian=jnp.where(better, hessian, s.hessian),
            damping=damping, done=done,
        )  # fmt: skip

    def goes_on(carry):
        step, s = carry
        return ~s.done & (step < STRIDE)

    return jax.lax.while_loop(goes_on, one, (jnp.int32(0), start))[1]


def expand(misfit: Misfit, theta_P, x, y_n, w_n, delta):
    """The objective over delta with its gradient and exact Hessian."""
    residuals_at = functools.partial(residuals, misfit, x=x, y_n=y_n)
    r_n, J_nP = residuals_at(theta_P), jax.jacfwd(residuals_at)(theta_P)
    inside_n = jnp.abs(r_n) <= delta
    slope_n = w_n * jnp.where(inside_n, r_n / _unit(delta), jnp.sign(r_n))
    bend_n = w_n * inside_n / _unit(delta)
    curvature_PP = jax.jacfwd(jax.grad(lambda theta: jnp.sum(slope_n * residuals_at(theta))))(theta_P)
    return (jnp.sum(w_n * huber(r_n, delta)), J_nP.T @ slope_n, J_nP.T @ (bend_n[:, None] * J_nP) + curvature_PP)


def _solve(A_PP, b_P):
    """A^-1 b by elimination: for a handful of unknowns, far faster over a batch than a library call for each."""

    def eliminate(i, M):
        row = M[i] / M[i, i]
        return (M - M[:, i, None] * row).at[i].set(row)

    return jax.lax.fori_loop(0, b_P.shape[0], eliminate, jnp.concatenate([A_PP, b_P[:, None]], 1))[:, -1]


@functools.partial(jax.jit, static_argnames=("misfit",))
def _descend_many(misfit: Misfit, start: _Descent, x, y_Rn, w_Rn, free_RP, M_PP, delta) -> _Descent:
    one = functools.partial(_descend, misfit)
    return jax.vmap(one, in_axes=(0, None, 0, 0, 0, None, None))(start, x, y_Rn, w_Rn, free_RP, M_PP, delta)


def polish(misfit: Misfit, theta_RP, x, y, w, free, M_PP, deltas, steps: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """R problems to the bottom of their basins, in at most so many steps: theta_RP and cost_R.

    y, w: [n] or one row a problem. free: which parameters may move, [P] or [R, P]. deltas: Huber's delta of each stage,
    the last the one that is meant. Whatever R is, one compiled program makes STRIDE steps for BATCH problems, on each
    core; then those that are not done are put together anew.
    """
    R, (x, y, w) = len(theta_RP), table(x, y, w)
    y_Rn, w_Rn, free_RP = (np.broadcast_to(a, (R, a.shape[-1])) for a in (y, w, np.asarray(free)))

    def advance(searches: _Descent, delta: float, chosen: np.ndarray) -> None:
        take = np.resize(chosen, BATCH)
        start = _Descent(*(field[take] for field in searches))
        with double():  # a context of this thread
            end = _descend_many(misfit, start, x, y_Rn[take], w_Rn[take], free_RP[take], M_PP, delta)
        for field, new in zip(searches, end, strict=True):
            field[chosen] = np.asarray(new)[: len(chosen)]

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as threads:
        for delta in deltas:
            searches = _begun(theta_RP)
            for _ in range(0, steps, STRIDE):
                going = np.flatnonzero(~searches.done)
                batches = [going[first : first + BATCH] for first in range(0, len(going), BATCH)]
                list(threads.map(functools.partial(advance, searches, delta), batches))
            theta_RP = searches.theta
    return searches.theta, searches.value


@functools.partial(jax.jit, static_argnames=("misfit",))
def _grid_fits(misfit: Misfit, grid: dict, x, y_n, w_n, held: dict, delta, rounds: int):
    """For each grid node the best non-negative coefficients: search coordinates theta_GP and their cost_G.

    Given the grid's parameters the law is linear, so this is a least-squares problem whose answer is found exactly, by
    trying each set of coefficients that may be positive; reweighting it `rounds` times turns squares into Huber.
    """
    form = misfit.form

    def node(g):
        g = g | {name: value for name, value in held.items() if name in g}
        columns = form.terms(g, x)
        p = dict(g)
        if columns:
            outer = form.outer(g)
            phi_nK = jnp.stack(columns, 1) / (y_n ** (1 / outer))[:, None]
            size_K = jnp.sqrt(jnp.sum(phi_nK**2, 0))
            k_K = _reweighted(phi_nK / size_K, x, y_n, w_n, misfit, outer, delta, rounds) / size_K
            p |= form.assemble(g, [k_K[i] for i in range(len(columns))])
        p |= held
        return pack(form, {name: p[name] for name in form.parameters})

    theta_GP = jax.vmap(node)(grid)
    return theta_GP, jax.vmap(lambda theta: cost(misfit, theta, x, y_n, w_n, delta))(theta_GP)


def _reweighted(phi_nK, x, y_n, w_n, misfit: Misfit, outer, delta, rounds: int):
    size_n = x["precision"] if misfit.log else x["precision"] * y_n
    relative = w_n * size_n**2

    def again(_, k_K):
        r_n = outer * size_n * jnp.abs(phi_nK @ k_K - 1)
        return _non_negative(phi_nK, relative / jnp.where(jnp.isinf(delta), 1.0, jnp.maximum(r_n, delta)))

    k_K = jax.lax.fori_loop(0, rounds, again, jnp.zeros(phi_nK.shape[1]))
    return jnp.maximum(k_K, 1e-9)  # a logarithm must exist


def _non_negative(phi_nK, v_n):
    """min_k>=0 sum v (phi k - 1)^2, exactly: the best feasible one of the 2^K - 1 unconstrained sub-problems."""
    K = phi_nK.shape[1]
    masks_MK = jnp.array([m for m in itertools.product((0.0, 1.0), repeat=K) if any(m)])
    G_KK, h_K = phi_nK.T @ (v_n[:, None] * phi_nK), phi_nK.T @ v_n

    def sub(mask_K):
        A = G_KK * mask_K[:, None] * mask_K + jnp.diag(1 - mask_K) + 1e-14 * jnp.trace(G_KK) * jnp.eye(K)
        k_K = _solve(A, h_K * mask_K)
        misfit = k_K @ G_KK @ k_K - 2 * k_K @ h_K
        return k_K, jnp.where(jnp.all(k_K >= 0), misfit, jnp.inf)

    k_MK, misfit_M = jax.vmap(sub)(masks_MK)
    return k_MK[jnp.argmin(misfit_M)]


def starts(misfit: Misfit, x, y_n, w_n, held: dict, delta) -> tuple[np.ndarray, int]:
    """Starts theta_RP from every basin the grid shows, best first, and how many nodes it had."""
    axes = {name: (held[name],) if name in held else values for name, values in misfit.form.grid.items()}
    shape = [len(values) for values in axes.values()]
    grid = dict(zip(axes, map(np.ravel, np.meshgrid(*axes.values(), indexing="ij")), strict=True))
    grid = {name: jnp.asarray(values, jnp.float64) for name, values in grid.items()}
    rounds = 1 if np.isinf(delta) else 9
    theta_GP, cost_G = map(np.asarray, _grid_fits(misfit, grid, *table(x, y_n, w_n), held, delta, rounds))
    cost_G = np.where(np.isfinite(cost_G), cost_G, np.inf)
    valleys_G = (cost_G.reshape(shape) == minimum_filter(cost_G.reshape(shape), size=3, mode="nearest")).ravel()
    order = np.lexsort((cost_G, ~valleys_G))[:STARTS]
    return np.resize(theta_GP[order], (STARTS, theta_GP.shape[1])), len(cost_G)
