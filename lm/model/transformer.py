"""The decoder-only transformer, defined with Flax NNX and used as a pure function of its parameters."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.model.api import Inputs, implements
from lm.model.attention import Attention
from lm.model.cache import KVCache, Past
from lm.model.cost import Cost, Pairs, rms_operations
from lm.model.kernels import over_layers
from lm.model.layers import (
    FeedForward,
    Norm,
    compute_dtype,
    dropout,
    loss_operations,
    rms_normalise,
    scaled,
    sinusoids,
    vocabulary_logits,
)
from lm.model.mask import Mask, Places
from lm.model.parametrization import embedding_scale, logit_factor
from lm.model.taps import Tap, Taps

UNLIMITED = jnp.iinfo(jnp.int32).max

TAPS = {
    "embedding": Tap("BTD", "what enters the first block"),
    "residual.before": Tap("LBTD", "what enters the block"),
    "attention.query": Tap("LBTNH", "normalised and rotated"),
    "attention.key": Tap("LBTKH", "normalised and rotated"),
    "attention.value": Tap("LBTKH", "values"),
    "attention.scores": Tap("LBNTS", "before the mask; S is the cache's slots, then the new tokens"),
    "attention.weights": Tap("LBNTS", "rows sum to one"),
    "attention.heads": Tap("LBTNH", "each head's mixture of values"),
    "attention.out": Tap("LBTD", "what attention adds to the residual stream"),
    "residual.middle": Tap("LBTD", "between attention and the feed-forward layer"),
    "mlp.hidden": Tap("LBTF", "after the nonlinearity"),
    "mlp.out": Tap("LBTD", "what the feed-forward layer adds"),
    "residual.after": Tap("LBTD", "what leaves the block"),
    "residual.final": Tap("BTD", "after the last norm; the head reads it"),
    "logits": Tap("BTV", "padded entries masked"),
}


class Block(nnx.Module):
    """Pre-norm: x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, c: ModelConfig, rngs):
        self.rate = c.dropout
        self.attention_norm = Norm(c, c.width, "D", c.norm)
        self.attention = Attention(c, rngs)
        self.feedforward_norm = Norm(c, c.width, "D", c.norm)
        self.feedforward = FeedForward(c, rngs)

    def __call__(self, x_BTD, here: Places, mask: Mask, past: Past | None, first_BTKH, taps: Taps, key):
        """Returns the residual stream, this layer's new keys and values, and the first layer's values."""
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = taps("residual.before", x_BTD)
        h_BTD, kv, first_BTKH = self.attention(self.attention_norm(x_BTD), here, mask, past, first_BTKH, taps)
        x_BTD = taps("residual.middle", x_BTD + dropout(h_BTD, self.rate, keys[0]))
        h_BTD = self.feedforward(self.feedforward_norm(x_BTD), taps)
        return taps("residual.after", x_BTD + dropout(h_BTD, self.rate, keys[1])), kv, first_BTKH

    @staticmethod
    def cost(c: ModelConfig, T: int, window: int | None, pairs: Pairs) -> Cost:
        D = c.width
        own = {
            "norms": 2 * Norm.operations(c, D, c.norm), "residuals": 2 * D, "dropout": 2 * 2 * D * (c.dropout > 0),
        }  # fmt: skip
        cost = Attention.cost(c, T, window, pairs) + FeedForward.cost(c) + Cost(elementwise=own, kept=D)
        return dataclasses.replace(cost, kept=D) if c.remat else cost


