"""An architecture of one's own in one file: a gated linear recurrence (minGRU: Feng et al. 2024, section 3.1).

lm train gated_recurrence        no download

Each layer remembers h = (1 - z) h + z g, where gate z and candidate g read the token alone: one scan for all tokens.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

import lm
from lm import model as parts


@lm.register("gated recurrence")
@dataclass(frozen=True)
class GatedRecurrence(lm.ModelBase):
    layers: int = 4
    width: int = 192
    context: int = 256
    vocab: int | None = None
    bias, norm_epsilon = False, 1e-5


class Layer(nnx.Module):
    def __init__(self, c, rngs):
        self.norm = parts.Norm(c, c.width, "D", "rmsnorm")
        self.gate, self.candidate = (parts.Linear(c, c.width, c.width, ("D", "F"), rngs) for _ in range(2))
        self.out = parts.Linear(c, c.width, c.width, ("F", "D"), rngs, scale=(2 * c.layers) ** -0.5)

    def __call__(self, x_BTD, h_BD, keep_BT1, read_BT1):
        """What the layer adds, and what it remembers: the same as before at tokens that do not count (z = 0)."""
        y_BTD = self.norm(x_BTD)
        z_BTD = jax.nn.sigmoid(self.gate(y_BTD).astype(jnp.float32)) * read_BT1
        decay_BTD, added_BTD = (1 - z_BTD) * keep_BT1, z_BTD * self.candidate(y_BTD).astype(jnp.float32)
        added_BTD = added_BTD.at[:, 0].add(decay_BTD[:, 0] * h_BD)

        def join(first, second):
            return first[0] * second[0], second[0] * first[1] + second[1]

        _, h_BTD = jax.lax.associative_scan(join, (decay_BTD, added_BTD), axis=1)
        return self.out(jax.nn.silu(h_BTD).astype(x_BTD.dtype)), h_BTD[:, -1]


@parts.implements(GatedRecurrence)
class Model(nnx.Module):
    def __init__(self, c, rngs):
        self.c = c
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (c.V, c.width)), axes=("V", "D"))
        self.blocks = nnx.vmap(lambda r: Layer(c, r))(rngs.split(c.layers))
        self.final_norm = parts.Norm(c, c.width, "D", "rmsnorm")
        self.head = nnx.Param(jnp.zeros((c.width, c.V)), axes=("D", "V"))

    @staticmethod
    def state(c, batch, capacity):
        return jnp.zeros((c.layers, batch, c.width))

    @staticmethod
    def taps(c):
        return {"embedding": parts.Tap("BTD"), "residual.after": parts.Tap("LBTD"), "logits": parts.Tap("BTV")}

    @staticmethod
    def cost(c, context, pairs):
        L, D = c.layers, c.width
        products = {"layers": L * 6 * D * D, "head": 2 * D * c.V}
        elementwise = {"layers": L * 29 * D, "loss": parts.loss_operations(c)}
        return parts.Cost(products, elementwise, kept=L * 6 * D, remembered=L * D)

    def hidden(self, inputs, *, state, taps, key):
        c, tokens_BT, segments_BT = self.c, inputs.tokens_BT, inputs.segments_BT
        read_BT1 = (jnp.arange(tokens_BT.shape[1]) < inputs.counts()[:, None])[..., None]
        keep_BT1 = jnp.ones_like(read_BT1)
        if segments_BT is not None:  # where a document begins, what was before is forgotten
            keep_BT1 = jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1])[..., None] == 0
        x_BTD = taps("embedding", self.embedding[...][tokens_BT].astype(parts.compute_dtype(c)))
        graph, params = nnx.split(self.blocks)

        def layer(x_BTD, scanned):
            params, (index, h_BD) = scanned
            inner = taps.inside(index)
            added_BTD, h_BD = nnx.merge(graph, params)(x_BTD, h_BD, keep_BT1, read_BT1)
            return inner("residual.after", x_BTD + added_BTD), (h_BD, inner.values)

        others = jnp.arange(c.layers), self.state(c, len(tokens_BT), c.context) if state is None else state
        x_BTD, (memory, values) = parts.over_layers(layer, x_BTD, params, others, unroll=c.layers)
        taps.values.update(values)
        return self.final(x_BTD, taps), None if state is None else memory

    def final(self, x, taps):
        return self.final_norm(x)

    def logits(self, h, taps):
        return taps("logits", parts.vocabulary_logits(h, self.embedding, self.head, self.c.vocab))


experiment = lm.Experiment(model=GatedRecurrence(), train=lm.TrainConfig(steps=600, batch=16))
