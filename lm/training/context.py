"""The schedule of context: windows that begin short and double until they are whole (Press et al. 2021, section 4).

A step predicts as many tokens in every stage. Short windows are pieces of whole ones: k steps read what they would have
read whole, a piece of each window in each, so that a batch comes from k times as many places (lm/data/batches.py). Each
length of windows has a program and a cost of its own. Evaluation reads whole windows throughout.
"""

import dataclasses
import functools

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
    """Returns a run's stages in order; each has a step or more, and the last ends with the run.

    A stage of k pieces ends at a multiple of k steps, when all pieces of its windows have been read.
    """
    T = e.model.context
    doublings = (T // (e.schedule.context_start or T)).bit_length() - 1
    pieces = [1 << left for left in range(doublings, -1, -1)]
    ends = [steps.growth * made // doublings // k * k for made, k in enumerate(pieces[:-1], 1)] + [steps.total]
    begins = [0, *ends[:-1]]
    found = (Stage(begin, end, T // k, k) for begin, end, k in zip(begins, ends, pieces, strict=True))
    return tuple(stage for stage in found if stage.begin < stage.end)


def stage_at(found: tuple[Stage, ...], step: int) -> Stage:
    """Returns the stage that a step (from 0) is in."""
    return next(stage for stage in found if step < stage.end)


def agreement(e: Experiment, one: Steps, other: Steps) -> int:
    """Counts the steps, from the first on, whose windows are as long in two lengths of a run; at most the shorter's."""
    both, shorter = (stages(e, one), stages(e, other)), min(one.total, other.total)
    changes = sorted({stage.begin for found in both for stage in found if stage.begin < shorter})
    return next((step for step in changes if len({stage_at(found, step).pieces for found in both}) > 1), shorter)


@functools.cache
def flops_per_token(model: ModelBase, context: int) -> float:
    """Returns the exact FLOPs of training on one token, the mean over windows of this length."""
    return build(model).cost(context).training_flops


def passes(e: Experiment) -> float:
    """Returns how many training passes over its rows a step makes, a pass forward alone being a third of one.

    Both answers of a preference are rows, and the reference reads them too. A policy reads its rows thrice when they
    are drawn (drawing, itself and the reference scoring), as if each filled the context, and in each update once more.
    """
    return {"preference": 2 * 4 / 3, "reward": 2.0, "policy": 4 / 3 + 1 / e.feedback.updates}.get(
        e.train.objective, 1.0
    )


def training_flops(e: Experiment, steps: Steps, step: int) -> float:
    """Returns the exact FLOPs of a run's steps before `step`, those of each stage by its own context."""
    made = {stage: min(step, stage.end) - stage.begin for stage in stages(e, steps) if stage.begin < step}
    tokens = passes(e) * e.batch_tokens
    return sum((n * tokens * flops_per_token(e.model, stage.context) for stage, n in made.items()), 0.0)
