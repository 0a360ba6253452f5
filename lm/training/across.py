"""What a step costs each device of a mesh that need not be here: memory, and the bytes that devices exchange.

By formula, of the least that the plan needs; XLA may add copies of its own.
"""

import dataclasses
import math

import jax

from lm import parallel
from lm.config import ONE_DEVICE, Experiment
from lm.model.api import build
from lm.training.memory import Memory, estimate
from lm.training.step import abstract_state

RING = 2
"""Times that a ring sends an array to add it up on all devices: once to add, once to hand the sums around."""


@dataclasses.dataclass(frozen=True)
class Share:
    """One device's part of a step: bytes of memory, and bytes that it sends."""

    memory: Memory
    sent: dict[str, int]
    """Bytes a step, by what is exchanged."""


def share(e: Experiment, data: int, model: int) -> Share:
    """Returns a device's part of a step on a mesh of data x model devices. Allocates nothing."""
    alone = dataclasses.replace(e, parallel=ONE_DEVICE)
    whole, state = estimate(alone), abstract_state(alone)
    sizes = {"data": data, "model": model}
    c, itemsize = build(e.model), build(e.model).dtype.itemsize

    def held(fsdp: bool) -> int:
        """Bytes of the parameters that one device holds."""
        total = 0
        for leaf, axes in c.with_axes(state.params):
            names = parallel.spec(axes, leaf.shape, sizes, c.config.pieces, fsdp)
            total += leaf.dtype.itemsize * math.prod(leaf.shape) // math.prod(sizes[name] for name in names if name)
        return total

    own, at_use = held(e.parallel.fsdp), held(False)
    fraction = own / whole.parameters
    memory = Memory(
        parameters=own,
        optimizer=round(whole.optimizer * fraction),
        gradients=round(whole.gradients * fraction),
        activations=whole.activations // data,
    )
    sent, others = {}, (data - 1) / data
    if data > 1 and not e.parallel.fsdp:
        sent["gradients"] = round(RING * others * at_use)
    if data > 1 and e.parallel.fsdp:
        sent["parameters, gathered forward and backward"] = round(2 * others * at_use * e.train.accumulation)
        sent["gradients"] = round(others * at_use * e.train.accumulation)
    if model > 1:  # each half of a block adds up once forward and once backward
        stream = e.batch_tokens // data * e.model.width * itemsize
        sent["activations"] = round(4 * e.model.layers * RING * (model - 1) / model * stream)
    return Share(memory, sent)


def sizes(e: Experiment) -> tuple[int, int]:
    """Returns data x model of an experiment's mesh, be there as many devices here or not."""
    return e.parallel.data or max(1, jax.device_count() // e.parallel.model), e.parallel.model
