"""No position learns anything of its future, or of what lies outside its window or its document.

Shown for every kind of attention by the gradient of every logit with respect to every embedding, which must be non-zero
exactly where the masks of the layers, composed, lead. By changing tokens it is shown for every model: test_contract.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import VARIANTS, lively, small, some_tokens

from lm.model.api import Inputs, build
from lm.model.taps import Taps

T = 8
ONE_DOCUMENT = None
PACKED_BT = np.array([[0, 0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 2, 2, 2, 3, 3]] * (T // 2), np.int32)
CASES = {name: (small(**changes), ONE_DOCUMENT) for name, changes in VARIANTS.items()} | {
    f"packed, {name}": (small(**VARIANTS[name]), PACKED_BT)
    for name in ("multi-head rotary", "grouped sinusoidal, two of three unrolled")
}
every_case = pytest.mark.parametrize("c, segments_BT", CASES.values(), ids=CASES)


@functools.cache
def gradient_and_logits(c):
    """Compiled (push_BTD, t, params, tokens_BT, segments_BT) -> gradient of a mix of the logits at t, all logits.

    push_BTD is added to the embeddings by a tap, so its gradient says what each of them does to the logits at t.
    """
    weights_V = jnp.linspace(-1, 2, c.vocab)

    def mix(push_BTD, t, params, tokens_BT, segments_BT):
        taps = Taps(edits={"embedding": lambda x, layer: x + push_BTD})
        logits_BTV, _ = build(c).apply(params, Inputs(tokens_BT, segments_BT), taps=taps)
        logits_BTV = logits_BTV[..., : c.vocab]
        return (logits_BTV[:, t] @ weights_V).sum(), logits_BTV

    return jax.jit(jax.grad(mix, has_aux=True))


def influence(c, segments_BT):
    """[B, T, S]: size of the gradient of the logits at t with respect to the embedding of token s."""
    params, tokens_BT, push_BTD = lively(c), some_tokens(c, batch=T), np.zeros((T, T, c.width), np.float32)
    gradient = lambda t: gradient_and_logits(c)(push_BTD, t, params, tokens_BT, segments_BT)[0]  # noqa: E731
    return np.stack([np.abs(gradient(t)).sum(-1) for t in range(T)], axis=1)


def reachable(c, segments_BT):
    """[B, T, S]: may anything of token s arrive at t? Each layer's mask written out by hand, then composed."""
    reach_BTS = np.broadcast_to(np.eye(T, dtype=bool), (T, T, T))
    for layer in range(c.layers):
        is_global = c.window is None or (c.global_every is not None and layer % c.global_every == c.global_every - 1)
        sees_BTS = np.zeros((T, T, T), bool)
        for b, t, s in np.ndindex(T, T, T):
            in_window = is_global or t - s < c.window
            sees_BTS[b, t, s] = s <= t and in_window and segments_BT[b, t] == segments_BT[b, s]
        reach_BTS = sees_BTS @ reach_BTS
    return reach_BTS


@every_case
def test_gradients_reach_exactly_what_the_masks_allow(c, segments_BT):
    """Exactly zero towards the future, other documents and beyond the windows; non-zero towards all the rest."""
    expected_BTS = reachable(c, np.zeros((T, T)) if segments_BT is None else segments_BT)
    np.testing.assert_array_equal(influence(c, segments_BT) != 0, expected_BTS)


@pytest.mark.parametrize("c, sees", [(small(layers=1, window=3), 3), (CASES["grouped window"][0], 2 * (3 - 1) + 1)])
def test_sliding_windows_see_exactly_their_tokens(c, sees):
    """A window of 3 includes the token itself; L layers see L (3 - 1) + 1 tokens back and no more."""
    influence_BS = influence(c, ONE_DOCUMENT)[:, -1]
    assert (influence_BS[:, -sees:] != 0).all()
    assert (influence_BS[:, :-sees] == 0).all()


def test_every_nth_layer_is_global():
    """With global_every=2 the second layer of three sees everything, although the window is 2."""
    c, _ = CASES["window with a global layer, remat"]
    assert c.windows == (2, None, 2)
    assert (influence(c, ONE_DOCUMENT)[:, -1] != 0).all()
