"""Masks as data, against the rule written out pair by pair; and attention to another sequence by the same functions."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close

from lm.model.attention import attend, attend_among
from lm.model.cache import KeysValues
from lm.model.mask import FAR, Mask, Places
from lm.model.taps import Taps

B, T, S = 2, 5, 6
QUERIES = np.array([[0, 1, 2, 3, 4], [3, 4, 5, 6, 7]])
KEYS = np.array([[0, 1, 2, 3, 4, FAR], [0, 3, 4, 5, 9, FAR]])  # the last slot holds nothing
QUERY_DOCUMENTS, KEY_DOCUMENTS = np.array([[0, 0, 1, 1, 1]] * B), np.array([[0, 0, 1, 1, 2, 1]] * B)
CASES = [*itertools.product([True, False], [None, 1, 3], [None, (2, 0)], [False, True])]


def seen(q: int, k: int, causal: bool, window: int | None, first: int, same: bool) -> bool:
    """Whether the query at absolute position q may see the key at k, as a reader would say it."""
    if k == FAR or not same:
        return False
    if k < first:
        return True
    if causal and k > q:
        return False
    return window is None or abs(q - k) < window


@pytest.mark.parametrize("causal, window, first, documents", CASES)
def test_a_mask_is_its_rule(causal, window, first, documents):
    queries = Places(QUERIES, QUERY_DOCUMENTS if documents else None)
    keys = Places(KEYS, KEY_DOCUMENTS if documents else None)
    mask = Mask(causal=causal, window=window, first_B=None if first is None else jnp.array(first))
    expected_BTS = [
        [
            [
                seen(q, k, causal, window, first[b] if first else 0, not documents or dq == dk)
                for k, dk in zip(KEYS[b], KEY_DOCUMENTS[b], strict=True)
            ]
            for q, dq in zip(QUERIES[b], QUERY_DOCUMENTS[b], strict=True)
        ]
        for b in range(B)
    ]
    np.testing.assert_array_equal(mask(queries, keys), expected_BTS)


def test_a_prefix_that_all_see_is_attended_to():
    """With the first three places open to all, what stands there knows of each other, and the rest stays causal."""
    rng = np.random.default_rng(0)
    q_BKGTH, k_RSH, v_RSH = (rng.normal(size=s).astype("float32") for s in ((B, 1, 1, T, 4), (B, T, 4), (B, T, 4)))
    here, mask = Places(np.arange(T)[None]), Mask(first_B=jnp.array([3, 0]))

    def attended(v_RSH):
        return np.asarray(attend_among(q_BKGTH, KeysValues(k_RSH, v_RSH), here, mask, Taps()))[:, 0, 0]

    before_BTH, after_BTH = attended(v_RSH), attended(v_RSH + np.eye(T, dtype="float32")[2][None, :, None])
    np.testing.assert_array_equal((before_BTH != after_BTH).any(-1), [[True] * T, [False, False, True, True, True]])


def test_a_long_prefix_is_seen_by_queries_of_every_block():
    """The first 70 of 100 places, which blocks of queries that skip the future would cut off."""
    rng, T = np.random.default_rng(0), 100
    q_BKGTH, k_RSH, v_RSH = (rng.normal(size=s).astype("float32") for s in ((1, 1, 1, T, 4), (1, T, 4), (1, T, 4)))
    here, mask = Places(np.arange(T)[None]), Mask(first_B=jnp.array([70]))
    found = attend_among(q_BKGTH, KeysValues(k_RSH, v_RSH), here, mask, Taps())
    whole = attend(q_BKGTH, [KeysValues(k_RSH, v_RSH)], [mask(here, here)], Taps())
    assert_close(found, whole, relative=1e-6)


def test_attention_to_another_sequence_is_the_textbook_formula():
    """T queries of one sequence and S keys of another, of which the second row has four: no case of its own."""
    rng, source = np.random.default_rng(0), Places(np.array([np.arange(S), [0, 1, 2, 3, FAR, FAR]]))
    q_BKGTH, k_RSH, v_RSH = (rng.normal(size=s).astype("float32") for s in ((B, 1, 1, T, 4), (B, S, 4), (B, S, 4)))
    mask_BTS = Mask(causal=False)(Places(np.arange(T)[None]), source)
    found = attend(q_BKGTH, [KeysValues(k_RSH, v_RSH)], [mask_BTS], Taps())[:, 0, 0]
    scores_BTS = np.exp(q_BKGTH[:, 0, 0] @ k_RSH.swapaxes(1, 2) / 2) * (np.arange(S) < np.array([[[6]], [[4]]]))
    assert_close(found, scores_BTS / scores_BTS.sum(-1, keepdims=True) @ v_RSH, relative=1e-5)
