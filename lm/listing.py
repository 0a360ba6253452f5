"""The runs under a folder, one row each: what a run is, how far it got, and which others its losses compare with."""

import contextlib
import dataclasses
import datetime
import fcntl
import math
import operator
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm import settings
from lm.config import Experiment, parse_duration
from lm.errors import UserError, nearest, require
from lm.records import HARNESS, read_harness
from lm.run import RUNS, Run

COLUMNS = {
    "run": "run", "state": "state", "step": "step", "loss": "loss", "validation": "val_loss", "best": "best_val_loss",
    "bits/byte": "val_bits_per_byte", "optimizer": "optimizer", "rate": "learning_rate", "seed": "seed",
    "parameters": "params_total", "minutes": "seconds", "date": "date", "corpus": "corpus", "tokenizer": "tokenizer",
    "harness": "harness",
}  # fmt: skip
"""Titles, which --sort and --where take as well, and the key of a row that each shows."""


@dataclasses.dataclass(frozen=True)
class Listed:
    """A run's row, or a damaged run's with the reason."""

    row: dict[str, Any]
    run: Run | None = None
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def experiment(self) -> Experiment | None:
        """The run's experiment; None where the run is damaged."""
        return self.run and self.run.experiment

    def __getitem__(self, key: str) -> Any:
        """A column, a key of the row, or a setting, as --sort and --where ask for it; None where there is none."""
        key = COLUMNS.get(key, key)
        if key in self.row or self.experiment is None:
            return self.row.get(key)
        if key in (found := measured(self)):
            return found[key]
        if key == "model.architecture":
            return self.experiment.model.architecture
        return settings.flatten(settings.to_dict(self.experiment)).get(key)


def measured(one: Listed) -> dict[str, float | None]:
    """What the evaluation harness found of a run, by task.metric: the newest values."""
    found = one.row.get("harness", {})
    return {f"{task}.{metric}": value for task, values in found.items() for metric, value in values["metrics"].items()}


# --- what compares ---------------------------------------------------------------------------------------------------
def text_of(run: Run) -> str:
    """A name for the validation text: runs of one text compare in bits per byte, whatever their tokenizers.

    The text is a fraction of a corpus. A validation corpus is known by its tokens alone, so that another tokenizer
    makes another text of it.
    """
    hashes, data = run.record["hashes"], run.experiment.data
    if data.validation_corpus is not None:
        return f"{hashes['validation'][:8]}"
    return f"{hashes['corpus'][:8]}/{data.validation:g}"


def scale_of(run: Run) -> str:
    """A name for what losses are measured on: the validation tokens, the encoding that made them, and the objective
    where it is not of language."""
    hashes, objective = run.record["hashes"], run.experiment.train.objective
    feedback = f" {objective}" if objective in ("preference", "reward", "policy") else ""
    return f"{text_of(run)} {hashes['validation'][:8]} {hashes['tokenizer'][:8]}{feedback}"


