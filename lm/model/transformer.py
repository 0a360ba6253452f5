"""The transformer, decoder-only or beside an encoder, defined with Flax NNX and used as a pure function of parameters.

An encoder is a transformer too, of which the blocks alone are used.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm import parallel
from lm.config import ModelConfig
from lm.errors import require
from lm.model.api import Inputs, implements
from lm.model.attention import Attention, CrossAttention
from lm.model.cache import KeysValues, KVCache, Past, SourceCache
from lm.model.cost import Cost, Pairs, rms_operations
from lm.model.kernels import over_layers, remembering
from lm.model.layers import (
    FeedForward,
    Linear,
    Norm,
    compute_dtype,
    dropout,
    loss_operations,
    product_dtype,
    rms_normalise,
    scaled,
    sinusoids,
    vocabulary_logits,
)
from lm.model.mask import FAR, Mask, Places
from lm.model.parametrization import branch_factor, embedding_scale, logit_factor
from lm.model.rotary import frequencies
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
    "residual.middle": Tap("LBTD", "after attention"),
    "mlp.hidden": Tap("LBTF", "after the nonlinearity"),
    "mlp.out": Tap("LBTD", "what the feed-forward layer adds"),
    "residual.after": Tap("LBTD", "what leaves the block"),
    "residual.final": Tap("BTD", "after the last norm; the head reads it"),
    "logits": Tap("BTV", "padded entries masked"),
}
CROSS_TAPS = {
    "source": Tap("BSD", "what the encoder made of the source; cross-attention reads it"),
    "cross.scores": Tap("LBNTS", "before the mask; S is the places of the source"),
    "cross.weights": Tap("LBNTS", "rows sum to one"),
    "cross.heads": Tap("LBTNH", "each head's mixture of the source's values"),
    "cross.out": Tap("LBTD", "what cross-attention adds to the residual stream"),
    "residual.crossed": Tap("LBTD", "after cross-attention"),
}
"""Those of a decoder beside an encoder."""


class Block(nnx.Module):
    """Attention, in a decoder beside an encoder cross-attention, and the feed-forward layer, each added to the stream.

    By c.norm_place, pre: x + attention(norm(x)), and so on; post: norm(x + attention(x)); output: x +
    norm(attention(x)); both: x + norm(attention(norm(x))). With c.parallel the feed-forward layer reads what attention
    reads, through a norm of its own or through attention's.
    """

    def __init__(self, c: ModelConfig, rngs):
        self.c, crosses = c, c.encoder is not None
        own = c.parallel != "one_norm"
        self.attention_norm = Norm(c, c.width, "D", c.norm)
        self.attention = Attention(c, rngs)
        self.feedforward_norm = Norm(c, c.width, "D", c.norm) if own else None
        self.feedforward = FeedForward(c, rngs)
        self.cross_norm = Norm(c, c.width, "D", c.norm) if crosses else None
        self.cross = CrossAttention(c, rngs) if crosses else None
        after = c.norm_place == "both"
        self.attention_out_norm = Norm(c, c.width, "D", c.norm) if after else None
        self.feedforward_out_norm = Norm(c, c.width, "D", c.norm) if after else None
        self.cross_out_norm = Norm(c, c.width, "D", c.norm) if after and crosses else None

    def __call__(
        self,
        x_BTD: jax.Array,
        here: Places,
        mask: Mask,
        past: Past | None,
        source: tuple[KeysValues, jax.Array] | None,
        first_BTKH: jax.Array | None,
        taps: Taps,
        key: jax.Array | None,
        *,
        frequencies_R: jax.Array | None,
    ):
        """Returns the residual stream, this layer's new keys and values, and the first layer's values.

        source: what cross-attention reads, and its mask [B, T, S]. frequencies_R: this layer's row of
        `rotary.frequencies`; None without rotary positions.
        """
        halves = 2 if self.cross is None else 3
        keys = (None,) * halves if key is None else jax.random.split(key, halves)
        x_BTD = taps("residual.before", x_BTD)
        read_BTD = self._before(self.attention_norm, x_BTD)
        h_BTD, kv, first_BTKH = self.attention(
            read_BTD, here, mask, past, first_BTKH, taps, frequencies_R=frequencies_R
        )
        h_BTD = taps("attention.out", self._output(self.attention_norm, self.attention_out_norm, h_BTD))
        x_BTD, before_BTD = self._sum(self.attention_norm, x_BTD, h_BTD, keys[0]), x_BTD
        x_BTD = taps("residual.middle", x_BTD)
        if self.cross is not None:
            h_BTD = self.cross(self._before(self.cross_norm, x_BTD), *source, taps)
            h_BTD = taps("cross.out", self._output(self.cross_norm, self.cross_out_norm, h_BTD))
            x_BTD = taps("residual.crossed", self._sum(self.cross_norm, x_BTD, h_BTD, keys[2]))
        match self.c.parallel:
            case "off":
                read_BTD = self._before(self.feedforward_norm, x_BTD)
            case "two_norms":
                read_BTD = self.feedforward_norm(before_BTD)
        h_BTD = self.feedforward(read_BTD, taps)
        h_BTD = taps("mlp.out", self._output(self.feedforward_norm, self.feedforward_out_norm, h_BTD))
        x_BTD = taps("residual.after", self._sum(self.feedforward_norm, x_BTD, h_BTD, keys[1]))
        return x_BTD, kv, first_BTKH

    def _before(self, norm: Norm, x_BTD: jax.Array) -> jax.Array:
        """What a half reads of the stream."""
        return norm(x_BTD) if self.c.norm_place in ("pre", "both") else x_BTD

    def _output(self, norm: Norm, out_norm: Norm | None, h_BTD: jax.Array) -> jax.Array:
        """What a half adds to the stream."""
        match self.c.norm_place:
            case "output":
                h_BTD = norm(h_BTD)
            case "both":
                h_BTD = out_norm(h_BTD)
        return scaled(h_BTD, branch_factor(self.c))

    def _sum(self, norm: Norm, x_BTD: jax.Array, h_BTD: jax.Array, key: jax.Array | None) -> jax.Array:
        """The stream with what a half adds."""
        x_BTD = x_BTD + dropout(h_BTD, self.c.dropout, key)
        return norm(x_BTD) if self.c.norm_place == "post" else x_BTD

    @staticmethod
    def cost(c: ModelConfig, T: int, window: int | None, pairs: Pairs) -> Cost:
        D, halves = c.width, 2 if c.encoder is None else 3
        norms = halves * (2 if c.norm_place == "both" else 1) - (c.parallel == "one_norm")
        own = {
            "norms": norms * Norm.operations(c, D, c.norm), "residuals": halves * D,
            "dropout": halves * 2 * D * (c.dropout > 0),
        }  # fmt: skip
        cost = Attention.cost(c, T, window, pairs) + FeedForward.cost(c) + Cost(elementwise=own, kept=D)
        if c.encoder is not None:
            cost += CrossAttention.cost(c, T)
        return dataclasses.replace(cost, kept=D) if c.remat == "full" else cost


@implements(ModelConfig)
class Transformer(nnx.Module):
    """Tokens to logits. `blocks` holds every layer's parameters stacked along L, run by one scan."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs, *, predicts: bool = True):
        """predicts: whether it has a head of its own, as all but encoders may."""
        self.c = c

        def normal(*shape: int) -> jax.Array:
            return jax.random.normal(rngs.params(), shape) * embedding_scale(c)

        self.embedding = nnx.Param(normal(c.V, c.width), axes=("V", "D"))
        self.position = nnx.Param(normal(c.context, c.width), axes=("T", "D")) if c.positions == "learned" else None
        self.blocks = nnx.vmap(lambda r: Block(c, r))(rngs.split(c.layers))
        self.final_norm = Norm(c, c.width, "D", c.norm)
        own = predicts and not c.tied
        head = (jnp.zeros((c.width, c.V)) if c.zero_init else normal(c.width, c.V)) if own else None
        self.head = nnx.Param(head, axes=("D", "V")) if own else None
        self.head_bias = nnx.Param(jnp.zeros(c.V), axes=("V",)) if c.head_bias and predicts else None
        self.vectors = None if c.vectors is None else Linear(c, c.vectors, c.width, ("E", "D"), rngs)
        self.encoder = None if c.encoder is None else Transformer(c.encoder, rngs, predicts=False)

    @staticmethod
    def state(c: ModelConfig, batch: int, capacity: int) -> KVCache:
        return KVCache.empty(c, batch, capacity, compute_dtype(c))

    @staticmethod
    def taps(c: ModelConfig) -> dict[str, Tap]:
        return TAPS if c.encoder is None else TAPS | CROSS_TAPS

    @staticmethod
    def cost(c: ModelConfig, T: int, pairs: Pairs) -> Cost:
        """Vectors before the tokens count as tokens; an encoder's cost is shared out among the decoder's tokens."""
        D, V = c.width, c.V
        loss = loss_operations(c) + 3 * V * (c.logit_softcap is not None) + V * c.head_bias
        total = Cost({"head": 2 * D * V}, {"loss": loss}) + _stack_cost(c, T, pairs)
        if c.encoder is not None:
            S = c.encoder.context
            encoder = _stack_cost(c.encoder, S, pairs) * (S / T)
            total += dataclasses.replace(encoder, remembered=0)
        return total

    def hidden(self, inputs: Inputs, *, state: KVCache | None, taps: Taps, key: jax.Array | None):
        """What the head reads, [B, T, D], and the cache after reading; see LanguageModel.hidden."""
        x_BSD, _, state = self._run(inputs, state, taps, key)
        return self.final(x_BSD[:, inputs.places - inputs.tokens_BT.shape[1] :], taps), state

    def _run(self, inputs: Inputs, state: KVCache | None, taps: Taps, key: jax.Array | None):
        """What leaves the last block at every place, the vectors' before the tokens'; the places, and the cache."""
        c = self.c
        cache = None if state is None or inputs.first else state.settled()
        open_B = inputs.open_B if inputs.open_B is not None or cache is None else cache.open_B
        mask = Mask(causal=c.mask != "full", first_B=open_B if c.mask == "prefix" else None)
        here = _places(inputs, cache, mask)
        keys = (None, None) if key is None or c.dropout == 0 else jax.random.split(key)
        states_BSD, kept = self._source(inputs, state, taps, keys[1])
        x_BTD = self._embed(inputs, here.positions_BS)
        x_BTD = taps("embedding", dropout(x_BTD, c.dropout, keys[0]))

        graph, params = nnx.split(self.blocks)
        windows = None
        if c.window is not None or c.layer_windows:  # one program for windowed and global layers: the window is data
            windows = jnp.array([UNLIMITED if w is None else w for w in c.windows], jnp.int32)
        turning = frequencies(c) if c.positions == "rotary" else None  # [H/2], or such a row for each layer
        differ = turning is not None and turning.ndim == 2
        about = None if cache is None else (cache.places(), jnp.max(cache.length_B))
        across_BTS = None if kept is None else Mask(causal=False)(Places(here.positions_BS), kept.places)

        def layer(carry, scanned):
            (x_BTD, first_BTKH), (params, (index, window, own_R, kv, read)) = carry, scanned
            inner = taps.inside(index)
            past = None if kv is None else Past(*kv, *about)
            layer_key = None if keys[1] is None else jax.random.fold_in(keys[1], index)
            block = nnx.merge(graph, parallel.at_use(params, c.pieces))
            x_BTD = parallel.rows(x_BTD)
            read = block.cross.remember(states_BSD) if states_BSD is not None else read
            source = None if read is None else (read, across_BTS)
            masked = dataclasses.replace(mask, window=window)
            x_BTD, kv, first_BTKH = block(
                x_BTD, here, masked, past, source, first_BTKH, inner, layer_key,
                frequencies_R=own_R if differ else turning,
            )  # fmt: skip
            made = None if state is None else (kv, None if states_BSD is None else read)
            return (parallel.rows(x_BTD), first_BTKH), (made, inner.values)

        layer = remembering(layer, c.remat)
        no_values_BTKH = jnp.zeros((*x_BTD.shape[:2], c.K, c.H), x_BTD.dtype) if c.value_residual else None
        cached = None if cache is None else cache.layers()
        others = (
            jnp.arange(c.layers),
            windows,
            turning if differ else None,
            cached,
            None if kept is None else kept.layers,
        )
        carry = x_BTD, no_values_BTKH
        (x_BTD, _), (made, values) = over_layers(layer, carry, params, others, unroll=written_out(c))
        taps.values.update(values)
        if state is not None:
            kv, read = made
            slots_BT = jnp.broadcast_to(here.positions_BS, x_BTD.shape[:2])
            state = (state if inputs.first else cache).grown(*kv, inputs.counts(), slots_BT)
            kept = SourceCache.apart(read, kept.places) if states_BSD is not None else kept
            state = dataclasses.replace(state, source=kept, open_B=mask.first_B)
        return x_BTD, here, state

    def _source(self, inputs: Inputs, state: KVCache | None, taps: Taps, key: jax.Array | None):
        """What the encoder makes of the source, [B, S, D], where one comes with the tokens; and what of it is kept."""
        if self.encoder is None:
            return None, None
        if inputs.source is None:
            require(state.source is not None, "this model translates, and its state knows no source: give one first")
            return None, state.source
        key = None if key is None else jax.random.fold_in(key, self.c.layers)  # the layers' own are below
        x_BSD, places, _ = self.encoder._run(inputs.source, None, Taps(), key)
        return taps("source", self.encoder.final(x_BSD, Taps())), SourceCache(None, places)

    def final(self, x: jax.Array, taps: Taps) -> jax.Array:
        """What the head reads of what leaves the last block."""
        return taps("residual.final", self.final_norm(x))

    def logits(self, h: jax.Array, taps: Taps) -> jax.Array:
        """[..., V] float32 logits; the padded entries of the vocabulary can never be predicted."""
        h, c = scaled(h, logit_factor(self.c)), self.c
        logits = vocabulary_logits(
            h,
            self.embedding,
            self.head,
            c.vocab,
            bias_V=self.head_bias,
            softcap=c.logit_softcap,
            dtype=product_dtype(c),
        )
        return taps("logits", logits)

    def _embed(self, inputs: Inputs, positions_BT):
        c = self.c
        x_BTD = self.embedding[...][inputs.tokens_BT]
        if inputs.vectors_BIE is not None:
            x_BTD = jnp.concatenate([self.vectors(inputs.vectors_BIE.astype(x_BTD.dtype)), x_BTD], axis=1)
        if c.positions == "learned":
            x_BTD = x_BTD + self.position[...][positions_BT]
        if c.positions == "sinusoidal":
            x_BTD = x_BTD + sinusoids(positions_BT, c.width)
        if c.embedding_norm:
            x_BTD = rms_normalise(x_BTD, c.norm_epsilon)
        return parallel.rows(x_BTD.astype(compute_dtype(c)))


