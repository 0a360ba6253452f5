"""Train many experiments: trunks with branches, packs, resumed where it stopped, one table of points.

Runs under "wsd" that differ only in how long they are share all steps before their decays. So one of them, the trunk,
is trained past the places where the others branch off with its state, each to decay on its own: the run it would be
from scratch, bit for bit on a CPU, at the cost of its decay. Trunks of one shape train side by side.
"""

import csv
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm import settings
from lm.config import Experiment, Steps
from lm.data.batches import Batches
from lm.data.tokens import Prepared, prepare
from lm.errors import Diverged, UserError
from lm.files import whole
from lm.model.transformer import parameter_count
from lm.run import Run, exists, refuse_differences
from lm.scaling.board import Board
from lm.scaling.early import check_steps, worse
from lm.scaling.flops import train_flops
from lm.scaling.grid import require_distinct
from lm.training.loop import branch, train_pack, with_vocabulary

COLUMNS = (
    "name", "params_nonembedding", "params_total", "tokens", "flops_6nd", "flops_exact", "loss", "bits_per_byte",
    "seed", "run", "steps", "learning_rate", "layers", "width", "seconds", "base_layers", "base_width",
)  # fmt: skip
"""Of points.csv, which `lm fit` reads without flags. loss: of the validation text, in nats a token."""
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


# --- what is to be done ----------------------------------------------------------------------------------------------
def jobs_of(experiments: Sequence[Experiment], display=None) -> list[Job]:
    """Every experiment with its data prepared and its durations in steps."""
    require_distinct(experiments)
    return [_job(e, prepare(e.data, **({"report": display.stage} if display else {}))) for e in experiments]


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
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        if job.branch_step:
            alike.setdefault(json.dumps(_but_for_length(job)), []).append(job)
    for key in ("schedule.warmup", "train.log_every"):
        part, leaf = key.split(".")
        value = lambda job, part=part, leaf=leaf: str(getattr(getattr(job.experiment, part), leaf))  # noqa: E731
        steps = lambda job, leaf=leaf: getattr(job.steps, leaf)  # noqa: E731
        apart = [group for group in alike.values() if len(set(map(steps, group))) > 1 and "%" in value(group[0])]
        if apart:
            first = sorted(set(map(steps, apart[0])))
            return (
                f"{sum(map(len, apart))} runs differ only in length but share no trunk: {key} {value(apart[0][0])} is "
                f"{', '.join(map(str, first))} steps; as one number of steps, such as {max(first[0], 1)}, it would let "
                "each branch off a longer one"
            )
    return None


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


# --- doing it --------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Result:
    """What a sweep left in its directory."""

    folder: Path
    points: Path | None
    """points.csv; None where nothing has finished."""
    finished: list[str]
    failed: dict[str, str]
    """Name and reason."""
    stopped: bool
    """Told to, before the end."""
    stopped_early: dict[str, str]
    """Name of each run that was worse than its like, and why."""


class Stopped(Exception):
    """Ctrl-C or SIGTERM arrived, and the runs in progress were saved."""


def sweep(
    jobs: Sequence[Job], folder: str | Path, *, board: Board | None = None, most: int = MOST_PACKED,
    retry: bool = False, margin: float | None = None,
) -> Result:  # fmt: skip
    """Train all jobs, or what is left of them; each is a run in `folder`, beside points.csv and failed.json.

    A job that diverges or fails is recorded and stops no other; one that diverged is not tried again but with `retry`.
    most: runs side by side. margin: nats a token by which a run may be worse than its like before it is stopped (see
    lm.scaling.early); without one those that were stopped go on. Raises UserError, before anything is trained, where a
    run of the same name there is another experiment's.
    """
    board = board or Board(quiet=True)
    going = Sweep(jobs, Path(folder), board, retry, margin)
    stopped = False
    with board.watching({job.name: job.steps.total for job in jobs}):
        going.begin()
        if why := parted(jobs):
            board.tell(why)
        try:
            for group in alike(going.trunks):
                going.train_alike(group, most)
        except Stopped:
            stopped = True
            board.tell("stopped and saved; the same command goes on from there")
    return going.result(stopped)