@implements(ModelConfig)
class Transformer(nnx.Module):
    """Tokens to logits. `blocks` holds every layer's parameters stacked along L, run by one scan."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        self.c = c

        def normal(*shape: int) -> jax.Array:
            return jax.random.normal(rngs.params(), shape) * embedding_scale(c)

        self.embedding = nnx.Param(normal(c.V, c.width), axes=("V", "D"))
        self.position = nnx.Param(normal(c.context, c.width), axes=("T", "D")) if c.positions == "learned" else None
        self.blocks = nnx.vmap(lambda r: Block(c, r))(rngs.split(c.layers))
        self.final_norm = Norm(c, c.width, "D", c.norm)
        head = (jnp.zeros((c.width, c.V)) if c.zero_init else normal(c.width, c.V)) if not c.tied else None
        self.head = nnx.Param(head, axes=("D", "V")) if not c.tied else None

    @staticmethod
    def state(c: ModelConfig, batch: int, capacity: int) -> KVCache:
        return KVCache.empty(c, batch, capacity, compute_dtype(c))

    @staticmethod
    def taps(c: ModelConfig) -> dict[str, Tap]:
        return TAPS

    @staticmethod
    def cost(c: ModelConfig, T: int, pairs: Pairs) -> Cost:
        D, V = c.width, c.V
        loss = loss_operations(c) + 3 * V * (c.logit_softcap is not None)
        embedding = D * (c.positions in ("learned", "sinusoidal")) + rms_operations(D) * c.embedding_norm
        dropout, norm = 2 * D * (c.dropout > 0), Norm.operations(c, D, c.norm)
        ends = {"embedding": embedding, "norms": norm, "dropout": dropout, "loss": loss}
        total = Cost({"head": 2 * D * V}, ends)
        for window, layers in c.layers_by_window.items():
            total += Block.cost(c, T, window, pairs) * layers
        return total

    def hidden(self, inputs: Inputs, *, state: KVCache | None, taps: Taps, key: jax.Array | None):
        """What the head reads, [B, T, D], and the cache after reading; see LanguageModel.hidden."""
        c = self.c
        cache = None if state is None or inputs.first else state.settled()
        here = _places(inputs, cache)
        keys = (None, None) if key is None or c.dropout == 0 else jax.random.split(key)
        x_BTD = self._embed(inputs.tokens_BT, here.positions_BS)
        x_BTD = taps("embedding", dropout(x_BTD, c.dropout, keys[0]))

        graph, params = nnx.split(self.blocks)
        windows = None
        if c.window is not None:  # one program for windowed and global layers: the window is data
            windows = jnp.array([UNLIMITED if w is None else w for w in c.windows], jnp.int32)
        about = None if cache is None else (cache.places(), jnp.max(cache.length_B))

        def layer(carry, scanned):
            (x_BTD, first_BTKH), (params, (index, window, kv)) = carry, scanned
            inner = taps.inside(index)
            past = None if kv is None else Past(*kv, *about)
            layer_key = None if keys[1] is None else jax.random.fold_in(keys[1], index)
            block = nnx.merge(graph, params)
            x_BTD, kv, first_BTKH = block(x_BTD, here, Mask(window=window), past, first_BTKH, inner, layer_key)
            return (x_BTD, first_BTKH), (None if state is None else kv, inner.values)

        if c.remat:
            layer = jax.checkpoint(layer)
        no_values_BTKH = jnp.zeros((*x_BTD.shape[:2], c.K, c.H), x_BTD.dtype) if c.value_residual else None
        others = jnp.arange(c.layers), windows, None if cache is None else cache.layers()
        carry = x_BTD, no_values_BTKH
        (x_BTD, _), (kv, values) = over_layers(layer, carry, params, others, unroll=written_out(c))
        taps.values.update(values)
        if state is not None:
            state = (state if inputs.first else cache).grown(*kv, inputs.counts())
        return self.final(x_BTD, taps), state

    def final(self, x: jax.Array, taps: Taps) -> jax.Array:
        """What the head reads of what leaves the last block."""
        return taps("residual.final", self.final_norm(x))

    def logits(self, h: jax.Array, taps: Taps) -> jax.Array:
        """[..., V] float32 logits; the padded entries of the vocabulary can never be predicted."""
        h, c = scaled(h, logit_factor(self.c)), self.c
        return taps("logits", vocabulary_logits(h, self.embedding, self.head, c.vocab, softcap=c.logit_softcap))

    def _embed(self, tokens_BT, positions_BT):
        c = self.c
        x_BTD = self.embedding[...][tokens_BT]
        if c.positions == "learned":
            x_BTD = x_BTD + self.position[...][positions_BT]
        if c.positions == "sinusoidal":
            x_BTD = x_BTD + sinusoids(positions_BT, c.width)
        if c.embedding_norm:
            x_BTD = rms_normalise(x_BTD, c.norm_epsilon)
        return x_BTD.astype(compute_dtype(c))


def _places(inputs: Inputs, cache: KVCache | None) -> Places:
    """Where the tokens stand: behind what the cache holds, or from 0 on in each document."""
    T, segments_BT = inputs.tokens_BT.shape[1], inputs.segments_BT
    if cache is not None:
        return Places(cache.next_positions(T))
    index_1T = jnp.arange(T)[None]
    if segments_BT is None:
        return Places(index_1T)
    starts_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return Places(index_1T - jax.lax.cummax(jnp.where(starts_BT, index_1T, 0), axis=1), segments_BT)


def written_out(c: ModelConfig) -> int:
    """Blocks in one iteration of the scan over layers. On a CPU a scan copies every block's weights and gradients."""
    if c.unroll is not None:
        return min(c.unroll, c.layers)
    return c.layers if jax.default_backend() == "cpu" and c.layers <= 8 else 1
