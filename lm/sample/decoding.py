"""The two compiled programs of generation: read the prompts into a cache, and go on token by token.

The cache holds all of a row's tokens but the last, which the next step reads. So a prompt's last token is handled like
any other, and a row of one token starts from an empty cache.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.model.cache import KVCache
from lm.model.transformer import bind, compute_dtype
from lm.sample.filters import sample
from lm.sample.samplers import Settings

CHUNK = 64
"""Most tokens made by one call of `decode`."""


@functools.partial(jax.jit, static_argnames=("c", "capacity"))
def prefill(c: ModelConfig, params: dict, tokens_BT: jax.Array, length_B: jax.Array, capacity: int) -> KVCache:
    """A cache with room for `capacity` tokens a row, holding the first `length_B` of each row of tokens_BT.

    The rest of a row is padding, on the right: nothing before it can see it, and the cache does not count it.
    """
    _, kv = bind(c, params).hidden(tokens_BT, keep_kv=True)
    return KVCache.empty(c, tokens_BT.shape[0], capacity, compute_dtype(c)).append(*kv, length_B)


class Decoded(NamedTuple):
    """What `decode` made, and what it needs to go on; C is CHUNK, of which `steps` are filled."""

    cache: KVCache
    seen_BV: jax.Array
    token_B: jax.Array
    done_B: jax.Array
    steps: jax.Array
    tokens_CB: jax.Array
    logprobs_CB: jax.Array
    made_B: jax.Array
    """A row's first made_B tokens are its own, the end-of-text token included; the rest is noise of done rows."""


@functools.partial(jax.jit, static_argnames=("c",), donate_argnames=("cache", "seen_BV"))
def decode(
    c: ModelConfig,
    params: dict,
    cache: KVCache,
    seen_BV: jax.Array,
    token_B: jax.Array,
    place_B: jax.Array,
    done_B: jax.Array,
    *,
    count: jax.Array,
    settings: Settings,
    seed: jax.Array,
    end: jax.Array,
) -> Decoded:
    """Up to `count` (at most CHUNK) more tokens for every row that is not done; it ends early when all are.

    token_B: each row's last token, not in the cache yet. place_B: tokens in the row so far, counting what a full cache
    dropped. The next token is drawn by the key fold_in(fold_in(seed, row), place), so it depends on neither the chunks
    nor the other rows. seen_BV: tokens the row contains. end: the end-of-text token, which makes a row done.
    """
    if jax.default_backend() == "cpu":
        # With the layers written out XLA copies the whole cache four times a token: half the speed (6 layers, D=384).
        c = dataclasses.replace(c, unroll=1)
    B = token_B.shape[0]
    rows_B = jnp.arange(B)
    row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows_B)

    def step(s: Decoded) -> Decoded:
        model = bind(c, params)
        h_BTD, kv = model.hidden(s.token_B[:, None], cache=s.cache, keep_kv=True)
        keys_B = jax.vmap(jax.random.fold_in)(row_keys_B, place_B + s.steps)
        token_B, logprob_B = sample(keys_B, model.logits(h_BTD[:, 0]), settings, s.seen_BV)
        return Decoded(
            cache=s.cache.append(*kv, ~s.done_B),  # a done row computes on, but holds nothing new
            seen_BV=s.seen_BV.at[rows_B, token_B].set(True),
            token_B=token_B,
            done_B=s.done_B | (token_B == end),
            steps=s.steps + 1,
            tokens_CB=s.tokens_CB.at[s.steps].set(token_B),
            logprobs_CB=s.logprobs_CB.at[s.steps].set(logprob_B),
            made_B=s.made_B + ~s.done_B,
        )

    empty = jnp.zeros((CHUNK, B), jnp.int32), jnp.zeros((CHUNK, B)), jnp.zeros(B, jnp.int32)
    start = Decoded(cache, seen_BV, token_B, done_B, jnp.int32(0), *empty)
    return jax.lax.while_loop(lambda s: (s.steps < count) & ~jnp.all(s.done_B), step, start)


@functools.partial(jax.jit, static_argnames=("c",))
def full_logits(c: ModelConfig, params: dict, tokens_BT: jax.Array) -> jax.Array:
    """Logits [B, T, V] of whole sequences, without a cache: what every other way must equal."""
    return bind(c, params)(tokens_BT)[0]
