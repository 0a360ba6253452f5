"""The parts of a block that are not attention: projections, norms, fixed positions, the feed-forward layer.

Parameters are float32 and carry `axes`, the glossary's letters, from which weight decay, Muon and shardings are
derived. They are cast to the compute dtype where they are used.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.model.cost import Cost, rms_operations
from lm.model.kernels import times, times_transposed
from lm.model.parametrization import output_scale
from lm.model.taps import Taps


def compute_dtype(c) -> jnp.dtype:
    """The dtype of what passes from product to product: as configured, or bfloat16 on accelerators, float32 on CPU."""
    if c.dtype == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype("float32" if c.dtype == "bfloat16_products" else c.dtype)


def product_dtype(c) -> jnp.dtype | None:
    """The dtype that products with parameters round what they multiply to; None where they do not round."""
    return jnp.dtype("bfloat16") if c.dtype == "bfloat16_products" else None


def project(x: jax.Array, w_DF: jax.Array, b_F: jax.Array | None = None, *, dtype=None) -> jax.Array:
    """x @ w + b of x [..., D] over flattened tokens: with three axes XLA would copy every weight gradient on a CPU.

    dtype: what both are rounded to for the product, see `kernels.times`; None is x's own.
    """
    x_MD = x.reshape(-1, x.shape[-1])
    y_MF = times(x_MD, w_DF, dtype)
    if b_F is not None:
        y_MF = y_MF + b_F.astype(x_MD.dtype)
    return y_MF.reshape(*x.shape[:-1], -1)


class Linear(nnx.Module):
    """An affine map of the last axis, from the width named axes[0] to the one named axes[1].

    biased: whether it has a bias; None, where the configuration gives one to every map.
    """

    def __init__(
        self, c: ModelConfig, rows: int, columns: int, axes: tuple[str, str], rngs, *, scale: float = 1.0,
        biased: bool | None = None,
    ):  # fmt: skip
        self.dtype = product_dtype(c)
        kernel = jax.random.normal(rngs.params(), (rows, columns)) * (scale * rows**-0.5)
        self.kernel = nnx.Param(kernel, axes=axes)
        biased = c.bias is True if biased is None else biased
        self.bias = nnx.Param(jnp.zeros(columns), axes=axes[1:]) if biased else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return project(x, self.kernel[...], None if self.bias is None else self.bias[...], dtype=self.dtype)


def rms_normalise(x: jax.Array, epsilon: float) -> jax.Array:
    """x over its root mean square along the last axis (Zhang and Sennrich 2019); float32 in, float32 out."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


class Norm(nnx.Module):
    """RMSNorm, or LayerNorm (Ba et al. 2016), with a learned scale; computed in float32."""

    def __init__(self, c: ModelConfig, width: int, axis: str, kind: str):
        self.kind, self.epsilon = kind, c.norm_epsilon
        self.scale = nnx.Param(jnp.ones(width), axes=(axis,))
        self.bias = nnx.Param(jnp.zeros(width), axes=(axis,)) if c.bias is True and kind == "layernorm" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return _norm(x, self.scale[...], None if self.bias is None else self.bias[...], self.kind, self.epsilon)

    @staticmethod
    def operations(c: ModelConfig, width: int, kind: str) -> int:
        """Elementwise operations on one vector: LayerNorm also takes the mean away."""
        rms = rms_operations(width) + width
        return rms + 2 * width + 1 + width * (c.bias is True) if kind == "layernorm" else rms


@functools.partial(jax.checkpoint, static_argnums=(3, 4))  # kept for the backward pass: x alone, of six values
def _norm(x, scale_D, bias_D, kind: str, epsilon: float):
    y = x.astype(jnp.float32)
    if kind == "layernorm":
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = rms_normalise(y, epsilon) * scale_D
    if bias_D is not None:
        y = y + bias_D
    return y.astype(x.dtype)


def sinusoids(positions_BT: jax.Array, width: int) -> jax.Array:
    """Fixed positions (Vaswani et al. 2017, section 3.5): sines in even places, cosines in odd; [B, T, D]."""
    even = jnp.arange(0, width, 2, dtype=jnp.float32)
    angles = positions_BT[..., None].astype(jnp.float32) * 10_000.0 ** (-even / width)
    pairs = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return pairs.reshape(*positions_BT.shape, -1)[..., :width]


