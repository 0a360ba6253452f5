"""Reads what a run's directory says of it: experiment.json and metrics.jsonl, either of which may be damaged."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from lm import settings
from lm.config import Experiment, Steps
from lm.config_files import UnknownArchitecture
from lm.errors import UserError, require, tell

RUNS = Path("runs")
"""Where runs are, unless another folder is asked for."""
HARNESS = "harness.jsonl"
"""What the evaluation harness found of a run, a line for each time that tasks were run."""
_FACTS = {
    "experiment": dict, "fingerprint": str, "hashes": dict, "steps": dict, "documents": int, "train_tokens": int,
    "epoch_tokens": int, "params_total": int, "params_nonembedding": int, "flops_per_token": (int, float),
}  # fmt: skip
"""What experiment.json holds for every reader, and of which type."""


def read_experiment(file: Path) -> tuple[dict[str, Any], Experiment]:
    """experiment.json, and the experiment in it.

    Raises UserError where the file is damaged, what its fingerprint covers was changed, or its architecture is missing.
    """
    try:
        record = json.loads(file.read_bytes().decode())
        require(isinstance(record, dict), "not an object")
        for key, kinds in _FACTS.items():
            require(isinstance(record[key], kinds) and not isinstance(record[key], bool), f"{key} is of another kind")
        experiment = settings.from_dict(record["experiment"])
        lengths = dataclasses.astuple(Steps(**record["steps"]))
        require(all(type(length) is int and length >= 0 for length in lengths), "its steps are no whole numbers")
    except UnknownArchitecture as error:
        raise UserError(f"{file}: {error}") from error
    except KeyError as error:
        raise UserError(f"{file} is damaged: it has no {error}") from error
    except RecursionError as error:
        raise UserError(f"{file} is damaged: nested too deeply") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    # The file's own settings count: the experiment made from it also has settings that are newer than the run.
    require(
        settings.fingerprint(record["experiment"], record["hashes"]) == record["fingerprint"],
        f"{file} was changed: its settings and hashes do not make its fingerprint {record['fingerprint'][:8]}; put "
        "back what they were, or train anew under another --name",
    )
    return record, experiment


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl in order: objects of numbers, `step` among them; an empty list without the file.

    A last line that a crash cut short is left out, and so are damaged lines, which standard error is told of once.
    """
    *lines, last = file.read_bytes().split(b"\n") if file.is_file() else [b""]  # JSON may hold what splitlines cuts at
    found = [_record(line) for line in lines]
    damaged = [number for number, line in enumerate(lines, 1) if line.strip() and found[number - 1] is None]
    if damaged:
        tell(f"{file}: {len(damaged)} of {len(lines)} lines are damaged and left out, line {damaged[0]} first")
    return [record for record in (*found, _record(last)) if record is not None]


def read_harness(file: Path) -> list[dict[str, Any]]:
    """The records of a run's harness.jsonl in order, each with `step` and `tasks`; an empty list without the file.

    Damaged lines are left out, which standard error is told of once.
    """
    lines = [line for line in file.read_bytes().split(b"\n") if line.strip()] if file.is_file() else []
    found = [record for record in map(_finding, lines) if record is not None]
    if len(found) < len(lines):
        tell(f"{file}: {len(lines) - len(found)} of {len(lines)} lines are damaged and left out")
    return found


def _finding(line: bytes) -> dict[str, Any] | None:
    """A line of harness.jsonl as a record; None for what is none."""
    try:
        record = json.loads(line.decode())
        tasks = record["tasks"].values()
        sound = type(record["step"]) is int and all(isinstance(values["stderr"], dict) for values in tasks)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    numbers = [value for values in tasks for metric, value in values.items() if metric != "stderr"] if sound else []
    return record if sound and all(value is None or type(value) in (int, float) for value in numbers) else None


def _record(line: bytes) -> dict[str, Any] | None:
    """A line as a record; None for what is none."""
    try:
        record = json.loads(line.decode())
        values, is_step = record.values(), type(record.get("step")) is int
    except (ValueError, RecursionError, AttributeError):
        return None
    sound = all(type(value) is float or (type(value) is int and 0 <= value < 2**63) for value in values)
    return record if is_step and sound else None
