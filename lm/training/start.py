"""What a run takes from others: train.start, what it begins with instead of chance, another run's parameters or word
vectors; and parameters that it reads and never changes, an adapter's base and the reference of feedback.

The former matters at step 0 alone. A run that resumes has its parameters from its own checkpoints, and must be compared
by the digest that it recorded, not by what the start has become since: see `recorded_digest`. The latter are taken from
the same checkpoint again, whose step is recorded, and must have the digest that they had.
"""

import dataclasses
import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import checkpoints, settings
from lm import tokenizer as tokenizers
from lm.config import Experiment
from lm.data.vectors import FORMATS, read_vectors, suffix
from lm.errors import require
from lm.model.api import LanguageModel, build
from lm.model.trained import Trained
from lm.run import Run, exists, load
from lm.tokenizer import Tokenizer
from lm.training.objectives import LANGUAGE, MEASURED
from lm.training.step import frozen_shapes

Keys = tuple[str, ...]
"""The keys that lead to a parameter."""


def begin_with(
    params: dict, model: LanguageModel, tokenizer: Tokenizer, start: str, step: int | None = None
) -> tuple[dict, str]:
    """Fresh parameters with those of `start` in their place, and a sentence that says what was taken.

    start: a run's directory or name, at a step or its latest checkpoint, or a file of word vectors. Raises UserError
    where there is neither, and where it does not fit the model or the tokenizer.
    """
    if exists(start):
        return _with_parameters(params, model, tokenizer, load(start, _checkpoint(step)))
    return _with_vectors(params, model, tokenizer, _vector_file(start))


def _checkpoint(step: int | None) -> int | str:
    return "latest" if step is None else step


def digest(start: str, step: int | None = None) -> str:
    """sha256 (hex) of what `begin_with` takes: a run's parameters, or a file's bytes."""
    if exists(start):
        return checkpoints.digest(load(start, _checkpoint(step)).params)
    with _vector_file(start).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded_digest(run: Run | None, start: str | None) -> str | None:
    """The digest that a run with checkpoints was begun with, where it was begun with this start; otherwise None.

    It serves in place of `digest(start)` when the run is opened again: the start may have been trained further since,
    or be gone.
    """
    if run is None or start is None or not run.steps() or run.experiment.train.start != start:
        return None
    return run.record["hashes"].get("start")


# --- what is read and never changed ----------------------------------------------------------------------------------
def others(e: Experiment) -> dict[str, str]:
    """The runs and files that an experiment takes something from, by what for: start, reference, reward."""
    named = {"start": e.train.start}
    if e.train.objective in MEASURED:
        named["reference"] = e.feedback.reference or e.train.start
    if e.train.objective == "policy":
        named["reward"] = e.feedback.reward
    return {what: name for what, name in named.items() if name is not None}


def require_others(e: Experiment) -> None:
    """Raises UserError, before any data is read, where an experiment lacks what it is measured by or changes."""
    said, f = f"train.objective {e.train.objective}", e.feedback
    if e.train.objective not in LANGUAGE:
        require(e.data.examples is not None, f"{said}: learns from examples; give data.examples")
    needed = {"start": e.optimizer.lora is not None, "reference": e.train.objective in MEASURED}
    for what in (what for what, is_needed in needed.items() if is_needed):
        name = others(e).get(what)
        require(name is not None, f"{said}: is measured by another run; give train.start")
        option = OPTIONS["start" if name == e.train.start and f.reference is None else what]
        require(exists(name), f"{option} {name}: no such run (`lm runs` lists them)")
    worth = e.train.objective != "policy" or f.reward is not None
    require(worth, f"{said}: what are answers worth? give feedback.reward, FILE.py:NAME or a run")


def steps_taken(e: Experiment, run: Run | None) -> dict[str, int]:
    """The checkpoint that is taken of each of `others` that is a run: as a run with checkpoints recorded, else the
    latest."""
    known = run.record.get("taken", {}) if run is not None and run.steps() else {}
    return {what: known.get(what, Run(name).reached) for what, name in others(e).items() if exists(name)}