def _places(inputs: Inputs, cache: KVCache | None, mask: Mask) -> Places:
    """Where vectors and tokens stand: behind what the cache holds, or from 0 on in each document.

    Padding is FAR, where no query looks. On the right of a causal model's tokens it is not looked at anyway.
    """
    T, segments_BT = inputs.tokens_BT.shape[1], inputs.segments_BT
    index_1T = jnp.arange(T)[None]
    if segments_BT is not None:
        starts_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        return Places(index_1T - jax.lax.cummax(jnp.where(starts_BT, index_1T, 0), axis=1), segments_BT)
    start_B1 = 0 if cache is None else cache.length_B[:, None]
    positions_BT = start_B1 + index_1T
    if inputs.vectors_BIE is not None:
        positions_BT = positions_BT + inputs.vector_counts()[:, None]
    if mask.looks_ahead and inputs.count_B is not None:
        positions_BT = jnp.where(index_1T < inputs.count_B[:, None], positions_BT, FAR)
    if inputs.vectors_BIE is None:
        return Places(positions_BT)
    index_1I = jnp.arange(inputs.vectors_BIE.shape[1])[None]
    positions_BI = jnp.where(index_1I < inputs.vector_counts()[:, None], start_B1 + index_1I, FAR)
    return Places(jnp.concatenate([positions_BI, positions_BT], axis=1))


def _stack_cost(c: ModelConfig, T: int, pairs: Pairs) -> Cost:
    """The embedding, the blocks and the last norm."""
    D = c.width
    embedding = D * (c.positions in ("learned", "sinusoidal")) + rms_operations(D) * c.embedding_norm
    total = Cost(
        {}, {"embedding": embedding, "norms": Norm.operations(c, D, c.norm), "dropout": 2 * D * (c.dropout > 0)}
    )
    for window, layers in c.layers_by_window.items():
        total += Block.cost(c, T, window, pairs) * layers
    return total


def written_out(c: ModelConfig) -> int:
    """Blocks in one iteration of the scan over layers. On a CPU a scan copies every block's weights and gradients."""
    if c.unroll is not None:
        return min(c.unroll, c.layers)
    return c.layers if jax.default_backend() == "cpu" and c.layers <= 8 else 1
