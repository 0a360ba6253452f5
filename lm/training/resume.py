"""Run directories: made, or opened again where the run may be taken up, and from which of its checkpoints.

A run that goes on must come out as if it had been made at once. Its settings are compared for that, and where its
length changes, its learning rates and the length of its windows: a longer run warms up, decays and grows elsewhere, so
it may go on only from a step up to which both lengths had the same.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm import processes
from lm.config import Experiment, Steps
from lm.data.supply import open_batches
from lm.data.tokens import Prepared
from lm.errors import UserError, require
from lm.model.api import build
from lm.run import Run, differences, exists, open_run, refuse_differences
from lm.training import context, schedules
from lm.training.rewards import reward_digest
from lm.training.start import digest, others, recorded_digest, steps_taken

IN_SIGHT = 60.0
"""Seconds within which what one process has written must be there for another."""


def open_runs(
    experiments: Sequence[Experiment],
    data: Prepared,
    folder: Path,
    held: contextlib.ExitStack,
    say: Callable[[str], Any] = lambda _: None,
) -> list[Run]:
    """Makes every run's directory, or opens it again, and holds them as long as `held`.

    experiments: their vocabularies known. Those that are there already are looked at before any is changed, and are
    opened first, so that a refusal makes no other.
    """
    if not processes.lead():
        return [follow_run(e, folder) for e in experiments]
    runs = _open_runs(experiments, data, folder, held, say)
    for run in runs:
        processes.leads("run", run.steps)
    return runs


def require_own(e: Experiment, folder: Path) -> None:
    """Raises UserError where the experiment's run is one that others trained, and which has nothing to go on with."""
    path = folder / e.name
    imported = (path / "experiment.json").is_file() and Run(path).source
    require(
        not imported,
        f"{path} was imported, and there is nothing to resume: fine-tune it under another name, with lm train {path} "
        f"--name tuned --train.start {path} --data.corpus FILE",
    )


def follow_run(e: Experiment, folder: Path) -> Run:
    """Returns the run that process 0 has opened, once this one sees of it what that does: over a network, files of
    others may come into sight late. Raises UserError where they do not."""
    path, kept = folder / e.name, processes.leads("run", list)
    patience = time.monotonic() + IN_SIGHT
    while not exists(path) or Run(path).steps() != kept:
        require(
            time.monotonic() < patience,
            f"process {processes.number()} does not see {path} as process 0 does: runs must lie on a file system that "
            "all processes share",
        )
        time.sleep(0.2)
    return Run(path)


def _open_runs(experiments, data: Prepared, folder: Path, held: contextlib.ExitStack, say) -> list[Run]:
    described = [describe(e, data) for e in experiments]
    there = [(folder / e.name / "experiment.json").is_file() for e in experiments]
    digest_once = functools.cache(digest)  # a pack begins with one start
    hashes = [
        hashes_of(e, data, digest_once, Run(folder / e.name) if exists else None)
        for e, exists in zip(experiments, there, strict=True)
    ]
    for p, e in enumerate(experiments):
        if there[p]:
            resume_step(Run(folder / e.name), e, hashes[p], described[p][1])
    opened = {}
    for p in sorted(range(len(experiments)), key=lambda p: not there[p]):
        e, (facts, steps) = experiments[p], described[p]
        if taken := steps_taken(e, Run(folder / e.name) if there[p] else None):
            facts = facts | {"taken": taken}
        go_on = functools.partial(take_up, experiment=e, hashes=hashes[p], steps=steps, say=say)
        opened[p] = held.enter_context(open_run(e, hashes[p], data.tokenizer, facts, folder, go_on))
    return [opened[p] for p in range(len(experiments))]


def hashes_of(e: Experiment, data: Prepared, digest: Callable[..., str], run: Run | None) -> dict[str, str]:
    """Returns the digests of all that a run is made of. digest: of a start; run: what is there already, if anything."""
    hashes, steps = dict(data.hashes), steps_taken(e, run)
    for what, name in others(e).items():
        if what == "reward":
            hashes[what] = reward_digest(name, steps.get(what))
        else:
            known = recorded_digest(run, name) if what == "start" and e.optimizer.lora is None else None
            hashes[what] = known or digest(name, steps.get(what))
    return hashes


def describe(e: Experiment, data: Prepared) -> tuple[dict[str, Any], Steps]:
    """Returns what a run's directory records beside its settings and hashes, and the run's durations in steps."""
    if e.train.objective == "policy":  # every prompt answered once by a group
        epoch = data.train.documents * e.feedback.group * e.model.context
    else:
        epoch = open_batches(data.train, e.data, e.model, batch=e.train.batch, seed=e.train.seed).epoch_tokens
    model = build(e.model)
    total, nonembedding = model.parameter_count()
    steps = e.steps(epoch)
    facts = dict(
        documents=data.train.documents, train_tokens=data.train.count, epoch_tokens=epoch, params_total=total,
        params_nonembedding=nonembedding, flops_per_token=model.cost().training_flops, steps=dataclasses.asdict(steps),
    )  # fmt: skip
    return facts, steps


def stable_end(e: Experiment, steps: Steps) -> int | None:
    """Returns the step at which wsd begins to decay, from which alone a run of another length can go on, so that its
    checkpoint is always kept. None where there is no such step."""
    begins = steps.total - steps.decay
    return begins if e.schedule.name == "wsd" and 0 < begins < steps.total else None


def resume_step(run: Run, experiment: Experiment, hashes: dict[str, str], steps: Steps) -> int:
    """Returns the checkpoint that this experiment goes on from with a run; 0 where the run has none.

    Raises UserError, having changed nothing, where what was learnt so far is not what the experiment would have.
    """
    refuse_differences(run, experiment, hashes, steps.total)
    folder = run.checkpoint_folder
    require(folder.is_dir() or not folder.exists(), f"{folder} is no folder, where the checkpoints are: move it away")
    kept, old = run.steps(), Steps(**run.record["steps"])
    if not kept or old.total == steps.total:
        return max(kept, default=0)
    schedule = experiment.schedule
    rates = schedules.agreement(schedule.name, schedule.final, old, steps)
    agreed = min(rates, context.agreement(experiment, old, steps))
    if not (early := [step for step in kept if step <= agreed]):
        changed = "learning rate" if rates == agreed else "context"
        raise UserError(
            f"{run.path}: {steps.total} steps instead of {old.total} change the {changed} from step {agreed} on"
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
    """Says which settings move with the length."""
    moved = []
    lengths = {"warmup": (old.warmup, new.warmup), "context_growth": (old.growth, new.growth)}
    if e.schedule.name == "wsd":
        lengths["decay"] = old.decay, new.decay
    for name, (before, after) in lengths.items():
        if before != after:
            moved.append(f"schedule.{name} {getattr(e.schedule, name)} is {after} steps, was {before}")
    if e.schedule.name in ("cosine", "linear"):
        moved.append(f"{e.schedule.name} falls over the whole length")
    return f" ({'; '.join(moved)})" if moved else ""


def _sums_agree(step: int, old: int, new: int) -> bool:
    """Tells whether the sums in the state saved at a step are those that a run with the new interval between log points
    would hold, or are dropped by its next step."""
    begun = (max(step - 1, 0) // old * old, max(step - 1, 0) // new * new)
    return step % new == 0 or begun[0] == begun[1]


def take_up(run: Run, experiment: Experiment, hashes: dict[str, str], steps: Steps, say: Callable[[str], Any]) -> None:
    """Puts a run that is there into the state from which this experiment goes on, or refuse as `resume_step` does."""
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
