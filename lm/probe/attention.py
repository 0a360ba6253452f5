"""Where heads look: attention patterns of a text, and how much each head is one of the kinds that are known."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import require
from lm.model.attention import visible
from lm.probe.passes import forward
from lm.probe.rows import encode, labels, rows, score
from lm.run import Model


@dataclasses.dataclass(frozen=True)
class Patterns:
    """Attention of one text: weights_LNTS[layer, head, query, key], rows summing to one."""

    labels: list[str]
    weights_LNTS: np.ndarray


def attention_patterns(m: Model, text: str, *, cached: bool = False) -> Patterns:
    """The weights of every layer and head on a text."""
    tokens = encode(m, text)
    batch, T = rows(m, [tokens]), len(tokens)
    weights_LBNTS, _ = _weights(m.experiment.model, m.params, batch.tokens_BT, cached)
    return Patterns(labels(m, tokens), np.asarray(weights_LBNTS[:, 0, :, :T, :T]))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _weights(c, params, tokens_BT, cached):
    logits_BTV, values = forward(c, params, tokens_BT, ("attention.weights",), cached=cached)
    return values["attention.weights"], score(logits_BTV, tokens_BT)[0]


def head_scores(weights_LNTS: np.ndarray) -> dict[str, np.ndarray]:
    """{previous, first, diagonal, entropy}, each [L, N]: means over all queries but the first, which has no choice.

    previous, first, diagonal: weight on the token before, on the first token, on the token itself, between 0 and 1.
    entropy: of the weights, in nats.
    """
    T = weights_LNTS.shape[-1]
    require(T >= 2, "one token attends to itself alone: give a longer text")
    t = np.arange(1, T)
    w = np.where(weights_LNTS > 0, weights_LNTS, 1)
    picked = {"previous": t - 1, "first": 0 * t, "diagonal": t}
    scores = {name: weights_LNTS[..., t, s].mean(-1) for name, s in picked.items()}
    return scores | {"entropy": -np.sum(w * np.log(w), axis=-1)[..., 1:].mean(-1)}


def uniform_weights(m: Model, T: int) -> np.ndarray:
    """[L, 1, T, T]: attention that prefers nothing it can see, the baseline of every score; windows narrow it."""
    index_1T = np.arange(T)[None]
    seen = [np.asarray(visible(index_1T, index_1T, window)) for window in m.experiment.model.windows]
    mask_LNTS = np.stack(seen).astype(float)
    return mask_LNTS / mask_LNTS.sum(-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Induction:
    """What a model does when random tokens come a second time (Olsson et al. 2022)."""

    scores_LN: np.ndarray
    """Mean weight, in the second copy, on the token that followed the same token in the first."""
    uniform_L: np.ndarray
    """The score of attention that prefers nothing."""
    first_nats: float
    second_nats: float
    """Loss on the first copy and on the second, nats per token; the second but for its first token, which comes new."""
    length: int
    """Tokens in a copy."""


def induction(m: Model, *, length: int = 24, batch: int = 16, seed: int = 0, pool=None, cached=False) -> Induction:
    """Scores on `batch` rows of `length` random tokens, each row twice; shorter if the context is.

    pool: tokens to draw from, by default all but the end of text. Those that training never showed say little.
    """
    c = m.experiment.model
    pool = np.setdiff1d(np.arange(c.vocab), m.tokenizer.eot_token) if pool is None else np.asarray(pool)
    start = [m.tokenizer.eot_token] if m.run is None or m.run.record["documents"] > 1 else []
    length = min(length, (c.context - len(start)) // 2)
    require(length >= 2, f"a context of {c.context} tokens has no room for tokens that come twice")
    once_BT = np.random.default_rng(seed).choice(pool, (batch, length))
    tokens_BT = np.concatenate([np.tile(start, (batch, 1)).reshape(batch, -1), once_BT, once_BT], axis=1)
    weights_LBNTS, nats_BT = jax.device_get(_weights(c, m.params, jnp.asarray(tokens_BT, jnp.int32), cached))

    nats_BT = nats_BT[:, len(start) :]
    first, second = nats_BT[:, 1:length], nats_BT[:, length + 1 :]
    of = functools.partial(induction_scores, length=length)
    uniform_L = of(uniform_weights(m, tokens_BT.shape[1])[:, None])[:, 0]
    return Induction(of(weights_LBNTS), uniform_L, float(first.mean()), float(second.mean()), length)


def induction_scores(weights_LBNTS: np.ndarray, length: int) -> np.ndarray:
    """[L, N]: in rows whose last 2 x length tokens are a stretch twice, the mean weight of the second copy's tokens on
    the one that came next in the first."""
    T = weights_LBNTS.shape[-1]
    queries = np.arange(T - length, T)
    return weights_LBNTS[..., queries, queries - length + 1].mean((1, 3))
