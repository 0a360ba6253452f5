"""What a model costs for each token, counted part by part beside the code that spends it.

A multiply and an add are two operations. Matrix products and everything else are kept apart: `forward_flops` and
`training_flops` are of matrix products alone, which is what is usually meant, and what a run reports as flops_exact.
What papers count instead is in lm/model/conventions.py.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Literal

Pairs = Literal["visible", "all", "computed"]
"""Which pairs of query and key count: those the mask lets through; all T x T, as most papers have it; or those that
the plain attention here computes, by blocks of queries."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one token, the mean over a sequence of a certain length.

    products: FLOPs of the forward pass in matrix products, by part. elementwise: every other operation of the forward
    pass and the loss, by part, one for each value it makes; lookups and moves are free, and so are random bits and what
    a batch shares (rotary phases, masks). kept: values that the backward pass reads of the forward pass, logits aside.
    remembered: values of the state that decoding the token reads.
    """

    products: Mapping[str, float] = dataclasses.field(default_factory=dict)
    elementwise: Mapping[str, float] = dataclasses.field(default_factory=dict)
    kept: float = 0
    remembered: float = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            products=_joined(self.products, other.products),
            elementwise=_joined(self.elementwise, other.elementwise),
            kept=self.kept + other.kept,
            remembered=self.remembered + other.remembered,
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(
            products={part: times * count for part, count in self.products.items()},
            elementwise={part: times * count for part, count in self.elementwise.items()},
            kept=times * self.kept,
            remembered=times * self.remembered,
        )

    @property
    def forward_flops(self) -> float:
        """FLOPs of the forward pass."""
        return sum(self.products.values())

    @property
    def training_flops(self) -> float:
        """FLOPs of training: the backward pass has two products for each of the forward pass, one for either factor.

        Work done twice to save memory (model.remat, train.loss_chunk) is not counted twice.
        """
        return 3 * self.forward_flops

    @property
    def elementwise_flops(self) -> float:
        """All other operations of the forward pass. The backward pass of such work is taken as twice the forward, like
        that of products; XLA counts 1.5 to 2 times."""
        return sum(self.elementwise.values())


def rms_operations(width: int) -> int:
    """Operations of dividing so many values by their root mean square: square, sum, scale by the root."""
    return 3 * width + 3


def _joined(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    total = collections.Counter(first)
    total.update(second)
    return dict(total)
