"""Programs: many training steps, of one run or of P side by side, compiled once for all that they serve.

train_steps(state, hyper, store, windows, n) -> (state, report) makes n steps, for any n up to len(windows). n is
traced: however a run is cut into dispatches, the same program makes every step, bit for bit. It stops early at a step
that is not healthy.
  store     what is on the device as a whole: the tokens of a file, of which windows holds places [U, B] to gather at;
            or the columns of all examples, by the names in Batch, of which windows holds the rows [U, B]; or None:
            windows then holds the columns themselves, each with leading axes [U, B]
  report    step, loss, gradient_norm, healthy and rate of the last step, and the sums since the last log point
In k pieces (see lm/training/context.py), B and T stand for B k rows of T/k tokens.
Side by side all arguments but the store, and all results, have a leading axis P.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm import parallel
from lm.config import Experiment
from lm.model.loss import Batch
from lm.training.step import abstract_state, state_shardings, static, train_step


def make_train_steps(
    e: Experiment, eot: int | None, *, pieces: int = 1, way: str = "threads", mesh: Mesh | None = None
):
    """Returns train_steps, compiled when it is first called; the state it is given is overwritten.

    pieces: how many a window is read in. way: one of WAYS. mesh: the devices that the runs of a pack are spread over,
    if they are. Experiments that differ only in what is traced share one program, whose tracing and compiling JAX then
    does once a process: a sweep compiles each shape once.
    """
    return _jitted(static(e), eot if e.data.packing else None, pieces, way, mesh)


@functools.lru_cache(maxsize=32)
def _jitted(e: Experiment, eot: int | None, pieces: int, way: str, runs: Mesh | None):
    program = WAYS[way](e, eot, pieces)
    if runs is not None:
        whole, run = PartitionSpec(), PartitionSpec("data")
        each = jax.shard_map(program, mesh=runs, in_specs=(run, run, whole, run, run), out_specs=run, check_vma=False)
        return jax.jit(each, donate_argnums=0)
    mesh = parallel.mesh_of(e.parallel)
    if mesh is None:
        return jax.jit(program, donate_argnums=0)
    report = NamedSharding(mesh, PartitionSpec())
    return jax.jit(program, donate_argnums=0, out_shardings=(state_shardings(e, abstract_state(e)), report))


def batch_at(i, windows, store, T: int) -> Batch:
    """Returns batch i of the windows, of which the store, if there is one, says what they are; see above."""
    window = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), windows)
    if store is None:
        return _batch(window)
    if isinstance(store, dict):
        return _batch({name: column[window] for name, column in store.items()})
    places = window[:, None] + jnp.arange(T + 1, dtype=window.dtype)
    return _batch({"tokens_BU": store[places % store.shape[0]]})


def _batch(columns: dict) -> Batch:
    def widened(x):  # tokens and counts are stored in as few bytes as hold them
        return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.int32)

    return Batch(**{name: widened(x) for name, x in columns.items()})


def no_metrics() -> dict:
    """Returns what a step reports, before the first."""
    return {name: jnp.float32(0) for name in ("loss", "gradient_norm", "rate")} | {"healthy": jnp.bool_(True)}


def many_steps(e: Experiment, eot: int | None, pieces: int = 1):
    """Returns train_steps of one run."""

    def train_steps(state, hyper, store, windows, n):
        def go_on(carry):
            i, _, metrics = carry
            return (i < n) & metrics["healthy"]

        def one(carry):
            i, state, _ = carry
            batch = batch_at(i, windows, store, e.model.context // pieces)
            return i + 1, *train_step(state, batch, hyper, e, eot)

        _, state, metrics = jax.lax.while_loop(go_on, one, (jnp.int32(0), state, no_metrics()))
        return state, metrics | {"step": state.step, "sums": state.sums}

    return train_steps


def batched_steps(e: Experiment, eot: int | None, pieces: int = 1):
    """Returns train_steps of P runs at once. The state of a run that stopped early is computed further, to no effect:
    its report stays."""

    def step(i, state, hyper, store, windows):
        batch = batch_at(i, windows, store, e.model.context // pieces)
        state, metrics = train_step(state, batch, hyper, e, eot)
        return state, metrics | {"step": state.step, "sums": state.sums}

    all_step = jax.vmap(step, in_axes=(None, 0, 0, None, 0))

    def pack_steps(state, hyper, store, windows, n):
        def going_on(i, report):
            return (i < n) & report["healthy"]

        def one(carry):
            i, state, report = carry
            state, new = all_step(i, state, hyper, store, windows)
            report = jax.tree.map(lambda a, b: jnp.where(going_on(i, report), a, b), new, report)
            return i + 1, state, report

        nothing = jax.tree.map(lambda x: jnp.broadcast_to(x, n.shape), no_metrics())
        carry = jnp.int32(0), state, nothing | {"step": state.step, "sums": state.sums}
        _, state, report = jax.lax.while_loop(lambda c: going_on(c[0], c[2]).any(), one, carry)
        return state, report

    return pack_steps


WAYS = {"vmap": batched_steps, "threads": many_steps}
"""What trains a pack, by the way of doing it: see lm.training.pack."""
