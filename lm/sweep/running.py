"""Train many experiments: trunks with branches, packs, resumed where it stopped, one table of points.

What there is to do, and what shares its steps with what, is in jobs.py. Here it is done, trunk by trunk and pack by
pack; each run keeps its own directory, so whatever ends a sweep, the same command goes on.
"""

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm import settings
from lm.errors import Diverged, Stopped, UserError, require
from lm.files import whole
from lm.run import Run, exists, folders, refuse_differences
from lm.sweep.board import Board
from lm.sweep.early import check_steps, worse
from lm.sweep.jobs import MOST_PACKED, Job, Trunk, differing, packs, parted, parts, trunks
from lm.training.loop import branch, train_pack
from lm.training.stopping import Stop, stop_signals

COLUMNS = (
    "name", "params_nonembedding", "params_total", "tokens", "flops_6nd", "flops_exact", "loss", "bits_per_byte",
    "seed", "run", "steps", "learning_rate", "layers", "width", "seconds", "base_layers", "base_width",
)  # fmt: skip
"""The columns of points.csv, which `lm fit` reads without flags. loss: of the validation text, in nats a token."""
POINTS, FAILURES, STOPPED = "points.csv", "failed.json", "stopped_early.json"


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
    trained: list[str]
    """Names of the runs that this part was to train; of all of them without parts."""
    standings: list[dict[str, Any]]
    """Finished runs, the lowest loss first: name, loss, bits_per_byte, seconds, and the settings in which runs of the
    sweep differ, dotted."""


def sweep(
    jobs: Sequence[Job], folder: str | Path, *, board: Board | None = None, most: int = MOST_PACKED,
    retry: bool = False, margin: float | None = None, part: tuple[int, int] | None = None,
) -> Result:  # fmt: skip
    """Train all jobs, or what is left of them; each is a run in `folder`, beside points.csv and failed.json.

    A job that diverges or fails is recorded and stops no other; one that diverged is not tried again but with `retry`,
    or when its directory was removed. Ctrl-C and SIGTERM save what is in progress and return early (`Result.stopped`).
    most: runs side by side. margin: nats a token by which a run may be worse than its like before it is stopped (see
    lm.sweep.early); without one those that were stopped go on. part: (i, n) trains only every n-th of lm.sweep.parts,
    from the i-th on, while other processes may train the others; the result is of all. Raises UserError, before
    anything is trained, where a run of the same name there is another experiment's or damaged, or the folder cannot
    take what a sweep writes.
    """
    board = board or Board(quiet=True)
    going = Sweep(jobs, Path(folder), board, retry=retry, margin=margin, most=most, part=part)
    stopped = False
    with board.watching({job.name: job.steps.total for job in going.mine}), stop_signals() as going.stop:
        try:
            going.begin()
            for group in going.groups:
                going.train_alike(group, most)
        except (Stopped, KeyboardInterrupt):
            stopped = True
    return going.result(stopped)


