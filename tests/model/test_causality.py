"""No position learns anything of its future, or of what lies outside its window or its document.

Shown twice over, for every kind of attention: by changing tokens, and by the gradient of every logit with respect to
every embedding, which must be non-zero exactly where the masks of the layers, composed, lead.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import VARIANTS, forward, lively, small, some_tokens

from lm.model import transformer
from lm.model.taps import Taps

SEGMENTS_BT = np.array([[0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 2, 2, 2, 3, 3]], np.int32)

variants = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
packings = pytest.mark.parametrize("segments_BT", [None, SEGMENTS_BT], ids=["one document", "packed"])


@functools.cache
def influence_of(c):
    """Compiled (params, tokens_BT, segments_BT) -> [B, T, S]: total gradient of logits at t wrt the embedding at s."""

    def logit_sums(push_BTD, t, weights_V, params, tokens_BT, segments_BT):
        taps = Taps(edits={"embedding": lambda x, layer: x + push_BTD})
        logits_BTV, _ = transformer.bind(c, params)(tokens_BT, segments_BT=segments_BT, taps=taps)
        return (logits_BTV[:, t, : c.vocab] @ weights_V).sum()

    def influence(params, tokens_BT, segments_BT=None):
        push_BTD = jnp.zeros((*tokens_BT.shape, c.width))
        weights_V = jax.random.normal(jax.random.key(0), (c.vocab,))
        gradient = lambda t: jax.grad(logit_sums)(push_BTD, t, weights_V, params, tokens_BT, segments_BT)  # noqa: E731
        gradients_TBSD = jax.lax.map(gradient, jnp.arange(tokens_BT.shape[1]))
        return jnp.abs(gradients_TBSD).sum(-1).swapaxes(0, 1)

    return jax.jit(influence)


def reachable(c, segments_BT):
    """[B, T, S]: may anything of token s arrive at t? Each layer's mask written out by hand, then composed."""
    B, T = segments_BT.shape
    reach_BTS = np.broadcast_to(np.eye(T, dtype=bool), (B, T, T))
    for layer in range(c.layers):
        is_global = c.window is None or (c.global_every is not None and layer % c.global_every == c.global_every - 1)
        sees_BTS = np.zeros((B, T, T), bool)
        for b, t, s in np.ndindex(B, T, T):
            in_window = is_global or t - s < c.window
            sees_BTS[b, t, s] = s <= t and in_window and segments_BT[b, t] == segments_BT[b, s]
        reach_BTS = sees_BTS @ reach_BTS
    return reach_BTS


@variants
@packings
def test_gradients_reach_exactly_what_the_masks_allow(changes, segments_BT):
    """Exactly zero towards the future, other documents and beyond the windows; non-zero towards all the rest."""
    c = small(**changes)
    tokens_BT = some_tokens(c)
    influence_BTS = np.asarray(influence_of(c)(lively(c), tokens_BT, segments_BT))
    expected_BTS = reachable(c, np.zeros_like(tokens_BT) if segments_BT is None else segments_BT)
    np.testing.assert_array_equal(influence_BTS != 0, expected_BTS)


@variants
@packings
def test_changed_future_tokens_change_nothing_before(changes, segments_BT):
    """Row t differs from row -1 only after t: its logits up to t are the same to the last bit, the later ones not."""
    c = small(**changes)
    T = c.context
    segments_BT = None if segments_BT is None else np.repeat(segments_BT[:1], T, axis=0)
    same_BT = np.repeat(some_tokens(c, batch=1), T, axis=0)
    changed_BT = np.where(np.arange(T) > np.arange(T)[:, None], (same_BT + 1) % c.vocab, same_BT)
    params, run = lively(c), forward(c)
    same_BTV, changed_BTV = np.asarray(run(params, same_BT, segments_BT)), run(params, changed_BT, segments_BT)
    differs_BT = (same_BTV != np.asarray(changed_BTV)).any(-1)
    np.testing.assert_array_equal(differs_BT, np.arange(T) > np.arange(T)[:, None])


@pytest.mark.parametrize("layers, window", [(1, 1), (1, 3), (2, 3), (3, 2)])
def test_sliding_windows_see_exactly_their_tokens(layers, window):
    """A window of w tokens includes the token itself; L layers see L (w - 1) + 1 tokens back and no more."""
    c = small(layers=layers, window=window)
    influence_S = np.asarray(influence_of(c)(lively(c), some_tokens(c)))[0, -1]
    sees = layers * (window - 1) + 1
    assert (influence_S[-sees:] != 0).all()
    assert (influence_S[:-sees] == 0).all()


def test_every_nth_layer_is_global():
    """With global_every=2 the second layer of three sees everything, whatever the window."""
    c = small(layers=3, window=1, global_every=2)
    assert c.windows == (1, None, 1)
    assert (np.asarray(influence_of(c)(lively(c), some_tokens(c)))[0, -1] != 0).all()
