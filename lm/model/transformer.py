"""The decoder-only transformer, defined once with Flax NNX and used as a pure function of its parameters."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.config import ModelConfig
from lm.errors import require
from lm.model.attention import Attention, Past
from lm.model.cache import KVCache
from lm.model.layers import FeedForward, Norm, dropout, project, rms_normalise, scaled, single_token_parts, sinusoids
from lm.model.parametrization import embedding_scale, logit_factor
from lm.model.taps import Taps

UNLIMITED = jnp.iinfo(jnp.int32).max


class Block(nnx.Module):
    """Pre-norm: x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, c: ModelConfig, rngs):
        self.rate = c.dropout
        self.attention_norm = Norm(c, c.width, "D", c.norm)
        self.attention = Attention(c, rngs)
        self.feedforward_norm = Norm(c, c.width, "D", c.norm)
        self.feedforward = FeedForward(c, rngs)

    def __call__(self, x_BTD, positions_BT, window, same_BTT, past, first_BTKH, taps: Taps, key):
        """Returns the residual stream, this layer's new keys and values, and the first layer's values."""
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = taps("residual.before", x_BTD)
        given = self.attention_norm(x_BTD), positions_BT, window, same_BTT, past, first_BTKH, taps
        h_BTD, kv, first_BTKH = self.attention(*given)
        x_BTD = taps("residual.middle", x_BTD + dropout(h_BTD, self.rate, keys[0]))
        h_BTD = self.feedforward(self.feedforward_norm(x_BTD), taps)
        return taps("residual.after", x_BTD + dropout(h_BTD, self.rate, keys[1])), kv, first_BTKH


