"""Learning-rate schedules against closed forms, and their bounds for any lengths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import Steps
from lm.training import schedules

LONGEST = 400


@functools.partial(jax.jit, static_argnames="name")
def all_rates(name: str, h: dict) -> jax.Array:
    return jax.vmap(lambda step: schedules.rate(name, step, h))(jnp.arange(LONGEST, dtype=jnp.float32))


def rates(name: str, total: int, warmup: int = 0, decay: int = 0, final: float = 0.0) -> np.ndarray:
    """The fraction of the peak that each update of a run uses."""
    h = {"total": total, "warmup": warmup, "decay": decay, "final": final}
    return np.asarray(all_rates(name, {key: jnp.float32(value) for key, value in h.items()}))[:total]


def test_warmup_is_linear_and_ends_at_the_peak():
    made = rates("constant", 100, warmup=4)
    assert np.allclose(made[:6], [0.25, 0.5, 0.75, 1, 1, 1])
    assert np.allclose(rates("cosine", 100, warmup=4)[:4], made[:4])


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_and_linear_equal_their_formulas(final):
    done = np.arange(90) / 90
    cosine = final + (1 - final) * (1 + np.cos(np.pi * done)) / 2
    assert np.allclose(rates("cosine", 100, warmup=10, final=final)[10:], cosine, atol=1e-6)
    assert np.allclose(rates("linear", 100, warmup=10, final=final)[10:], 1 - (1 - final) * done, atol=1e-6)


def test_constant_is_constant_whatever_the_final_fraction():
    assert (rates("constant", 50, final=0.2) == 1).all()


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_wsd_is_the_peak_and_then_a_line_over_the_last_steps(final):
    made = rates("wsd", 100, warmup=10, decay=40, final=final)
    assert np.allclose(made[10:61], 1, atol=1e-6)
    assert np.allclose(made[60:], 1 - (1 - final) * np.arange(40) / 40, atol=1e-5)


def test_wsd_without_a_decay_stays_at_the_peak():
    assert np.allclose(rates("wsd", 30, warmup=3)[3:], 1)


lengths = st.integers(1, LONGEST).flatmap(lambda total: st.tuples(st.just(total), st.integers(0, total)))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(schedules.SCHEDULES)), lengths, st.floats(0, 1), st.floats(0, 1))
def test_every_rate_is_above_zero_and_at_most_the_peak(name, lengths, share, final):
    """For any run: positive (an update of rate zero is wasted), never above the peak, falling once warm-up is over."""
    total, warmup = lengths
    made = rates(name, total, warmup, decay=round(share * (total - warmup)), final=final)
    assert (made > 0).all() and (made <= 1 + 1e-6).all()
    assert (np.diff(made[warmup:]) <= 1e-6).all()
    assert (made[warmup:] >= final - 1e-6).all() or name == "constant"
    if 0 < warmup:
        assert np.isclose(made[warmup - 1], 1)
    if warmup < total:
        assert np.isclose(made[warmup], 1)


# --- two lengths of one run ------------------------------------------------------------------------------------------
LENGTHS = {  # (schedule, final fraction, (total, warm-up, decay) of one and the other, updates with equal rates)
    "constant": ("constant", 0.0, (200, 20, 80), (400, 20, 160), 200),
    "constant, warm-up in percent": ("constant", 0.0, (200, 4, 80), (400, 8, 160), 0),
    "wsd until it decays": ("wsd", 0.0, (200, 20, 80), (400, 20, 160), 120),
    "wsd made shorter": ("wsd", 0.0, (400, 20, 160), (200, 20, 80), 120),
    "wsd, decay in steps": ("wsd", 0.1, (200, 20, 50), (400, 20, 50), 150),
    "wsd, warm-up in percent": ("wsd", 0.0, (200, 20, 80), (400, 40, 160), 0),
    "wsd that decays to its peak": ("wsd", 1.0, (200, 20, 80), (400, 20, 160), 120),
    "wsd that decays at once": ("wsd", 0.0, (200, 0, 200), (400, 0, 400), 0),
    "cosine": ("cosine", 0.0, (200, 20, 80), (400, 20, 160), 21),
    "cosine without a warm-up": ("cosine", 0.0, (200, 0, 80), (400, 0, 160), 1),
    "cosine that float32 cannot tell apart": ("cosine", 0.0, (2_000_000, 20, 0), (2_100_000, 20, 0), 21),
    "linear": ("linear", 0.0, (200, 20, 80), (400, 20, 160), 21),
    "linear, warm-up in percent": ("linear", 0.0, (200, 4, 80), (400, 8, 160), 0),
    "the same": ("cosine", 0.0, (200, 20, 80), (200, 20, 80), 200),
}


@pytest.mark.parametrize("kind", LENGTHS)
def test_two_lengths_agree_until_their_rates_part(kind):
    """Update n, from 0: after warm-up it is at the peak in every schedule; the next is where cosine and linear part."""
    name, final, one, other, expected = LENGTHS[kind]
    lengths = [Steps(*length, log_every=1, eval_every=1, checkpoint_every=1) for length in (one, other)]
    assert schedules.agreement(name, final, *lengths) == expected
    assert schedules.agreement(name, final, *reversed(lengths)) == expected


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(schedules.SCHEDULES)), lengths, lengths, st.floats(0, 1), st.floats(0, 1))
def test_where_two_lengths_agree_training_has_the_same_bits(name, one, other, share, final):
    """What is compared in float64 holds for the rates that training traces, in float32."""
    made = []
    for total, warmup in (one, other):
        decay = round(share * (total - warmup))
        length = Steps(total, warmup, decay, log_every=1, eval_every=1, checkpoint_every=1)
        made.append((length, rates(name, total, warmup, decay, final)))
    (short, a), (long, b) = made
    agreed = schedules.agreement(name, final, short, long)
    assert a[:agreed].tobytes() == b[:agreed].tobytes()
