"""How well points will determine L = E + A/N^alpha + B/D^beta, before any of them is trained.

A least-squares fit of ln L is linear near its solution: with J the derivatives of ln L by the parameters at each point
and S the covariance of the noise, the parameters' covariance is (J'J)^-1 J'SJ (J'J)^-1. With equal, independent noise
that is the inverse of Fisher's information, sd^2 (J'J)^-1.
"""

import dataclasses

import numpy as np

from lm.errors import require

WORST_CONDITION = 2e3
"""Of the derivatives, columns centred and scaled. Good designs have 40 to 400; constant tokens per parameter 1e5 up."""
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
    if len(N) < 5:
        return float("inf")
    n, d = (np.exp(np.mean(np.log(x))) for x in (N, D))
    scaled = dataclasses.replace(theta, A=theta.A * n**-theta.alpha, B=theta.B * d**-theta.beta)
    J = scaled.gradient(N / n, D / d)
    return float(np.linalg.cond(J / np.maximum(np.linalg.norm(J, axis=0), 1e-300)))


def obstacle(theta: Theta, params, tokens) -> str | None:
    """Why these points cannot determine the five parameters, in words; None if they can."""
    N, D = np.asarray(params, float), np.asarray(tokens, float)
    number = condition(theta, N, D)
    if len(N) >= FEWEST and number <= WORST_CONDITION:
        return None
    return f"condition number {number:.1e}, at most {WORST_CONDITION:.0e} will do: {_why(np.log(N), np.log(D))}"


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
