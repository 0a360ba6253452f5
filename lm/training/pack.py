"""Packs: runs that differ in seed and traced numbers, trained side by side in one compiled program over axis P.

Ways to do it, `how`:
  vmap    every step of all runs at once: for accelerators, which tiny runs leave idle
  map     all steps of a dispatch for one run, then for the next, so that a run's state stays in the processor's cache;
          the same arithmetic as a run alone, bit for bit on a CPU
  groups  two maps over half of the runs each, in one program, independent of each other
  auto    vmap on accelerators, map on a CPU
A pack of one is a run alone: its program has no axis P.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Experiment
from lm.errors import require
from lm.training.step import batch_at, make_train_steps, many_steps, no_metrics, train_step


def resolve(how: str) -> str:
    """The way that "auto" stands for here; others as they are. Raises UserError for a way there is not."""
    require(how in ("auto", *WAYS), f"how {how!r}: one of auto, {', '.join(WAYS)}")
    if how != "auto":
        return how
    return "map" if jax.default_backend() == "cpu" else "vmap"


def make_pack_steps(e: Experiment, eot: int | None, *, resident: bool, runs: int, how: str = "auto"):
    """Compile once: make_train_steps for P runs: all arguments but tokens, and all results, have a leading axis P.

    n [P]: steps to make, 0 for a run that is done for. One that is not healthy stops, and disturbs no other.
    e: any of the runs; what a pack may differ in is traced. runs: P; of one, make_train_steps itself.
    """
    if runs == 1:
        return make_train_steps(e, eot, resident=resident)
    return jax.jit(WAYS[resolve(how)](e, eot, resident), donate_argnums=0)


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


def _map(e: Experiment, eot: int | None, resident: bool):
    train_steps = many_steps(e, eot, resident=resident)

    def pack_steps(state, hyper, tokens, windows, n):
        alone = lambda run: train_steps(run[0], run[1], tokens, *run[2:])  # noqa: E731
        return jax.lax.map(alone, (state, hyper, windows, n))

    return pack_steps


def _groups(e: Experiment, eot: int | None, resident: bool):
    in_turn = _map(e, eot, resident)

    def pack_steps(state, hyper, tokens, windows, n):
        half = n.shape[0] // 2
        halves = [jax.tree.map(itemgetter(of), (state, hyper, windows, n)) for of in (np.s_[:half], np.s_[half:])]
        made = [in_turn(state, hyper, tokens, windows, n) for state, hyper, windows, n in halves]
        return jax.tree.map(lambda *of: jnp.concatenate(of), *made)

    return pack_steps


WAYS: dict[str, Callable] = {"vmap": _vmap, "map": _map, "groups": _groups}


# --- axis P of a tree ------------------------------------------------------------------------------------------------
def stack(trees: Sequence[Any]) -> Any:
    """P trees as one with a leading axis P; one tree as it is."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any, p: int, runs: int) -> Any:
    """The tree of run p: what `stack` was given."""
    return tree if runs == 1 else _take(tree, p)


@jax.jit
def _take(tree, p):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, p, keepdims=False), tree)
