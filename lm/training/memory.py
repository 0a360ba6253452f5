"""What a training needs of the device's memory, counted before anything is allocated, and whether it is there."""

import dataclasses
import math

import jax

from lm import hardware
from lm.config import Experiment
from lm.errors import require
from lm.model.transformer import compute_dtype
from lm.training.step import init_state


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. Parameters and optimizer are exact, the others the least that a step can do with."""

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    """What the backward pass reads of the forward pass, and the logits."""

    @property
    def total(self) -> int:
        return self.parameters + self.optimizer + self.gradients + self.activations


def estimate(e: Experiment, runs: int = 1) -> Memory:
    """The memory of an experiment of known vocabulary, or of so many side by side. Any size is counted at once.

    Only the states of runs side by side count each: some ways of training them make one step after another.
    """
    state = jax.eval_shape(lambda: init_state(e))
    itemsize = compute_dtype(e.model).itemsize
    parameters, optimizer = tree_bytes(state.params), tree_bytes(state.optimizer)
    gradients = parameters // 4 * itemsize
    return Memory(runs * parameters, runs * optimizer, gradients, _activations(e, itemsize))


def _activations(e: Experiment, itemsize: int) -> int:
    """Of one pass. A block keeps its input, queries, keys, values, what attention found and the hidden layer; under
    remat its input alone."""
    c = e.model
    tokens = e.batch_tokens // e.train.accumulation
    block = c.width if c.remat else c.width + 2 * (c.heads + c.K) * c.H + c.F
    logits = min(tokens, e.train.loss_chunk or tokens) * c.V
    return c.layers * tokens * block * itemsize + 4 * logits


def require_memory(e: Experiment, runs: int = 1) -> None:
    """Raise UserError, before anything is allocated, for an experiment that this device's memory cannot hold."""
    need, there = estimate(e, runs), hardware.memory()
    require(there is None or need.total <= there, too_large(need, there, runs))


def require_plan(compiled: jax.stages.Compiled) -> None:
    """Raise UserError, before its first call, for a program whose temporaries, as XLA plans them, do not fit beside
    the state that is there already."""
    plan, there = compiled.memory_analysis(), hardware.memory()
    need = plan.temp_size_in_bytes if plan else 0
    require(
        there is None or need <= there,
        f"the compiled step needs {readable(need)} of memory beside its state, there are {readable(there or 0)} "
        f"left here; {WAY_OUT}",
    )


WAY_OUT = "lower the model's sizes or train.batch, or raise train.accumulation"


def too_large(need: Memory, there: int | None, runs: int = 1) -> str:
    """What is needed, of what there is."""
    what = f"{runs} runs side by side need" if runs > 1 else "training needs"
    parts = ", ".join(f"{f.name} {readable(getattr(need, f.name))}" for f in dataclasses.fields(need))
    total, left = readable(need.total), readable(there or 0)
    return f"{what} at least {total} of memory ({parts}), there are {left} here; {WAY_OUT}"


def tree_bytes(tree) -> int:
    """Of a tree of arrays or of their shapes, in Python's integers, which no size overflows."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def readable(count: int) -> str:
    """Bytes in the unit that fits: 26.8 TB."""
    for unit, size in (("MB", 1e6), ("GB", 1e9), ("TB", 1e12)):
        if count < 1000 * size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e12:.3g} TB"
