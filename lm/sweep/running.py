"""Train many experiments: trunks with branches, packs, resumed where it stopped, one table of points.

What there is to do, and what shares its steps with what, is in jobs.py. Here it is done, trunk by trunk and pack by
pack; each run keeps its own directory, so whatever ends a sweep, the same command goes on.
"""

import contextlib
import csv
import dataclasses
import json
import math
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm import settings
from lm.errors import Diverged, Stopped, UserError, require
from lm.files import whole
from lm.run import Run, exists, refuse_differences
from lm.sweep.board import Board
from lm.sweep.early import check_steps, worse
from lm.sweep.jobs import MOST_PACKED, Job, Trunk, alike, differing, packs, parted, trunks
from lm.training.loop import branch, train_pack

COLUMNS = (
    "name", "params_nonembedding", "params_total", "tokens", "flops_6nd", "flops_exact", "loss", "bits_per_byte",
    "seed", "run", "steps", "learning_rate", "layers", "width", "seconds", "base_layers", "base_width",
)  # fmt: skip
"""Of points.csv, which `lm fit` reads without flags. loss: of the validation text, in nats a token."""


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
    standings: list[dict[str, Any]]
    """Finished runs, the lowest loss first: name, loss, bits_per_byte, seconds, and the settings in which runs of the
    sweep differ, dotted."""