class Sweep:
    """A sweep in progress. `out` has every job that is not trained on: its status and why.

    The statuses: diverged, now or earlier, as it would again; failed otherwise, such as for want of memory, so that the
    next time may be better; stopped as worse than its like.
    """

    def __init__(
        self, jobs: Sequence[Job], folder: Path, board: Board, *, retry: bool, margin: float | None,
        most: int = MOST_PACKED, part: tuple[int, int] | None = None,
    ):  # fmt: skip
        self.jobs, self.folder, self.board, self.margin = list(jobs), folder, board, margin
        found = trunks(jobs)
        self.trunk_of = {job.name: trunk[-1].name for trunk in found for job in trunk}
        self.groups = parts(found, most, compared=margin is not None)
        if part:
            require_part(part, len(self.groups))
            self.groups = self.groups[part[0] :: part[1]]
        self.trunks = [trunk for group in self.groups for trunk in group]
        ours = {job.name for trunk in self.trunks for job in trunk}
        self.mine = [job for job in self.jobs if job.name in ours]
        self.failures, self.stopped = (part_file(name, part) for name in (FAILURES, STOPPED))
        self.out: dict[str, tuple[str, str]] = {}
        self.stop = Stop()
        """Looked at before each training, as each looks at it itself."""
        self._check_runs()
        folder.mkdir(parents=True, exist_ok=True)
        for name in (POINTS, self.failures, self.stopped):
            require(not (folder / name).is_dir(), f"{folder / name}: a folder, where a sweep writes a file; remove it")
            # Of a sweep that was killed while it wrote; another part may be writing points.csv now.
            for unfinished in folder.glob(f".{name}.*") if not (part and name == POINTS) else ():
                unfinished.unlink(missing_ok=True)
        others = set() if part else {*part_files(folder, FAILURES)} - {folder / self.failures}
        for path in (folder / self.stopped,) if part else part_files(folder, STOPPED):
            path.unlink(missing_ok=True)
        self.diverged = recorded(folder, FAILURES)
        """Every run of this folder that is known to diverge, another sweep's as well, and why."""
        if retry:
            self.diverged = {name: why for name, why in self.diverged.items() if name not in ours}
        if retry or others:  # what the parts had recorded is the whole sweep's now
            self._write_failures()
        for path in others:
            path.unlink(missing_ok=True)

    def _check_runs(self) -> None:
        """Refuse runs that are there already and are another experiment's, or damaged."""
        for job in self.jobs:
            if exists(self.folder / job.name):
                try:
                    run = self.run(job)
                except UserError as error:
                    raise UserError(f"{error}; remove {self.folder / job.name} to train it again") from error
                refuse_differences(run, job.experiment, job.hashes, job.steps.total)

    # --- what is there ---
    def run(self, job: Job) -> Run:
        """The job's run, which must be there."""
        return Run(self.folder / job.name)

    def reached(self, job: Job) -> int:
        """The step of the job's latest checkpoint."""
        return self.run(job).reached if exists(self.folder / job.name) else 0

    def record(self, job: Job, step: int | None = None) -> dict[str, Any] | None:
        """What the job's run says of its validation loss at a step that it has passed; by default the last."""
        step = job.steps.total if step is None else step
        if self.reached(job) < step:
            return None
        records = [r for r in self.run(job).metrics() if r["step"] == step and "val_loss" in r]
        return records[-1] if records else None

    def reasons(self, *statuses: str) -> dict[str, str]:
        """Why each job that is out is so, by name, for some of the statuses."""
        return {name: why for status in statuses for name, (found, why) in self.out.items() if found == status}

    def left(self) -> float:
        """FLOPs still to be made."""
        total = 0.0
        for trunk in self.trunks:
            for job in trunk:
                start = 0 if job is trunk[-1] else job.branch_step
                if job.name not in self.out:
                    total += job.flops - job.flops_until(max(start, self.reached(job)))
        return total

    # --- training ---
    def begin(self) -> None:
        """Show what is there already."""
        for job in self.mine:
            if self._known_to_diverge(job):
                self.out[job.name] = "diverged", self.diverged[job.name]
                self.board.mark(job.name, "diverged", self.reached(job))
            elif self.reached(job) == job.steps.total and not self.record(job):
                metrics = self.folder / job.name / "metrics.jsonl"
                why = f"no validation loss at its last step in {metrics}; remove the folder to train it again"
                self._end(job, "failed", why)
            else:
                self._note(job)
        if done := self.board.ended():
            self.board.tell(f"{done} of {len(self.mine)} runs have ended already")
        there = (path.relative_to(self.folder) for path in folders(self.folder))
        if others := sorted({str(name) for name in there} - {".", *self.trunk_of}):
            named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            self.board.tell(f"{self.folder} also holds {len(others)} of other sweeps: {named}; not in points.csv")
        if why := parted(self.jobs):
            self.board.tell(why)

    def _known_to_diverge(self, job: Job) -> bool:
        """Whether it was recorded so; without its directory, or under other settings, that says nothing."""
        if job.name not in self.diverged or not exists(self.folder / job.name):
            return False
        return settings.identity(self.run(job).experiment) == settings.identity(job.experiment)

    def train_alike(self, group: Sequence[Trunk], most: int) -> None:
        """Train trunks that differ in what is traced alone; with a margin, first all to each step where some stop."""
        compared, steps = self.margin is not None and len(group) > 1, group[0][-1].steps
        for step in check_steps(steps.total, steps.eval_every) if compared else []:
            for pack in packs(group, most):
                self.train(pack, until=step)
            leaders = [trunk[-1] for trunk in group]
            losses = {job.name: record["val_loss"] for job in leaders if (record := self.record(job, step))}
            stop = worse(losses, self.margin, step)
            for job in leaders:
                if job.name in stop and job.name not in self.out and self.reached(job) < job.steps.total:
                    self._end(job, "stopped", stop[job.name])
        for pack in packs(group, most):
            self.train(pack)

    def train(self, pack: Sequence[Trunk], until: int | None = None) -> None:
        """Train trunks side by side; at each place where runs branch off, those first. until: the last step to make."""
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
        status, _ = self.out.get(leader.name, ("", ""))
        if status in ("stopped", "diverged") and self.reached(leader) < step:
            how = "was stopped" if status == "stopped" else "diverged"
            self._end(job, status, f"its trunk, {leader.name}, {how} before step {step}")
        elif exists(self.folder / leader.name) and step in self.run(leader).steps():
            branch(self.run(leader), job.experiment, step, folder=self.folder)
        # else the trunk failed, or its checkpoint there is gone: the job is trained from scratch, to the same end

    def _advance(self, jobs: Sequence[Job], until: int | None = None) -> None:
        """Train those of the jobs that can be and are not there yet; raise Stopped where they do not get there."""
        behind = [job for job in jobs if self.reached(job) < (job.steps.total if until is None else until)]
        wanted = [job for job in behind if job.name not in self.out]
        if not wanted:
            return
        self.stop.look()

        def flops_until(step: int) -> float:
            return sum(job.flops_until(step) for job in wanted)

        self.board.start([job.name for job in wanted], self.left(), flops_until, self.reached(wanted[0]))
        try:
            train_pack([job.experiment for job in wanted], folder=self.folder, display=self.board, until=until)
        except Diverged as error:
            for job in wanted:
                if job.name in error.lost:
                    self._end(job, "diverged", error.lost[job.name])
        except (UserError, OSError, RuntimeError, MemoryError) as error:  # RuntimeError: XLA's, out of memory above all
            if len(wanted) > 1:  # the fault may be one run's alone, and memory that is short for all may do for one
                for job in wanted:
                    self._advance([job], until)
                return
            self._end(wanted[0], "failed", " ".join(str(error).split())[:300] or type(error).__name__)
        for job in wanted:
            if record := self.record(job):
                self.board.mark(job.name, "done", job.steps.total, record["val_loss"])
                self.board.tell_end(job.name, f"loss {record['val_loss']:.4f} nats/token")
            else:
                self._note(job)
        self.write_points()
        if any(self.reached(job) < (until or job.steps.total) for job in wanted if job.name not in self.out):
            raise Stopped(f"{self.folder}: stopped and saved")

    def _note(self, job: Job) -> None:
        """Show where a job is."""
        if record := self.record(job):
            self.board.mark(job.name, "done", job.steps.total, record["val_loss"])
        elif job.name not in self.out:
            self.board.mark(job.name, "waiting", self.reached(job))

    def _end(self, job: Job, status: str, why: str) -> None:
        """Train a job no further: record, show and tell it."""
        self.out[job.name] = status, why
        if status == "diverged":
            self.diverged[job.name] = why
            self._write_failures()
        elif status == "stopped":
            self._write(self.stopped, self.reasons("stopped"))
        self.board.mark(job.name, status, self.reached(job), math.nan)
        self.board.tell_end(job.name, why)

    # --- what is written ---
    def _write_failures(self) -> None:
        """Record what diverged: a part only its own runs, as the other parts record theirs."""
        mine = {job.name for job in self.mine}
        whole_sweep = self.failures == FAILURES
        self._write(self.failures, {n: why for n, why in self.diverged.items() if whole_sweep or n in mine})

    def _write(self, name: str, reasons: dict[str, str]) -> None:
        if not reasons:
            return (self.folder / name).unlink(missing_ok=True)
        with whole(self.folder / name) as file:
            file.write(json.dumps(reasons, indent=1) + "\n")

    def points(self) -> list[dict[str, Any]]:
        """A row for every finished job: COLUMNS."""
        found = ((job, self.record(job)) for job in self.jobs)
        return [_point(job, record, self.trunk_of[job.name]) for job, record in found if record]

    def write_points(self) -> Path | None:
        """Replace points.csv as a whole; none while nothing has finished.

        Parts may write it at once. So each looks again when it has written: the last to write has seen all.
        """
        rows: list[dict[str, Any]] = []
        while rows != (rows := self.points()):
            with whole(self.folder / POINTS) as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        return self.folder / POINTS if rows else None

    def result(self, stopped: bool) -> Result:
        """What the sweep has come to, its table of points written."""
        written, changing = self.write_points(), differing(self.jobs)
        rows = self.points()
        finished = [row["name"] for row in rows]
        names = {job.name for job in self.jobs} - {job.name for job in self.mine} - set(finished)
        failed, early = (  # as the other parts recorded it
            {name: why for name, why in recorded(self.folder, file).items() if name in names}
            for file in (FAILURES, STOPPED)
        )
        ranked = [
            {key: row[key] for key in ("name", "loss", "bits_per_byte", "seconds")} | changing[row["name"]]
            for row in sorted(rows, key=lambda row: row["loss"])
        ]
        return Result(
            folder=self.folder, points=written, finished=finished, stopped=stopped,
            failed=self.reasons("diverged", "failed") | failed, stopped_early=self.reasons("stopped") | early,
            trained=[job.name for job in self.mine], standings=ranked,
        )  # fmt: skip


