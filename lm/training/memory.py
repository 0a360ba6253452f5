"""The memory that a training needs, counted before anything is allocated, and whether the device has it."""

import dataclasses
import math

import jax

from lm import hardware, parallel
from lm.config import ONE_DEVICE, Experiment
from lm.errors import require
from lm.model.api import build
from lm.training.step import abstract_state, frozen_shapes


@dataclasses.dataclass(frozen=True)
class Memory:
    """Counts bytes on one device. Parameters and optimizer are exact, the others the least a step can do with."""

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    """What the backward pass reads of the forward pass, and the logits."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.optimizer + self.gradients + self.activations


def estimate(e: Experiment, runs: int = 1) -> Memory:
    """Returns the memory that an experiment of known vocabulary needs, or so many side by side. Allocates nothing.

    Of runs side by side only the states count each: some ways of training them make one step after another.
    """
    if runs > 1:  # whole runs lie on each device
        mesh = parallel.mesh_of_runs(runs, e.parallel.data)
        e, runs = dataclasses.replace(e, parallel=ONE_DEVICE), runs // (1 if mesh is None else mesh.size)
    state = abstract_state(e)
    itemsize = build(e.model).dtype.itemsize
    parameters, frozen = tree_bytes(state.params), tree_bytes(frozen_shapes(e))
    return Memory(
        parameters=runs * parameters + frozen,
        optimizer=runs * tree_bytes(state.optimizer),
        gradients=parameters // 4 * itemsize,
        activations=_activations(e, itemsize),
    )


def _activations(e: Experiment, itemsize: int) -> int:
    """Returns the bytes that one pass keeps for the backward pass, and its logits."""
    mesh = parallel.mesh_of(e.parallel)
    tokens = e.batch_tokens // e.train.accumulation // (1 if mesh is None else mesh.shape["data"])
    logits = min(tokens, e.train.loss_chunk or tokens) * e.model.V
    return tokens * build(e.model).cost().kept * itemsize + 4 * logits


WAY_OUT = "lower the model's sizes or train.batch, or raise train.accumulation"


def require_memory(e: Experiment, runs: int = 1) -> None:
    """Raises UserError, before anything is allocated, for an experiment that this device's memory cannot hold."""
    need, there = estimate(e, runs), hardware.memory()
    what = f"{runs} runs side by side need" if runs > 1 else "training needs"
    kinds = ", ".join(f"{name} {readable(count)}" for name, count in dataclasses.asdict(need).items())
    require(
        there is None or need.total <= there,
        f"{what} at least {readable(need.total)} of memory ({kinds}), there are {readable(there or 0)} here; {WAY_OUT}",
    )


def require_plan(compiled: jax.stages.Compiled) -> None:
    """Raises UserError, before its first call, for a program whose temporaries, as XLA plans them, do not fit beside
    the state that is there already."""
    plan, there = compiled.memory_analysis(), hardware.memory()
    need = plan.temp_size_in_bytes if plan else 0
    require(
        there is None or need <= there,
        f"the compiled step needs {readable(need)} of memory beside its state, there are {readable(there or 0)} "
        f"left here; {WAY_OUT}",
    )


def tree_bytes(tree) -> int:
    """Returns the bytes of a tree of arrays or of their shapes, in Python's integers, which no size overflows: what one
    device holds of those that lie on a mesh."""

    def share(leaf) -> tuple[int, ...]:
        sharding = getattr(leaf, "sharding", None)
        return leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)

    return sum(math.prod(share(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def readable(count: int) -> str:
    """Writes bytes in the unit that fits: 26.8 TB."""
    for unit, size in (("MB", 1e6), ("GB", 1e9), ("TB", 1e12)):
        if count < 1000 * size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e12:.3g} TB"
