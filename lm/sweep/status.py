"""How far a sweep has come, from what is on disk: wherever it is trained, and whoever asks."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm.config import Experiment
from lm.errors import UserError
from lm.run import Run, exists
from lm.sweep.running import FAILURES, STOPPED, recorded
from lm.sweep.slurm import states, submitted


@dataclasses.dataclass(frozen=True)
class Status:
    """Every run of a sweep, and the job that trains them."""

    folder: Path
    runs: list[dict[str, Any]]
    """name, state (waiting, begun, finished, diverged, stopped early, damaged), step, steps, and val_loss if any."""
    job: int | None
    """The number of the job that was submitted to Slurm last."""
    parts: dict[str, str] | None
    """What Slurm says of each part that is in its queue; None without Slurm or a job."""

    def counts(self) -> dict[str, int]:
        """How many runs are in each state."""
        found: dict[str, int] = {}
        for run in self.runs:
            found[run["state"]] = found.get(run["state"], 0) + 1
        return found


def status(experiments: Sequence[Experiment], folder: Path) -> Status:
    """The state of the sweep of these experiments in a folder. Raises UserError for a damaged record of failures."""
    out = {name: "stopped early" for name in recorded(folder, STOPPED)}
    out |= {name: "diverged" for name in recorded(folder, FAILURES)}
    runs = [_row(folder / e.name, e.name, out.get(e.name)) for e in experiments]
    job = submitted(folder)
    return Status(folder=folder, runs=runs, job=job and job["job"], parts=states(folder))


def _row(path: Path, name: str, out: str | None) -> dict[str, Any]:
    """One run's name, state and step."""
    row = {"name": name, "state": out or "waiting", "step": 0, "steps": None, "val_loss": None}
    if not exists(path):
        return row
    try:
        run = Run(path)
    except UserError:
        return row | {"state": "damaged"}
    records = run.metrics()
    losses = [record["val_loss"] for record in records if math.isfinite(record.get("val_loss", math.nan))]
    step = max([run.reached, *(record["step"] for record in records[-1:])])
    state = "finished" if run.finished else out or "begun"
    total = run.record["steps"]["total"]
    return row | {"state": state, "step": step, "steps": total, "val_loss": losses[-1] if losses else None}
