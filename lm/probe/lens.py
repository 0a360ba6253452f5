"""Logit lens (nostalgebraist 2020): what a model would predict if it stopped after each layer. Loss by token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.model.transformer import bind
from lm.probe.passes import forward
from lm.probe.rows import encode, labels, rows, score
from lm.run import Model


@dataclasses.dataclass(frozen=True)
class Lens:
    """Predictions after the embedding and after each layer (E = L + 1 entries) at every position of a text."""

    entries: list[str]
    labels: list[str]
    """The text's tokens; position t predicts token t + 1."""
    top: list[list[str]]
    """[E][T] the token most expected next."""
    top_probability_ET: np.ndarray
    probability_ET: np.ndarray
    """Of the token that came next; NaN at the last position, after which nothing came."""
    rank_ET: np.ndarray
    """1 is first; 0 at the last position."""
    kl_ET: np.ndarray
    """KL(what the model predicts || what it would here), nats."""


def logit_lens(m: Model, text: str, *, cached: bool = False) -> Lens:
    """The final norm and the head applied to the embedding and to what leaves each block."""
    tokens = encode(m, text)
    batch, T = rows(m, [tokens]), len(tokens)
    read = jax.device_get(_summaries(m.experiment.model, m.params, batch.tokens_BT, cached))
    top_ET, peak_ET, nats_ET, rank_ET, kl_ET = (x[:, 0, :T] for x in read)
    nats_ET = np.concatenate([nats_ET[:, 1:], np.full_like(nats_ET[:, :1], np.nan)], axis=1)
    rank_ET = np.concatenate([rank_ET[:, 1:], 0 * rank_ET[:, :1]], axis=1)
    top = [labels(m, top_T) for top_T in top_ET]
    return Lens(entries(m), labels(m, tokens), top, peak_ET, np.exp(-nats_ET), rank_ET, kl_ET)


def entries(m: Model) -> list[str]:
    """Names of the E places that the lens looks from."""
    return ["embedding", *(f"layer {layer}" for layer in range(m.experiment.model.layers))]


def lens_logits(m: Model, tokens_BT, *, cached: bool = False) -> jax.Array:
    """[E, B, T, V]: the logits themselves. The last entry is the model's own."""
    return _logits(m.experiment.model, m.params, jnp.asarray(tokens_BT), cached)


def _states(c, params, tokens_BT, cached):
    """[E, B, T, D] residual streams, and the head to look through."""
    _, values = forward(c, params, tokens_BT, ("embedding", "residual.after"), cached=cached)
    model = bind(c, params)
    states_EBTD = jnp.concatenate([values["embedding"][None], values["residual.after"]])
    return states_EBTD, lambda x_BTD: model.logits(model.final_norm(x_BTD))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logits(c, params, tokens_BT, cached):
    states_EBTD, look = _states(c, params, tokens_BT, cached)
    return jax.lax.map(look, states_EBTD)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _summaries(c, params, tokens_BT, cached):
    """Top token, its probability, nats and rank of the true token (`score`), and KL, each [E, B, T]."""
    states_EBTD, look = _states(c, params, tokens_BT, cached)
    final_BTV = jax.nn.log_softmax(look(states_EBTD[-1]))

    def entry(x_BTD):  # one at a time: all entries' logits at once can be more than all else
        logits_BTV = look(x_BTD)
        here_BTV = jax.nn.log_softmax(logits_BTV)
        kl_BT = jnp.sum(jnp.exp(final_BTV) * (final_BTV - here_BTV), axis=-1)
        return logits_BTV.argmax(-1), jnp.exp(here_BTV.max(-1)), *score(logits_BTV, tokens_BT), kl_BT

    return jax.lax.map(entry, states_EBTD)


@dataclasses.dataclass(frozen=True)
class TokenLosses:
    """How surprised the model was by each token of a text that something came before."""

    labels: list[str]
    nats: np.ndarray
    rank: np.ndarray
    expected: list[str]
    """What the model held most likely instead, or as well."""
    expected_probability: np.ndarray
    bytes: np.ndarray
    """Of UTF-8 text in each token."""


def token_losses(m: Model, text: str, *, cached: bool = False) -> TokenLosses:
    """Nats, rank and the model's own first choice, token by token."""
    tokens = encode(m, text)
    batch, T = rows(m, [tokens]), len(tokens)
    read = jax.device_get(_losses(m.experiment.model, m.params, batch.tokens_BT, cached))
    nats_T, rank_T, top_T, peak_T = (x[0, :T] for x in read)
    sizes = [0 if t == m.tokenizer.eot_token else len(m.tokenizer.decode_bytes([t])) for t in tokens[1:]]
    expected = labels(m, top_T[:-1])
    return TokenLosses(labels(m, tokens[1:]), nats_T[1:], rank_T[1:], expected, peak_T[:-1], np.array(sizes))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _losses(c, params, tokens_BT, cached):
    logits_BTV, _ = forward(c, params, tokens_BT, cached=cached)
    peak_BT = jnp.exp(jax.nn.log_softmax(logits_BTV).max(-1))
    return *score(logits_BTV, tokens_BT), logits_BTV.argmax(-1), peak_BT
