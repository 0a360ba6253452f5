"""Parameters that make every path of a model matter."""

import jax
import numpy as np

from lm.config import ModelBase
from lm.model.api import build


def lively(c: ModelBase, seed: int = 0) -> dict:
    """Parameters that make every path matter: uneven scales, non-zero biases, attention far from uniform."""
    rng = np.random.default_rng(seed)

    def draw(axes, shape):
        values = rng.normal(size=shape.shape)
        if axes[0] in ("V", "T") or axes == ("D", "V"):
            return values.astype(np.float32)
        matrix = len(axes) - (axes[0] == "L") == 2
        return (1.5 * values * shape.shape[-2] ** -0.5 if matrix else 1 + 0.3 * values).astype(np.float32)

    return jax.tree.map(draw, build(c).axes(), build(c).shapes(), is_leaf=lambda x: isinstance(x, tuple))
