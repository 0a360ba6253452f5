"""Dotted settings: an Experiment to and from JSON, overrides, the fingerprint that decides a resume, config files."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import runpy
import sys
import traceback
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm.config import Experiment
from lm.errors import UserError, nearest, require, tell
from lm.limits import Length, MaybeLength
from lm.typed import coerce, shown

FREE = frozenset({
    "name", "model.attention", "model.remat", "model.unroll", "train.steps", "train.loss_chunk", "train.log_every",
    "train.eval_every", "train.eval_tokens", "train.checkpoint_every", "train.keep", "train.diverged", "train.trackers",
})  # fmt: skip
"""Settings that may change when a run is resumed: they do not decide what is learnt, or only for how long."""

PACKABLE = frozenset({
    "name", "optimizer.learning_rate", "optimizer.matrix_learning_rate", "optimizer.weight_decay", "optimizer.clip",
    "schedule.warmup", "schedule.decay", "schedule.final", "train.seed", "train.z_loss", "train.diverged",
})  # fmt: skip
"""Settings that may differ between runs of a pack: one compiled program serves all their values."""


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """A nested dict of plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def from_dict(values: dict[str, Any], kind: type = Experiment, prefix: str = "") -> Any:
    """The inverse of to_dict. An unknown key is refused with the nearest valid one."""
    require(isinstance(values, dict), f"{prefix.rstrip('.') or 'experiment'}: expected settings, got {shown(values)}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    made = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"{prefix}{key}: no such setting{nearest(prefix + key, settings())}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            made[key] = from_dict(value, hint, f"{prefix}{key}.")
        else:
            made[key] = value  # checked where it is made
    return kind(**made)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"layers": 4}} as {"model.layers": 4}."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def settings() -> list[str]:
    """Every dotted setting of an Experiment."""
    return list(flatten(to_dict(Experiment())))


def replace(experiment: Experiment, changes: dict[str, Any]) -> Experiment:
    """A copy with dotted settings changed: replace(e, {"model.layers": 8})."""
    values = to_dict(experiment)
    known = flatten(values)
    for key, value in changes.items():
        if key not in known:
            raise UserError(f"{key}: no such setting{nearest(key, known)}")
        *parents, leaf = key.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    return from_dict(values)


_USED_BY = {
    "optimizer.matrix_learning_rate": ("optimizer.name", {"muon"}),
    "optimizer.newton_schulz": ("optimizer.name", {"muon"}),
    "optimizer.momentum": ("optimizer.name", {"muon", "sgd"}),
    "optimizer.beta1": ("optimizer.name", {"adamw", "lion", "muon"}),
    "optimizer.beta2": ("optimizer.name", {"adamw", "lion", "muon"}),
    "optimizer.epsilon": ("optimizer.name", {"adamw", "muon"}),
    "schedule.decay": ("schedule.name", {"wsd"}),
    "schedule.final": ("schedule.name", {"cosine", "linear", "wsd"}),
    "data.vocab": ("data.tokenizer", {"words", "bpe"}),
}  # fmt: skip
"""Settings that only some choices of another have a use for."""


def surprises(experiment: Experiment, changed: Iterable[str]) -> list[str]:
    """What those who changed these dotted settings may not expect: what they leave alone, or do nothing to."""
    keys, values = set(changed), flatten(to_dict(experiment))
    told = [
        f"{key} does nothing under {choice} {values[choice]}"
        for key, (choice, users) in _USED_BY.items()
        if key in keys and values[choice] not in users
    ]
    rates = {"optimizer.learning_rate", "optimizer.matrix_learning_rate"}
    if values["optimizer.name"] == "muon" and keys & rates == {"optimizer.learning_rate"}:
        matrix = values["optimizer.matrix_learning_rate"]
        told.append(
            f"under muon optimizer.learning_rate leaves hidden matrices alone: their matrix_learning_rate is {matrix:g}"
        )
    return told


def literal(text: str) -> Any:
    """A number, true, false or None; otherwise the text itself."""
    try:
        return json.loads({"None": "null", "True": "true", "False": "false"}.get(text, text))
    except (ValueError, RecursionError):
        return text


def read(key: str, text: str) -> Any:
    """The value of a dotted setting as text writes it; UserError where it cannot have that."""
    hint = _hints()[key]
    try:
        return coerce(literal(text), hint, key)
    except UserError as refusal:
        with contextlib.suppress(UserError):
            return coerce(text, hint, key)
        raise refusal


def durations() -> set[str]:
    """Dotted settings that are durations."""
    return {key for key, hint in _hints().items() if hint in (Length, MaybeLength)}


