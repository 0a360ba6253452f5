"""How well points will determine L = E + A/N^alpha + B/D^beta, before any of them is trained.

A least-squares fit of ln L is linear near its solution: with J the derivatives of ln L by the parameters at each point
and S the covariance of the noise, the parameters' covariance is (J'J)^-1 J'SJ (J'J)^-1. With equal, independent noise
that is the inverse of Fisher's information, sd^2 (J'J)^-1.
"""

import dataclasses

import numpy as np

from lm.scaling.chinchilla import Chinchilla
from lm.scaling.verdicts import COLLINEAR_CENTRED, condition_number

FEWEST = 6
"""Points: one more than the law has parameters."""


def covariance(law: Chinchilla, params, tokens, sd: float, run=None, shared: float = 0.0) -> np.ndarray:
    """Covariance of (ln E, ln A, ln B, alpha, beta) as fitted to these points: [5, 5].

    sd: noise of ln L. run: which trunk each point was branched from; points of a trunk have the fraction `shared` of
    their noise's variance in common.
    """
    J = law.gradient(params, tokens)
    same = np.eye(len(J)) if run is None else np.equal.outer(run, run)
    noise = sd**2 * ((1 - shared) * np.eye(len(J)) + shared * same)
    inverse = np.linalg.inv(J.T @ J)
    return inverse @ J.T @ noise @ J @ inverse


def standard_errors(law: Chinchilla, covariance: np.ndarray) -> dict[str, float]:
    """Standard errors of E, A, B, alpha, beta and a = beta / (alpha + beta)."""
    se = np.sqrt(np.diag(covariance))
    slopes = np.array([0, 0, 0, -law.beta, law.alpha]) / (law.alpha + law.beta) ** 2  # of a
    found = {"E": law.E * se[0], "A": law.A * se[1], "B": law.B * se[2], "alpha": se[3], "beta": se[4]}
    return {name: float(value) for name, value in (found | {"a": np.sqrt(slopes @ covariance @ slopes)}).items()}


def prediction_error(law: Chinchilla, covariance: np.ndarray, params: float, tokens: float) -> float:
    """Standard error of the predicted ln L at a point, a fraction of the loss; seed noise comes on top."""
    g = law.gradient(params, tokens)
    return float(np.sqrt(g @ covariance @ g))


def condition(law: Chinchilla, params, tokens) -> float:
    """Condition number of the derivatives with N and D in units of their geometric means."""
    if len(params) < 5:
        return float("inf")
    n, d = (np.exp(np.mean(np.log(x))) for x in (params, tokens))
    scaled = dataclasses.replace(law, A=law.A * n**-law.alpha, B=law.B * d**-law.beta)
    return condition_number(scaled.gradient(params / n, tokens / d))


def obstacle(law: Chinchilla, params, tokens) -> str | None:
    """Why these points cannot determine the five parameters, in words; None if they can."""
    N, D = np.asarray(params, float), np.asarray(tokens, float)
    number = condition(law, N, D)
    if len(N) >= FEWEST and number <= COLLINEAR_CENTRED:
        return None
    return f"condition number {number:.1e}, at most {COLLINEAR_CENTRED:.0e} will do: {_why(np.log(N), np.log(D))}"


def _why(log_N: np.ndarray, log_D: np.ndarray) -> str:
    sizes, counts = (np.unique(np.round(x, 1)).size for x in (log_N, log_D))  # closer than a tenth is the same
    ratio = np.exp(log_D - log_N)
    if min(sizes, counts) < 3:
        return f"{sizes} model size(s) and {counts} token count(s), and each term needs at least 3, far apart"
    if np.ptp(np.log(ratio)) < 0.2 * np.ptp(log_N):
        return (
            f"tokens per parameter hardly vary ({ratio.min():.3g} to {ratio.max():.3g}), so size and data grow together"
            " and the loss cannot tell alpha from beta; vary them by a factor of 3 or more"
        )
    if len(log_N) < FEWEST:
        return f"{len(log_N)} points for 5 parameters, and at least {FEWEST} are needed"
    return "sizes and token counts are too close together; spread both"