def grouped(runs: Sequence[Any], key) -> list[list[Any]]:
    """The runs in groups of equal keys, in the order of each group's first run."""
    groups: dict[Any, list[Any]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


# --- reading ---------------------------------------------------------------------------------------------------------
def listed(folder: Path = RUNS) -> list[Listed]:
    """Every run under a folder, by path. A damaged run is listed with the reason, and hides no other."""
    require(folder.is_dir(), f"no folder {folder}: nothing was trained here yet; start with: lm train quickstart")
    found = [_damaged(path, reason) if reason else read(path) for path, reason in _places(folder)]
    return sorted(found, key=lambda one: one.row["run"])


def read(path: str | Path) -> Listed:
    """The row of one run."""
    try:
        run = Run(path)
        return _listed(run, run.metrics())
    except (UserError, OSError) as error:
        return _damaged(Path(path), getattr(error, "strerror", None) or str(error))


def _places(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Folders with an experiment.json, with None; places that cannot be looked into, with the reason.

    Links are followed, but not out of the folder to what it lies in, and each folder is entered once.
    """
    seen: set[tuple[int, int]] = set()
    refused: list[OSError] = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refused.append):
        path, stat = Path(place), os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        is_run = "experiment.json" in files
        if is_run or "experiment.json" in folders:
            yield path, None if (path / "experiment.json").is_file() else "its experiment.json is not a file"
        else:
            broken = (path / name for name in files if not os.path.exists(path / name))
            yield from ((link, "a link that leads nowhere") for link in broken if link.is_symlink())
        inner = [name for name in folders if not ((is_run and name == "checkpoints") or _leads_up(path / name, folder))]
        folders[:] = sorted(inner, key=lambda name: (os.path.islink(path / name), name))  # before links to them
    yield from ((Path(error.filename), error.strerror) for error in refused)


def _leads_up(path: Path, folder: Path) -> bool:
    return path.is_symlink() and folder.resolve().is_relative_to(path.resolve())


def _damaged(path: Path, reason: str) -> Listed:
    return Listed({"run": str(path), "state": "damaged", "reason": reason})


def _listed(run: Run, records: list[dict[str, Any]]) -> Listed:
    newest: dict[str, Any] = {}
    for record in records:
        newest |= record
    e, kept, total = run.experiment, run.steps(), run.record["steps"]["total"]
    row = {
        "run": str(run.path), "state": _state(run, kept, total, newest), "reason": None,
        "step": max([*kept, newest.get("step", 0)]), "steps": total, "tokens": newest.get("tokens"),
        "loss": newest.get("loss"), "best_loss": best(records, "loss"),
        "val_loss": newest.get("val_loss"), "best_val_loss": best(records, "val_loss"),
        "val_bits_per_byte": newest.get("val_bits_per_byte"),
        "best_val_bits_per_byte": best(records, "val_bits_per_byte"),
        "seconds": newest.get("seconds"), "params_total": run.record["params_total"],
        "flops": run.flops(newest),
        "optimizer": e.optimizer.name, "learning_rate": e.optimizer.learning_rate,
        "matrix_learning_rate": e.optimizer.matrix_learning_rate if e.optimizer.name == "muon" else None,
        "seed": e.train.seed, "date": _date(run.path), "corpus": e.data.learnt, "tokenizer": e.data.tokenizer,
        "checkpoints": kept, "validation_text": text_of(run), "comparable": scale_of(run), "harness": _harness(run),
    }  # fmt: skip
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return Listed(finite, run, records)


def _harness(run: Run) -> dict[str, dict[str, Any]]:
    """The newest metrics, standard errors, step and limit of each task that the harness ran, the latest task first."""
    newest: dict[str, dict[str, Any]] = {}
    for record in reversed(read_harness(run.path / HARNESS)):
        about = {"step": record["step"], "limit": record.get("limit")}
        for task, values in record["tasks"].items():
            metrics = {metric: value for metric, value in values.items() if metric != "stderr"}
            newest.setdefault(task, {"metrics": metrics, "stderr": values["stderr"]} | about)
    return newest


def best(records: list[dict[str, Any]], key: str) -> float | None:
    """The lowest finite value of a loss that was logged; None where there is none."""
    return min((record[key] for record in records if math.isfinite(record.get(key, math.nan))), default=None)


def _state(run: Run, kept: list[int], total: int, newest: dict[str, Any]) -> str:
    if _held(run.path / ".lock"):
        return "running"
    if max(kept, default=0) >= total:
        return "finished"
    return "diverged" if "diverged" in newest else "stopped"


def _held(lock: Path) -> bool:
    """Whether a training process holds the run's lock: tried by a shared lock that is released at once."""
    with contextlib.suppress(OSError), lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _date(path: Path) -> str:
    """When the run last wrote something, in local time."""
    written = max(
        (path / name).stat().st_mtime for name in ("experiment.json", "metrics.jsonl") if (path / name).exists()
    )
    return datetime.datetime.fromtimestamp(written).isoformat(" ", "seconds")


# --- --where and --sort ----------------------------------------------------------------------------------------------
_OPERATORS = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge,
}  # fmt: skip
_CONDITION = re.compile(r"\s*([\w./-]+?)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", re.DOTALL)


def where(runs: Sequence[Listed], conditions: Sequence[str]) -> list[Listed]:
    """Runs that fulfil every condition, such as train.seed=0, optimizer.learning_rate>=0.01, state!=finished.

    Raises UserError for a text that is no condition, a column or setting that there is not, a value it cannot have.
    """
    parsed = [_parsed(text, runs) for text in conditions] if runs else []
    return [one for one in runs if all(_holds(one, *condition) for condition in parsed)]


def _parsed(text: str, runs: Sequence[Listed]) -> tuple[str, str, Any]:
    match = _CONDITION.fullmatch(text)
    require(match is not None, f"--where {text}: a column or setting, one of = != < <= > >=, and a value: train.seed=0")
    key, sign, value = match.groups()
    key = _known(key, "--where", runs)
    experiments = _experiments(runs)
    return key, sign, settings.read(key, value, *experiments) if key in settings.settings(*experiments) else value


def _holds(one: Listed, key: str, sign: str, wanted: Any) -> bool:
    value, compare = one[key], _OPERATORS[sign]
    if key in settings.durations() and None not in (value, wanted):
        (amount, unit), (most, wanted_unit) = parse_duration(value), parse_duration(wanted)
        return compare(amount, most) if unit == wanted_unit else sign == "!="
    if isinstance(wanted, str) and not isinstance(value, str):  # a column of numbers
        wanted = settings.literal(wanted)
    if compare in (operator.eq, operator.ne):
        return compare(value, wanted)
    if value is None or wanted is None:
        return False
    alike = isinstance(value, str) == isinstance(wanted, str)
    require(
        alike, f"--where {key}{sign}{wanted}: {key} is {value!r} in {one.row['run']}, which does not compare with that"
    )
    return compare(value, wanted)


def ordered(runs: Sequence[Listed], column: str | None, reverse: bool = False) -> list[Listed]:
    """The runs sorted by a column or setting; those that have none come last."""
    if column is None:
        return list(reversed(runs)) if reverse else list(runs)
    key = _known(column, "--sort", runs)
    have = [one for one in runs if one[key] is not None]
    texts = any(isinstance(one[key], str) for one in have)  # durations may be either
    have.sort(key=lambda one: str(one[key]) if texts else one[key], reverse=reverse)
    return have + [one for one in runs if one[key] is None]


def _known(key: str, option: str, runs: Sequence[Listed]) -> str:
    """A column's or setting's name with its dashes right, or a refusal with the nearest."""
    names = [*COLUMNS, *COLUMNS.values(), "steps", "tokens", "best_loss", "best_val_bits_per_byte", "flops", "reason",
             "matrix_learning_rate", "validation_text", "comparable", *settings.settings(*_experiments(runs)),
             "model.architecture"]  # fmt: skip
    if key in (tasks := {name for one in runs for name in measured(one)}):
        return key
    key = key.replace("-", "_")
    if key not in names:
        raise UserError(f"{option} {key}: no such column or setting{nearest(key, [*names, *tasks])}")
    return key


def _experiments(runs: Sequence[Listed]) -> list[Experiment]:
    return [one.experiment for one in runs if one.experiment]
