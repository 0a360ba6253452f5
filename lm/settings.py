"""Dotted settings: an Experiment to and from JSON, overrides, and the fingerprint that decides a resume."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from lm.architectures import ModelBase, ModelConfig
from lm.config import USED_BY, Experiment
from lm.config_files import architecture
from lm.config_files import config_folders as config_folders  # public names of this module
from lm.config_files import load_experiment as load_experiment
from lm.config_files import load_experiments as load_experiments
from lm.errors import UserError, nearest, require
from lm.limits import Length, MaybeLength
from lm.typed import coerce, divide, hints, shown

FREE = frozenset({
    "name", "model.attention", "model.remat", "model.unroll", "train.steps", "train.loss_chunk", "train.log_every",
    "train.eval_every", "train.eval_tokens", "train.checkpoint_every", "train.keep", "train.diverged", "train.trackers",
    "parallel.data", "parallel.model", "parallel.fsdp",
})  # fmt: skip
"""Settings that may change when a run is resumed: they do not decide what is learnt, or only for how long."""

COMPILED = frozenset({
    "model.attention", "model.remat", "model.unroll", "train.loss_chunk", "parallel.data", "parallel.model",
    "parallel.fsdp",
})  # fmt: skip
"""Those of them that programs depend on."""

STAGED = frozenset({"schedule.context_start", "schedule.context_growth"})
"""Settings that say which programs a run takes one after another; none of these depends on them."""

PACKABLE = frozenset({
    "name", "optimizer.learning_rate", "optimizer.matrix_learning_rate", "optimizer.weight_decay", "optimizer.clip",
    "schedule.warmup", "schedule.decay", "schedule.final", "train.seed", "train.z_loss", "train.diverged",
    "feedback.beta",
})  # fmt: skip
"""Settings that may differ between runs of a pack: one compiled program serves all their values."""


# --- JSON ------------------------------------------------------------------------------------------------------------
def to_dict(experiment: Experiment) -> dict[str, Any]:
    """A nested dict of plain JSON values. Of a model that is no transformer it names the architecture."""
    values = dataclasses.asdict(experiment)
    kind = type(experiment.model)
    if kind is not ModelConfig:
        file = {"architecture_file": kind.architecture_file} if kind.architecture_file else {}
        values["model"] = {"architecture": kind.architecture} | file | values["model"]
    return json.loads(json.dumps(values))


def from_dict(values: dict[str, Any], kind: type = Experiment, prefix: str = "") -> Any:
    """The inverse of to_dict. An unknown key is refused with the nearest valid one."""
    require(isinstance(values, dict), f"{prefix.rstrip('.') or 'experiment'}: expected settings, got {shown(values)}")
    if kind is ModelBase:
        values = dict(values)
        kind = architecture(values.pop("architecture", "transformer"), values.pop("architecture_file", None))
    made = {}
    for key, value in values.items():
        if key not in hints(kind):
            known = _annotations(kind if issubclass(kind, ModelBase) else ModelConfig)
            raise UserError(f"{prefix}{key}: no such setting{nearest(prefix + key, known)}")
        part = _part(hints(kind)[key])
        nested = part is not None and (value is not None or part is hints(kind)[key])
        made[key] = from_dict(value, part, f"{prefix}{key}.") if nested else value  # checked where it is made
    return kind(**made)


def _part(hint: Any) -> type | None:
    """The settings that an annotation nests, be they optional; None where it is of a plain value."""
    kind, _ = divide(hint)
    kinds = typing.get_args(kind) or (kind,)
    return next((kind for kind in kinds if kind is ModelBase or dataclasses.is_dataclass(kind)), None)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"layers": 4}} as {"model.layers": 4}."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


# --- settings and overrides ------------------------------------------------------------------------------------------
def annotations(*experiments: Experiment) -> dict[str, Any]:
    """Every dotted setting that any of the experiments has, and its annotation; a transformer's where there is none."""
    found = {}
    for model in dict.fromkeys(e.model for e in experiments):
        found |= _annotations(type(model), type(model.encoder) if dataclasses.is_dataclass(model.encoder) else None)
    return found or dict(_annotations(ModelConfig))


@functools.cache
def _annotations(model: type, encoder: type | None = None) -> dict[str, Any]:
    """The settings of experiments with such a model, and such an encoder in it."""
    found = {}
    for key, hint in hints(Experiment).items():
        part = model if hint is ModelBase else _part(hint)
        found |= {key: hint} if part is None else {f"{key}.{name}": inner for name, inner in hints(part).items()}
    if encoder is not None:
        found |= {f"model.encoder.{name}": inner for name, inner in hints(encoder).items()}
    return found


def settings(*experiments: Experiment) -> list[str]:
    """The names of every dotted setting that any of the experiments has; a transformer's where there is none."""
    return list(annotations(*experiments))


