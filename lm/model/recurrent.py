"""Recurrent language models: an embedding, layers of LSTM or tanh cells, a head. The state is what the cells remember.

LSTM: Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000, as in torch.nn.LSTM. tanh RNN: Elman
1990, as in torch.nn.RNN. Their two biases are one here. G is the number of gates; F = G D in the axes of parameters.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm import parallel
from lm.config import RecurrentConfig
from lm.model.api import Inputs, implements
from lm.model.cost import Cost, Pairs
from lm.model.kernels import over_layers, remembering
from lm.model.layers import Linear, compute_dtype, dropout, loss_operations, product_dtype, project, vocabulary_logits
from lm.model.taps import Tap, Taps

TAPS = {
    "embedding": Tap("BTD", "what enters the first layer"),
    "residual.after": Tap("LBTD", "what leaves the layer"),
    "residual.final": Tap("BTD", "what leaves the last layer; the head reads it"),
    "logits": Tap("BTV", "padded entries masked"),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What the cells remember after the tokens read so far, float32; one layer's is without L."""

    h_LBD: jax.Array
    """What they gave last."""
    c_LBD: jax.Array | None
    """An LSTM's cells; None of a tanh RNN."""


def lstm(gates_BF: jax.Array, c_BD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """h and c after a token, from the gates' sums (input, forget, cell, output) and c before it."""
    i_BD, f_BD, g_BD, o_BD = jnp.split(gates_BF, 4, axis=-1)
    c_BD = jax.nn.sigmoid(f_BD) * c_BD + jax.nn.sigmoid(i_BD) * jnp.tanh(g_BD)
    return jax.nn.sigmoid(o_BD) * jnp.tanh(c_BD), c_BD


GATES = {"lstm": 4, "rnn": 1}
OPERATIONS = {"lstm": 13, "rnn": 2}
"""Operations of a cell on one of its D values, biases aside: adding up each gate's two products, squashing, mixing."""


class Layer(nnx.Module):
    """One layer of cells over a sequence: a product for all tokens at once, then a scan of the recurrence."""

    def __init__(self, c: RecurrentConfig, rngs: nnx.Rngs):
        D, F = c.width, GATES[c.cell] * c.width
        self.input = Linear(c, D, F, ("D", "F"), rngs)
        self.recurrent = nnx.Param(jax.random.normal(rngs.params(), (D, F)) * D**-0.5, axes=("D", "F"))
        if c.bias and c.cell == "lstm":  # remember at first (Jozefowicz et al. 2015)
            self.input.bias[...] = jnp.where(jnp.arange(F) // D == 1, 1.0, 0.0)

    def __call__(self, x_BTD: jax.Array, memory: Memory, read_BT, fresh_BT) -> tuple[jax.Array, Memory]:
        """What the cells give after each token, [B, T, D], and what they remember at the end.

        read_BT: tokens that count; the memory passes by the others. fresh_BT: tokens before which all is forgotten.
        Each may be None.
        """

        def token(memory: Memory, now):
            gates_BF, read_B, fresh_B = now
            if fresh_B is not None:
                memory = jax.tree.map(lambda x_BD: jnp.where(fresh_B[:, None], 0, x_BD), memory)
            gates_BF = (
                gates_BF + project(memory.h_LBD.astype(x_BTD.dtype), self.recurrent[...], dtype=self.input.dtype)
            ).astype(jnp.float32)
            new = Memory(jnp.tanh(gates_BF), None) if memory.c_LBD is None else Memory(*lstm(gates_BF, memory.c_LBD))
            kept = new
            if read_B is not None:
                kept = jax.tree.map(lambda new_BD, old_BD: jnp.where(read_B[:, None], new_BD, old_BD), new, memory)
            return kept, new.h_LBD.astype(x_BTD.dtype)

        by_token = jax.tree.map(lambda x: x.swapaxes(0, 1), (self.input(x_BTD), read_BT, fresh_BT))
        memory, h_TBD = jax.lax.scan(token, memory, by_token)
        return h_TBD.swapaxes(0, 1), memory


@implements(RecurrentConfig)
class Recurrent(nnx.Module):
    """Tokens to logits. `blocks` holds every layer's parameters stacked along L."""

    def __init__(self, c: RecurrentConfig, rngs: nnx.Rngs):
        self.c = c
        scale = c.width**-0.5 if c.tied else 1.0  # a tied head reads it: the first logits should be small
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (c.V, c.width)) * scale, axes=("V", "D"))
        self.blocks = nnx.vmap(lambda r: Layer(c, r))(rngs.split(c.layers))
        self.head = None if c.tied else nnx.Param(jnp.zeros((c.width, c.V)), axes=("D", "V"))

    @staticmethod
    def state(c: RecurrentConfig, batch: int, capacity: int) -> Memory:
        zeros_LBD = jnp.zeros((c.layers, batch, c.width))
        return Memory(zeros_LBD, zeros_LBD if c.cell == "lstm" else None)

    @staticmethod
    def taps(c: RecurrentConfig) -> dict[str, Tap]:
        return TAPS

    @staticmethod
    def cost(c: RecurrentConfig, T: int, pairs: Pairs) -> Cost:
        D, F, L = c.width, GATES[c.cell] * c.width, c.layers
        return Cost(
            products={"input": L * 2 * D * F, "recurrence": L * 2 * D * F, "head": 2 * D * c.V},
            elementwise={
                "cells": L * OPERATIONS[c.cell] * D, "biases": L * F * c.bias,
                "dropout": (L + 1) * 2 * D * (c.dropout > 0), "loss": loss_operations(c),
            },
            kept=L * (F + 3 * D),
            remembered=L * (2 if c.cell == "lstm" else 1) * D,
        )  # fmt: skip

    def hidden(self, inputs: Inputs, *, state: Memory | None, taps: Taps, key: jax.Array | None):
        """What the head reads, [B, T, D], and the memory after reading; see LanguageModel.hidden."""
        c, (B, T) = self.c, inputs.tokens_BT.shape
        memory = self.state(c, B, T) if state is None else state
        read_BT = None if inputs.count_B is None else jnp.arange(T) < inputs.count_B[:, None]
        segments_BT = inputs.segments_BT
        fresh_BT = None if segments_BT is None else jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1]) != 0
        keys = None if key is None or c.dropout == 0 else jax.random.split(key, c.layers + 1)
        x_BTD = self.embedding[...][inputs.tokens_BT].astype(compute_dtype(c))
        x_BTD = taps("embedding", dropout(x_BTD, c.dropout, None if keys is None else keys[-1]))
        graph, params = nnx.split(self.blocks)

        def layer(x_BTD, scanned):
            params, (index, memory, key) = scanned
            inner = taps.inside(index)
            cells = nnx.merge(graph, parallel.at_use(params, c.pieces))
            x_BTD, memory = cells(parallel.rows(x_BTD), memory, read_BT, fresh_BT)
            return inner("residual.after", dropout(x_BTD, c.dropout, key)), (memory, inner.values)

        others = jnp.arange(c.layers), memory, None if keys is None else keys[:-1]
        x_BTD, (memory, values) = over_layers(remembering(layer, "none"), x_BTD, params, others, unroll=1)
        taps.values.update(values)
        return self.final(x_BTD, taps), None if state is None else memory

    def final(self, x: jax.Array, taps: Taps) -> jax.Array:
        """What the head reads of what leaves the last layer: the same."""
        return taps("residual.final", x)

    def logits(self, h: jax.Array, taps: Taps) -> jax.Array:
        """[..., V] float32 logits; the padded entries of the vocabulary can never be predicted."""
        return taps(
            "logits", vocabulary_logits(h, self.embedding, self.head, self.c.vocab, dtype=product_dtype(self.c))
        )
