"""How well points will determine L = E + A/N^alpha + B/D^beta, before any of them is trained.

A least-squares fit of ln L is linear near its solution: with J the derivatives of ln L by the parameters at each point
and S the covariance of the noise, the parameters' covariance is (J'J)^-1 J'SJ (J'J)^-1. With equal, independent noise
that is the inverse of Fisher's information, sd^2 (J'J)^-1.
"""

import dataclasses

import numpy as np

from lm.errors import require

WORST_CONDITION = 1e4
"""Of the derivatives, columns centred and scaled. Good designs have 50 to 500; constant tokens per parameter 1e5 up."""
FEWEST = 6
"""Points: one more than the law has parameters."""


@dataclasses.dataclass(frozen=True)
class Theta:
    """L(N, D) = E + A/N^alpha + B/D^beta in nats per token (Hoffmann et al. 2022, eq. 2)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            require(0 < value < float("inf"), f"{name} {value}: the law's parameters must be positive")

    def loss(self, params, tokens):
        return self.E + self.A * np.power(params, -self.alpha) + self.B * np.power(tokens, -self.beta)

    def gradient(self, params, tokens) -> np.ndarray:
        """Derivatives of ln L by (ln E, ln A, ln B, alpha, beta): [points, 5]."""
        N, D = np.asarray(params, float), np.asarray(tokens, float)
        loss = self.loss(N, D)
        of_E, of_N, of_D = self.E / loss, self.A * N**-self.alpha / loss, self.B * D**-self.beta / loss
        return np.stack([of_E, of_N, of_D, -of_N * np.log(N), -of_D * np.log(D)], axis=-1)

    @property
    def a(self) -> float:
        """Exponent of the optimal size in compute: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    def optimum(self, flops: float, per: float = 6.0) -> tuple[float, float]:
        """(N, D) of the lowest loss with per N D = flops (Hoffmann et al. 2022, eq. 4)."""
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        N = G * (flops / per) ** self.a
        return N, flops / per / N


def covariance(theta: Theta, params, tokens, sd: float, run=None, shared: float = 0.0) -> np.ndarray:
    """Of (ln E, ln A, ln B, alpha, beta) as fitted to these points: [5, 5].

    sd: noise of ln L. run: which trunk each point was branched from; points of a trunk have the fraction `shared` of
    their noise's variance in common.
    """
    J = theta.gradient(params, tokens)
    same = np.eye(len(J)) if run is None else np.equal.outer(run, run)
    noise = sd**2 * ((1 - shared) * np.eye(len(J)) + shared * same)
    inverse = np.linalg.inv(J.T @ J)
    return inverse @ J.T @ noise @ J @ inverse


def standard_errors(theta: Theta, covariance: np.ndarray) -> dict[str, float]:
    """Of E, A, B, alpha, beta and a = beta / (alpha + beta)."""
    se = np.sqrt(np.diag(covariance))
    of_a = np.array([0, 0, 0, -theta.beta, theta.alpha]) / (theta.alpha + theta.beta) ** 2
    found = {"E": theta.E * se[0], "A": theta.A * se[1], "B": theta.B * se[2], "alpha": se[3], "beta": se[4]}
    return {name: float(value) for name, value in (found | {"a": np.sqrt(of_a @ covariance @ of_a)}).items()}


def prediction_error(theta: Theta, covariance: np.ndarray, params: float, tokens: float) -> float:
    """Standard error of the predicted ln L at a point, a fraction of the loss; seed noise comes on top."""
    g = theta.gradient(params, tokens)
    return float(np.sqrt(g @ covariance @ g))


def condition(theta: Theta, params, tokens) -> float:
    """Condition number of the derivatives: N and D in units of their geometric means, columns of unit length.

    How far apart the best and the worst determined directions are, without what units alone would do.
    """
    N, D = np.asarray(params, float), np.asarray(tokens, float)
    n, d = (np.exp(np.mean(np.log(x))) for x in (N, D))
    scaled = dataclasses.replace(theta, A=theta.A * n**-theta.alpha, B=theta.B * d**-theta.beta)
    J = scaled.gradient(N / n, D / d)
    return float(np.linalg.cond(J / np.maximum(np.linalg.norm(J, axis=0), 1e-300)))


def obstacle(theta: Theta, params, tokens) -> str | None:
    """Why these points cannot determine the five parameters, in words; None if they can."""
    N, D = np.asarray(params, float), np.asarray(tokens, float)
    if len(N) < FEWEST:
        return f"{len(N)} points cannot determine 5 parameters; at least {FEWEST} are needed"
    number = condition(theta, N, D)
    if number <= WORST_CONDITION:
        return None
    levels = {name: np.unique(np.round(np.log(x), 2)).size for name, x in (("model sizes", N), ("token counts", D))}
    few = next(
        (f"{count} {name}: the law has three unknowns in each" for name, count in levels.items() if count < 3), ""
    )
    ratio = np.log(D / N)
    if few:
        why = f"{few}, where the law's three unknowns need at least 3, far apart"
    elif np.ptp(ratio) < 0.2 * np.ptp(np.log(N)):
        why = (
            f"tokens per parameter hardly vary ({np.exp(ratio.min()):.3g} to {np.exp(ratio.max()):.3g}), so that size"
            " and data grow together and the loss cannot tell alpha from beta; vary them by a factor of 10 or more"
        )
    else:
        why = "sizes and token counts are too close together; spread both"
    return f"the points are collinear (condition number {number:.1e}, at most {WORST_CONDITION:.0e} will do): {why}"
