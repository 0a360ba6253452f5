"""Packs: P runs that differ in seed and traced numbers, trained side by side.

Ways to do it, `how`:
  vmap     one program makes each step of all runs at once: for accelerators, which tiny runs leave idle
  map      one program makes all steps of a dispatch for one run, then for the next
  threads  as many threads as cores call the program of a run alone, each for one run after another: JAX lets Python's
           lock go, and small matrices keep a core busier apart than together. The bits are those of a run alone
  auto     vmap on accelerators, threads on a CPU
A pack of one is a run alone, whatever the way.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Experiment
from lm.errors import require
from lm.training.memory import require_plan
from lm.training.step import TrainState, batch_at, make_train_steps, many_steps, no_metrics, train_step

WAYS = ("vmap", "map", "threads")


def resolve(how: str) -> str:
    """The way that "auto" stands for here; others as they are. Raises UserError for a way there is not."""
    require(how in ("auto", *WAYS), f"how {how!r}: one of auto, {', '.join(WAYS)}")
    if how != "auto":
        return how
    return "threads" if jax.default_backend() == "cpu" else "vmap"


def make_pack(
    states: Sequence[TrainState],
    hypers: Sequence[dict],
    e: Experiment,
    eot: int | None,
    *,
    resident: bool,
    how: str = "auto",
) -> "Apart | Together":
    """P states, and the way to train them. e: any of the runs; what a pack may differ in is traced."""
    way = resolve(how)
    if way == "threads" or len(states) == 1:
        return Apart(states, hypers, make_train_steps(e, eot, resident=resident))
    steps = (_vmap if way == "vmap" else _map)(e, eot, resident)
    return Together(states, hypers, jax.jit(steps, donate_argnums=0))


class Apart:
    """A state a run, and the program of a run alone."""

    def __init__(self, states: Sequence[TrainState], hypers: Sequence[dict], train_steps):
        self.states, self.hypers = list(states), hypers
        self.train_steps, self.compiled = train_steps, None
        self.threads = ThreadPoolExecutor(min(len(states), os.cpu_count() or 1))

    def state(self, p: int) -> TrainState:
        """The state of run p, until the next advance overwrites it."""
        return self.states[p]

    def compile(self, tokens, windows: Sequence, counts: Sequence[int]) -> None:
        """Before the threads begin: each could compile, without this thread's jax.config."""
        example = self.states[0], self.hypers[0], tokens, windows[0], np.int32(counts[0])
        self.compiled = self.train_steps.lower(*example).compile()
        require_plan(self.compiled)

    def advance(self, tokens, windows: Sequence, counts: Sequence[int]) -> list[dict]:
        """Make counts[p] steps of run p over windows[p]; 0 for a run that is done for. Returns each run's report.

        A run that is not healthy stops, and disturbs no other.
        """
        if not self.compiled:
            self.compile(tokens, windows, counts)

        def alone(p: int) -> dict:
            given = self.hypers[p], tokens, windows[p], np.int32(counts[p])
            self.states[p], report = self.compiled(self.states[p], *given)
            return jax.device_get(report)

        if len(self.states) == 1:
            return [alone(0)]
        return list(self.threads.map(alone, range(len(self.states))))


class Together:
    """All states as one with a leading axis P, and one program for them. Otherwise as Apart."""

    def __init__(self, states: Sequence[TrainState], hypers: Sequence[dict], pack_steps):
        self.all, self.hypers, self.pack_steps, self.compiled = _stack(states), _stack(hypers), pack_steps, None

    def state(self, p: int) -> TrainState:
        return _take(self.all, p)

    def compile(self, tokens, windows: Sequence, counts: Sequence[int]) -> None:
        example = self.all, self.hypers, tokens, np.stack(windows), np.array(counts, np.int32)
        self.compiled = self.pack_steps.lower(*example).compile()
        require_plan(self.compiled)

    def advance(self, tokens, windows: Sequence, counts: Sequence[int]) -> list[dict]:
        if not self.compiled:
            self.compile(tokens, windows, counts)
        self.all, report = self.compiled(self.all, self.hypers, tokens, np.stack(windows), np.array(counts, np.int32))
        report = jax.device_get(report)
        return [jax.tree.map(itemgetter(p), report) for p in range(len(counts))]


def _stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def _take(tree, p):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, p, keepdims=False), tree)


# --- programs: many_steps, all arguments but tokens and all results with a leading axis P ----------------------------
def _map(e: Experiment, eot: int | None, resident: bool):
    train_steps = many_steps(e, eot, resident=resident)

    def pack_steps(state, hyper, tokens, windows, n):
        alone = lambda run: train_steps(run[0], run[1], tokens, *run[2:])  # noqa: E731
        return jax.lax.map(alone, (state, hyper, windows, n))

    return pack_steps


def _vmap(e: Experiment, eot: int | None, resident: bool):
    """A run that stopped early is computed on beside the others, to no effect: what it reports stays."""

    def step(i, state, hyper, tokens, windows):
        batch = batch_at(i, windows, tokens, e, resident=resident)
        state, metrics = train_step(state, batch, hyper, e, eot)
        return state, metrics | {"step": state.step, "sums": state.sums}

    all_step = jax.vmap(step, in_axes=(None, 0, 0, None, 0))

    def pack_steps(state, hyper, tokens, windows, n):
        def going_on(i, report):
            return (i < n) & report["healthy"]

        def one(carry):
            i, state, report = carry
            state, new = all_step(i, state, hyper, tokens, windows)
            report = jax.tree.map(lambda a, b: jnp.where(going_on(i, report), a, b), new, report)
            return i + 1, state, report

        nothing = jax.tree.map(lambda x: jnp.broadcast_to(x, n.shape), no_metrics())
        carry = jnp.int32(0), state, nothing | {"step": state.step, "sums": state.sums}
        _, state, report = jax.lax.while_loop(lambda c: going_on(c[0], c[2]).any(), one, carry)
        return state, report

    return pack_steps
