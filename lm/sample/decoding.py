"""The two compiled programs of generation: read the prompts into a cache, and go on token by token.

The cache holds all of a row's tokens but the last, which the next step reads. So a prompt's last token is handled like
any other, and a row of one token starts from an empty cache.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.model.cache import KVCache
from lm.model.layers import for_single_tokens
from lm.model.transformer import bind, compute_dtype
from lm.sample.filters import sample
from lm.sample.samplers import Settings

CHUNK = 64
"""Most tokens made by one call of `decode`."""


@functools.partial(jax.jit, static_argnames=("c", "single"))
def lay_out(c: ModelConfig, params: dict, single: bool) -> tuple[dict, list[dict]]:
    """(params, blocks) as the two programs read them: each layer's parameters apart, matrices in the compute dtype.

    single: for one row, whose products are with vectors. Made once for many tokens: inside the loop over tokens, every
    slice of the stacked layers would be copied again for each.
    """

    def matrix(w_DF):
        w_DF = w_DF.astype(compute_dtype(c))
        return for_single_tokens(w_DF) if single and jax.default_backend() == "cpu" else w_DF

    leaf = lambda x: matrix(x) if x.ndim == 2 else x  # noqa: E731
    blocks = [jax.tree.map(lambda x: leaf(x[layer]), params["blocks"]) for layer in range(c.layers)]  # noqa: B023
    head = {} if c.tied else {"head": matrix(params["head"])}
    return params | head, blocks


def laid_out(m, single: bool) -> tuple[dict, list[dict]]:
    """`lay_out` of m's parameters, kept in m: it takes as long as ten tokens or so, and a second copy of their memory.

    Made again for other arrays, and each time for arrays that can change, as NumPy's do.
    """
    leaves = jax.tree.leaves(m.params)
    kept_single, kept_leaves, kept = m.kept.get("laid out", (None, [], None))
    fixed = all(isinstance(leaf, jax.Array) for leaf in leaves) and len(kept_leaves) == len(leaves)
    if kept_single != single or not fixed or any(x is not y for x, y in zip(kept_leaves, leaves, strict=True)):
        kept = lay_out(m.experiment.model, m.params, single)
        m.kept["laid out"] = single, leaves, kept
    return kept


@functools.partial(jax.jit, static_argnames=("c", "capacity"))
def prefill(
    c: ModelConfig, laid_out: tuple[dict, list[dict]], tokens_BT: jax.Array, length_B: jax.Array, capacity: int
) -> KVCache:
    """A cache with room for `capacity` tokens a row, holding the first `length_B` of each row of tokens_BT.

    laid_out: from `lay_out`. The rest of a row is padding, on the right: nothing before it can see it, and the cache
    does not count it.
    """
    params, blocks = laid_out
    _, kv = bind(c, params).hidden(tokens_BT, keep_kv=True, blocks=blocks)
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
    laid_out: tuple[dict, list[dict]],
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

    laid_out: from `lay_out`. token_B: each row's last token, not in the cache yet. place_B: tokens in the row so far,
    counting what a full cache dropped. The next token is drawn by the key fold_in(fold_in(seed, row), place), so it
    depends on neither the chunks nor the other rows. seen_BV: tokens the row contains. end: the end-of-text token,
    which makes a row done.
    """
    (params, blocks), B = laid_out, token_B.shape[0]
    rows_B = jnp.arange(B)
    row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows_B)

    def step(carry):
        s, (kv, held_B) = carry
        # What the last step made is written before anything is read. After the reads, XLA would copy the whole cache.
        cache = jax.lax.optimization_barrier(s.cache.append(*kv, held_B))
        model = bind(c, params)
        h_BTD, kv = model.hidden(s.token_B[:, None], cache=cache, keep_kv=True, blocks=blocks)
        keys_B = jax.vmap(jax.random.fold_in)(row_keys_B, place_B + s.steps)
        token_B, logprob_B = sample(keys_B, model.logits(h_BTD[:, 0]), settings, s.seen_BV)
        decoded = Decoded(
            cache=cache,
            seen_BV=s.seen_BV.at[rows_B, token_B].set(True),
            token_B=token_B,
            done_B=s.done_B | (token_B == end),
            steps=s.steps + 1,
            tokens_CB=s.tokens_CB.at[s.steps].set(token_B),
            logprobs_CB=s.logprobs_CB.at[s.steps].set(logprob_B),
            made_B=s.made_B + ~s.done_B,
        )
        return decoded, (kv, ~s.done_B)  # a done row computes on, but holds nothing new

    empty = jnp.zeros((CHUNK, B), jnp.int32), jnp.zeros((CHUNK, B)), jnp.zeros(B, jnp.int32)
    start = Decoded(cache, seen_BV, token_B, done_B, jnp.int32(0), *empty)
    nothing = [jnp.zeros((c.layers, B, c.K, *axes), compute_dtype(c)) for axes in ((c.H, 1), (1, c.H))]
    go_on = lambda carry: (carry[0].steps < count) & ~jnp.all(carry[0].done_B)  # noqa: E731
    s, (kv, held_B) = jax.lax.while_loop(go_on, step, (start, (tuple(nothing), jnp.zeros(B, bool))))
    return s._replace(cache=s.cache.append(*kv, held_B))


@functools.partial(jax.jit, static_argnames=("c",))
def full_logits(c: ModelConfig, params: dict, tokens_BT: jax.Array) -> jax.Array:
    """Logits [B, T, V] of whole sequences, without a cache: what every other way must equal."""
    return bind(c, params)(tokens_BT)[0]