# --- parts -----------------------------------------------------------------------------------------------------------
def require_part(part: tuple[int, int], count: int) -> None:
    """Refuse a part (i, n) that a sweep of so many packs does not have."""
    i, n = part
    right = f"this sweep has {count} to share out, so 0/{count} to {count - 1}/{count} train one each"
    require(0 <= i < n <= count, f"--part {i}/{n}: {right} (fewer side by side, --pack, make more)")


def part_file(name: str, part: tuple[int, int] | None) -> str:
    """The name of a file that each part has for itself: failed.json, or failed-2-of-8.json."""
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{part[0]}-of-{part[1]}{dot}{suffix}" if part else name


def part_files(folder: Path, name: str) -> list[Path]:
    """The files of such a name that are there, the parts' among them."""
    stem, _, suffix = name.partition(".")
    return sorted(path for path in (folder / name, *folder.glob(f"{stem}-*-of-*.{suffix}")) if path.is_file())


def recorded(folder: Path, name: str) -> dict[str, str]:
    """Reasons by name, as sweeps and their parts left them in files of such a name."""
    reasons: dict[str, str] = {}
    for path in part_files(folder, name):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:  # its part has just begun
            continue
        except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
            found = error
        right = isinstance(found, dict) and all(isinstance(why, str) for why in found.values())
        require(right, f"{path} is damaged; remove it to try again what had diverged")
        reasons |= found
    return reasons


def _point(job: Job, record: dict[str, Any], trunk: str) -> dict[str, Any]:
    e, tokens = job.experiment, record["tokens"]
    return dict(
        name=job.name, params_nonembedding=job.params_nonembedding, params_total=job.params_total, tokens=tokens,
        flops_6nd=6 * job.params_total * tokens, flops_exact=job.flops, loss=record["val_loss"],
        bits_per_byte=record["val_bits_per_byte"], seed=e.train.seed, run=trunk, steps=job.steps.total,
        learning_rate=e.optimizer.learning_rate, layers=e.model.layers, width=e.model.width,
        seconds=round(record["seconds"], 3), base_layers=e.model.base_layers, base_width=e.model.base_width,
    )  # fmt: skip
