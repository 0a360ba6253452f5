"""From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, then one draw.

Each of the last three rules keeps the likeliest few of what the one before left, so together they keep the n likeliest
tokens for some n, and all there is to find is n. Tokens of equal probability count as ordered by their number: exactly
n are kept, and greedy decoding takes the first of equals, as argmax does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.sample.samplers import Settings

PADDING = -1e29
"""Logits below this are the padding of the vocabulary (the model gives it -1e30), never to be chosen."""
SHORTLIST = 256
"""The n likeliest are nearly always among this many, and finding those costs a hundredth of sorting 50k (CPU)."""


def sample(keys_B: jax.Array, logits_BV: jax.Array, settings: Settings, seen_BV: jax.Array):
    """Draw a token for each row, by each row's own key. Returns (token_B, logprob_B).

    seen_BV: booleans, the tokens already in each row (for the penalty). logprob_B: nats, what the model itself gave the
    token: log softmax of the logits as they came, before any rule.
    """

    def draw(weights_BC, tokens_BC):
        places_B = jax.vmap(_draw)(keys_B, weights_BC)
        return jnp.take_along_axis(tokens_BC, places_B[:, None], axis=1)[:, 0]

    token_B = choose(draw, logits_BV, settings, seen_BV)
    logit_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=1)[:, 0]
    return token_B, logit_B - jax.nn.logsumexp(logits_BV, axis=-1)


def choose(among: Callable, logits_BV: jax.Array, settings: Settings, seen_BV: jax.Array) -> jax.Array:
    """among(weights_BC, tokens_BC): each row's candidates and their probabilities times any factor, 0 where ruled out.

    In this order: the repetition penalty (Keskar et al. 2019, section 4.1, but with negative logits multiplied, so that
    it always lowers them); division by the temperature; the top_k likeliest; of these, renormalised, the smallest set
    with probability >= top_p (nucleus: Holtzman et al. 2020); of these, those with at least min_p of the likeliest's
    probability (Nguyen et al. 2024). At least one token is always left. C is the least that settles it: the likeliest
    one, SHORTLIST of them, or V where a rule reaches beyond; or V in the vocabulary's order where no rule is on.
    """
    B, V = logits_BV.shape
    penalty = settings.repetition_penalty
    penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    x_BV = jnp.where(seen_BV, penalised_BV, logits_BV)
    x_BV = jnp.where(logits_BV > PADDING, x_BV, -jnp.inf)
    best_B1 = x_BV.max(axis=-1, keepdims=True)
    # Relative to the likeliest before dividing: a small temperature then underflows to -inf, and never overflows.
    weights_BV = jnp.exp((x_BV - best_B1) / settings.temperature)
    total_B1 = weights_BV.sum(axis=-1, keepdims=True)
    all_tokens_BV = jnp.broadcast_to(jnp.arange(V), (B, V))

    def by_rank():
        list_BC, tokens_BC = jax.lax.top_k(x_BV, min(V, SHORTLIST))
        list_BC = jnp.take_along_axis(weights_BV, tokens_BC, axis=1)
        kept_B, enough = _count_kept(list_BC, total_B1, V, settings)
        return jax.lax.cond(enough, lambda: among(_first(kept_B, list_BC), tokens_BC), by_sorting)

    def by_sorting():
        _, tokens_BV = jax.lax.sort((-x_BV, all_tokens_BV), num_keys=2)
        sorted_BV = jnp.take_along_axis(weights_BV, tokens_BV, axis=1)
        kept_B, _ = _count_kept(sorted_BV, total_B1, V, settings)
        return among(_first(kept_B, sorted_BV), tokens_BV)

    def likeliest():
        first_B1 = jnp.where(x_BV == best_B1, all_tokens_BV, V).min(axis=-1, keepdims=True)
        return among(jnp.ones((B, 1)), first_B1)

    off = (settings.top_k >= V) & (settings.top_p >= 1) & (settings.min_p <= 0)
    way = jnp.select([settings.top_k == 1, off], [0, 1], 2)
    return jax.lax.switch(way, [likeliest, lambda: among(weights_BV, all_tokens_BV), by_rank])


def _count_kept(sorted_BC, total_B1, V: int, settings: Settings):
    """How many of the likeliest survive, [B], by the weights of the C likeliest; and whether C were enough to tell."""
    C = sorted_BC.shape[1]
    in_top_k_C = jnp.arange(C) < settings.top_k
    mass_BC = jnp.cumsum(jnp.where(in_top_k_C, sorted_BC, 0), axis=-1)
    total_B1 = jnp.where(settings.top_k <= C, mass_BC[:, -1:], total_B1)
    likelier_BC = jnp.pad(mass_BC[:, :-1], ((0, 0), (1, 0)))  # mass before each: short of top_p, one more is needed
    in_nucleus_BC = (likelier_BC < settings.top_p * total_B1) | (settings.top_p >= 1)
    n_B = jnp.sum(in_top_k_C & in_nucleus_BC & (sorted_BC >= settings.min_p), axis=-1)
    ends_inside = (settings.top_k <= C) | (settings.top_k >= V) & jnp.all(n_B < C)
    return jnp.maximum(n_B, 1), ends_inside | (C == V)


def _first(n_B, sorted_BC):
    return jnp.where(jnp.arange(sorted_BC.shape[1]) < n_B[:, None], sorted_BC, 0)


def _draw(key, weights_C):
    """A place in weights_C with probability proportional to its weight.

    By two uniform numbers, one for a block of SHORTLIST places and one inside it: far cheaper than a number for each
    place, and a single one's 2^-23 steps would be coarse for the rare tokens among 50k. Trailing zeros change nothing.
    """
    weights_GC = jnp.pad(weights_C, (0, -len(weights_C) % SHORTLIST)).reshape(-1, SHORTLIST)
    u, v = jax.random.uniform(key, (2,))
    block = _invert(u, weights_GC.sum(axis=1))
    return block * SHORTLIST + _invert(v, weights_GC[block])


def _invert(u, weights_C):
    """The place where the cumulative sum of the weights passes the fraction u of it, never one of weight 0."""
    mass_C = jnp.cumsum(weights_C)
    passed = jnp.sum(mass_C <= u * mass_C[-1])
    return jnp.minimum(passed, jnp.sum(mass_C < mass_C[-1]))  # u * mass may round up to all of it
