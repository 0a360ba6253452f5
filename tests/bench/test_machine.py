"""The limits do the work they say they do."""

import jax
import jax.numpy as jnp
import pytest

from lm.bench import machine
from lm.bench.rounds import Contestant, Spread, Timing, compare


def test_the_fastest_of_a_kind_is_the_limit():
    limits = [machine.Limit(Contestant(name, print), amount) for name, amount in (("a", 10.0), ("b", 40.0))]
    timing = lambda name, seconds: Timing(name, Spread(seconds, seconds, seconds), Spread(1, 1, 1), 1)  # noqa: E731
    assert machine.fastest(limits, [timing("b", 8.0), timing("c", 0.1), timing("a", 1.0)]) == 10.0


@pytest.mark.parametrize("read", [machine._matvec, machine._distance])
def test_what_is_read_depends_on_every_number_and_on_the_last_pass(read):
    """So the compiler can leave out no pass and hoist none."""
    gradient_RW, gradient_W = jax.jacobian(lambda w_RW, v_W: 1e9 * read(w_RW, v_W)[0], argnums=(0, 1))(
        jnp.arange(8.0).reshape(2, 4), jnp.full(4, -1.0)
    )
    used = gradient_RW != 0
    assert used.all() if read is machine._distance else used.any(0).all()  # the largest product is the last row's
    assert (gradient_W != 0).all()


@pytest.mark.parametrize("read", [machine._matvec, machine._distance])
def test_every_pass_over_memory_is_made(read):
    w_RW = jnp.ones((2048, 2048))
    one, many = (machine._reader(str(passes), read, w_RW, passes) for passes in (1, 64))
    _, timing = compare([one, many], 0.05, 3)
    assert timing.ratio.median > 6


def test_a_call_reads_as_many_bytes_as_it_says(monkeypatch):
    made = []
    monkeypatch.setattr(machine, "_reader", lambda name, read, w_RW, passes: made.append(passes * w_RW.nbytes))
    for size in (1, 3e6, 3e8):
        limits = machine.read_limits(size)
        assert [limit.amount for limit in limits] == made[-2:]
        assert made[-1] >= max(0.99 * size, machine.PASSES_BYTES / 2)


def test_all_limits_run():
    limits = [*machine.matmul_limits("float32"), *machine.read_limits(1e5), machine.copy_limit()]
    timings = compare([limit.contestant for limit in limits], 0.01, 1)
    assert len({timing.name for timing in timings}) == len(limits) == 5
    assert all(1e6 < limit.amount / timing.seconds.median < 1e15 for limit, timing in zip(limits, timings, strict=True))
