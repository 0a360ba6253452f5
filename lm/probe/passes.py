"""One forward pass with taps, whole or token by token through the KV cache: every probe of the inside goes this way.

An edit here also learns where it is: edit(value, layer, start) -> value, `start` being the position of the value's
first token. It is 0 in a full pass and the token's own position in cached decoding, so one edit serves both.
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp

from lm.errors import require
from lm.model.api import Inputs, LanguageModel
from lm.model.taps import Taps
from lm.model.trained import Trained

PlacedEdit = Callable[[jax.Array, jax.Array | None, jax.Array | int], jax.Array]
PAIRS = ("attention.scores", "attention.weights")
"""Taps whose last axis is the keys: in cached decoding the cache's slots, then the new token."""


TOKENS = 4096
"""Tokens that go through the model at once; more interventions than that take turns."""


def apply(
    m: Trained, tokens_BT, *, taps: Iterable[str] = (), edits: Mapping[str, PlacedEdit] | None = None, cached=False
):
    """Logits [B, T, V] and the taps, as from `Trained.apply`, by edits that learn positions and also through the cache.

    Compiled anew for every new edit, so one that does many things should take them from traced arrays, as
    lm.probe.actions.ablate does.
    """
    edits = tuple(sorted((edits or {}).items(), key=lambda item: item[0]))
    tokens_BT = jnp.asarray(tokens_BT)
    require(tokens_BT.ndim == 2, f"tokens of shape {tokens_BT.shape}: give rows of tokens, [B, T]")
    return _apply(m.model, m.params, tokens_BT, tuple(taps), edits, cached)


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _apply(model, params, tokens_BT, read, edits, cached):
    return forward(model, params, tokens_BT, read, dict(edits), cached=cached)


def forward(
    model: LanguageModel, params: dict, tokens_BT, read=(), edits: Mapping[str, PlacedEdit] | None = None, *, cached
):
    """Logits [B, T, V] and {tap: value}, inside jit. The shapes are those of a full pass, cached or not.

    What attention.scores holds of pairs that look ahead, before the mask, is only known in a full pass.
    """
    edits = edits or {}
    if cached:
        return _token_by_token(model, params, tokens_BT, read, edits)
    taps = Taps(read, {name: functools.partial(edit, start=0) for name, edit in edits.items()})
    logits_BTV, _ = model.apply(params, Inputs(tokens_BT), taps=taps)
    return logits_BTV, taps.values


def residuals(model: LanguageModel, params: dict, tokens_BT, segments_BT=None) -> jax.Array:
    """The residual stream after every block, [L, B, T, D], inside jit; no token sees another segment."""
    taps = Taps(("residual.after",))
    model.hidden(params, Inputs(tokens_BT, segments_BT), taps=taps)
    return taps.values["residual.after"]


def _token_by_token(model: LanguageModel, params: dict, tokens_BT, read, edits):
    """Read the tokens of every row one after the other; a step sees the earlier ones' keys and values in the cache."""
    B, T = tokens_BT.shape

    def step(state, scanned):
        t, token_B = scanned
        taps = Taps(read, {name: _placed(name, edit, t) for name, edit in edits.items()})
        logits_B1V, state = model.apply(params, Inputs(token_B[:, None]), state=state, taps=taps)
        values = {name: _by_position(x, t) if name in PAIRS else x for name, x in taps.values.items()}
        return state, (logits_B1V[:, 0], values)

    _, (logits_TBV, values) = jax.lax.scan(step, model.state(B, T), (jnp.arange(T), tokens_BT.T))
    axes = {name: model.taps[name].axes.index("T") for name in values}
    joined = {name: jnp.moveaxis(x.squeeze(axes[name] + 1), 0, axes[name]) for name, x in values.items()}
    return logits_TBV.swapaxes(0, 1), joined


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
