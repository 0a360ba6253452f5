"""What a step costs each device of a mesh that need not be here: memory, and the bytes that devices exchange.

By formula. What the state holds is exact; XLA may add copies of its own to the rest, and cuts some of the activations
over "model", which are counted whole here.
"""

import dataclasses

import jax
from jax.sharding import AbstractMesh

from lm import parallel
from lm.config import ONE_DEVICE, Experiment
from lm.model.api import build
from lm.training.memory import Memory, estimate, tree_bytes
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
    whole, state, c = estimate(alone), abstract_state(alone), build(e.model)
    mesh = AbstractMesh((data, model), ("data", "model"))

    def held(tree, fsdp: bool) -> int:
        """Bytes of a tree that one device holds."""
        return tree_bytes(parallel.on_mesh(tree, parallel.shardings(mesh, c, tree, fsdp=fsdp)))

    own, at_use = held(state.params, e.parallel.fsdp), held(state.params, fsdp=False)
    memory = Memory(
        parameters=own,
        optimizer=held(state.optimizer, e.parallel.fsdp),
        gradients=round(whole.gradients * own / whole.parameters),
        activations=whole.activations // data,
    )
    sent, others = {}, (data - 1) / data
    if data > 1 and not e.parallel.fsdp:
        sent["gradients"] = round(RING * others * at_use)
    if data > 1 and e.parallel.fsdp:
        sent["parameters, gathered forward and backward"] = round(2 * others * at_use * e.train.accumulation)
        sent["gradients"] = round(others * at_use * e.train.accumulation)
    if model > 1:  # each half of a block adds up once forward and once backward
        stream = e.batch_tokens // data * e.model.width * c.dtype.itemsize
        sent["activations"] = round(4 * e.model.layers * RING * (model - 1) / model * stream)
    return Share(memory, sent)


def sizes(e: Experiment) -> tuple[int, int]:
    """Returns data x model of an experiment's mesh, be there as many devices here or not."""
    return e.parallel.data or max(1, jax.device_count() // e.parallel.model), e.parallel.model
