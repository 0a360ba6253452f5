"""Batches are a pure function of the step: every window once a pass, whatever is asked for at once."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.batches import Batches, Feed, epoch_key, permute, validation_windows
from lm.errors import UserError

SEEDS = st.integers(0, 2**64 - 1)


def file(count):
    """A token file of `count` tokens, each its own place in the file."""
    return SimpleNamespace(count=count, tokens=np.arange(count, dtype=np.uint32), dtype="uint32")


# --- the permutation -------------------------------------------------------------------------------------------------
@settings(deadline=None)
@given(n=st.integers(1, 5000), seed=SEEDS, epoch=st.integers(0, 1000))
def test_it_is_a_permutation(n, seed, epoch):
    order = permute(np.arange(n), n, epoch_key(seed, epoch))
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


@given(n=st.integers(1, 2**40), index=st.integers(0, 2**40), seed=SEEDS)
def test_one_element_at_a_time_is_the_same_in_any_company(n, index, seed):
    """Also for a file of a trillion windows, where nobody could hold the order."""
    index %= n
    key = epoch_key(seed, 0)
    alone = permute(np.array([index]), n, key)
    together = permute(np.array([[0, index], [n - 1, index]]), n, key)
    assert 0 <= alone[0] < n
    assert together[0, 1] == together[1, 1] == alone[0]


def test_it_mixes():
    """Neighbours part, epochs and seeds differ, and every place is about equally likely: chi-square over 16 x 16."""
    n, root = 4096, np.sqrt(4096)
    order = permute(np.arange(n), n, epoch_key(0, 0))
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 4 / root
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / root
    for other in (epoch_key(0, 1), epoch_key(1, 0)):
        assert (permute(np.arange(n), n, other) == order).sum() < 10  # one is expected
    first = permute(np.full(3200, 7), 16, epoch_key(0, np.arange(3200)))
    observed = np.bincount(first, minlength=16)
    assert ((observed - 200) ** 2 / 200).sum() < 37.7  # 0.1% point of chi-square with 15 degrees of freedom


def test_seed_and_epoch_are_not_interchangeable():
    keys = {int(epoch_key(seed, epoch)) for seed in range(50) for epoch in range(50)}
    assert len(keys) == 2500


def test_the_order_is_the_same_for_everyone():
    """A change here changes the data order of every published run."""
    assert permute(np.arange(10), 10, epoch_key(0, 0)).tolist() == [0, 1, 2, 9, 8, 3, 4, 7, 6, 5]


# --- batches ---------------------------------------------------------------------------------------------------------
SHAPES = dict(count=st.integers(20, 400), context=st.integers(1, 19), batch=st.integers(1, 9), seed=SEEDS)


@settings(deadline=None)
@given(**SHAPES, k=st.integers(1, 7))
def test_every_window_once_a_pass(count, context, batch, seed, k):
    """Over three passes, asked for k steps at a time; batches may straddle passes."""
    batches = Batches(file(count), context=context, batch=batch, seed=seed)
    steps = -(-3 * batches.windows // (batch * k))
    starts = np.concatenate([batches.starts(i * k, k) for i in range(steps)]).ravel()
    first, *later = starts[: 3 * batches.windows].reshape(3, -1)
    assert sorted(first) == [i * context for i in range(batches.windows)]
    for starts in later:
        offset = starts % context
        assert (offset == offset[0]).all()
        assert sorted(starts - offset) == sorted(first)


@settings(deadline=None)
@given(**SHAPES)
def test_every_token_is_a_target_once_in_the_first_pass(count, context, batch, seed):
    batches = Batches(file(count), context=context, batch=batch, seed=seed)
    steps = -(-batches.windows // batch)
    windows = batches.at(0, steps).reshape(-1, context + 1)[: batches.windows]
    assert sorted(windows[:, 1:].ravel()) == list(range(1, batches.epoch_tokens + 1))
    assert count - 1 - context < batches.epoch_tokens <= count - 1


@settings(deadline=None)
@given(**SHAPES, step=st.integers(0, 10**9), k=st.integers(1, 5))
def test_k_steps_at_once_are_k_steps(count, context, batch, seed, step, k):
    batches = Batches(file(count), context=context, batch=batch, seed=seed)
    assert (batches.starts(step, k) == np.concatenate([batches.starts(step + i, 1) for i in range(k)])).all()
    tokens = batches.at(step, k)
    assert tokens.shape == (k, batch, context + 1) and tokens.dtype == np.int32
    assert (tokens == np.stack([batches.at(step + i) for i in range(k)])).all()


def test_windows_are_consecutive_tokens_and_wrap_around_the_end():
    """The device gathers store()[(start + i) % count]: the same tokens."""
    batches = Batches(file(50), context=7, batch=4, seed=0)
    tokens, starts = batches.at(0, 100), batches.starts(0, 100)
    assert starts.min() >= 0 and starts.max() < 50
    gathered = batches.store()[(starts[..., None] + np.arange(8)) % 50]
    assert (tokens == gathered).all()
    assert (np.diff(tokens) % 50 == 1).all()
    assert (np.diff(tokens) < 0).any()  # some did wrap


def test_later_passes_cut_elsewhere():
    batches = Batches(file(10_000), context=100, batch=1, seed=0)
    offsets = [int(batches.starts(epoch * batches.windows, 1)[0, 0]) % 100 for epoch in range(20)]
    assert offsets[0] == 0
    assert len(set(offsets)) > 15


def test_small_files_are_resident_and_large_ones_are_not():
    def shape(count, dtype):
        return Batches(SimpleNamespace(count=count, dtype=dtype, tokens=None), context=8, batch=1, seed=0)

    assert shape(100 << 20, "uint16").resident
    assert not shape(100 << 20, "uint32").resident


def test_a_file_shorter_than_a_window_is_refused():
    with pytest.raises(
        UserError, match=r"^8 training tokens are fewer than one window of model\.context 8 \+ 1; lower"
    ):
        Batches(file(8), context=8, batch=1, seed=0)
    assert Batches(file(9), context=8, batch=1, seed=0).at(0).tolist() == [list(range(9))]


# --- the prefetching feed --------------------------------------------------------------------------------------------
def test_what_a_dispatch_reads_is_its_batches(monkeypatch):
    """Tokens followed by zeros from a large file, places from a resident one."""
    batches = Batches(file(500), context=7, batch=3, seed=1)
    places = batches.dispatch(104, 2, 5)
    assert places.dtype == np.int32 and (places == batches.starts(104, 5)).all()
    monkeypatch.setattr("lm.data.batches.RESIDENT_BYTES", 0)
    tokens = batches.dispatch(104, 2, 5)
    assert tokens.shape == (5, 3, 8) and tokens.dtype == np.int32
    assert (tokens[:2] == batches.at(104, 2)).all() and not tokens[2:].any()


def test_the_feed_answers_whatever_is_asked():
    """As announced, less than announced, more (of which it gives what it has), out of turn, and unannounced."""
    with Feed(lambda step, n: [step, n]) as feed:
        assert feed(0, 4) == (4, [0, 4])
        feed.ahead(4, 4)
        assert feed(4, 4) == (4, [4, 4])
        feed.ahead(8, 4)
        assert feed(8, 3) == (3, [8, 4])
        feed.ahead(11, 4)
        assert feed(11, 9) == (4, [11, 4])
        feed.ahead(15, 4)
        assert feed(100, 2) == (2, [100, 2])


def test_the_feed_reads_ahead_and_hands_on_errors():
    read = []

    def slow(step, n):
        read.append(step)
        if step >= 20:
            raise OSError("the disk is gone")
        time.sleep(0.05)

    feed = Feed(slow)
    feed(0, 10)
    feed.ahead(10, 10)
    time.sleep(0.2)
    assert read == [0, 10]  # the next is there before it was asked for
    feed(10, 10)
    feed.ahead(20, 10)
    with pytest.raises(OSError, match="the disk is gone"):
        feed(20, 10)
    feed.close()
    feed.close()


# --- validation ------------------------------------------------------------------------------------------------------
@settings(deadline=None)
@given(count=st.integers(2, 200), context=st.integers(1, 40), tokens=st.integers(1, 300))
def test_validation_targets_are_spread_over_the_file_and_none_is_scored_twice(count, context, tokens):
    windows, weights = validation_windows(file(count), context, tokens).values()
    assert (windows.dtype, weights.dtype) == (np.int32, np.float32)
    assert windows.shape == (len(weights), context + 1) and weights.shape[1] == context
    targets = windows[:, 1:][weights == 1]
    assert len(set(targets.tolist())) == len(targets) >= min(tokens - context, count - 1)
    if tokens >= count - 1:
        assert targets.tolist() == list(range(1, count))
    starts = windows[:, 0]
    assert starts[0] == 0 and np.ptp(np.diff([*starts, -(-(count - 1) // context) * context])) <= context
    assert (windows[:, :-1][weights == 1] == targets - 1).all()  # each is read after the token before it
    assert set(np.unique(weights)) <= {0, 1}
    assert (weights.sum(1) > 0).all()  # no window of padding alone


def test_one_validation_token_is_refused():
    with pytest.raises(UserError, match=r"validation needs at least 2 tokens, there are 1; raise --data\.validation"):
        validation_windows(file(1), 8, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(context=0), "context 0: must be at least 1"),
        (dict(batch=-5), "batch -5: must be at least 1"),
        (dict(batch=2.5), "batch 2.5: expected int"),
        (dict(seed=-1), "seed -1: must be at least 0"),
        (dict(seed=2**64), "seed 18446744073709551616: must be"),
    ],
)
def test_numbers_that_make_no_batches_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Batches(file(50), **(dict(context=7, batch=4, seed=0) | change))
