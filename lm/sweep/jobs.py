"""What a sweep has to do: its experiments as jobs, which of them share steps, and which train side by side.

Runs under "wsd" that differ only in how long they are share all steps before their decays. So one of them, the trunk,
is trained past the places where the others branch off with its state, each to decay on its own: the run it would be
from scratch, bit for bit on a CPU, at the cost of its decay. Trunks of one shape train side by side.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from lm import settings
from lm.config import DataConfig, Experiment, Steps
from lm.data.batches import Batches
from lm.data.supply import prepare
from lm.data.tokens import Prepared
from lm.errors import UserError
from lm.model.api import build
from lm.sweep.grids import require_distinct
from lm.training.context import training_flops
from lm.training.loop import with_vocabulary

MOST_PACKED = 8
"""Most runs side by side."""
LENGTHS = frozenset({"name", "train.steps", "schedule.warmup", "schedule.decay"})
"""Settings in which the runs of a trunk may differ."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    experiment: Experiment
    """Its vocabulary known."""
    steps: Steps
    hashes: dict[str, str]
    params_total: int
    params_nonembedding: int

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment.name

    @property
    def branch_step(self) -> int:
        """Steps before it decays, which it may share with other runs."""
        return self.steps.total - self.steps.decay if self.experiment.schedule.name == "wsd" else 0

    @property
    def flops(self) -> float:
        """Exact FLOPs of all its training steps."""
        return self.flops_until(self.steps.total)

    def flops_until(self, step: int) -> float:
        """Exact FLOPs of its training steps before this one."""
        return training_flops(self.experiment, self.steps, step)

    def dotted(self, leave_out: Iterable[str] = ()) -> dict[str, Any]:
        """The experiment's dotted settings, without some."""
        flat = settings.flatten(settings.to_dict(self.experiment))
        return {key: value for key, value in flat.items() if key not in leave_out}


Trunk = tuple[Job, ...]
"""Jobs that share their steps before they branch off, in the order in which they do; the last is the trunk itself."""
T = TypeVar("T")


def _grouped(items: Iterable[T], key: Callable[[T], Any]) -> list[list[T]]:
    """Items of equal keys together, in the order of the first of each."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(json.dumps(key(item)), []).append(item)
    return list(groups.values())


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
    total, nonembedding = build(e.model).parameter_count()
    return Job(
        experiment=e, steps=e.steps(epoch), hashes=data.hashes, params_total=total, params_nonembedding=nonembedding
    )  # fmt: skip


def trunks(jobs: Sequence[Job]) -> list[Trunk]:
    """Jobs by the steps they share, in the order of the first of each."""

    def shared(job: Job) -> Any:
        """A key of what a job does before it decays; with its log points, as a state holds the sums since the last."""
        steps = job.steps
        return [job.dotted(LENGTHS), steps.warmup, steps.growth, steps.log_every] if job.branch_step else job.name

    groups = _grouped(jobs, shared)
    return [tuple(sorted(group, key=lambda job: (job.branch_step, job.steps.total))) for group in groups]


def parted(jobs: Sequence[Job]) -> str | None:
    """Which setting in percent keeps runs that differ only in length from sharing a trunk, and what would not."""
    groups = _grouped((job for job in jobs if job.branch_step), lambda job: job.dotted(LENGTHS))
    for setting, in_steps in (
        ("schedule.warmup", lambda job: job.steps.warmup),
        ("schedule.context_growth", lambda job: job.steps.growth),
        ("train.log_every", lambda job: job.steps.log_every),
    ):
        percent = [group for group in groups if "%" in str(group[0].dotted()[setting])]
        apart = [group for group in percent if len(set(map(in_steps, group))) > 1]
        if apart:
            first = sorted(set(map(in_steps, apart[0])))
            return (
                f"{sum(map(len, apart))} runs differ only in length but share no trunk: {setting} "
                f"{apart[0][0].dotted()[setting]} is {', '.join(map(str, first))} steps; as one number of steps, "
                f"such as {max(first[0], 1)}, it would let each branch off a longer one"
            )
    return None


def differing(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """The dotted settings in which not all jobs are the same, of each job by name."""
    flat = {job.name: job.dotted({"name"}) for job in jobs}
    first, *others = flat.values()
    keys = [key for key in first if any(values[key] != first[key] for values in others)]
    return {name: {key: values[key] for key in keys} for name, values in flat.items()}


def alike(found: Sequence[Trunk]) -> list[list[Trunk]]:
    """Trunks grouped by what they have in common: all but what is traced, and where they branch."""
    return _grouped(found, lambda trunk: [[job.dotted(settings.PACKABLE), job.branch_step] for job in trunk])


def packs(found: Sequence[Trunk], most: int = MOST_PACKED) -> list[list[Trunk]]:
    """Trunks that can train side by side, at most so many; one by one where each is cut over devices."""
    made = []
    for group in alike(found):
        size = 1 if group[0][-1].experiment.parallel.cuts_parameters else most
        made += [group[i : i + size] for i in range(0, len(group), size)]
    return made


def parts(found: Sequence[Trunk], most: int = MOST_PACKED, *, compared: bool = False) -> list[list[Trunk]]:
    """What a sweep trains one after another, and clusters at once: packs, or all that are compared with each other."""
    return alike(found) if compared else packs(found, most)


def added_steps(trunk: Trunk) -> Iterator[tuple[Job, int]]:
    """Each job and the steps it costs once those before it are there: more of the trunk, and its decay."""
    before = 0
    for job in trunk:
        yield job, job.steps.total - before
        before = job.branch_step
