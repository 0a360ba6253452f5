"""May a run be taken up again, and from which of its checkpoints?

A run that goes on must come out as if it had been made at once. Of its settings that is seen to by their comparison; of
its length by that of the learning rates: a longer run warms up and decays elsewhere, so it may go on only from a step
up to which both lengths had the same rates.
"""

from collections.abc import Callable
from typing import Any

from lm.config import Experiment, Steps
from lm.errors import UserError
from lm.run import Run, differences, refuse_differences
from lm.training.schedules import agreement


def stable_end(e: Experiment, steps: Steps) -> int | None:
    """The step at which wsd begins to decay, from which alone a run of another length can go on; its checkpoint is
    always kept. None where there is no such step."""
    begins = steps.total - steps.decay
    return begins if e.schedule.name == "wsd" and 0 < begins < steps.total else None


def resume_step(run: Run, experiment: Experiment, hashes: dict[str, str], steps: Steps) -> int:
    """The checkpoint of a run, which has some or none (0), that this experiment goes on from.

    Raises UserError, having changed nothing, where what was learnt so far is not what the experiment would have.
    """
    refuse_differences(run, experiment, hashes, steps.total)
    kept, old = run.steps(), Steps(**run.record["steps"])
    if not kept or old.total == steps.total:
        return max(kept, default=0)
    schedule = experiment.schedule
    agreed = agreement(schedule.name, schedule.final, old, steps)
    if not (early := [step for step in kept if step <= agreed]):
        raise UserError(
            f"{run.path}: {steps.total} steps instead of {old.total} change the learning rate from step {agreed} on"
            f"{_why(experiment, old, steps)}, and its checkpoints ({', '.join(map(str, kept))}) are later: choose "
            "another --name for the longer run"
        )
    if not (same := [step for step in early if _sums_agree(step, old.log_every, steps.log_every)]):
        raise UserError(
            f"{run.path}: at checkpoint {early[-1]} losses have been summed since another step than with "
            f"train.log_every {steps.log_every}: give --train.log-every {old.log_every}, or choose another --name"
        )
    return same[-1]


def _why(e: Experiment, old: Steps, new: Steps) -> str:
    """Which settings move with the length."""
    moved = []
    for name in ("warmup", "decay") if e.schedule.name == "wsd" else ("warmup",):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            moved.append(f"schedule.{name} {getattr(e.schedule, name)} is {after} steps, was {before}")
    if e.schedule.name in ("cosine", "linear"):
        moved.append(f"{e.schedule.name} falls over the whole length")
    return f" ({'; '.join(moved)})" if moved else ""


def _sums_agree(step: int, old: int, new: int) -> bool:
    """Whether the state saved at a step holds sums that a run with the new interval between log points would hold, or
    that its next step drops."""
    begun = (max(step - 1, 0) // old * old, max(step - 1, 0) // new * new)
    return step % new == 0 or begun[0] == begun[1]


def take_up(run: Run, experiment: Experiment, hashes: dict[str, str], steps: Steps, say: Callable[[str], Any]) -> None:
    """Put a run that is there into the state from which this experiment goes on, or refuse as `resume_step` does."""
    step, kept = resume_step(run, experiment, hashes, steps), run.steps()
    if kept and step < kept[-1]:
        total = run.record["steps"]["total"]
        say(
            f"{run.path}: {steps.total} steps instead of {total} change what comes after step {step}: going back there "
            f"from step {kept[-1]}"
        )
        run.go_back(step)
    elif not kept and (changed := differences(run, experiment, hashes)):
        say(f"{run.path} has no checkpoint yet: begun anew with {'; '.join(changed)}")
