"""Finds the files of text at a path, under a folder or behind a glob, and says what it leaves out there."""

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lm.data import readers
from lm.errors import UserError, require, tell

LeftOut = dict[str, list[Path]]
"""What in a folder is not read, by the reason."""


def files_of_text(wanted: str, called: str, *, any_name: bool = False) -> list[Path]:
    """The supported files at a path, under a folder or behind a glob, in an order that is the same everywhere.

    called: the option that named it, for errors. any_name: a single file is plain text where its suffix says nothing.
    Raises UserError where there is none, and for pipes, devices and kinds of files that are not supported.
    """
    path, called = Path(os.path.expanduser(wanted)), f"{called} {wanted}"
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = _under(path, called)
        require(bool(files), f"{called}: no text files in this folder ({readers.SUPPORTED})")
    elif path.exists():
        raise UserError(f"{called}: a pipe or a device, not a file of text; write what it gives to a file")
    elif glob.has_magic(wanted):
        files = _matching(path, called)
        require(bool(files), f"{called}: no files match; quote the glob so that the shell leaves it alone")
    else:
        raise UserError(f"{called}: no such file or folder (from {Path.cwd()})")
    for file in files:
        known = readers.suffix(file) is not None or (any_name and files == [path])
        require(known, f"{file}: cannot read this kind of file; one of {readers.SUPPORTED}")
        require(file.is_file(), f"{file}: a broken link, a pipe or a device, not a file of text")
    require(any(file.stat().st_size for file in files), f"{called}: nothing but empty files")
    return files


def _under(folder: Path, called: str) -> list[Path]:
    """Files of text below a folder and the folders linked to in it, sorted by their path within it."""
    left: LeftOut = {}
    files = []
    for file in _walk(folder, left):
        (files if readers.suffix(file) else left.setdefault("files of other kinds", [])).append(file)
    if left:
        tell(f"{called}: left out {', '.join(map(_counted, left, left.values()))}")
    return sorted(files, key=lambda file: file.relative_to(folder).parts)


def _matching(pattern: Path, called: str) -> list[Path]:
    """The files that a glob matches and those of text in the folders that it matches, each once."""
    matches = _recursive(pattern) if "**" in pattern.parts else map(Path, glob.glob(str(pattern)))
    files: dict[str, Path] = {}
    for match in sorted(matches):
        for file in _under(match, called) if match.is_dir() else [match]:
            files.setdefault(os.path.realpath(file), file)
    return list(files.values())


def _recursive(pattern: Path) -> Iterator[Path]:
    """What a glob with ** matches. (The library's follows links in circles.)"""
    first = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))
    start, rest = Path(*pattern.parts[:first]), pattern.parts[first:]
    if rest == ("**",):
        return iter([start] if start.is_dir() else [])
    folders = rest[-1] == "**"
    rest = rest[:-1] if folders else rest  # all that is below what the rest matches
    return (path for path in _walk(start, {}, folders=folders) if _fits(path.relative_to(start).parts, rest))


def _fits(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a glob, in which ** stands for any number of folders."""
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_fits(parts[start:], patterns[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _fits(parts[1:], patterns[1:])


def _walk(start: Path, left: LeftOut, *, folders: bool = False) -> Iterator[Path]:
    """Every file below a folder, and with `folders` every folder too; adds to `left` what is not entered or no file.

    Folders that are linked to come last, and each folder is entered once, however many links lead to it.
    """
    entered: set[str] = set()
    waiting = [start]
    while waiting:
        for root, inner, names in os.walk(waiting.pop(0), onerror=_unreadable):
            real = os.path.realpath(root)
            if real in entered:
                left.setdefault("links to folders that are read already", []).append(Path(root))
                inner.clear()
                continue
            entered.add(real)
            inner[:] = sorted(inner)
            for path in [Path(root, name) for name in sorted(inner + names)]:
                if path.name.startswith("."):
                    left.setdefault("hidden", []).append(path)
                elif not path.exists():
                    left.setdefault("broken links", []).append(path)
                elif not (path.is_file() or path.is_dir()):
                    left.setdefault("pipes and devices", []).append(path)
                elif folders or path.is_file():
                    yield path
            inner[:] = [name for name in inner if not name.startswith(".")]
            waiting += [Path(root, name) for name in inner if os.path.islink(os.path.join(root, name))]


def _counted(why: str, paths: list[Path]) -> str:
    """`3 hidden (.git, .env, ...)`."""
    names = ", ".join(dict.fromkeys(path.name for path in paths))
    return f"{len(paths):,} {why} ({names if len(names) <= 60 else names[:57] + '...'})"


def _unreadable(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error
