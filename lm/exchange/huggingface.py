"""Folders as Hugging Face's `transformers` reads and writes them: config.json, safetensors, tokenizer.json.

Only data is read: neither pickled weights, which run code when they are opened, nor modules that a folder brings.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - teaches NumPy bfloat16
import numpy as np

from lm.errors import UserError, require
from lm.exchange.published import Published
from lm.exchange.tokenizers import FILES

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_TEXT = 1 << 28
"""Bytes of a JSON file: ten times the largest published tokenizer.json."""


def library():
    """The package safetensors; raises UserError where it is not installed."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise UserError("Hugging Face folders need the package safetensors: pip install -e '.[exchange]'") from error
    return safetensors


# --- read ------------------------------------------------------------------------------------------------------------
def read(folder: str | Path) -> Published:
    """The model of a folder. Its tensors are read when they are looked up, and must stay as they are until then.

    Raises UserError, naming the file, where config.json or weights are missing, damaged, or of a kind that is not read.
    """
    folder = Path(folder)
    config = _object(folder, "config.json")
    files = _weight_files(folder)
    tensors = Shards(folder, files)
    texts = {name: _text(folder / name) for name in FILES if (folder / name).is_file()}
    hashes = {name: _sha256(folder / name) for name in ("config.json", *dict.fromkeys(files.values()), *texts)}
    return Published(config, tensors, texts, hashes)


class Shards(Mapping):
    """Tensors by name from the safetensors files of a folder, each read when it is looked up, as float32."""

    def __init__(self, folder: Path, files: Mapping[str, str]):
        """files: the file in which each tensor is."""
        self.folder, self.files = folder, dict(files)

    def __getitem__(self, name: str) -> np.ndarray:
        file = self.folder / self.files[name]
        with _telling(file), library().safe_open(file, framework="numpy") as opened:
            return opened.get_tensor(name).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def _weight_files(folder: Path) -> dict[str, str]:
    """The file of each tensor: of the one file, or of those that an index names."""
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        named = _object(folder, INDEX).get("weight_map")
        require(isinstance(named, dict) and bool(named), f"{folder / INDEX}: it has no weight_map")
        for file in named.values():
            inside = isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")
            require(inside, f"{folder / INDEX}: {str(file)[:60]!r} is no safetensors file of the folder itself")
        missing = sorted({file for file in named.values() if not (folder / file).is_file()})
        require(not missing, f"{folder}: {len(missing)} shards are missing, {missing[:1]} first; copy them too")
        there = {file: _names(folder / file) for file in sorted(set(named.values()))}
        lost = sorted(name for name, file in named.items() if name not in there[file])
        require(not lost, f"{folder / INDEX}: {lost[:1]} is not in the file it names")
        return {name: file for file, names in there.items() for name in names}
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for ending in ("bin", "pt", "pth") for path in folder.glob(f"*.{ending}"))
        why = "; copy them too"
        if pickled:
            why = f": {pickled[0]} is a pickle, which runs code when it is opened; save_pretrained writes safetensors"
        raise UserError(f"{folder}: no {WEIGHTS} and no {INDEX}{why}")
    return dict.fromkeys(_names(folder / WEIGHTS), WEIGHTS)


def _names(file: Path) -> list[str]:
    with _telling(file), library().safe_open(file, framework="numpy") as opened:
        return list(opened.keys())


@contextlib.contextmanager
def _telling(file: Path) -> Iterator[None]:
    """Turn what the library makes of a damaged file into one line that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from error
    except (library().SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({str(error)[:100]})") from error


def _object(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object of a file that must be there."""
    require(folder.is_dir(), f"{folder}: no such folder")
    require((folder / name).is_file(), f"{folder}: no {name}, as Hugging Face's folders have")
    try:
        value = json.loads(_text(folder / name))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / name} is no JSON ({str(error)[:100]})") from error
    require(isinstance(value, dict), f"{folder / name}: expected a JSON object")
    return value


def _text(file: Path) -> str:
    size = file.stat().st_size
    require(size <= LARGEST_TEXT, f"{file}: {size:,} bytes, which is no text of a model's folder")
    try:
        return file.read_text(encoding="utf-8")
    except ValueError as error:
        raise UserError(f"{file}: not UTF-8 text") from error


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# --- write -----------------------------------------------------------------------------------------------------------
def write(published: Published, folder: str | Path) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load: whole, or not at all.

    Raises UserError where something is there already, OSError where it cannot be written.
    """
    folder = Path(folder)
    require(not os.path.lexists(folder), f"{folder} is there already: choose another, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name[:40]}.") as partial:
        made = Path(partial) / "made"
        made.mkdir()
        (made / "config.json").write_text(json.dumps(published.config, indent=2) + "\n", encoding="utf-8")
        for name, text in published.texts.items():
            (made / name).write_text(text, encoding="utf-8", newline="\n")
        library().numpy.save_file(dict(published.tensors), made / WEIGHTS, metadata={"format": "pt"})
        made.rename(folder)
