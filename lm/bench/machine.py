"""What this machine can do, measured beside what it is the limit of: matrix products, reading and copying memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm.bench.rounds import Contestant, Timing
from lm.hardware import matmul_program

LARGE = 256 << 20
"""Bytes that are copied: more than any cache holds."""
CPU_SIZES, ACCELERATOR_SIZES = (512, 1024, 2048), (4096, 8192, 16384)
"""Of the matrix products."""
SMALL, PASSES_BYTES = 1 << 20, 1 << 28
"""Bytes that are read, at least; and in one call of the program, in as many passes as that takes."""
SHARE = 0.3
"""Length of a limit's turns: it needs no more to be steady."""


@dataclass(frozen=True)
class Limit:
    """A contestant whose unit of work is `amount` of something the machine can do only so fast."""

    contestant: Contestant
    amount: float


def matmul_limits(dtype: str) -> list[Limit]:
    """Square matrix products; amounts in FLOPs. The fastest size is the limit."""
    on_cpu = jax.default_backend() == "cpu"
    return [_matmul(dtype, size) for size in (CPU_SIZES if on_cpu else ACCELERATOR_SIZES)]


def read_limits(read_bytes: float) -> list[Limit]:
    """Reading `read_bytes` over and over, by a matrix-vector product and by a mean distance; amounts in bytes.

    How fast memory can be read depends on how much of it: a small model stays in the processor's cache.
    """
    width = 1024
    rows = max(2, round(max(read_bytes, SMALL) / 4 / width))
    w_RW = jnp.ones((rows, width), jnp.float32)
    passes = max(1, round(PASSES_BYTES / w_RW.nbytes))
    ways = {"reading: matrix-vector product": _matvec, "reading: distance": _distance}
    return [Limit(_reader(name, read, w_RW, passes), float(passes * w_RW.nbytes)) for name, read in ways.items()]


def copy_limit() -> Limit:
    """Reading and writing LARGE bytes, by adding to them in place; amount in bytes, both ways counted."""
    x = jnp.zeros(LARGE // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = [add(x)]

    def run(n: int) -> None:
        for _ in range(n):
            state[0] = add(state[0])
        state[0].block_until_ready()

    run(1)
    return Limit(Contestant("copying", run, SHARE), 2.0 * LARGE)


def fastest(limits: Sequence[Limit], timings: Sequence[Timing]) -> float:
    """The largest rate a second among limits of one kind, by the median of each."""
    seconds = {timing.name: timing.seconds.median for timing in timings}
    return max(limit.amount / seconds[limit.contestant.name] for limit in limits)


def peak_memory() -> int | None:
    """Most bytes the accelerator has held in this process; None on CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _matmul(dtype: str, size: int) -> Limit:
    # Random, for a GPU is faster on constants; and so large that many products neither overflow nor vanish.
    a = jax.random.normal(jax.random.key(0), (size, size), dtype) * jnp.asarray(0.98 * size**-0.5, dtype)
    product = matmul_program(dtype)

    def run(n: int) -> None:
        x = a
        for _ in range(n):
            x = product(x, a)
        x.block_until_ready()

    run(1)
    return Limit(Contestant(f"{dtype} matrix product, {size}", run, SHARE), 2.0 * size**3)


def _reader(name: str, read, w_RW: jax.Array, passes: int) -> Contestant:
    """Calls of a program of `passes` passes over w_RW; each needs the last one's result, so none can be left out.

    The number of passes is compiled in: a GPU would ask the host after each whether to go on.
    """
    program = jax.jit(lambda w_RW, v_W: jax.lax.fori_loop(0, passes, lambda _, v_W: read(w_RW, v_W), v_W))

    def run(n: int) -> None:
        v_W = jnp.zeros(w_RW.shape[1], w_RW.dtype)
        for _ in range(n):
            v_W = program(w_RW, v_W)
        v_W.block_until_ready()

    run(1)
    return Contestant(name, run, SHARE)


def _matvec(w_RW, v_W):
    return v_W + 1e-9 * (1 + jnp.max(w_RW @ v_W))


def _distance(w_RW, v_W):
    return v_W + 1e-9 * jnp.mean(jnp.abs(w_RW - v_W))
