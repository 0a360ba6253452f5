"""Tasks of the evaluation harness, run with a trained model: built in, in a folder of one's own, or in a file.

What they find is kept in the run's directory, in harness.jsonl: a line for each time that tasks were run.
"""

import contextlib
import datetime
import importlib.metadata
import io
import json
import logging
import math
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from lm_eval import evaluator
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager

from lm.errors import UserError, nearest, require
from lm.exchange.harness import HarnessModel
from lm.files import whole
from lm.records import HARNESS, read_harness
from lm.run import Run

BOOTSTRAP = 1000
"""Samples for standard errors that have no closed form."""
FAULTS = (
    jinja2.TemplateError, yaml.YAMLError, OSError, ImportError, KeyError, IndexError, TypeError, ValueError,
    AssertionError,
)  # fmt: skip
"""What the harness and the libraries below it raise for tasks that are not well made, or whose data is not there."""


def measure(
    model: HarnessModel,
    tasks: Sequence[str],
    *,
    include: str | Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    generation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run tasks, and return what is to be kept of them.

    tasks: names of tasks, groups or tags, and files of tasks. include: a folder of tasks, which go before the harness's
    own. limit: of each task the first documents only. fewshot: examples before each question, where a task leaves that
    open. generation: settings that stand in for those of tasks' generation_kwargs.
    Returns step, date, versions, and for each task and group {metric: value, "stderr": {metric: value}}. Raises
    UserError for tasks that there are not, and for those whose data is not there.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"  # its bootstrap would fork a process in which JAX's threads run
    loaded = _loaded(tasks, include)
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    for task in loaded["tasks"].values():
        if generation and task.get_config("output_type") == "generate_until":
            task.set_config("generation_kwargs", dict(generation), update=True)
        own = task.get_config("num_fewshot")
        if own != 0:  # zero is meant
            task.set_config("num_fewshot", (own or 0) if fewshot is None else fewshot)
        task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it is about
            found = evaluator.evaluate(
                model, loaded, limit=limit, bootstrap_iters=BOOTSTRAP, log_samples=False, confirm_run_unsafe_code=False
            )
    except FAULTS as error:
        raise _told(f"--tasks {' '.join(tasks)}", error) from error

    def parts(name: str) -> bool:
        return name not in tasks  # what was asked for comes before what it consists of

    return {
        "step": model.m.step,
        "date": datetime.datetime.now().isoformat(" ", "seconds"),
        "lm_eval": importlib.metadata.version("lm_eval"),
        "tasks": {name: _values(found["results"][name]) for name in sorted(found["results"], key=parts)},
        "versions": found["versions"],
        "fewshot": found["n-shot"],
        "documents": {name: counts["effective"] for name, counts in found["n-samples"].items()},
        "limit": limit,
        "prefix": model.prefix,
        "generation": dict(generation or {}),
        "skipped_characters": model.skipped,
        "cut": model.cut,
    }


def _loaded(names: Sequence[str], include: str | Path | None) -> dict[str, Any]:
    """The tasks of these names, with their data. A folder that has them all is read alone: the rest takes seconds."""
    require(bool(names), "no tasks were named")
    require(include is None or Path(include).is_dir(), f"--include-path {include}: no such folder")
    wanted = [name for name in names if not Path(name).is_file()]
    manager = TaskManager(include_path=include and str(include), include_defaults=False)
    if not set(wanted) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include and str(include))
    for name in wanted:
        known = name in manager.all_tasks
        folder = "" if include else "; --include-path FOLDER for tasks of one's own"
        require(known, f"--tasks {name}: no such task, group or tag{nearest(name, manager.all_tasks)}{folder}")
    tasks: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        try:
            for part, some in manager.load([name]).items():
                tasks[part] |= some
        except FAULTS as error:
            raise _told(f"--tasks {name}", error) from error
    return tasks


def _told(what: str, error: Exception) -> UserError:
    """The error as one of the user's to mend."""
    if isinstance(error, UserError):
        return error
    said = " ".join(str(error).split()) or "no reason was told"
    hub = "; nothing is downloaded unless asked for: --download, or files of your own" if "Offline" in said else ""
    return UserError(f"{what}: the harness cannot run it ({type(error).__name__}: {said[:300]}){hub}")


def _values(values: Mapping[str, Any]) -> dict[str, Any]:
    """A task's {metric: value, "stderr": {metric: value}}, None for what is not finite.

    The harness's `acc,none` is acc here; the names of other filters stay.
    """
    metrics: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for key, value in values.items():
        name, comma, chosen = key.partition(",")
        if comma and isinstance(value, int | float):
            metric = name if chosen == "none" else key
            kept, metric = (errors, metric.replace("_stderr", "", 1)) if "_stderr" in name else (metrics, metric)
            kept[metric] = float(value) if math.isfinite(value) else None
    return metrics | {"stderr": errors}


def keep(run: Run, record: dict[str, Any]) -> Path:
    """Add a record to the run's harness.jsonl, which is written anew, whole."""
    file = run.path / HARNESS
    records = [*read_harness(file), record]
    with whole(file) as target:
        target.writelines(json.dumps(one) + "\n" for one in records)
    return file