def frozen_params(e: Experiment, run: Run, tokenizer: Tokenizer) -> dict[str, dict]:
    """The parameters that a run reads and never changes: an adapter's `base`, the `reference` of feedback.

    Raises UserError where a run that they are of is not there, is no longer what it was, or does not fit.
    """
    made, loaded = {}, {}
    for part in frozen_shapes(e):
        what = {"reference": "reference", "base": "start"}[part]
        name, step = others(e)[what], run.record["taken"].get(what)
        if (name, step) not in loaded:
            other = load(name, step)
            _require_same(e, other, tokenizer, OPTIONS[what])
            same = checkpoints.digest(other.params) == run.record["hashes"][what]
            require(same, f"{OPTIONS[what]} {name} is no longer what {run.path} began with; put that back")
            loaded[name, step] = other.params
        made[part] = loaded[name, step]
    return made


OPTIONS = {"start": "train.start", "reference": "feedback.reference", "reward": "feedback.reward"}
"""The setting that names each of `others`."""


def _require_same(e: Experiment, other: Trained, tokenizer: Tokenizer, option: str) -> None:
    """Refuse a run whose parameters are not all that the experiment's model has, or compute something else in it."""
    where = f"{option} {other.run.path}"
    _require_tokenizer(where, other, tokenizer)
    ours, theirs = build(e.model).shapes(), other.model.shapes()
    shapes = [{_keys(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)} for tree in (ours, theirs)]
    changed = [told for told in _differing(build(e.model), other) if not told.startswith(HARMLESS)]
    same = shapes[0] == shapes[1] and not changed
    require(same, f"{where} is another model: {', '.join(changed) or 'its shapes differ'}")


HARMLESS = ("model.dropout", "model.context", "model.zero_init")
"""What may differ in a model that is read and never changed."""


# --- another run -----------------------------------------------------------------------------------------------------
def _with_parameters(params: dict, model: LanguageModel, tokenizer: Tokenizer, other: Trained) -> tuple[dict, str]:
    """Every parameter that both have is the other's; those of a path that only one of them has stay as they are."""
    where = f"train.start {other.run.path}"
    _require_tokenizer(where, other, tokenizer)
    ours, theirs = _by_path(params), _by_path(other.params)
    common = ours.keys() & theirs.keys()
    require(bool(common), f"{where} has no parameter in common with this model")
    for path in sorted(common):
        before, now = np.shape(theirs[path]), np.shape(ours[path])
        require(before == now, f"{where}: its {_dotted(path)} has shape {before}, this model's {now}")

    def take(path, fresh):
        return theirs.get(_keys(path), fresh)

    said = f"{len(common)} of {len(ours)} parameters begin as in {other.run.path} at step {other.step}"
    for what, alone in (("fresh", ours.keys() - common), ("left there", theirs.keys() - common)):
        if alone:
            said += f"; {what}: {', '.join(_roots(alone, common))}"
    if changed := _differing(model, other):
        said += f"; settings that differ: {', '.join(changed)}"
    return jax.tree.map_with_path(take, params), said


def _require_tokenizer(where: str, other: Trained, tokenizer: Tokenizer) -> None:
    there, here = tokenizers.digest(other.tokenizer), tokenizers.digest(tokenizer)
    require(
        there == here,
        f"{where} has another tokenizer ({other.tokenizer.name} {there[:8]}, here {tokenizer.name} {here[:8]}): train "
        f"with --data.tokenizer {other.run.path / 'tokenizer.json'}",
    )


def _differing(model: LanguageModel, other: Trained) -> list[str]:
    """The settings that decide what the two models compute and are not the same, with the other's values."""
    here, there = model.config, other.model.config
    if here.architecture != there.architecture:
        return [f"model.architecture ({there.architecture} there)"]
    names = [field.name for field in dataclasses.fields(here) if f"model.{field.name}" not in settings.FREE]
    differing = {name: getattr(there, name) for name in names if getattr(here, name) != getattr(there, name)}
    # A part of a configuration that is one itself would fill the line.
    return [
        f"model.{name}" if dataclasses.is_dataclass(value) else f"model.{name} ({value} there)"
        for name, value in differing.items()
    ]


