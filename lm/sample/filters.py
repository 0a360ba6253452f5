"""From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, then one draw.

Each of the last three rules keeps the likeliest few of what the one before left, so together they keep the n likeliest
tokens for some n, and all there is to find is n. Tokens of equal probability count as ordered by their number: exactly
n are kept, and greedy decoding takes the first of equals, as argmax does.
"""

import jax
import jax.numpy as jnp

from lm.sample.samplers import Settings

PADDING = -1e29
"""Logits below this are the padding of the vocabulary (the model gives it -1e30), never to be chosen."""
SHORTLIST = 256
"""The n likeliest are nearly always among this many, and finding those costs a hundredth of sorting 50k (CPU)."""


def filtered_logits(logits_BV: jax.Array, settings: Settings, seen_BV: jax.Array) -> jax.Array:
    """Logits of the distribution that is sampled, [B, V] float32: -inf where a token may not be chosen.

    logits_BV: the model's, float32. seen_BV: booleans, the tokens already in each row (for the penalty).
    In this order: the repetition penalty (Keskar et al. 2019, section 4.1, but with negative logits multiplied, so that
    it always lowers them); division by the temperature; the top_k likeliest; of these, renormalised, the smallest set
    with probability >= top_p (nucleus: Holtzman et al. 2020); of these, those with at least min_p of the likeliest's
    probability (Nguyen et al. 2024). At least one token is always left.
    """
    V = logits_BV.shape[1]
    penalty = settings.repetition_penalty
    penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    x_BV = jnp.where(seen_BV, penalised_BV, logits_BV)
    x_BV = jnp.where(logits_BV > PADDING, x_BV, -jnp.inf)
    # Relative to the likeliest before dividing: a small temperature then underflows to -inf, and never overflows.
    x_BV = (x_BV - x_BV.max(axis=-1, keepdims=True)) / settings.temperature

    # A list of the likeliest settles it unless a rule reaches beyond its end; then everything is sorted.
    off = (settings.top_k >= V) & (settings.top_p >= 1) & (settings.min_p <= 0)
    list_BC = jax.lax.top_k(x_BV, min(V, SHORTLIST))[0]
    kept_B, inside = _count_kept(list_BC, x_BV, settings)

    def by_sorting():
        sorted_BV = -jnp.sort(-x_BV)
        kept_B, _ = _count_kept(sorted_BV, x_BV, settings)
        return kept_B, _last_kept(sorted_BV, kept_B)

    def by_list():
        n_B = jnp.where(off, V, kept_B)
        return n_B, jnp.where(off, -jnp.inf, _last_kept(list_BC, kept_B))

    n_B, least_B = jax.lax.cond(off | inside, by_list, by_sorting)
    return _keep(x_BV, n_B, least_B)


def _count_kept(sorted_BC, x_BV, settings: Settings):
    """How many of the likeliest survive, [B], from the C likeliest; and whether C were enough to tell."""
    C, V = sorted_BC.shape[1], x_BV.shape[1]
    p_BC = jnp.exp(sorted_BC)  # relative to the likeliest, whose logit is 0
    in_top_k_C = jnp.arange(C) < settings.top_k
    mass_BC = jnp.cumsum(jnp.where(in_top_k_C, p_BC, 0), axis=-1)
    total_B1 = jnp.where(settings.top_k <= C, mass_BC[:, -1:], jnp.exp(x_BV).sum(axis=-1, keepdims=True))
    likelier_BC = jnp.pad(mass_BC[:, :-1], ((0, 0), (1, 0)))  # mass before each: short of top_p, one more is needed
    in_nucleus_BC = (likelier_BC < settings.top_p * total_B1) | (settings.top_p >= 1)
    n_B = jnp.sum(in_top_k_C & in_nucleus_BC & (p_BC >= settings.min_p), axis=-1)
    ends_inside = (settings.top_k <= C) | (settings.top_k >= V) & jnp.all(n_B < C)
    return jnp.maximum(n_B, 1), ends_inside | (C == V)


def _last_kept(sorted_BC, n_B):
    return jnp.take_along_axis(sorted_BC, n_B[:, None] - 1, axis=1)[:, 0]


def _keep(x_BV, n_B, least_B):
    """Exactly the n likeliest, the least of them being `least_B`; -inf elsewhere."""
    above_BV = x_BV > least_B[:, None]
    equal_BV = x_BV == least_B[:, None]
    places_B1 = (n_B - above_BV.sum(axis=-1))[:, None]  # left for those equal to the least
    return jnp.where(above_BV | equal_BV & (jnp.cumsum(equal_BV, axis=-1) <= places_B1), x_BV, -jnp.inf)


def sample(keys_B: jax.Array, logits_BV: jax.Array, settings: Settings, seen_BV: jax.Array):
    """Draw a token for each row, by each row's own key. Returns (token_B, logprob_B).

    logprob_B: nats, what the model itself gave the token: log softmax of the logits as they came, before any rule.
    """
    chosen_BV = filtered_logits(logits_BV, settings, seen_BV)
    token_B = jax.vmap(jax.random.categorical)(keys_B, chosen_BV)
    logprob_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    return token_B, jnp.take_along_axis(logprob_BV, token_B[:, None], axis=1)[:, 0]
