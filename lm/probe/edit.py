"""Rank-one edit of one fact (ROME: Meng et al. 2022, section 3): a feed-forward layer as a table of keys and values.

The layer's down-projection W maps a key, mlp.hidden at one token, to a value, what the layer adds there. Of all
matrices that map this key to a new value, the edit takes the one that changes the other keys' values least.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.data.supply import prepare
from lm.errors import require
from lm.model.trained import Trained
from lm.probe import anatomy
from lm.probe.passes import forward
from lm.probe.rows import CHUNK, TokenRows, continuation, encode, places, rows, score


@dataclasses.dataclass(frozen=True)
class FactEdit:
    """An edited model, and what the edit was."""

    model: Trained
    layer: int
    key_F: np.ndarray
    old_value_D: np.ndarray
    """What W gave for the key."""
    new_value_D: np.ndarray
    answer_nats: float
    """Nats of the new answer when the layer adds the new value there, as it was optimised; mean over the prompts."""


def rank_one(w_FD: np.ndarray, key_F: np.ndarray, value_D: np.ndarray, c_FF: np.ndarray) -> np.ndarray:
    """Find the W' nearest to W with key W' = value: tr((W' - W)^T C (W' - W)), the change over keys of covariance C, is
    least. In closed form W + C^-1 k (v - k W) / (k C^-1 k) (Meng et al., equation 2; here keys are rows).
    """
    w_FD, key_F, value_D, c_FF = (np.asarray(x, np.float64) for x in (w_FD, key_F, value_D, c_FF))
    u_F = np.linalg.solve(c_FF, key_F)
    require(key_F @ u_F > 0, "the key is zero, or the covariance not positive: this layer cannot tell this subject")
    return w_FD + np.outer(u_F / (key_F @ u_F), value_D - key_F @ w_FD)


def edit_fact(
    m: Trained,
    prompts: str | Sequence[str],
    subject: str,
    answer: str,
    *,
    layer: int,
    at: Literal["subject", "last"] = "subject",
    covariance_FF: np.ndarray | None = None,
    steps: int = 60,
    rate: float = 0.1,
    decay: float = 0.3,
) -> FactEdit:
    """Make a model that completes each prompt, all of which name the subject, with this answer; m stays as it is.

    at: the key is that of the subject's last token (Meng et al.), or of the prompt's, which knows the question too.
    covariance_FF: of this layer's keys, by default `key_covariance(m, corpus_rows(m))[layer]`.
    steps, rate: of Adam on the new value, in units of the old one's length. decay: price of (change / old length)^2, in
    nats; what a cheap change costs is other facts, which a tenth of this price can wipe out.
    """
    model = m.model
    prompts = [prompt.rstrip() for prompt in ([prompts] if isinstance(prompts, str) else prompts)]
    require(0 <= layer < model.config.layers, f"layer {layer}: the model has layers 0 to {model.config.layers - 1}")
    encoded = [encode(m, prompt) for prompt in prompts]
    batch = rows(m, [tokens + continuation(m, answer) for tokens in encoded], [len(tokens) for tokens in encoded])
    require(at in ("subject", "last"), f"at {at!r}: one of subject, last")
    subject_B = [np.flatnonzero(places(m, prompt, subject))[-1] for prompt in prompts]
    place_B = np.array(subject_B if at == "subject" else [len(tokens) - 1 for tokens in encoded])
    if covariance_FF is None:
        covariance_FF = key_covariance(m, corpus_rows(m))[layer]

    numbers = tuple(np.float32(x) for x in (rate, decay))
    key_F, change_D, nats = jax.device_get(
        _new_value(model, m.params, batch.tokens_BT, batch.scored_BT, place_B, np.int32(layer), numbers, steps)
    )
    require(bool(np.any(change_D)), f"nothing that layer {layer} adds there reaches the answer: edit below it")
    w_FD = np.asarray(anatomy.down_projections(model, m.params)[layer], np.float64)
    old_D = key_F.astype(np.float64) @ w_FD
    new_w_FD = rank_one(w_FD, key_F, old_D + change_D, covariance_FF)
    params = anatomy.with_down_projection(model, m.params, layer, new_w_FD)
    edited = dataclasses.replace(m, params=params)
    return FactEdit(
        model=edited, layer=layer, key_F=key_F, old_value_D=old_D, new_value_D=old_D + change_D,
        answer_nats=float(nats),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 7))
def _new_value(model, params, tokens_BT, scored_BT, place_B, layer, numbers, steps: int):
    """Optimise what the layer adds: (key [F], its change [D], nats of the answer with it), means over the prompts.

    The change makes the scored tokens likely when it is added at `layer` and place_B, at the price of its length.
    """
    rate, decay = numbers
    rows_B = jnp.arange(len(place_B))
    _, values = forward(model, params, tokens_BT, ("mlp.hidden", "mlp.out"), cached=False)
    key_F, out_D = (
        values[name][layer, rows_B, place_B].astype(jnp.float32).mean(0) for name in ("mlp.hidden", "mlp.out")
    )
    unit = jnp.linalg.norm(out_D) + 1e-6

    def nats(change_D):
        def edit(value, here, start):
            moved = value.at[rows_B, place_B].add((unit * change_D).astype(value.dtype))
            return jnp.where(here == layer, moved, value)

        logits_BTV, _ = forward(model, params, tokens_BT, edits={"mlp.out": edit}, cached=False)
        nats_BT, _ = score(logits_BTV, tokens_BT)
        return jnp.sum(nats_BT * scored_BT) / len(place_B)

    def price(change_D):
        return nats(change_D) + decay * jnp.sum(jnp.square(change_D))

    adam = optax.adam(rate)

    def step(carry, _):
        change_D, state = carry
        updates, state = adam.update(jax.grad(price)(change_D), state)
        return (change_D + updates, state), None

    zero_D = jnp.zeros_like(out_D)
    (change_D, _), _ = jax.lax.scan(step, (zero_D, adam.init(zero_D)), None, length=steps)
    return key_F, unit * change_D, nats(change_D)


def key_covariance(m: Trained, batch: TokenRows, *, ridge: float = 1e-3) -> np.ndarray:
    """Estimate E[k k^T] of every layer's keys over the rows' tokens, [L, F, F] in float64.

    ridge: added to the diagonal, as a share of its mean: keys that the rows never use would make it singular.
    """
    total_LFF = sum(
        np.asarray(_key_products(m.model, m.params, chunk.tokens_BT, chunk.held_BT), np.float64)
        for chunk in batch.chunks(CHUNK)
    )
    covariance_LFF = total_LFF / batch.held_BT.sum()
    F = covariance_LFF.shape[-1]
    mean_L = np.trace(covariance_LFF, axis1=1, axis2=2) / F
    return covariance_LFF + ridge * mean_L[:, None, None] * np.eye(F)


@functools.partial(jax.jit, static_argnums=0)
def _key_products(model, params, tokens_BT, held_BT):
    """The sum of k k^T over tokens, [L, F, F]."""
    _, values = forward(model, params, tokens_BT, ("mlp.hidden",), cached=False)
    keys_LBTF = values["mlp.hidden"].astype(jnp.float32) * held_BT[..., None]
    return jnp.einsum("LBTF,LBTf->LFf", keys_LBTF, keys_LBTF)


def corpus_rows(m: Trained, count: int = 256, seed: int = 0) -> TokenRows:
    """Draw stretches of the text that the run was trained on, each as long as the model's context."""
    tokens = prepare(m.experiment.data).train.tokens
    T = min(m.model.config.context, len(tokens))
    starts = np.random.default_rng(seed).integers(0, len(tokens) - T + 1, count)
    return rows(m, [tokens[start : start + T].astype(np.int32) for start in starts])