class Sweep:
    """A sweep in progress."""

    def __init__(
        self, jobs: Sequence[Job], folder: Path, board: Board, retry: bool = False, margin: float | None = None
    ):
        self.jobs, self.folder, self.board, self.margin = list(jobs), folder, board, margin
        self.trunks = trunks(jobs)
        self.trunk_of = {job.name: trunk[-1].name for trunk in self.trunks for job in trunk}
        for job in jobs:
            if exists(folder / job.name):
                refuse_differences(self.run(job), job.experiment, job.hashes, job.steps.total)
        folder.mkdir(parents=True, exist_ok=True)
        self.failures = folder / "failed.json"
        if retry:
            self.failures.unlink(missing_ok=True)
        known = json.loads(self.failures.read_text()) if self.failures.is_file() else {}
        self.failed: dict[str, str] = {job.name: known[job.name] for job in jobs if job.name in known}
        """Diverged, now or earlier: it would again."""
        self.unable: dict[str, str] = {}
        """Failed otherwise, such as for want of memory: the next time may be better."""
        self.early: dict[str, str] = {}
        """Stopped as worse than their like."""
        (folder / "stopped_early.json").unlink(missing_ok=True)

    @property
    def out(self) -> set[str]:
        """Names of the jobs that are not trained on."""
        return {*self.failed, *self.unable, *self.early}

    def begin(self) -> None:
        """Show what is there already."""
        for job in self.jobs:
            if job.name in self.failed:
                self.board.mark(job.name, "diverged", self.reached(job))
            else:
                self.note(job)
        if done := self.board.ended():
            self.board.tell(f"{done} of {len(self.jobs)} runs have ended already")

    def train_alike(self, group: Sequence[Trunk], most: int) -> None:
        """Trunks that differ in what is traced alone; with a margin, all first to each step where some are stopped."""
        compared, steps = self.margin is not None and len(group) > 1, group[0][-1].steps
        for step in check_steps(steps.total, steps.eval_every) if compared else []:
            for pack in packs(group, most):
                self.train(pack, until=step)
            self._stop_worse([trunk[-1] for trunk in group], step)
        for pack in packs(group, most):
            self.train(pack)

    def _stop_worse(self, leaders: Sequence[Job], step: int) -> None:
        losses = {job.name: record["val_loss"] for job in leaders if (record := self._record(job, step))}
        for job in leaders:
            why = worse(losses, self.margin, step).get(job.name)
            if why and job.name not in self.out and self.reached(job) < job.steps.total:
                self._stop_early(job, why)

    def _stop_early(self, job: Job, why: str) -> None:
        self.early[job.name] = why
        with whole(self.folder / "stopped_early.json") as file:
            file.write(json.dumps(self.early, indent=1) + "\n")
        self._mark_ended(job, "stopped", why)

    def train(self, pack: Sequence[Trunk], until: int | None = None) -> None:
        """Trunks side by side; at each place where runs branch off, those first. until: no further than that step."""
        leaders = [trunk[-1] for trunk in pack]
        for column in zip(*pack, strict=True):
            if until is not None and (column[0] is leaders[0] or column[0].branch_step > until):
                return self._advance(leaders, until)
            branches = [(job, leader) for job, leader in zip(column, leaders, strict=True) if job is not leader]
            if branches:
                self._advance(leaders, column[0].branch_step)
            for job, leader in branches:
                self._branch(job, leader)
            self._advance(column)

    def _branch(self, job: Job, leader: Job) -> None:
        step = job.branch_step
        if self.reached(job) or job.name in self.out:
            return
        if leader.name in self.early and self.reached(leader) < step:
            self._stop_early(job, f"its trunk, {leader.name}, was stopped before step {step}")
        elif leader.name in self.failed and self.reached(leader) < step:
            self._lost(job, f"its trunk, {leader.name}, diverged before step {step}")
        elif exists(self.folder / leader.name) and step in self.run(leader).steps():
            branch(self.run(leader), job.experiment, step, folder=self.folder)
        # else the trunk failed, or its checkpoint there is gone: the job is trained from scratch, to the same end

    def _advance(self, jobs: Sequence[Job], until: int | None = None) -> None:
        """Train those of the jobs that can be and are not there yet."""
        behind = [job for job in jobs if self.reached(job) < (job.steps.total if until is None else until)]
        wanted = [job for job in behind if job.name not in self.out]
        if not wanted:
            return
        names = [job.name for job in wanted]
        self.board.start(names, self.left(), sum(job.flops_per_step for job in wanted), self.reached(wanted[0]))
        try:
            train_pack([job.experiment for job in wanted], folder=self.folder, display=self.board, until=until)
        except Diverged as error:
            for job in wanted:
                if job.name in error.lost:
                    self._lost(job, error.lost[job.name])
        except (UserError, OSError, RuntimeError) as error:  # RuntimeError: what XLA raises, out of memory above all
            why = " ".join(str(error).split())[:500]
            for job in wanted:
                self.unable[job.name] = why
                self._mark_ended(job, "failed", why)
        for job in wanted:
            if record := self.finished(job):
                self._mark_ended(job, "done", f"loss {record['val_loss']:.4f} nats/token", record["val_loss"])
            else:
                self.note(job)
        self.write_points()
        if any(self.reached(job) < (until or job.steps.total) for job in wanted if job.name not in self.out):
            raise Stopped

    def _lost(self, job: Job, why: str) -> None:
        self.failed[job.name] = why
        with whole(self.failures) as file:
            file.write(json.dumps(self.failed, indent=1) + "\n")
        self._mark_ended(job, "diverged", why)

    def _mark_ended(self, job: Job, status: str, told: str, loss: float = math.nan) -> None:
        self.board.mark(job.name, status, self.reached(job), loss)
        self.board.tell_end(job.name, told)

    def run(self, job: Job) -> Run:
        return Run(self.folder / job.name)

    def reached(self, job: Job) -> int:
        return max(self.run(job).steps(), default=0) if exists(self.folder / job.name) else 0

    def finished(self, job: Job) -> dict[str, Any] | None:
        """The last record of a finished run."""
        return self._record(job, job.steps.total)

    def _record(self, job: Job, step: int) -> dict[str, Any] | None:
        """What the job's run says of its validation loss at a step that it has passed."""
        if self.reached(job) < step:
            return None
        records = [r for r in self.run(job).metrics() if r["step"] == step and "val_loss" in r]
        return records[-1] if records else None

    def left(self) -> float:
        """FLOPs still to be made."""
        total = 0.0
        for trunk in self.trunks:
            for job in trunk:
                start = 0 if job is trunk[-1] else job.branch_step
                if job.name not in self.out:
                    total += job.flops_per_step * (job.steps.total - max(start, self.reached(job)))
        return total

    def note(self, job: Job) -> None:
        """Show where a job is."""
        if record := self.finished(job):
            self.board.mark(job.name, "done", job.steps.total, record["val_loss"])
        elif job.name not in self.out:
            self.board.mark(job.name, "waiting", self.reached(job))

    def points(self) -> list[dict[str, Any]]:
        """A row for every finished job: COLUMNS."""
        found = ((job, self.finished(job)) for job in self.jobs)
        return [_point(job, record, self.trunk_of[job.name]) for job, record in found if record]

    def write_points(self) -> Path | None:
        """points.csv, replaced whole; none while nothing has finished."""
        rows = self.points()
        if not rows:
            return None
        path = self.folder / "points.csv"
        with whole(path) as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return path

    def result(self, stopped: bool) -> Result:
        finished = [job.name for job in self.jobs if self.finished(job)]
        return Result(self.folder, self.write_points(), finished, self.failed | self.unable, stopped, self.early)


def _point(job: Job, record: dict[str, Any], trunk: str) -> dict[str, Any]:
    e, tokens = job.experiment, record["tokens"]
    return dict(
        name=job.name, params_nonembedding=job.params_nonembedding, params_total=job.params_total, tokens=tokens,
        flops_6nd=6 * job.params_total * tokens, flops_exact=job.flops, loss=record["val_loss"],
        bits_per_byte=record["val_bits_per_byte"], seed=e.train.seed, run=trunk, steps=job.steps.total,
        learning_rate=e.optimizer.learning_rate, layers=e.model.layers, width=e.model.width,
        seconds=round(record["seconds"], 3), base_layers=e.model.base_layers, base_width=e.model.base_width,
    )  # fmt: skip
