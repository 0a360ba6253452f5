"""The parts of a block that are not attention: projections, norms, positions, the feed-forward layer.

Parameters are float32 and carry `axes`, the glossary's letters, from which weight decay, Muon and shardings are
derived. They are cast to the compute dtype where they are used.
"""

import functools
import os

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.model.parametrization import branch_factor, output_scale
from lm.model.taps import Taps


def project(x_BTD: jax.Array, w_DF: jax.Array, b_F: jax.Array | None = None) -> jax.Array:
    """x @ w + b over flattened tokens: with three axes XLA would copy every weight gradient on a CPU.

    w may also be laid out by `for_single_tokens`.
    """
    x = x_BTD.reshape(-1, x_BTD.shape[-1])
    w = w_DF.astype(x.dtype)
    if w.ndim == 2:
        y = x @ w
    else:
        x_CMD = jnp.broadcast_to(x, (w.shape[0], *x.shape))
        y_CMF = jax.lax.dot_general(x_CMD, w, (((2,), (2,)), ((0,), (0,))))
        y = y_CMF.swapaxes(0, 1).reshape(x.shape[0], -1)
    if b_F is not None:
        y = y + b_F.astype(x.dtype)
    return y.reshape(*x_BTD.shape[:-1], -1)


def single_token_parts(rows: int, columns: int) -> int:
    """Parts to cut a matrix of so many columns into for a product with so many rows.

    On a CPU XLA computes a matrix-vector product on one core, and a batch of them on all.
    """
    cores = os.cpu_count() or 1
    return cores if rows == 1 and columns % cores == 0 and jax.default_backend() == "cpu" else 1


def for_single_tokens(w_DF: jax.Array) -> jax.Array:
    """A matrix as [C, F/C, D]: a product with one vector reads it once, front to back, a part on each core."""
    D, F = w_DF.shape
    parts = single_token_parts(1, F)
    return w_DF.T.reshape(parts, F // parts, D)


class Linear(nnx.Module):
    """An affine map of the last axis, from the width named axes[0] to the one named axes[1]."""

    def __init__(self, c: ModelConfig, rows: int, columns: int, axes: tuple[str, str], rngs, *, scale: float = 1.0):
        kernel = jax.random.normal(rngs.params(), (rows, columns)) * (scale * rows**-0.5)
        self.kernel = nnx.Param(kernel, axes=axes)
        self.bias = nnx.Param(jnp.zeros(columns), axes=axes[1:]) if c.bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return project(x, self.kernel[...], None if self.bias is None else self.bias[...])


def rms_normalise(x: jax.Array, epsilon: float) -> jax.Array:
    """x over its root mean square along the last axis (Zhang and Sennrich 2019); float32 in, float32 out."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


class Norm(nnx.Module):
    """RMSNorm, or LayerNorm (Ba et al. 2016), with a learned scale; computed in float32."""

    def __init__(self, c: ModelConfig, width: int, axis: str, kind: str):
        self.kind, self.epsilon = kind, c.norm_epsilon
        self.scale = nnx.Param(jnp.ones(width), axes=(axis,))
        self.bias = nnx.Param(jnp.zeros(width), axes=(axis,)) if c.bias and kind == "layernorm" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return _norm(x, self.scale[...], None if self.bias is None else self.bias[...], self.kind, self.epsilon)


@functools.partial(jax.checkpoint, static_argnums=(3, 4))  # kept for the backward pass: x alone, of six values
def _norm(x, scale_D, bias_D, kind: str, epsilon: float):
    y = x.astype(jnp.float32)
    if kind == "layernorm":
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = rms_normalise(y, epsilon) * scale_D
    if bias_D is not None:
        y = y + bias_D
    return y.astype(x.dtype)


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, base: float) -> jax.Array:
    """Rotary positions (Su et al. 2021): turn the pair (i, i + H/2) by position * base^(-2i/H), phases in float32."""
    half = x_BTNH.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions_BT[..., None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def sinusoids(positions_BT: jax.Array, width: int) -> jax.Array:
    """Fixed positions (Vaswani et al. 2017, section 3.5): sines in even places, cosines in odd; [B, T, D]."""
    even = jnp.arange(0, width, 2, dtype=jnp.float32)
    angles = positions_BT[..., None].astype(jnp.float32) * 10_000.0 ** (-even / width)
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*positions_BT.shape, -1)[..., :width]


ACTIVATIONS = {
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


class FeedForward(nnx.Module):
    """Two projections around a nonlinearity; swiglu gates one projection by another (Shazeer 2020)."""

    def __init__(self, c: ModelConfig, rngs):
        self.activation, self.factor = c.activation, branch_factor(c)
        self.inner = Linear(c, c.width, c.F, ("D", "F"), rngs)
        self.gate = Linear(c, c.width, c.F, ("D", "F"), rngs) if c.activation == "swiglu" else None
        self.outer = Linear(c, c.F, c.width, ("F", "D"), rngs, scale=output_scale(c))

    def __call__(self, x_BTD: jax.Array, taps: Taps) -> jax.Array:
        h_BTF = self.inner(x_BTD)
        if self.gate is None:
            h_BTF = ACTIVATIONS[self.activation](h_BTF)
        else:
            h_BTF = jax.nn.silu(self.gate(x_BTD)) * h_BTF
        return taps("mlp.out", scaled(self.outer(taps("mlp.hidden", h_BTF)), self.factor))


def scaled(x: jax.Array, factor: float) -> jax.Array:
    """x times a factor known when compiled; untouched where that is 1."""
    return x if factor == 1 else x * factor


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero entries with probability `rate` and rescale the rest; without a key, nothing."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
