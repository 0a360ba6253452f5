"""train.start: what a run begins with instead of chance, another run's parameters or word vectors.

It matters at step 0 alone. A run that resumes has its parameters from its own checkpoints, and must be compared by the
digest that it recorded, not by what the start has become since: see `recorded_digest`.
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
from lm.data.vectors import FORMATS, read_vectors, suffix
from lm.errors import require
from lm.model.api import LanguageModel
from lm.model.trained import Trained
from lm.run import Run, exists, load
from lm.tokenizer import Tokenizer

Keys = tuple[str, ...]
"""The keys that lead to a parameter."""


def begin_with(params: dict, model: LanguageModel, tokenizer: Tokenizer, start: str) -> tuple[dict, str]:
    """Fresh parameters with those of `start` in their place, and a sentence that says what was taken.

    start: a run's directory or name, at its latest checkpoint, or a file of word vectors. Raises UserError where there
    is neither, and where it does not fit the model or the tokenizer.
    """
    if exists(start):
        return _with_parameters(params, model, tokenizer, load(start))
    return _with_vectors(params, model, tokenizer, _vector_file(start))


def digest(start: str) -> str:
    """sha256 (hex) of what `begin_with` takes: a run's parameters, or a file's bytes."""
    if exists(start):
        return checkpoints.digest(load(start).params)
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


# --- another run -----------------------------------------------------------------------------------------------------
def _with_parameters(params: dict, model: LanguageModel, tokenizer: Tokenizer, other: Trained) -> tuple[dict, str]:
    """Every parameter that both have is the other's; those of a path that only one of them has stay as they are."""
    where = f"train.start {other.run.path}"
    there, here = tokenizers.digest(other.tokenizer), tokenizers.digest(tokenizer)
    require(
        there == here,
        f"{where} has another tokenizer ({other.tokenizer.name} {there[:8]}, here {tokenizer.name} {here[:8]}): train "
        f"with --data.tokenizer {other.run.path / 'tokenizer.json'}",
    )
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