@functools.cache
def _hints(kind: type = Experiment, prefix: str = "") -> dict[str, Any]:
    """Every dotted setting's annotation."""
    hints = {}
    for key, hint in typing.get_type_hints(kind, include_extras=True).items():
        hints |= _hints(hint, f"{prefix}{key}.") if dataclasses.is_dataclass(hint) else {prefix + key: hint}
    return hints


def identity(experiment: Experiment | dict[str, Any]) -> dict[str, Any]:
    """The dotted settings that decide what is learnt, of an experiment or of what to_dict made of one."""
    values = to_dict(experiment) if isinstance(experiment, Experiment) else experiment
    return {key: value for key, value in flatten(values).items() if key not in FREE}


def require_packable(experiments: Sequence[Experiment]) -> None:
    """Refuse experiments that cannot train side by side, naming the first setting that keeps them apart."""
    require(bool(experiments), "a pack needs at least one experiment")
    first = flatten(to_dict(experiments[0]))
    for e in experiments[1:]:
        for key, value in flatten(to_dict(e)).items():
            require(
                key in PACKABLE or value == first[key],
                f"a pack's runs differ in {key}: {first[key]} in {experiments[0].name}, {value} in {e.name}; only these"
                f" may: {', '.join(sorted(PACKABLE))}; train the others one after another",
            )
    names = [e.name for e in experiments]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"two experiments of the pack are named {twice}: each needs a directory of its own")


def fingerprint(experiment: Experiment | dict[str, Any], hashes: dict[str, str]) -> str:
    """Hex digest of the settings that decide what is learnt and of the data and tokenizer they were used with."""
    text = json.dumps([identity(experiment), hashes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# --- files -----------------------------------------------------------------------------------------------------------
def config_folders() -> list[Path]:
    """Where named configurations are looked for: ./configs, then those that come with lm."""
    house = Path(__file__).resolve().parent
    shipped = house / "configs"  # as it is installed; in the repository they stand beside the package
    return [Path("configs"), shipped if shipped.is_dir() else house.parent / "configs"]


def load_experiment(config: str) -> Experiment:
    """The `experiment` of configs/<config>.py, or of the file at the path `config`."""
    path, variables = _run_config(config)
    experiment = variables.get("experiment")
    require(
        experiment is not None or "experiments" not in variables,
        f"{path} builds a list of experiments; train them all with: lm sweep {config}",
    )
    require(isinstance(experiment, Experiment), f"{path} defines no `experiment = lm.Experiment(...)`")
    if experiment.name != Experiment.name:
        return experiment
    try:
        return dataclasses.replace(experiment, name=path.stem)
    except UserError as error:
        raise UserError(f"{path} names its run: {error}; rename the file or give the experiment a name") from error


def load_experiments(config: str) -> list[Experiment] | None:
    """The list `experiments` of a config, each with a name of its own; None where it has one `experiment` instead."""
    path, variables = _run_config(config)
    experiments = variables.get("experiments")
    if experiments is None:
        return None
    right = isinstance(experiments, list | tuple) and all(isinstance(e, Experiment) for e in experiments)
    require(right and bool(experiments), f"{path}: `experiments` must be a list of at least one lm.Experiment")
    return list(experiments)


def _tell_of_shadow(path: Path, shipped: Path) -> None:
    """Say when a config of one's own stands before one of the same name that comes with lm."""
    if shipped.is_file() and path.read_bytes() != shipped.read_bytes():
        tell(f"this is {path}, not the config {path.stem} that comes with lm")


def _run_config(config: str) -> tuple[Path, dict[str, Any]]:
    """A config file's path and the variables it leaves. What it prints goes to standard error: a verb's is its own."""
    path = Path(config)
    if path.suffix != ".py":
        named = {file.stem: file for folder in reversed(config_folders()) for file in sorted(folder.glob("*.py"))}
        known = ", ".join(sorted(named)) or "none"
        require(
            config in named,
            f"no config named {shown(config)[1:-1]}{nearest(config, named)} (known: {known}; or a path to a .py)",
        )
        path = named[config]
        _tell_of_shadow(path, config_folders()[1] / path.name)
    what = "is a folder" if os.path.isdir(path) else "is not a file" if os.path.lexists(path) else ""
    require(os.path.isfile(path), f"{path} {what}; a config is a .py file" if what else f"no config file {path}")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return path, runpy.run_path(str(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a config is any Python at all: sys.exit, and exceptions of its own
        said = traceback.format_exception_only(error)[-1].strip()  # also where its own text cannot be made
        where = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f"{path} does not run: {said[:200]}{where}") from error
