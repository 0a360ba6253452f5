"""The schedule of context: windows that begin short and double until they are whole (Press et al. 2021, section 4).

A step predicts the same tokens in every stage. The data layer gives rows [B, T+1] as ever, and `cut` makes k rows of
T/k + 1 tokens of each: the order of the data, epochs and resuming know nothing of it. Each length of windows has a
program and a cost of its own. Evaluation reads whole windows throughout.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from lm import parallel
from lm.config import Experiment, ModelBase, Steps
from lm.model.api import build


@dataclasses.dataclass(frozen=True)
class Stage:
    """The steps from `begin` up to `end`, which read windows of `context` tokens: whole ones in so many pieces."""

    begin: int
    end: int
    context: int
    pieces: int


def stages(e: Experiment, steps: Steps) -> tuple[Stage, ...]:
    """Returns a run's stages in order; each has a step or more, and the last ends with the run."""
    T = e.model.context
    doublings = (T // (e.schedule.context_start or T)).bit_length() - 1
    ends = [*(steps.growth * made // doublings for made in range(1, doublings + 1)), steps.total]
    begins = [0, *ends[:-1]]
    return tuple(
        Stage(begin, end, T >> left, 1 << left)
        for begin, end, left in zip(begins, ends, range(doublings, -1, -1), strict=True)
        if begin < end
    )


def stage_at(found: tuple[Stage, ...], step: int) -> Stage:
    """Returns the stage that a step (from 0) is in."""
    return next(stage for stage in found if step < stage.end)


def agreement(e: Experiment, one: Steps, other: Steps) -> int:
    """Counts the steps, from the first on, whose windows are as long in two lengths of a run; at most the shorter's."""
    both, shorter = (stages(e, one), stages(e, other)), min(one.total, other.total)
    changes = sorted({stage.begin for found in both for stage in found if stage.begin < shorter})
    return next((step for step in changes if len({stage_at(found, step).pieces for found in both}) > 1), shorter)


def cut(tokens_BU: jax.Array, pieces: int) -> jax.Array:
    """Cuts windows [B, T+1] into pieces: [B k, T/k + 1], those of a window one after another, which overlap in one
    token, the last target of one being the first input of the next. On a mesh each device keeps its rows."""
    if pieces == 1:
        return tokens_BU
    T = tokens_BU.shape[1] - 1
    inputs_BT = tokens_BU[:, :-1].reshape(-1, T // pieces)
    last_B1 = tokens_BU[:, T // pieces :: T // pieces].reshape(-1, 1)
    return parallel.rows(jnp.concatenate([inputs_BT, last_B1], axis=1))


@functools.cache
def flops_per_token(model: ModelBase, context: int) -> float:
    """Returns the exact FLOPs of training on one token, the mean over windows of this length."""
    return build(model).cost(context).training_flops


def training_flops(e: Experiment, steps: Steps, step: int) -> float:
    """Returns the exact FLOPs of a run's steps before `step`, those of each stage by its own context."""
    made = {stage: min(step, stage.end) - stage.begin for stage in stages(e, steps) if stage.begin < step}
    return sum((n * e.batch_tokens * flops_per_token(e.model, stage.context) for stage, n in made.items()), 0.0)
