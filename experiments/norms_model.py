"""The transformer of the study of norms, and what is measured inside it: moments, leaks and gradients.

Made of the library's parts; only batch norm is new, and residual connections may be left out. experiments/norms.py
trains it. Axes, beside the README's: J the two moments of a batch, mean and variance; W validation windows.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import lm
from lm import model as parts

BATCH, SCORED = 16, 8192
"""Rows of a batch, and tokens that are scored."""
ROWS = (1, 4, 16, 64)
"""Rows of the batches in which the leak is measured."""


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
            turning_R = parts.frequencies(self.c)
            return self.attention(h_BTD, here, parts.Mask(), None, None, taps, frequencies_R=turning_R)[0]

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
        self.head_bias = None

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


# --- what is measured ------------------------------------------------------------------------------------------------
class Reader:
    """A trained model with the text that it learnt from and is scored on."""

    def __init__(self, run: lm.Run):
        m, data = lm.load(run), lm.data.prepare(run.experiment.data)
        self.c, self.params = m.experiment.model, m.params
        self.batches = lm.data.Batches(data.train, self.c.context, BATCH, seed=0)
        windows = lm.data.validation_windows(data.validation, self.c.context, SCORED)
        self.windows_WU, self.weights_WT = windows["tokens_BU"], windows["weights_BT"]

    @functools.cached_property
    def moments(self) -> dict:
        """Those of the training text, by 16 of its batches; empty for norms that need none."""
        return averaged([moments_of_batch(self.c, self.params, self.batches.at(step)[:, :-1]) for step in range(16)])


def averaged(moments: list[dict], tokens: int = BATCH * 32) -> dict:
    """Means over batches of so many tokens, the variances by n / (n - 1): Ioffe and Szegedy 2015, algorithm 2."""
    unbiased_J1 = jnp.array([[1.0], [tokens / (tokens - 1)]])
    return jax.tree.map(lambda *each: jnp.mean(jnp.stack(each), axis=0) * unbiased_J1, *moments)


@functools.partial(jax.jit, static_argnums=0)
def moments_of_batch(c: Study, params: dict, tokens_BT) -> dict:
    """The taps of batch norm's moments, none for other norms."""
    taps = parts.Taps(read=[name for name in lm.build(c).taps if name.endswith("moments")])
    lm.build(c).hidden(params, lm.Inputs(tokens_BT), taps=taps)
    return taps.values


def in_place(moments: dict) -> dict[str, Callable]:
    """Edits of the taps by which batch norm takes these moments, whatever the batch's are."""

    def edit_of(stored) -> Callable:
        return lambda value, layer: stored if layer is None else stored[layer]

    return {name: edit_of(stored) for name, stored in moments.items()}


def nats(c: Study, params: dict, tokens_BU, edits: dict[str, Callable]):
    """[B, T] nats of each next token."""
    logits_BTV, _ = lm.build(c).apply(params, lm.Inputs(tokens_BU[:, :-1]), taps=parts.Taps(edits=edits))
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BU[:, 1:])


@functools.partial(jax.jit, static_argnums=0)
def nats_with(c: Study, params: dict, moments: dict, tokens_BU):
    return nats(c, params, tokens_BU, in_place(moments))


def losses_by_moments(reader: Reader, rows: int = BATCH) -> tuple[float, float]:
    """Validation loss with the moments of the training text, and with those of each batch of so many rows."""
    losses = []
    for moments in (reader.moments, {}):
        total = 0.0
        for start in range(0, len(reader.windows_WU), rows):
            window_WU, weights_WT = (x[start : start + rows] for x in (reader.windows_WU, reader.weights_WT))
            total += float(jnp.sum(nats_with(reader.c, reader.params, moments, window_WU) * weights_WT))
        losses.append(total / float(reader.weights_WT.sum()))
    return tuple(losses)


@functools.partial(jax.jit, static_argnums=0)
def logits_with(c: Study, params: dict, moments: dict, tokens_BT):
    return lm.build(c).apply(params, lm.Inputs(tokens_BT), taps=parts.Taps(edits=in_place(moments)))[0]


def change(c: Study, params: dict, moments: dict, tokens_BT):
    """[B, T] the largest change of a logit when the last token of the first row becomes the next of the vocabulary.

    One program gives both logits, so that what does not change is the same to the bit.
    """
    changed_BT = tokens_BT.at[0, -1].set((tokens_BT[0, -1] + 1) % c.vocab)
    before_BTV, after_BTV = (logits_with(c, params, moments, x_BT) for x_BT in (tokens_BT, changed_BT))
    return jnp.abs(after_BTV - before_BTV).max(axis=-1)


def leak(reader: Reader) -> dict[str, float]:
    """What the last token of a row changes where it should change nothing, by rows of the batch, and in evaluation."""
    made = {}
    for rows in ROWS if reader.c.norm == "batchnorm" else (BATCH,):
        tokens_BT = jnp.asarray(reader.windows_WU[:rows, :-1])
        change_BT = change(reader.c, reader.params, {}, tokens_BT)
        made[f"position 0, {rows} rows"] = float(change_BT[0, 0])
        if rows == BATCH:
            made["other rows"] = float(change_BT[1:].max())
            change_BT = change(reader.c, reader.params, reader.moments, tokens_BT)
            made["evaluation"] = float(jnp.maximum(change_BT[0, :-1].max(), change_BT[1:].max()))
    return made


@functools.partial(jax.jit, static_argnums=0)
def gradients(c: Study, params: dict, tokens_BU):
    """[L] norm of the gradient of the mean loss by what enters each block."""

    def loss(added_LBTD):
        return nats(c, params, tokens_BU, {"residual.before": lambda x, layer: x + added_LBTD[layer]}).mean()

    B, T = tokens_BU[:, 1:].shape
    gradient_LBTD = jax.grad(loss)(jnp.zeros((c.layers, B, T, c.width)))
    return jnp.sqrt(jnp.square(gradient_LBTD).sum(axis=(1, 2, 3)))