def settings_of(config: str) -> list[str]:
    """The settings of the experiments that a config builds; a transformer's where it builds none."""
    with contextlib.suppress(UserError):
        return settings(*(load_experiments(config) or [load_experiment(config)]))
    return settings()


def replace(experiment: Experiment, changes: dict[str, Any]) -> Experiment:
    """A copy with dotted settings changed: replace(e, {"model.layers": 8})."""
    known = settings(experiment)
    for key in changes:
        if key not in known:
            raise UserError(f"{key}: no such setting{nearest(key, known)}")
    return _replaced(experiment, changes)


def _replaced(part: Any, changes: dict[str, Any]) -> Any:
    """A copy of an experiment, or of one of its parts, with the settings in it changed."""
    own = {key: value for key, value in changes.items() if "." not in key}
    inner: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        name, dot, rest = key.partition(".")
        if dot:
            inner.setdefault(name, {})[rest] = value
    for name, deeper in inner.items():
        own[name] = _replaced(own.get(name, getattr(part, name)), deeper)
    return dataclasses.replace(part, **own)


def literal(text: str) -> Any:
    """A number, true, false or None; otherwise the text itself."""
    try:
        return json.loads({"None": "null", "True": "true", "False": "false"}.get(text, text))
    except (ValueError, RecursionError):
        return text


def read(key: str, text: str, *experiments: Experiment) -> Any:
    """The value of a dotted setting as text writes it; UserError where it cannot have that."""
    hint = annotations(*experiments)[key]
    try:
        return coerce(literal(text), hint, key)
    except UserError as refusal:
        with contextlib.suppress(UserError):
            return coerce(text, hint, key)
        raise refusal


def durations() -> set[str]:
    """Dotted settings that are durations."""
    return {key for key, hint in annotations().items() if hint in (Length, MaybeLength)}


def surprises(experiment: Experiment, changed: Iterable[str]) -> list[str]:
    """What those who changed these dotted settings may not expect: what they leave alone, or do nothing to."""
    keys, values = set(changed), flatten(to_dict(experiment))
    told = [
        f"{key} does nothing under {choice} {values[choice]}"
        for key, (choice, users) in USED_BY.items()
        if key in keys and values[choice] not in users
    ]
    if "schedule.context_growth" in keys and values["schedule.context_start"] is None:
        told.append("schedule.context_growth does nothing without schedule.context_start")
    for key in ("data.template", "data.learn_prompts"):
        if key in keys and values["data.examples"] is None:
            told.append(f"{key} does nothing without data.examples")
    rates = {"optimizer.learning_rate", "optimizer.matrix_learning_rate"}
    if values["optimizer.name"] == "muon" and keys & rates == {"optimizer.learning_rate"}:
        matrix = values["optimizer.matrix_learning_rate"]
        told.append(
            f"under muon optimizer.learning_rate leaves hidden matrices alone: their matrix_learning_rate is {matrix:g}"
        )
    return told


# --- what must agree -------------------------------------------------------------------------------------------------
def differences(experiments: Sequence[Experiment], absent: Any = None) -> dict[str, list[Any]]:
    """Dotted settings, and model.architecture, that are not the same in all, and the value of each; names aside.

    absent: stands for the value of a setting that another architecture does not have.
    """
    flat = [{"model.architecture": e.model.architecture} | flatten(to_dict(e)) for e in experiments]
    keys = dict.fromkeys(key for values in flat for key in values if key != "name")
    found = {key: [values.get(key, absent) for values in flat] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def require_packable(experiments: Sequence[Experiment]) -> None:
    """Refuse experiments that cannot train side by side, naming the first setting that keeps them apart."""
    require(bool(experiments), "a pack needs at least one experiment")
    for e in experiments[1:]:
        for key, (here, there) in differences([experiments[0], e]).items():
            require(
                key in PACKABLE,
                f"a pack's runs differ in {key}: {here} in {experiments[0].name}, {there} in {e.name}; only these"
                f" may: {', '.join(sorted(PACKABLE))}; train the others one after another",
            )
    names = [e.name for e in experiments]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"two experiments of the pack are named {twice}: each needs a directory of its own")
    spread = experiments[0].parallel
    require(
        len(experiments) == 1 or not spread.cuts_parameters,
        f"parallel.fsdp {spread.fsdp}, parallel.model {spread.model}: each run of a pack lies whole on one device; "
        "leave them out, or train the runs one after another",
    )


def identity(experiment: Experiment | dict[str, Any]) -> dict[str, Any]:
    """The dotted settings that decide what is learnt, of an experiment or of what to_dict made of one."""
    values = to_dict(experiment) if isinstance(experiment, Experiment) else experiment
    return {key: value for key, value in flatten(values).items() if key not in FREE}


def fingerprint(experiment: Experiment | dict[str, Any], hashes: dict[str, str]) -> str:
    """Hex digest of the settings that decide what is learnt and of the data and tokenizer they were used with."""
    text = json.dumps([identity(experiment), hashes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
