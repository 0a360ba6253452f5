"""The cache in stretches, with junk in its unused slots, cut into any chunks.

What every model's state promises is in test_contract.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import forward, in_chunks, lively, reader, small, some_tokens

from lm.model import cache as cache_module
from lm.model.api import build
from lm.model.cache import KVCache
from lm.model.mask import FAR

B, T = 3, 12  # windows of 1, 2 and 3 tokens are long past


def model(**changes):
    return small(context=T, **changes)


def littered(c):
    """An empty cache whose unused slots hold junk, which must never be seen."""
    empty = build(c).state(B, T)

    def junk(x, by):
        return jax.tree.map(lambda one: one + by, x)

    return dataclasses.replace(empty, k_LCRHS=junk(empty.k_LCRHS, 3), v_LCRSH=junk(empty.v_LCRSH, -50))


@pytest.fixture
def cut(monkeypatch):
    """Caches of T slots in four stretches of three."""
    monkeypatch.setattr(cache_module, "STRETCH_SLOTS", 3)
    monkeypatch.setattr(cache_module, "STRETCH_BYTES", 1)
    assert [v.shape[1] for v in KVCache.empty(model(), B, T, jnp.float32).v_LCRSH[0]] == [3, 3, 3, 3]


def assert_equals_full_pass(c, counts, width):
    params, tokens_BT = lively(c), some_tokens(c, B, T)
    full_BTV = np.asarray(forward(c)(params, tokens_BT))
    logits_BTV, cache = in_chunks(c, params, tokens_BT, counts, width, littered(c))
    np.testing.assert_array_equal(cache.settled().length_B, np.sum(counts, axis=0))
    read_BT = np.arange(T) < np.sum(counts, axis=0)[:, None]
    assert relative_error(logits_BTV[read_BT], full_BTV[read_BT]) < 1e-5


@pytest.mark.parametrize("changes", [dict(), dict(kv_heads=2, window=3, value_residual=True)], ids=str)
def test_uneven_chunks_over_stretches_equal_the_full_pass(changes, cut):
    """Prompts of 5, 2 and 1 tokens in one batch, then chunks that differ by row, some of them empty."""
    assert_equals_full_pass(model(**changes), counts=[[5, 2, 1], [1, 4, 0], [0, 1, 1], [5, 5, 4], [1, 0, 2]], width=5)


a_row = st.lists(st.integers(0, 5), min_size=4, max_size=4).filter(lambda counts: 0 < sum(counts) <= T)


@given(rows=st.tuples(a_row, a_row, a_row))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_chunks_equal_the_full_pass(rows):
    """Grouped heads, a sliding window and a global layer, however the rows are cut into four chunks."""
    c = model(layers=3, kv_heads=2, window=3, global_every=2)
    assert_equals_full_pass(c, counts=np.transpose(rows), width=5)


@pytest.mark.parametrize("ends", [[], [3, 11]])
def test_append_writes_behind_each_row_and_nowhere_else(ends):
    """Rows of 0, 2 and 11 tokens of 12 get three more, of which 3, 1 and 1 count; what has no room is dropped.

    In one stretch, and in three, the middle row's tokens going to two of them.
    """
    c = model(kv_heads=2)
    old_LBKSH = np.random.default_rng(0).normal(size=(c.layers, B, c.K, T, c.H)).astype(np.float32)
    new_LBKTH = np.random.default_rng(1).normal(size=(c.layers, B, c.K, 3, c.H)).astype(np.float32)
    flat = lambda x_LBKSH: x_LBKSH.reshape(c.layers, B * c.K, *x_LBKSH.shape[3:])  # noqa: E731
    turned = lambda x: np.swapaxes(x, -1, -2)  # noqa: E731  (keys lie [H, S])
    cut = lambda x, axis: tuple(tuple(np.split(layer, ends, axis)) for layer in x)  # noqa: E731
    cache = dataclasses.replace(
        build(c).state(B, T),
        k_LCRHS=cut(turned(flat(old_LBKSH)), -1), v_LCRSH=cut(flat(-old_LBKSH), -2), length_B=jnp.array([0, 2, 11]),
    )  # fmt: skip
    cache = jax.tree.map(jnp.asarray, cache)
    slots_BT = cache.next_positions(new_LBKTH.shape[3])
    grown = cache.append(turned(new_LBKTH), -new_LBKTH, jnp.array([3, 1, 1]), slots_BT)

    expected_LBKSH = old_LBKSH.copy()
    expected_LBKSH[:, 0, :, 0:3] = new_LBKTH[:, 0]
    expected_LBKSH[:, 1, :, 2:5] = new_LBKTH[:, 1]
    expected_LBKSH[:, 2, :, 11:12] = new_LBKTH[:, 2, :, :1]
    whole = lambda x_LC, axis: [np.concatenate(x_C, axis) for x_C in x_LC]  # noqa: E731
    np.testing.assert_array_equal(whole(grown.k_LCRHS, -1), turned(flat(expected_LBKSH)))
    np.testing.assert_array_equal(whole(grown.v_LCRSH, -2), flat(-expected_LBKSH))
    np.testing.assert_array_equal(grown.length_B, [3, 3, 12])
    np.testing.assert_array_equal(grown.places().positions_BS[1], [0, 1, 2] + [FAR] * 9)


def test_an_empty_stretch_is_not_read(cut):
    """Junk that would make everything NaN, behind the longest row's stretch: a zero weight times NaN would show it."""
    c, tokens_BT = model(), some_tokens(model(), B, T)
    params, cache = lively(c), build(c).state(B, T)
    count_B = np.array([3, 5, 0], np.int32)
    logits_BTV, cache = reader(c)(params, tokens_BT[:, :5], cache, count_B)
    poisoned = lambda x_LC: tuple((*x_C[:2], x_C[2] * jnp.nan, x_C[3] * jnp.nan) for x_C in x_LC)  # noqa: E731
    sick = dataclasses.replace(cache, k_LCRHS=poisoned(cache.k_LCRHS), v_LCRSH=poisoned(cache.v_LCRSH))
    one_B = np.ones(B, np.int32)
    logits_BTV, _ = reader(c)(params, tokens_BT[:, 5:6], sick, one_B)  # exact: one program, the same shapes
    np.testing.assert_array_equal(logits_BTV, reader(c)(params, tokens_BT[:, 5:6], cache, one_B)[0])
