"""Taps read and edited while decoding through the cache are those of a full pass."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from inside_cases import HARD, lively

from lm import probe
from lm.errors import UserError
from lm.model.transformer import TAPS

ALL = tuple(TAPS)
TOKENS = np.random.default_rng(0).integers(0, 29, (2, 11))
M = lively(**HARD)
V = M.experiment.model.vocab


@functools.cache
def full():
    return M.apply(TOKENS, taps=ALL)


@pytest.mark.parametrize("cached", [False, True])
def test_reading_equals_the_models_own_taps(cached):
    """Every tap, with grouped queries and windows; scores where they look back."""
    logits_BTV, values = probe.apply(M, TOKENS, taps=ALL, cached=cached)
    expected_BTV, expected = full()
    assert_close(logits_BTV[..., :V], expected_BTV[..., :V], relative=1e-4)
    for name in ALL:
        mine, own = (np.tril(v[name]) if name == "attention.scores" else v[name] for v in (values, expected))
        mine, own = (x[..., :V] for x in (mine, own)) if name == "logits" else (mine, own)
        assert mine.shape == own.shape, name
        assert_close(mine, own, relative=1e-4, what=name)


def at_position_four(name):
    """Halve what belongs to position 4, as a key or as a query: columns of attention's weights, rows of the rest."""

    def edit(value, layer, start):
        if name in ("attention.weights", "attention.scores"):
            return value.at[..., 4].multiply(0.5)
        here_T = start + jnp.arange(value.shape[1]) == 4
        return jnp.where(here_T.reshape(1, -1, *(1,) * (value.ndim - 2)), 0.5 * value, value)

    return edit


@pytest.mark.parametrize("name", ["embedding", "residual.after", "attention.key", "attention.weights", "logits"])
def test_editing_does_the_same_in_a_full_pass_and_while_decoding(name):
    """One edit, placed at position 4; what comes before does not change, what comes after does."""
    edit = at_position_four(name)
    by_pass, by_cache = (
        np.asarray(probe.apply(M, TOKENS, edits={name: edit}, cached=cached)[0][..., :V]) for cached in (False, True)
    )
    assert_close(by_cache, by_pass, relative=1e-4)
    plain = np.asarray(full()[0][..., :V])
    moved_T = np.abs(by_pass - plain).max((0, 2))
    assert (moved_T[:4] < 1e-5).all() and moved_T[4] > 1e-2
    assert (moved_T[5:] > 1e-3).any() == (name != "logits")


def test_nonsense_is_refused():
    with pytest.raises(UserError, match=r"no such tap; did you mean mlp\.out"):
        probe.apply(M, TOKENS, taps=("mlp.oud",))
    with pytest.raises(UserError, match=r"\[B, T\]"):
        probe.apply(M, TOKENS[0])
