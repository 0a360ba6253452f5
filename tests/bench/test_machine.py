"""The limits do the work they say they do."""

import jax.numpy as jnp
import pytest

from lm.bench import machine
from lm.bench.rounds import Contestant, Spread, Timing, compare


def test_the_fastest_of_a_kind_is_the_limit():
    limits = [machine.Limit(Contestant(name, print), amount) for name, amount in (("a", 10.0), ("b", 40.0))]
    timing = lambda name, seconds: Timing(name, Spread(seconds, seconds, seconds), Spread(1, 1, 1), 1)  # noqa: E731
    assert machine.fastest(limits, [timing("b", 8.0), timing("c", 0.1), timing("a", 1.0)]) == 10.0


def test_every_pass_over_memory_is_made():
    """What a reader computes depends on each number and each pass, so the compiler can leave out neither."""
    w_RW = jnp.arange(2048.0).reshape(2, 1024)
    assert float(machine._sum(w_RW, 0, jnp.float32(0))) == pytest.approx(2047 * 1024 * 1e-9)
    for read in (machine._sum, machine._matvec):
        assert float(read(w_RW, 0, jnp.float32(1e9))) > float(read(w_RW, 0, jnp.float32(0)))


def test_twice_the_bytes_take_longer():
    """Which they would not if the loop were hoisted."""
    small, large = (machine.read_limits(size)[1] for size in (1 << 20, 1 << 25))
    assert small.amount == 1 << 20 and large.amount == 1 << 25
    _, timing = compare([small.contestant, large.contestant], 0.05, 3)
    assert timing.ratio.median > 8


def test_all_limits_run():
    limits = [*machine.matmul_limits("float32"), *machine.read_limits(1e5), machine.copy_limit()]
    timings = compare([limit.contestant for limit in limits], 0.01, 1)
    assert len({timing.name for timing in timings}) == len(limits) == 5
    assert all(1e6 < limit.amount / timing.seconds.median < 1e15 for limit, timing in zip(limits, timings, strict=True))
