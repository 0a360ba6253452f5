"""What the transformer replaced in translation: an LSTM that reads, and one that writes, with attention or without.

Without: the reader's last states are all that the writer knows of the source (Sutskever et al. 2014, who read it from
its end, as this does). With: every place of the writer's last layer also looks back at all states of the reader's
(Luong et al. 2015, the score "general" of equation 8, and equation 5; without their input feeding, so that all places
attend at once). experiments/translate.py trains both. Axis C is 2 D, a mixture beside a state.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import lm
from lm import model as parts
from lm.model import recurrent

HIDDEN = -1e30
"""Score of a place of the source that is padding: its weight is exactly zero."""


@lm.register("luong")
@dataclasses.dataclass(frozen=True)
class LuongConfig(lm.ModelBase):
    """Shape of the writer; the reader has as many layers, as wide."""

    layers: int = 2
    width: int = 128
    context: int = 16
    vocab: int | None = None
    attention: bool = True
    encoder: lm.RecurrentConfig | None = None
    cell, bias, tied, vocab_multiple = "lstm", True, True, 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Remembered:
    """What the writer's cells remember, the reader's last states, and which of them are real [B, S]."""

    cells: Any
    states_BSD: jax.Array
    real_BS: jax.Array


@parts.implements(LuongConfig)
class Luong(nnx.Module):
    """Source and tokens to logits; one table of embeddings for each, of which the writer's is the head too."""

    def __init__(self, c: LuongConfig, rngs: nnx.Rngs):
        self.c, D = c, c.width
        self.embedding, self.source_embedding = (
            nnx.Param(jax.random.normal(rngs.params(), (c.V, D)) * D**-0.5, axes=("V", "D")) for _ in range(2)
        )
        self.blocks, self.reader = (Stack(c, rngs) for _ in range(2))
        self.general = parts.Linear(c, D, D, ("D", "F"), rngs) if c.attention else None
        self.combine = parts.Linear(c, 2 * D, D, ("C", "D"), rngs) if c.attention else None

    @staticmethod
    def state(c: LuongConfig, batch: int, capacity: int) -> Remembered:
        S = c.encoder.context
        cells = recurrent.Recurrent.state(c, batch, capacity)
        return Remembered(cells, jnp.zeros((batch, S, c.width)), jnp.zeros((batch, S), bool))

    @staticmethod
    def taps(c: LuongConfig) -> dict[str, parts.Tap]:
        weights = {"cross.weights": parts.Tap("BTS", "rows sum to one")} if c.attention else {}
        return {"embedding": parts.Tap("BTD"), "logits": parts.Tap("BTV"), **weights}

    @staticmethod
    def cost(c: LuongConfig, context: int, pairs) -> parts.Cost:
        D, S = c.width, c.encoder.context
        cells, looks = c.layers * 16 * D * D * (1 + S / context), c.attention * (6 * D * D + 4 * S * D)
        elementwise = {"cells": c.layers * 13 * D * (1 + S / context), "loss": parts.loss_operations(c)}
        products = {"cells": cells, "attention": looks, "head": 2 * D * c.V}
        return parts.Cost(products, elementwise, kept=c.layers * 14 * D, remembered=2 * c.layers * D)

    def hidden(self, inputs, *, state: Remembered | None, taps, key):
        """What the head reads, [B, T, D], and what is remembered after it."""
        known = state if inputs.source is None else self.read(inputs.source)
        x_BTD = taps("embedding", self.embedding[...][inputs.tokens_BT].astype(parts.compute_dtype(self.c)))
        h_BTD, cells = self.blocks(x_BTD, known.cells, inputs.count_B)
        if self.c.attention:
            h_BTD = self.look(h_BTD, known, taps)
        return self.final(h_BTD, taps), None if state is None else dataclasses.replace(known, cells=cells)

    def read(self, source) -> Remembered:
        """The source from its last real token to its first; the padding stays behind it."""
        B, S = source.tokens_BT.shape
        index_1S, count_B1 = jnp.arange(S)[None], source.counts()[:, None]
        real_BS = index_1S < count_B1
        backwards_BS = jnp.where(real_BS, count_B1 - 1 - index_1S, index_1S)
        tokens_BS = jnp.take_along_axis(source.tokens_BT, backwards_BS, axis=1)
        x_BSD = self.source_embedding[...][tokens_BS].astype(parts.compute_dtype(self.c))
        h_BSD, cells = self.reader(x_BSD, recurrent.Recurrent.state(self.c, B, S), source.count_B)
        states_BSD = jnp.take_along_axis(h_BSD, backwards_BS[..., None], axis=1)  # in the order of the text again
        return Remembered(cells, states_BSD, real_BS)

    def look(self, h_BTD: jax.Array, known: Remembered, taps) -> jax.Array:
        """tanh(W [mixture; h]): the reader's states, weighted by how well each goes with h, beside h."""
        scores_BTS = jnp.einsum("BTD,BSD->BTS", self.general(h_BTD), known.states_BSD.astype(h_BTD.dtype))
        scores_BTS = jnp.where(known.real_BS[:, None], scores_BTS.astype(jnp.float32), HIDDEN)
        weights_BTS = taps("cross.weights", jax.nn.softmax(scores_BTS))
        mixture_BTD = jnp.einsum("BTS,BSD->BTD", weights_BTS.astype(h_BTD.dtype), known.states_BSD.astype(h_BTD.dtype))
        return jnp.tanh(self.combine(jnp.concatenate([mixture_BTD, h_BTD], axis=-1)))

    def final(self, x, taps):
        return x

    def logits(self, h, taps):
        return taps("logits", parts.vocabulary_logits(h, self.embedding, None, self.c.vocab))


class Stack(nnx.Module):
    """Layers of LSTM cells, one on the other; their parameters are stacked along L."""

    def __init__(self, c: LuongConfig, rngs: nnx.Rngs):
        self.blocks = nnx.vmap(lambda r: recurrent.Layer(c, r))(rngs.split(c.layers))

    def __call__(self, x_BTD: jax.Array, cells, count_B: jax.Array | None):
        """What the last layer gives, [B, T, D], and what all remember after the first count_B tokens of each row."""
        graph, params = nnx.split(self.blocks)
        read_BT = None if count_B is None else jnp.arange(x_BTD.shape[1]) < count_B[:, None]

        def layer(x_BTD, scanned):
            params, cells = scanned
            return nnx.merge(graph, params)(x_BTD, cells, read_BT, None)

        return parts.over_layers(layer, x_BTD, params, cells, unroll=1)