def _by_path(tree: dict) -> dict[Keys, Any]:
    return {_keys(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _keys(path) -> Keys:
    return tuple(part.key for part in path)


def _dotted(path: Keys) -> str:
    return ".".join(path)


def _roots(alone: Collection[Keys], common: Collection[Keys]) -> list[str]:
    """Names for the parameters that one model alone has: the topmost part of the tree that holds none in common."""

    def root(path: Keys) -> Keys:
        tops = (path[:n] for n in range(1, len(path)))
        return next((top for top in tops if all(other[: len(top)] != top for other in common)), path)

    return sorted({_dotted(root(path)) for path in alone})


# --- word vectors ----------------------------------------------------------------------------------------------------
def _with_vectors(params: dict, model: LanguageModel, tokenizer: Tokenizer, file: Path) -> tuple[dict, str]:
    """The rows of words that the file knows, in the table of tokens' vectors, are the file's: centred, and scaled to
    the mean square of the fresh table. So are those of an encoder's table where it is as wide.

    A word is a token that is one as a whole, with a space before it or without; it is looked up as it is, then in lower
    case.
    """
    width = model.config.width
    tables = [table for table, axes in model.with_axes(params) if axes == ("V", "D") and table.shape[1] == width]
    require(bool(tables), f"train.start {file}: a {model.config.architecture} has no table of its tokens' vectors")
    read = read_vectors(file, option="train.start")
    vectors = dict(zip(read.words, read.vectors_VD, strict=True))
    keys = {token: word if word in vectors else word.lower() for token, word in _words(tokenizer).items()}
    found = {token: key for token, key in keys.items() if key in vectors}
    require(bool(found), f"train.start {file}: none of its {len(vectors):,} words is a token of {tokenizer.name}")
    tokens = np.array(list(found))
    rows_VD = np.stack([vectors[key] for key in found.values()]).astype(np.float64)
    require(
        rows_VD.shape[1] == width,
        f"train.start {file}: its vectors have {rows_VD.shape[1]} numbers, and model.width is {width}; set that",
    )
    rows_VD -= rows_VD.mean(axis=0)
    size = np.sqrt(np.mean(rows_VD**2))
    require(
        size > 0, f"train.start {file}: the vectors of the {len(found):,} words it shares with the tokens are alike"
    )

    def replaced(fresh, axes):
        if axes != ("V", "D") or fresh.shape[1] != width:
            return fresh
        scale = jnp.sqrt(jnp.mean(jnp.square(fresh))) / size
        return fresh.at[tokens].set(jnp.asarray(rows_VD * float(scale), fresh.dtype))

    changed = jax.tree.map(replaced, params, model.axes())
    return changed, f"{len(found):,} of {tokenizer.n_vocab:,} tokens begin with the vectors of {file.name}"


def _words(tokenizer: Tokenizer) -> dict[int, str]:
    """The tokens whose text is something between spaces, and that text."""
    words = {}
    for token in range(tokenizer.n_vocab):
        if token == tokenizer.eot_token:
            continue
        try:
            word = tokenizers.bytes_of(tokenizer, token).decode().removeprefix(" ")
        except UnicodeDecodeError:  # part of a character
            continue
        if word and not any(map(str.isspace, word)):
            words[token] = word
    return words


def _vector_file(start: str) -> Path:
    path = Path(start).expanduser()
    formats = f"a file of word vectors ends in {', '.join(FORMATS)}, or that and .gz"
    require(path.is_file(), f"train.start {start}: no such run (`lm runs` lists them) and no such file ({formats})")
    require(suffix(path) in FORMATS, f"train.start {start}: neither a run's directory nor word vectors: {formats}")
    return path
