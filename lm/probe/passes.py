"""One forward pass with taps, whole or token by token through the KV cache: every probe of the inside goes this way.

An edit here also learns where it is: edit(value, layer, start) -> value, `start` being the position of the value's
first token. It is 0 in a full pass and the token's own position in cached decoding, so one edit serves both.
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.errors import require
from lm.model.cache import KVCache
from lm.model.taps import MODEL_TAPS, Taps
from lm.model.transformer import bind, compute_dtype
from lm.run import Model

PlacedEdit = Callable[[jax.Array, jax.Array | None, jax.Array | int], jax.Array]
PAIRS = ("attention.scores", "attention.weights")
"""Taps whose last axis is the keys: in cached decoding the cache's slots, then the new token."""


TOKENS = 4096
"""Tokens that go through the model at once; more interventions than that take turns."""


def apply(
    m: Model, tokens_BT, *, taps: Iterable[str] = (), edits: Mapping[str, PlacedEdit] | None = None, cached=False
):
    """Logits [B, T, V] and the taps, as from `Model.apply`, by edits that learn positions and also through the cache.

    Compiled anew for every new edit, so one that does many things should take them from traced arrays, as
    lm.probe.actions.ablate does.
    """
    edits = tuple(sorted((edits or {}).items(), key=lambda item: item[0]))
    tokens_BT = jnp.asarray(tokens_BT)
    require(tokens_BT.ndim == 2, f"tokens of shape {tokens_BT.shape}: give rows of tokens, [B, T]")
    return _apply(m.experiment.model, m.params, tokens_BT, tuple(taps), edits, cached)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _apply(c, params, tokens_BT, read, edits, cached):
    return forward(c, params, tokens_BT, read, dict(edits), cached=cached)


def forward(c: ModelConfig, params: dict, tokens_BT, read=(), edits: Mapping[str, PlacedEdit] | None = None, *, cached):
    """Logits [B, T, V] and {tap: value}, inside jit. The shapes are those of a full pass, cached or not.

    What attention.scores holds of pairs that look ahead, before the mask, is only known in a full pass.
    """
    edits = edits or {}
    if cached:
        return _token_by_token(c, params, tokens_BT, read, edits)
    taps = Taps(read, {name: functools.partial(edit, start=0) for name, edit in edits.items()})
    logits_BTV, _ = bind(c, params)(tokens_BT, taps=taps)
    return logits_BTV, taps.values


def residuals(c: ModelConfig, params: dict, tokens_BT, segments_BT=None) -> jax.Array:
    """The residual stream after every block, [L, B, T, D], inside jit; no token sees another segment."""
    taps = Taps(("residual.after",))
    bind(c, params).hidden(tokens_BT, segments_BT=segments_BT, taps=taps)
    return taps.values["residual.after"]


def _token_by_token(c: ModelConfig, params: dict, tokens_BT, read, edits):
    """Read the tokens of every row one after the other; a step sees the earlier ones' keys and values in the cache."""
    (B, T), model = tokens_BT.shape, bind(c, params)

    def step(cache, scanned):
        t, token_B = scanned
        taps = Taps(read, {name: _placed(name, edit, t) for name, edit in edits.items()})
        logits_B1V, (k, v) = model(token_B[:, None], cache=cache, keep_kv=True, taps=taps)
        values = {name: _by_position(x, t) if name in PAIRS else x for name, x in taps.values.items()}
        return cache.append(k, v, jnp.ones(B, jnp.int32)), (logits_B1V[:, 0], values)

    cache = KVCache.empty(c, B, T, compute_dtype(c))
    _, (logits_TBV, values) = jax.lax.scan(step, cache, (jnp.arange(T), tokens_BT.T))
    return logits_TBV.swapaxes(0, 1), {name: _joined(name, x) for name, x in values.items()}


def _joined(name: str, x: jax.Array) -> jax.Array:
    """Join T values of one token each to the shape that a full pass has."""
    axis = x.ndim - 3 if name in PAIRS else 1 if name in MODEL_TAPS else 2
    return jnp.moveaxis(x.squeeze(axis + 1), 0, axis)


def _placed(name: str, edit: PlacedEdit, t: jax.Array):
    """Make the edit of a step that reads the token at t."""

    def run(value, layer):
        if name in PAIRS:
            return _by_slot(edit(_by_position(value, t), layer, start=t), t)
        return edit(value, layer, start=t)

    return run


def _by_position(x: jax.Array, t: jax.Array) -> jax.Array:
    """Put the keys in order: [..., T slots, then the token at t] -> [..., T positions]."""
    return jnp.where(jnp.arange(x.shape[-1] - 1) == t, x[..., -1:], x[..., :-1])


def _by_slot(x: jax.Array, t: jax.Array) -> jax.Array:
    """Undo `_by_position`: slot t is still empty, what is at t belongs to the new token."""
    new = jax.lax.dynamic_slice_in_dim(x, t, 1, axis=-1)
    return jnp.concatenate([jnp.where(jnp.arange(x.shape[-1]) == t, 0, x), new], axis=-1)


def part(x: jax.Array, value: jax.Array, start, axis: int = 0) -> jax.Array:
    """Take of x, which covers all positions along `axis`, those of the [B, T, ...] value that begins at `start`."""
    return jax.lax.dynamic_slice_in_dim(x, start, value.shape[1], axis)
