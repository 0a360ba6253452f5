"""LoRA: a low-rank change of every hidden matrix, as pure functions of parameter trees (Hu et al. 2021, section 4.1).

    W = W0 + alpha / r A B,    A [rows, r] normal with variance 1 / rows, B [r, columns] zero at the start,

so that a model with fresh adapters is the one it starts from, number for number. Embeddings, norms, biases and heads,
tied or not, stay as they are. A tree of adapters has a pair {"a", "b"} in the place of each hidden matrix, and nothing
else.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.model.api import LanguageModel
from lm.model.parametrization import is_hidden_matrix


@dataclasses.dataclass(frozen=True)
class Adapters:
    """What is trained of a model whose own parameters are frozen; it has a LanguageModel's face for a trainer.

    r is `rank`. Equal and hashable by its fields, so that it can be static under jax.jit.
    """

    model: LanguageModel
    rank: int
    alpha: float

    @property
    def config(self) -> Any:
        return self.model.config

    def axes(self) -> dict:
        """Each adapter's axes; R is the rank."""

        def pair(axes) -> dict:
            return {"a": (*axes[:-1], "R"), "b": (*axes[:-2], "R", axes[-1])}

        return _at_matrices(pair, self.model.axes())

    def shapes(self) -> dict:
        """Each adapter's jax.ShapeDtypeStruct."""
        return jax.eval_shape(lambda: self._make(np.uint32(0)))

    def init(self, seed: int) -> dict:
        """Fresh adapters, the same for the same (model, rank, seed) anywhere."""
        seed = seed if isinstance(seed, jax.Array) else np.uint32(seed % 2**32)
        return _initialiser(self)(seed)

    def with_axes(self, tree: dict) -> list[tuple[Any, tuple[str, ...]]]:
        """Each leaf of a tree like the adapters, beside its axes."""
        axes = jax.tree.leaves(self.axes(), is_leaf=lambda x: isinstance(x, tuple))
        return list(zip(jax.tree.leaves(tree), axes, strict=True))

    def parameter_count(self) -> tuple[int, int]:
        """How many numbers are trained; none is an embedding."""
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.shapes()))
        return count, count

    def merged(self, base: dict, adapters: dict) -> dict:
        """The model's parameters with its adapters in them: base where these are fresh."""
        return _merged(base, adapters, self.alpha / self.rank)

    def _make(self, seed) -> dict:
        shapes = _at_matrices(lambda _, shape: shape, self.model.axes(), self.model.shapes())
        leaves, structure = jax.tree.flatten(shapes)
        keys = structure.unflatten(jax.random.split(jax.random.key(seed), len(leaves)))

        def pair(shape, key) -> dict:
            *lead, rows, columns = shape.shape
            a = jax.random.normal(key, (*lead, rows, self.rank)) * rows**-0.5
            return {"a": a, "b": jnp.zeros((*lead, self.rank, columns))}

        return jax.tree.map(pair, shapes, keys)


def _at_matrices(f: Callable, axes: dict, *trees: dict) -> dict:
    """A tree with f(axes, *leaves) in the place of each hidden matrix, and of its branches only those that hold one."""
    made = {}
    for name, inner in axes.items():
        parts = [tree[name] for tree in trees]
        if isinstance(inner, dict):
            made[name] = _at_matrices(f, inner, *parts)
        elif is_hidden_matrix(inner):
            made[name] = f(inner, *parts)
    return {name: part for name, part in made.items() if part}


def _merged(base: Any, adapters: dict, scale: float) -> Any:
    if not isinstance(base, dict):  # a matrix, and its pair
        change = jnp.matmul(adapters["a"], adapters["b"], precision=jax.lax.Precision.HIGHEST)
        return base + scale * change
    return {name: _merged(part, adapters[name], scale) if name in adapters else part for name, part in base.items()}


@functools.cache
def _initialiser(adapters: Adapters):
    """Compiled once for each model and rank, whatever the seed."""
    return jax.jit(adapters._make)
