"""How parameters lie for products with one token, where a CPU does nothing but read them.

XLA computes a matrix-vector product on one core, and a batch of them on all; and whatever is sliced from stacked layers
inside a loop over tokens is copied again for each token. So generation lays the parameters out once: layers apart
(`Apart`), and for a single row matrices turned over and cut into a part for each core (`SplitMatrix`). Both stand where
an array stood: the model's pages multiply with `x @ w` and run layers with `over_layers`, and know nothing of this.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lm import parallel
from lm.model.parametrization import is_matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitMatrix:
    """A matrix [D, F] as C parts of its columns, [C, F/C, D]: a product with a vector reads it once, front to back."""

    parts_CFD: jax.Array

    def __getitem__(self, everything: Any) -> "SplitMatrix":
        """Itself for `[...]`, by which an nnx.Param gives its value."""
        return self if everything is Ellipsis else NotImplemented

    def astype(self, dtype: Any) -> "SplitMatrix":
        return SplitMatrix(self.parts_CFD.astype(dtype))

    def __rmatmul__(self, x_MD: jax.Array) -> jax.Array:
        """x @ matrix, [M, F], of x's dtype."""
        x_CMD = jnp.broadcast_to(x_MD, (self.parts_CFD.shape[0], *x_MD.shape))
        y_CMF = _product(x_CMD, self.parts_CFD, ((2,), (2,)), x_MD.dtype, over=((0,), (0,)))
        return y_CMF.swapaxes(0, 1).reshape(x_MD.shape[0], -1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Apart:
    """What is stacked along L elsewhere, layer by layer."""

    layers: tuple[Any, ...]


def few(rows: int) -> bool:
    """Whether products with so many rows wait for memory here, so that turning the matrices over pays."""
    return rows == 1 and jax.default_backend() == "cpu"


def _parts(columns: int) -> int:
    """Parts to cut a matrix of so many columns into: one for each core, where that goes."""
    cores = os.cpu_count() or 1
    return cores if columns % cores == 0 else 1


def lay_out(params: dict, axes: dict, dtype: Any, few_rows: bool) -> dict:
    """Parameters with layers apart and matrices in the compute dtype, cut for the cores where rows are few.

    axes: the tree of LanguageModel.axes, which says what is a matrix and what is stacked.
    """

    def matrix(w_DF):
        w_DF = w_DF.astype(dtype)
        if not few_rows:
            return w_DF
        D, F = w_DF.shape
        return SplitMatrix(w_DF.T.reshape(_parts(F), -1, D))

    def leaf(letters, x):
        lies = matrix if is_matrix(letters) else lambda x: x
        return Apart(tuple(lies(x[layer]) for layer in range(x.shape[0]))) if letters[:1] == ("L",) else lies(x)

    return jax.tree.map(leaf, axes, params, is_leaf=lambda x: isinstance(x, tuple))


# --- products --------------------------------------------------------------------------------------------------------
def times(x_MD: jax.Array, w: Any, dtype: Any = None) -> jax.Array:
    """x @ w, [M, F], of x's dtype, in which the sums are. dtype: what both are rounded to first; None is x's own."""
    if dtype is None or isinstance(w, SplitMatrix):
        return x_MD @ w.astype(dtype or x_MD.dtype)
    return _rounded_product(x_MD, w, dtype)


def _product(a: jax.Array, b: jax.Array, summed: tuple, dtype: Any, *, over: tuple = ((), ())) -> jax.Array:
    """The product of two arrays over these axes of each, a rounded to b's dtype; sums and result are of `dtype`."""
    return jax.lax.dot_general(a.astype(b.dtype), b, (summed, over), preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded_product(x_MD: jax.Array, w_DF: jax.Array, dtype: Any) -> jax.Array:
    """x @ w, both rounded; and so are the products of its derivative, which JAX would leave half rounded and slow."""
    return _rounded_forward(x_MD, w_DF, dtype)[0]


def _rounded_forward(x_MD, w_DF, dtype):
    kept = x_MD.astype(dtype), w_DF.astype(dtype)
    return _product(*kept, ((1,), (0,)), x_MD.dtype), (*kept, jnp.zeros((), w_DF.dtype))


def _rounded_backward(dtype, kept, slope_MF):
    x_MD, w_DF, like = kept
    slope_x_MD = _product(slope_MF, w_DF, ((1,), (1,)), slope_MF.dtype)
    return slope_x_MD, _product(x_MD, slope_MF.astype(dtype), ((0,), (0,)), like.dtype)


_rounded_product.defvjp(_rounded_forward, _rounded_backward)

JOINED = 192
"""Columns up to which matrices are narrow for a CPU. Wider ones by one product: 1.08 times a step's time at D=384."""


def side_by_side(x_MD: jax.Array, matrices: Sequence[Any], dtype: Any) -> list[jax.Array]:
    """`times` for each of several matrices, by one product where they can be joined: narrow ones keep a CPU less busy,
    and any a GPU."""
    apart = any(isinstance(w, SplitMatrix) for w in matrices)
    if apart or (jax.default_backend() == "cpu" and min(w.shape[1] for w in matrices) > JOINED):
        return [times(x_MD, w, dtype) for w in matrices]
    ends = [sum(w.shape[1] for w in matrices[: i + 1]) for i in range(len(matrices) - 1)]
    return jnp.split(times(x_MD, jnp.concatenate(matrices, axis=1), dtype), ends, axis=1)


def times_transposed(x_MD: jax.Array, w_VD: jax.Array, dtype: Any) -> jax.Array:
    """`times` of w.T, [M, V]; for one row the table already lies as a SplitMatrix does."""
    V, D = w_VD.shape
    if dtype is not None and not few(x_MD.shape[0]):
        return times(x_MD, w_VD.T, dtype)
    parts = _parts(V) if few(x_MD.shape[0]) else 1
    return times(x_MD, SplitMatrix(w_VD.reshape(parts, V // parts, D)), dtype)


def over_layers(layer: Callable, carry: Any, parameters: Any, others: Any, *, unroll: int) -> tuple[Any, Any]:
    """lax.scan of layer(carry, (parameters, others)) over L; the loop is written out where parameters lie apart.

    others: stacked along L, or Apart. What the layers give is stacked along L either way.
    """
    leaves = jax.tree.leaves(parameters, is_leaf=_is_apart)
    count = next((len(leaf.layers) for leaf in leaves if _is_apart(leaf)), None)
    if count is None:
        others = jax.tree.map(_stacked, others, is_leaf=_is_apart)
        return jax.lax.scan(layer, carry, (parameters, others), unroll=unroll)
    made = []
    for index in range(count):
        take = functools.partial(_taken, index)
        carry, out = layer(carry, jax.tree.map(take, (parameters, others), is_leaf=_is_apart))
        made.append(out)
    return carry, jax.tree.map(lambda *each: jnp.stack(each), *made)


def remembering(layer: Callable, remat: str) -> Callable:
    """The layer, keeping for its backward pass: none, all it reads there; dots, products with parameters; full, its
    input. What devices put together for it (parallel.at_use) is never kept."""
    if remat == "full":
        return jax.checkpoint(layer)
    if remat == "dots":
        return jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    if parallel.sizes_now() is None:
        return layer
    keeping = jax.checkpoint_policies.save_anything_except_these_names(parallel.GATHERED)
    return jax.checkpoint(layer, policy=keeping, prevent_cse=False)


def _is_apart(x: Any) -> bool:
    return isinstance(x, Apart)


def _stacked(x: Any) -> Any:
    """What lies apart, along L again; an array as it is."""
    return jax.tree.map(lambda *each: jnp.stack(each), *x.layers) if _is_apart(x) else x


def _taken(index: int, x: Any) -> Any:
    """One layer's share."""
    return x.layers[index] if _is_apart(x) else x[index]