class Transformer(nnx.Module):
    """Tokens to logits. `blocks` holds every layer's parameters stacked along L, run by one scan."""

    def __init__(self, c: ModelConfig, rngs: nnx.Rngs):
        self.c = c
        normal = lambda *shape: jax.random.normal(rngs.params(), shape) * embedding_scale(c)  # noqa: E731
        self.embedding = nnx.Param(normal(c.V, c.width), axes=("V", "D"))
        self.position = nnx.Param(normal(c.context, c.width), axes=("T", "D")) if c.positions == "learned" else None
        self.blocks = nnx.vmap(lambda r: Block(c, r))(rngs.split(c.layers))
        self.final_norm = Norm(c, c.width, "D", c.norm)
        head = (jnp.zeros((c.width, c.V)) if c.zero_init else normal(c.width, c.V)) if not c.tied else None
        self.head = nnx.Param(head, axes=("D", "V")) if not c.tied else None

    def __call__(self, tokens_BT, **options):
        """Logits [B, T, V] in float32; new keys [L, B, K, H, T] and values [L, B, K, T, H], None unless keep_kv."""
        h_BTD, kv = self.hidden(tokens_BT, **options)
        return self.logits(h_BTD, options.get("taps")), kv

    def hidden(
        self,
        tokens_BT: jax.Array,
        *,
        segments_BT: jax.Array | None = None,
        cache: KVCache | None = None,
        keep_kv: bool = False,
        taps: Taps | None = None,
        key: jax.Array | None = None,
        blocks: list[dict] | None = None,
    ):
        """What the head reads, [B, T, D], and the new keys and values (None unless keep_kv).

        segments_BT: document number of each token; attention stays inside, positions restart. cache: what was read
        before; it is only read here, `cache.append` writes. key: turns dropout on. blocks: each layer's parameters, to
        use instead of the stacked ones; the loop over layers is then written out.
        """
        c, taps = self.c, Taps() if taps is None else taps
        positions_BT, same_BTT = self._places(tokens_BT, segments_BT, cache)
        keys = (None, None) if key is None or c.dropout == 0 else jax.random.split(key)

        x_BTD = self._embed(tokens_BT, positions_BT)
        x_BTD = taps("embedding", dropout(x_BTD, c.dropout, keys[0]))

        graph, params = nnx.split(self.blocks)
        windows = None
        if c.window is not None:  # one program for windowed and global layers: the window is data
            windows = jnp.array([UNLIMITED if w is None else w for w in c.windows], jnp.int32)
        about = None if cache is None else (cache.slot_positions(), jnp.max(cache.length_B))

        def layer(carry, scanned):
            (x_BTD, first_BTKH), (params, window, index, old) = carry, scanned
            inner = taps.inside(index)
            past = None if old is None else Past(*old, *about)
            layer_key = None if keys[1] is None else jax.random.fold_in(keys[1], index)
            block = nnx.merge(graph, params)
            x_BTD, kv, first_BTKH = block(x_BTD, positions_BT, window, same_BTT, past, first_BTKH, inner, layer_key)
            return (x_BTD, first_BTKH), (kv if keep_kv else None, inner.values)

        if c.remat:
            layer = jax.checkpoint(layer)
        old = None if cache is None else (cache.k_LCRHS, cache.v_LCRSH)
        no_values_BTKH = jnp.zeros((*tokens_BT.shape, c.K, c.H), x_BTD.dtype) if c.value_residual else None
        carry = x_BTD, no_values_BTKH
        if blocks is None:
            old = None if old is None else tuple(jax.tree.map(lambda *layers: jnp.stack(layers), *of) for of in old)
            scanned = (params, windows, jnp.arange(c.layers), old)
            (x_BTD, _), (kv, values) = jax.lax.scan(layer, carry, scanned, unroll=written_out(c))
        else:
            made = []
            for index, params in enumerate(blocks):
                window = None if windows is None else windows[index]
                past = None if old is None else (old[0][index], old[1][index])
                carry, out = layer(carry, (params, window, index, past))
                made.append(out)
            (x_BTD, _), (kv, values) = carry, jax.tree.map(lambda *layers: jnp.stack(layers), *made)
        taps.values.update(values)
        return taps("residual.final", self.final_norm(x_BTD)), kv

    def logits(self, h_BTD: jax.Array, taps: Taps | None = None) -> jax.Array:
        """[..., V] float32 logits; the padded entries of the vocabulary can never be predicted."""
        c = self.c
        flat = scaled(h_BTD, logit_factor(c)).reshape(-1, c.width)
        if c.tied:  # one row a token: already laid out as for_single_tokens does
            parts = single_token_parts(flat.shape[0], c.V)
            logits = project(flat, self.embedding[...].reshape(parts, c.V // parts, c.width))
        else:
            logits = project(flat, self.head[...])
        logits = logits.astype(jnp.float32).reshape(*h_BTD.shape[:-1], c.V)
        if c.logit_softcap is not None:
            logits = c.logit_softcap * jnp.tanh(logits / c.logit_softcap)
        if c.V != c.vocab:
            logits = jnp.where(jnp.arange(c.V) < c.vocab, logits, -1e30)
        return logits if taps is None else taps("logits", logits)

    def _places(self, tokens_BT, segments_BT, cache):
        """Positions [B, T] (B may be 1) and, for packed documents, which pairs share one [B, T, T]."""
        T = tokens_BT.shape[1]
        require(T <= self.c.context, f"{T} tokens are more than the model's context of {self.c.context}")
        if cache is not None:
            require(segments_BT is None, "segments and a cache do not go together: decode one document a row")
            room = cache.capacity
            require(room <= self.c.context, f"a cache of {room} tokens exceeds the model's context of {self.c.context}")
            return cache.next_positions(T), None
        index_1T = jnp.arange(T)[None]
        if segments_BT is None:
            return index_1T, None
        starts_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        positions_BT = index_1T - jax.lax.cummax(jnp.where(starts_BT, index_1T, 0), axis=1)
        return positions_BT, segments_BT[:, :, None] == segments_BT[:, None, :]

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


def compute_dtype(c: ModelConfig):
    """The dtype of matrix products: as configured, or bfloat16 on accelerators and float32 on CPU."""
    if c.dtype != "auto":
        return jnp.dtype(c.dtype)
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def written_out(c: ModelConfig) -> int:
    """Blocks in one iteration of the scan over layers. On a CPU a scan copies every block's weights and gradients."""
    if c.unroll is not None:
        return min(c.unroll, c.layers)
    return c.layers if jax.default_backend() == "cpu" and c.layers <= 8 else 1


# --- the model as a pure function of its parameters ------------------------------------------------------------------
@functools.cache
def _definition(c: ModelConfig):
    """The NNX graph and the abstract parameters, without allocating anything. Refused where JAX is in float64."""
    require(
        not jax.config.jax_enable_x64,
        "models here are computed in float32, and JAX_ENABLE_X64 asks for float64: unset it (the command ignores it)",
    )
    return nnx.split(nnx.eval_shape(lambda: Transformer(c, nnx.Rngs(0))))


@functools.cache
def _initialiser(c: ModelConfig):
    """Compiled once for each configuration, whatever the seed."""

    def parameters(seed) -> dict:
        return nnx.to_pure_dict(nnx.state(Transformer(c, nnx.Rngs(params=jax.random.key(seed))), nnx.Param))

    return jax.jit(parameters)


def init(c: ModelConfig, seed: int) -> dict:
    """Fresh float32 parameters, a nested dict: the same for the same (configuration, seed) anywhere."""
    return _initialiser(c)(np.uint32(seed % 2**32))  # the bits that jax.random.key takes of any number


def bind(c: ModelConfig, params: dict) -> Transformer:
    """The Transformer holding these parameters; cheap, and made inside jit."""
    return nnx.merge(_definition(c)[0], params)


def axes(c: ModelConfig) -> dict:
    """Each parameter's axes in the glossary's letters, a tree like the parameters': ("L", "D", "F") and so on."""

    def of(path, variable):
        stacked = ("L",) if path[0].key == "blocks" else ()
        return stacked + tuple(variable.get_metadata("axes"))

    is_leaf = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree_util.tree_map_with_path(of, _definition(c)[1], is_leaf=is_leaf))


def shapes(c: ModelConfig) -> dict:
    """Each parameter's jax.ShapeDtypeStruct, a tree like the parameters'."""
    return nnx.to_pure_dict(_definition(c)[1])


def parameter_count(c: ModelConfig) -> tuple[int, int]:
    """(params_total, params_nonembedding): the latter without token and position embeddings and an untied head."""
    flat = jax.tree.leaves_with_path(shapes(c))
    count = lambda keep: sum(math.prod(leaf.shape) for path, leaf in flat if keep(path[0].key))  # noqa: E731
    return count(lambda name: True), count(lambda name: name not in ("embedding", "position", "head"))