def vocabulary_logits(
    h: jax.Array,
    table_VD: nnx.Param,
    head_DV: nnx.Param | None,
    vocab: int,
    *,
    bias_V: nnx.Param | None = None,
    softcap: float | None = None,
    dtype=None,
) -> jax.Array:
    """[..., V] float32 logits of h [..., D] by the head, or by the table of embeddings where that is the head too.

    Entries from `vocab` on are padding, and can never be predicted. softcap: see `squashed`. dtype: see `project`.
    """
    h_MD = h.reshape(-1, h.shape[-1])
    if head_DV is None:
        logits_MV = times_transposed(h_MD, table_VD[...], dtype)
    else:
        logits_MV = project(h_MD, head_DV[...], dtype=dtype)
    logits = logits_MV.astype(jnp.float32).reshape(*h.shape[:-1], -1)
    if bias_V is not None:
        logits = logits + bias_V[...]
    logits = squashed(logits, softcap)
    V = logits.shape[-1]
    return logits if vocab == V else jnp.where(jnp.arange(V) < vocab, logits, -1e30)


def squashed(x: jax.Array, softcap: float | None) -> jax.Array:
    """c tanh(x / c), which is within (-c, c) and near x where that is small (Gemma 2); x itself without a cap."""
    return x if softcap is None else softcap * jnp.tanh(x / softcap)


def loss_operations(c) -> int:
    """Elementwise operations of a token's loss: log-softmax over V, the padding's mask, and the target's entry."""
    return c.V * (4 + (c.V != c.vocab)) + 3


ACTIVATIONS = {
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}
GATES = {
    "swiglu": jax.nn.silu, "geglu": ACTIVATIONS["gelu"], "geglu_exact": ACTIVATIONS["gelu_exact"], "reglu": jax.nn.relu,
}  # fmt: skip
"""What the projection that gates another goes through."""
OPERATIONS = {
    "gelu": 9, "gelu_exact": 5, "relu": 1, "relu2": 2, "swiglu": 3, "geglu": 10, "geglu_exact": 6, "reglu": 2,
}  # fmt: skip
"""Operations of each on one hidden value; tanh, erf and the logistic function are one each."""


class FeedForward(nnx.Module):
    """Two projections around a nonlinearity, of which another projection may gate the first (Shazeer 2020)."""

    def __init__(self, c: ModelConfig, rngs):
        self.activation = c.activation
        self.inner = Linear(c, c.width, c.F, ("D", "F"), rngs)
        self.gate = Linear(c, c.width, c.F, ("D", "F"), rngs) if c.gated else None
        self.outer = Linear(c, c.F, c.width, ("F", "D"), rngs, scale=output_scale(c))

    def __call__(self, x_BTD: jax.Array, taps: Taps) -> jax.Array:
        h_BTF = self.inner(x_BTD)
        if self.gate is None:
            h_BTF = ACTIVATIONS[self.activation](h_BTF)
        else:
            h_BTF = GATES[self.activation](self.gate(x_BTD)) * h_BTF
        return self.outer(taps("mlp.hidden", h_BTF))

    @staticmethod
    def cost(c: ModelConfig) -> Cost:
        gated, D, F = c.gated, c.width, c.F
        elementwise = {"biases": (F * (1 + gated) + D) * (c.bias is True), "activation": F * OPERATIONS[c.activation]}
        return Cost({"feed-forward": 2 * D * F * (3 if gated else 2)}, elementwise, kept=F)


def scaled(x: jax.Array, factor: float) -> jax.Array:
    """x times a factor known when compiled; untouched where that is 1."""
    return x if factor == 1 else x * factor


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero entries with probability `rate` and rescale the rest; without a key, nothing."""
    if key is None or rate == 0:
        return x
    keep = random_bits(key, x.shape) >= jnp.uint32(int(rate * 2**32))
    return jnp.where(keep, x * (1 / (1 - rate)), 0).astype(x.dtype)


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 of this shape: a hash of the key and the place. Nothing is kept for a backward pass, which makes them
    again where it reads them; with JAX's own generator a step with dropout took a CPU an eighth longer.

    Fit for dropout, where nobody is to guess them. Few keys are alike once mixed: each begins at a place of its own.
    """
    first, second = jax.random.key_data(key).astype(jnp.uint32).reshape(-1)[:2]
    begin = _mixed(first + _mixed(second + jnp.uint32(0x9E3779B9)))
    x = begin
    for axis in range(len(shape)):  # the place, counted through the whole array
        x = x + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
    return _mixed(x, _mixed(begin ^ second))


def _mixed(x: jax.Array, between: jax.Array | int = 0) -> jax.Array:
    """lowbias32 of uint32 (Ellis 2018, "Prospecting for hash functions"), with a number between its multiplications."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ jnp.uint32(between) ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
