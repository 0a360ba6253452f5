"""What a sweep has to do: its experiments as jobs, which of them share steps, and which train side by side.

Runs under "wsd" that differ only in how long they are share all steps before their decays. So one of them, the trunk,
is trained past the places where the others branch off with its state, each to decay on its own: the run it would be
from scratch, bit for bit on a CPU, at the cost of its decay. Trunks of one shape train side by side.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from lm import settings
from lm.config import DataConfig, Experiment, Steps
from lm.data.batches import Batches
from lm.data.tokens import Prepared, prepare
from lm.errors import UserError
from lm.model.transformer import parameter_count
from lm.scaling.flops import train_flops
from lm.sweep.grids import require_distinct
from lm.training.loop import with_vocabulary

MOST_PACKED = 8
"""Most runs side by side."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    experiment: Experiment
    """Its vocabulary known."""
    steps: Steps
    hashes: dict[str, str]
    params_total: int
    params_nonembedding: int
    flops_per_step: float
    """Exact, of training."""

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def branch_step(self) -> int:
        """Steps before it decays, which it may share with other runs."""
        return self.steps.total - self.steps.decay if self.experiment.schedule.name == "wsd" else 0

    @property
    def flops(self) -> float:
        """Of training alone."""
        return self.flops_per_step * self.steps.total


Trunk = tuple[Job, ...]
"""Jobs that share their steps before they branch off, in the order in which they do; the last is the trunk itself."""


def jobs_of(experiments: Sequence[Experiment], display=None) -> list[Job]:
    """Every experiment with its data prepared and its durations in steps.

    Raises UserError, with the experiment's name, for the first that cannot be trained.
    """
    require_distinct(experiments)
    report = display.stage if display else None
    prepared: dict[DataConfig, Prepared] = {}
    jobs = []
    for e in experiments:
        try:
            if e.data not in prepared:
                prepared[e.data] = prepare(e.data, report=report)
            jobs.append(_job(e, prepared[e.data]))
        except UserError as error:
            raise UserError(f"{e.name}: {error}") from error
    return jobs


def _job(e: Experiment, data: Prepared) -> Job:
    e = with_vocabulary(e, data)
    epoch = Batches(data.train, context=e.model.context, batch=e.train.batch, seed=e.train.seed).epoch_tokens
    flops = train_flops(e.model) * e.batch_tokens
    return Job(e, e.steps(epoch), data.hashes, *parameter_count(e.model), flops)


def trunks(jobs: Sequence[Job]) -> list[Trunk]:
    """Jobs by the steps they share, in the order of the first of each."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(_shared(job), []).append(job)
    return [tuple(sorted(group, key=lambda job: (job.branch_step, job.steps.total))) for group in found.values()]


def _shared(job: Job) -> str:
    """The same for jobs that do the same before they decay; log points count, as a state holds the sums since."""
    if not job.branch_step:
        return job.name
    return json.dumps([_but_for_length(job), job.steps.warmup, job.steps.log_every])


def _but_for_length(job: Job) -> dict[str, Any]:
    own = {"name", "train.steps", "schedule.warmup", "schedule.decay"}
    return {key: value for key, value in settings.flatten(settings.to_dict(job.experiment)).items() if key not in own}


def parted(jobs: Sequence[Job]) -> str | None:
    """Which setting in percent keeps runs that differ only in length from sharing a trunk, and what would not."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        if job.branch_step:
            groups.setdefault(json.dumps(_but_for_length(job)), []).append(job)
    for part, leaf in (("schedule", "warmup"), ("train", "log_every")):
        setting = {key: str(getattr(getattr(group[0].experiment, part), leaf)) for key, group in groups.items()}
        steps = {key: sorted({getattr(job.steps, leaf) for job in group}) for key, group in groups.items()}
        apart = [key for key in groups if len(steps[key]) > 1 and "%" in setting[key]]
        if apart:
            first = steps[apart[0]]
            count = sum(len(groups[key]) for key in apart)
            return (
                f"{count} runs differ only in length but share no trunk: {part}.{leaf} {setting[apart[0]]} is "
                f"{', '.join(map(str, first))} steps; as one number of steps, such as {max(first[0], 1)}, it would let "
                "each branch off a longer one"
            )
    return None


def differing(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """Of each job, by name, the dotted settings in which not all are the same."""
    flat = {job.name: settings.flatten(settings.to_dict(job.experiment)) for job in jobs}
    every = list(flat.values())
    keys = [key for key in every[0] if key != "name" and any(values[key] != every[0][key] for values in every)]
    return {name: {key: values[key] for key in keys} for name, values in flat.items()}


def alike(found: Sequence[Trunk]) -> list[list[Trunk]]:
    """Trunks grouped by what they have in common: all but what is traced, and where they branch."""
    groups: dict[str, list[Trunk]] = {}
    for trunk in found:
        groups.setdefault(json.dumps([_program(job) for job in trunk]), []).append(trunk)
    return list(groups.values())


def packs(found: Sequence[Trunk], most: int = MOST_PACKED) -> list[list[Trunk]]:
    """Trunks that can train side by side, at most so many."""
    return [group[i : i + most] for group in alike(found) for i in range(0, len(group), most)]


def _program(job: Job) -> list:
    flat = settings.flatten(settings.to_dict(job.experiment))
    return [{key: value for key, value in flat.items() if key not in settings.PACKABLE}, job.branch_step]


def added_steps(trunk: Trunk) -> Iterator[tuple[Job, int]]:
    """Each job and the steps it costs once those before it are there: more of the trunk, and its decay."""
    before = 0
    for job in trunk:
        yield job, job.steps.total - before
        before = job.branch_step
