"""What may happen to a run's folder: flipped bits, cut, swapped and missing files, wrong JSON, odd names."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import fuzzing

ODD_NAMES = (
    "²",
    "٣",
    "0",
    "00060",
    "-1",
    "60.tmp",
    "60 ",
    "9" * 30,
    "60.orbax-checkpoint-tmp",
    "tmp",
    "[red]",
    "\x1b[31m",
    "x" * 200,
)
TEXTS = ("experiment.json", "tokenizer.json", "metrics.jsonl")


def damage(run: Path, rng: random.Random) -> str:
    """Do one to three things to a run's folder, and say which."""
    return "; ".join(rng.choice(WAYS)(run, rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))


def _file(run: Path, rng: random.Random, among: tuple[str, ...] = ()) -> Path:
    files = sorted(file for file in run.rglob("*") if file.is_file() and (not among or file.name in among))
    return rng.choice(files or [run / "experiment.json"])


def flip(run: Path, rng: random.Random) -> str:
    """Bits of any file."""
    file = _file(run, rng)
    content = bytearray(file.read_bytes() if file.is_file() else b"")
    for _ in range(rng.choice((1, 4)) if content else 0):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))
    return f"flipped bits of {file.relative_to(run)}"


def cut(run: Path, rng: random.Random) -> str:
    file = _file(run, rng)
    content = file.read_bytes() if file.is_file() else b""
    file.write_bytes(content[: rng.randrange(len(content) + 1)])
    return f"cut {file.relative_to(run)}"


def rewrite(run: Path, rng: random.Random) -> str:
    """One of the text files, as any text file may be damaged."""
    file = _file(run, rng, TEXTS)
    file.write_bytes(fuzzing.damaged(file.read_bytes() if file.is_file() else b"", rng))
    return f"rewrote {file.relative_to(run)}"


def change(run: Path, rng: random.Random) -> str:
    """A value of a JSON file."""
    file = run / rng.choice(TEXTS)
    try:
        if file.name == "metrics.jsonl":
            lines = file.read_bytes().splitlines()
            number = rng.randrange(len(lines))
            lines[number] = fuzzing.mangled(lines[number], rng)
            file.write_bytes(b"\n".join(lines) + b"\n")
        else:
            file.write_bytes(fuzzing.mangled(file.read_bytes(), rng))
    except (ValueError, OSError):  # damaged before
        return f"nothing to change in {file.name}"
    return f"changed a value of {file.name}"


def remove(run: Path, rng: random.Random) -> str:
    """A file or a folder."""
    gone = rng.choice(sorted(run.rglob("*")) or [run / "nothing"])
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink(missing_ok=True)
    return f"removed {gone.relative_to(run)}"


def replace(run: Path, rng: random.Random) -> str:
    """A file by a folder, or a folder by a file."""
    there = rng.choice(sorted(run.rglob("*")) or [run / "nothing"])
    if there.is_dir():
        shutil.rmtree(there)
        there.write_text("a file")
    else:
        there.unlink(missing_ok=True)
        there.mkdir()
    return f"replaced {there.relative_to(run)}"


def swap(run: Path, rng: random.Random) -> str:
    """Two files."""
    one, other = _file(run, rng), _file(run, rng)
    if one.is_file() and other.is_file():
        a, b = one.read_bytes(), other.read_bytes()
        one.write_bytes(b)
        other.write_bytes(a)
    return f"swapped {one.relative_to(run)} and {other.relative_to(run)}"


def add(run: Path, rng: random.Random) -> str:
    """Something with an odd name among the checkpoints: a folder, a file, or a copy of a checkpoint."""
    folder = run / "checkpoints"
    name = folder / rng.choice(ODD_NAMES)
    if not folder.is_dir() or name.exists():
        return "nothing added"
    how = rng.choice(("folder", "file", "copy"))
    kept = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    if how == "copy" and kept:
        shutil.copytree(kept[-1], name)
    elif how == "file":
        name.write_text("")
    else:
        name.mkdir()
    return f"added the {how} {name.name!r}"


WAYS: tuple[Callable[[Path, random.Random], str], ...] = (
    flip, flip, cut, rewrite, change, change, change, remove, replace, swap, add
)  # fmt: skip
