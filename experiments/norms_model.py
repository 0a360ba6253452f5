"""The transformer of the study of norms: any of four, before its branches or after, with residuals or without.

Made of the library's parts; only batch norm is new. experiments/norms.py trains it. Axes, beside the README's: J the
two moments of a batch, its mean and its variance.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

import lm
from lm import model as parts


@lm.register("norm study")
@dataclasses.dataclass(frozen=True)
class Study(lm.ModelConfig):
    """lm's decoder-only transformer, but for two more norms, and residual connections that may be left out."""

    norm: Literal["layernorm", "rmsnorm", "batchnorm", "none"] = "layernorm"
    residual: bool = True


class BatchNorm(nnx.Module):
    """Batch normalisation of each feature over all tokens of all rows, with a learned scale and offset.

    Ioffe and Szegedy 2015. The moments [J, D] of the batch are a tap: evaluation puts the training text's in its place.
    """

    def __init__(self, c: Study):
        self.epsilon = c.norm_epsilon
        self.scale, self.bias = (nnx.Param(value, axes=("D",)) for value in (jnp.ones(c.width), jnp.zeros(c.width)))

    def __call__(self, x_BTD, taps: parts.Taps, tap: str):
        mean_D, variance_D = taps(tap, jnp.stack([jnp.mean(x_BTD, (0, 1)), jnp.var(x_BTD, (0, 1))]))
        return (x_BTD - mean_D) * jax.lax.rsqrt(variance_D + self.epsilon) * self.scale[...] + self.bias[...]


class Normalise(nnx.Module):
    """The norm that the configuration names."""

    def __init__(self, c: Study):
        self.kind = c.norm
        if c.norm != "none":
            self.norm = BatchNorm(c) if c.norm == "batchnorm" else parts.Norm(c, c.width, "D", c.norm)

    def __call__(self, x_BTD, taps: parts.Taps, tap: str):
        if self.kind == "none":
            return x_BTD
        return self.norm(x_BTD, taps, tap) if self.kind == "batchnorm" else self.norm(x_BTD)


class Block(nnx.Module):
    """Attention, then the feed-forward layer: x + f(norm(x)), or norm(x + f(x)), or either without its x +."""

    def __init__(self, c: Study, rngs):
        self.c = c
        self.attention, self.feedforward = parts.Attention(c, rngs), parts.FeedForward(c, rngs)
        self.attention_norm, self.feedforward_norm = Normalise(c), Normalise(c)

    def __call__(self, x_BTD, here: parts.Places, taps: parts.Taps):
        def attend(h_BTD):
            return self.attention(h_BTD, here, parts.Mask(), None, None, taps)[0]

        def feed_forward(h_BTD):
            return self.feedforward(h_BTD, taps)

        x_BTD = taps("residual.before", x_BTD)
        x_BTD = self._join(x_BTD, attend, self.attention_norm, taps, "attention.moments")
        return self._join(x_BTD, feed_forward, self.feedforward_norm, taps, "mlp.moments")

    def _join(self, x_BTD, branch: Callable, norm: Normalise, taps: parts.Taps, tap: str):
        passed = x_BTD if self.c.residual else 0.0
        if self.c.norm_place == "pre":
            return passed + branch(norm(x_BTD, taps, tap))
        return norm(passed + branch(x_BTD), taps, tap)


@lm.implements(Study)
class Model(lm.Transformer):
    """Tokens to logits. Embeddings are of size one, so that a model without norms starts like the others."""

    def __init__(self, c: Study, rngs: nnx.Rngs):
        self.c = c
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (c.V, c.width)), axes=("V", "D"))
        self.blocks = nnx.vmap(lambda r: Block(c, r))(rngs.split(c.layers))
        self.final_norm = Normalise(c)
        self.head = nnx.Param(jax.random.normal(rngs.params(), (c.width, c.V)) * c.width**-0.5, axes=("D", "V"))

    @staticmethod
    def taps(c: Study) -> dict[str, parts.Tap]:
        moments = {"attention.moments": "LJD", "mlp.moments": "LJD", "final.moments": "JD"}
        known = {name: parts.Tap(axes) for name, axes in moments.items() if c.norm == "batchnorm"}
        return known | {"residual.before": parts.Tap("LBTD"), "logits": parts.Tap("BTV")}

    def hidden(self, inputs, *, state, taps, key):
        x_BTD = self.embedding[...][inputs.tokens_BT]
        here = parts.Places(jnp.arange(x_BTD.shape[1])[None])
        graph, params = nnx.split(self.blocks)

        def layer(x_BTD, scanned):
            params, index = scanned
            inner = taps.inside(index)
            return nnx.merge(graph, params)(x_BTD, here, inner), inner.values

        x_BTD, values = parts.over_layers(
            layer, x_BTD, params, jnp.arange(self.c.layers), unroll=self.c.unroll or self.c.layers
        )
        taps.values.update(values)
        return self.final(x_BTD, taps), None

    def final(self, x, taps):
        return self.final_norm(x, taps, "final.moments")
