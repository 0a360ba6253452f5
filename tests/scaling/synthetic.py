"""Tables made here, from laws whose parameters are known."""

import numpy as np

from lm.scaling.points import Points, make_points

HOFFMANN = dict(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def chinchilla_loss(params, tokens, truth=HOFFMANN) -> np.ndarray:
    return truth["E"] + truth["A"] / params ** truth["alpha"] + truth["B"] / tokens ** truth["beta"]


def grid(budgets=(1e17, 1e18, 1e19, 1e20, 1e21), sizes: int = 9, truth=HOFFMANN) -> tuple[np.ndarray, np.ndarray]:
    """N and D of `sizes` models at each budget, spread over a factor of 30 about the optimum."""
    total = truth["alpha"] + truth["beta"]
    g = (truth["alpha"] * truth["A"] / (truth["beta"] * truth["B"])) ** (1 / total)
    params = [g * (c / 6) ** (truth["beta"] / total) * np.geomspace(30**-0.5, 30**0.5, sizes) for c in budgets]
    tokens = [c / (6 * n) for c, n in zip(budgets, params, strict=True)]
    return np.concatenate(params), np.concatenate(tokens)


def synthetic(noise: float = 0.0, seed: int = 0, truth=HOFFMANN, **shape) -> Points:
    """Points of a chinchilla law, losses off by a factor of log-normal noise."""
    params, tokens = grid(truth=truth, **shape)
    loss = chinchilla_loss(params, tokens, truth)
    return make_points(params, tokens, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss))))