def sweep(
    jobs: Sequence[Job], folder: str | Path, *, board: Board | None = None, most: int = MOST_PACKED,
    retry: bool = False, margin: float | None = None,
) -> Result:  # fmt: skip
    """Train all jobs, or what is left of them; each is a run in `folder`, beside points.csv and failed.json.

    A job that diverges or fails is recorded and stops no other; one that diverged is not tried again but with `retry`,
    or when its directory was removed. Ctrl-C and SIGTERM save what is in progress and return early (`Result.stopped`).
    most: runs side by side. margin: nats a token by which a run may be worse than its like before it is stopped (see
    lm.sweep.early); without one those that were stopped go on. Raises UserError, before anything is trained, where a
    run of the same name there is another experiment's or damaged, or the folder cannot take what a sweep writes.
    """
    board = board or Board(quiet=True)
    going = Sweep(jobs, Path(folder), board, retry, margin)
    stopped = False
    with board.watching({job.name: job.steps.total for job in jobs}), _interruptible():
        try:
            going.begin()
            for group in alike(going.trunks):
                going.train_alike(group, most)
        except (Stopped, KeyboardInterrupt):
            stopped = True
    return going.result(stopped)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does, between two trainings as well; main thread only."""
    with contextlib.suppress(ValueError):  # signals belong to the main thread
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, NameError):
            signal.signal(signal.SIGTERM, previous)


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
                refuse_differences(self._opened(job), job.experiment, job.hashes, job.steps.total)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("points.csv", "failed.json", "stopped_early.json"):
            require(not (folder / name).is_dir(), f"{folder / name}: a folder, where a sweep writes a file; remove it")
            for unfinished in folder.glob(f".{name}.*"):  # of a sweep that was killed while it wrote
                unfinished.unlink(missing_ok=True)
        self.failures = folder / "failed.json"
        self.recorded = _recorded(self.failures)
        """Every run of this folder that is known to diverge, another sweep's as well."""
        if retry:
            self.recorded = {name: why for name, why in self.recorded.items() if name not in self.trunk_of}
            self._write_failures()
        self.failed = {job.name: self.recorded[job.name] for job in jobs if self._diverged_before(job)}
        """Diverged, now or earlier: it would again."""
        self.unable: dict[str, str] = {}
        """Failed otherwise, such as for want of memory: the next time may be better."""
        self.early: dict[str, str] = {}
        """Stopped as worse than their like."""
        (folder / "stopped_early.json").unlink(missing_ok=True)

    def _opened(self, job: Job) -> Run:
        try:
            return self.run(job)
        except UserError as error:
            raise UserError(f"{error}; remove {self.folder / job.name} to train it again") from error

    def _diverged_before(self, job: Job) -> bool:
        """Known to diverge; without its directory, or under other settings, that says nothing."""
        if job.name not in self.recorded or not exists(self.folder / job.name):
            return False
        return settings.identity(self.run(job).experiment) == settings.identity(job.experiment)

    @property
    def out(self) -> set[str]:
        """Names of the jobs that are not trained on."""
        return {*self.failed, *self.unable, *self.early}

    def begin(self) -> None:
        """Show what is there already."""
        for job in self.jobs:
            if job.name in self.failed:
                self.board.mark(job.name, "diverged", self.reached(job))
            elif self.reached(job) == job.steps.total and not self.finished(job):
                self._unable(job, f"no validation loss at its last step in {self.folder / job.name / 'metrics.jsonl'}; "
                             "remove the folder to train it again")  # fmt: skip
            else:
                self.note(job)
        if done := self.board.ended():
            self.board.tell(f"{done} of {len(self.jobs)} runs have ended already")
        if others := self._others():
            named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            self.board.tell(f"{self.folder} also holds {len(others)} of other sweeps: {named}; not in points.csv")
        if why := parted(self.jobs):
            self.board.tell(why)

    def _others(self) -> list[str]:
        """Names of the runs in the folder that are none of this sweep's."""
        there = (file.parent.relative_to(self.folder) for file in self.folder.rglob("experiment.json"))
        return sorted({str(name) for name in there} - {".", *self.trunk_of})

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
        stopped = False
        try:
            train_pack([job.experiment for job in wanted], folder=self.folder, display=self.board, until=until)
        except Stopped:
            stopped = True
        except Diverged as error:
            for job in wanted:
                if job.name in error.lost:
                    self._lost(job, error.lost[job.name])
        except (UserError, OSError, RuntimeError, MemoryError) as error:  # RuntimeError: XLA's, out of memory above all
            if len(wanted) > 1:  # the fault may be one run's alone, and memory that is short for all may do for one
                for job in wanted:
                    self._advance([job], until)
                return
            self._unable(wanted[0], " ".join(str(error).split())[:300] or type(error).__name__)
        for job in wanted:
            if record := self.finished(job):
                self._mark_ended(job, "done", f"loss {record['val_loss']:.4f} nats/token", record["val_loss"])
            else:
                self.note(job)
        self.write_points()
        unfinished = (job for job in wanted if job.name not in self.out)
        if stopped or any(self.reached(job) < (until or job.steps.total) for job in unfinished):
            raise Stopped(f"{self.folder}: stopped and saved")

    def _lost(self, job: Job, why: str) -> None:
        self.failed[job.name] = self.recorded[job.name] = why
        self._write_failures()
        self._mark_ended(job, "diverged", why)

    def _unable(self, job: Job, why: str) -> None:
        self.unable[job.name] = why
        self._mark_ended(job, "failed", why)

    def _write_failures(self) -> None:
        if not self.recorded:
            return self.failures.unlink(missing_ok=True)
        with whole(self.failures) as file:
            file.write(json.dumps(self.recorded, indent=1) + "\n")

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
        points, rows = self.write_points(), self.points()
        changing = differing(self.jobs)
        ranked = [
            {key: row[key] for key in ("name", "loss", "bits_per_byte", "seconds")} | changing[row["name"]]
            for row in sorted(rows, key=lambda row: row["loss"])
        ]
        finished = [row["name"] for row in rows]
        return Result(self.folder, points, finished, self.failed | self.unable, stopped, self.early, ranked)


def _recorded(failures: Path) -> dict[str, str]:
    """Reasons by name, as an earlier sweep left them."""
    if not failures.is_file():
        return {}
    try:
        found = json.loads(failures.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        found = error
    right = isinstance(found, dict) and all(isinstance(why, str) for why in found.values())
    require(right, f"{failures} is damaged; remove it to try again what had diverged")
    return found


def _point(job: Job, record: dict[str, Any], trunk: str) -> dict[str, Any]:
    e, tokens = job.experiment, record["tokens"]
    return dict(
        name=job.name, params_nonembedding=job.params_nonembedding, params_total=job.params_total, tokens=tokens,
        flops_6nd=6 * job.params_total * tokens, flops_exact=job.flops, loss=record["val_loss"],
        bits_per_byte=record["val_bits_per_byte"], seed=e.train.seed, run=trunk, steps=job.steps.total,
        learning_rate=e.optimizer.learning_rate, layers=e.model.layers, width=e.model.width,
        seconds=round(record["seconds"], 3), base_layers=e.model.base_layers, base_width=e.model.base_width,
    )  # fmt: skip
