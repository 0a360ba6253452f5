"""Lists of experiments to sweep over: every combination of some settings' values, or the rows of a design."""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Sequence

from lm import settings
from lm.config import Experiment, parse_duration
from lm.errors import UserError, nearest, require
from lm.sweep.design import Design

MOST_RUNS = 4096
"""Most runs of a sweep: more would be a mistake in typing."""


def grid(experiments: Sequence[Experiment], words: Sequence[str]) -> list[Experiment]:
    """Each experiment with every combination of values: grid([e], ["model.width=32,64", "train.seed=0,1"]) makes four.

    The name says what was chosen. Raises UserError for a setting there is not, a value it cannot have, or none.
    """
    axes = dict(_axis(word, experiments) for word in words)
    require(len(axes) == len(words), f"--grid {' '.join(words)}: a setting is given twice; put its values side by side")
    runs = len(experiments) * math.prod(map(len, axes.values()))
    require(runs <= MOST_RUNS, f"--grid asks for {runs:,} runs; give fewer values: at most {MOST_RUNS:,} in all")
    leaves = [key.split(".")[-1] for key in axes]
    made = []
    for e in experiments:
        for values in itertools.product(*axes.values()):
            chosen = [
                f"{leaf if leaves.count(leaf) == 1 else key}={re.sub(r'[^A-Za-z0-9_.+-]+', '', value)}"
                for key, leaf, value in zip(axes, leaves, values, strict=True)
            ]
            name = "-".join(([e.name] if len(experiments) > 1 else []) + chosen)
            changes = {key: settings.literal(value) for key, value in zip(axes, values, strict=True)}
            made.append(settings.replace(e, changes | {"name": name}) if axes else e)
    return made


def _axis(word: str, experiments: Sequence[Experiment]) -> tuple[str, list[str]]:
    key, sign, values = word.partition("=")
    key = key.replace("-", "_")
    require(bool(sign), f"--grid {word}: give a setting and its values, such as train.seed=0,1")
    known = [name for name in settings.settings(*experiments) if name != "name"]
    if key not in known:
        raise UserError(f"--grid {word}: no such setting{nearest(key, known)}")
    found = [value.strip() for value in values.split(",")]
    require(all(found), f"--grid {word}: a value is missing; give them as {key}=A,B")
    require(len(set(found)) == len(found), f"--grid {word}: a value is given twice; for repeats vary train.seed")
    return key, found


def from_design(e: Experiment, design: Design) -> list[Experiment]:
    """An experiment for every row. A warm-up in percent is that of the trunk's shortest row: a trunk has but one."""
    amount, unit = parse_duration(e.schedule.warmup)
    made = []
    for row in design.rows:
        shortest = min(other.steps for other in design.rows if other.trunk == row.trunk)
        warmup = {"schedule.warmup": round(amount / 100 * shortest)} if unit == "%" else {}
        made.append(settings.replace(e, row.changes(e.model) | warmup))
    return made


def require_distinct(experiments: Sequence[Experiment]) -> None:
    """Refuse names that occur twice, and an experiment that occurs twice under different names."""
    require(bool(experiments), "nothing to train: the list of experiments is empty")
    names, seen = set(), {}
    for e in experiments:
        require(e.name not in names, f"two experiments are named {e.name}: each needs a name of its own")
        names.add(e.name)
        same = seen.setdefault(json.dumps(settings.to_dict(dataclasses.replace(e, name="same"))), e.name)
        require(same == e.name, f"{same} and {e.name} are the same experiment; for repeats vary train.seed")
