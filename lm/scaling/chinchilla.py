"""Chinchilla's law, L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, equation 2), for fits and plans alike."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lm.errors import require


def chinchilla_terms(p: Mapping[str, Any], log_params, log_tokens, exp: Callable = np.exp) -> tuple:
    """E, A/N^alpha and B/D^beta, from ln N and ln D; exp: that of the library whose arrays these are."""
    return p["E"], p["A"] * exp(-p["alpha"] * log_params), p["B"] * exp(-p["beta"] * log_tokens)


def chinchilla_loss(p: Mapping[str, Any], log_params, log_tokens, exp: Callable = np.exp):
    """The law's loss: the sum of `chinchilla_terms`."""
    floor, by_params, by_tokens = chinchilla_terms(p, log_params, log_tokens, exp)
    return floor + by_params + by_tokens


def frontier_exponents(p: Mapping[str, Any]) -> dict[str, Any]:
    """a and b of N* = G (C/6)^a, D* = (C/6)^b / G, the compute-optimal frontier (Hoffmann et al. 2022, equation 4)."""
    total = p["alpha"] + p["beta"]
    return {"a": p["beta"] / total, "b": p["alpha"] / total}


@dataclasses.dataclass(frozen=True)
class Chinchilla:
    """The law with numbers for its five parameters, in nats per token. Raises UserError unless all are positive."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            require(0 < value < float("inf"), f"{name} {value}: the law's parameters must be positive")

    def loss(self, params, tokens):
        """L at N parameters and D tokens, arrays or numbers."""
        return chinchilla_loss(dataclasses.asdict(self), np.log(params), np.log(tokens))

    def gradient(self, params, tokens) -> np.ndarray:
        """Derivatives of ln L by (ln E, ln A, ln B, alpha, beta): [points, 5]."""
        n, d = np.log(np.asarray(params, float)), np.log(np.asarray(tokens, float))
        terms = chinchilla_terms(dataclasses.asdict(self), n, d)
        by_E, by_A, by_B = (term / sum(terms) for term in terms)
        return np.stack([by_E, by_A, by_B, -by_A * n, -by_B * d], axis=-1)

    @property
    def a(self) -> float:
        """Exponent of the optimal size in compute: beta / (alpha + beta)."""
        return frontier_exponents(dataclasses.asdict(self))["a"]

    def optimum(self, flops: float, per: float = 6.0) -> tuple[float, float]:
        """(N, D) of the lowest loss with per N D = flops (Hoffmann et al. 2022, equation 4)."""
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        N = G * (flops / per) ** self.a
        return N, flops / per / N
