"""Temporary folders that a killed process leaves behind for the next to clear away.

Whoever works in one holds a lock on it, which goes with the process however it ends: what is not locked is abandoned.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

PREFIX = ".making-"
UNFINISHED = ".unfinished-"
MONTH = 30 * 86400
T = TypeVar("T")


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, gone at the end; what is to stay is moved out of it before."""
    parent.mkdir(parents=True, exist_ok=True)
    folder, lock = _locked(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def make_whole(folder: Path, fill: Callable[[Path], None], reopen: Callable[[Path], T | None]) -> T | None:
    """Fill a new folder, and give it its name when it is whole: it appears so or not at all.

    fill: writes into an empty folder. reopen: what a folder holds, or None where that is damaged; another process may
    have made the same meanwhile, and then that is kept. Returns what `folder` holds.
    """
    with temporary_folder(folder.parent) as temporary:
        made = temporary / "made"
        made.mkdir()
        fill(made)
        return _name(made, folder, temporary, reopen)


def make_resumable(folder: Path, fill: Callable[[Path], None], reopen: Callable[[Path], T | None]) -> T | None:
    """As make_whole, but what `fill` wrote stays however it ends, and the next call goes on with it.

    One process works at a time; others wait for it, and take what it made.
    """
    unfinished = folder.with_name(f"{UNFINISHED}{folder.name}")
    with _only_one(unfinished):
        if there := reopen(folder):  # made by the one that was waited for
            shutil.rmtree(unfinished, ignore_errors=True)
            return there
        fill(unfinished)
        for leftover in unfinished.rglob(".*"):  # half a file of a process that was killed
            leftover.unlink(missing_ok=True)
        with temporary_folder(folder.parent) as temporary:
            return _name(unfinished, folder, temporary, reopen)


def _name(made: Path, folder: Path, temporary: Path, reopen: Callable[[Path], T | None]) -> T | None:
    """Give what was made its name, unless another process has put its own there."""
    try:
        os.rename(made, folder)
    except OSError:
        if there := reopen(folder):  # made of the same, so the same
            return there
        os.rename(folder, temporary / "damaged")  # goes with the temporary folder
        os.rename(made, folder)
    return reopen(folder)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """The folder, made where it is not there, for one process at a time."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = _lock(folder, fcntl.LOCK_EX)
        except FileNotFoundError:
            continue
        if folder.exists() and os.path.samestat(os.fstat(lock), folder.stat()):
            break
        os.close(lock)  # it was finished and renamed meanwhile
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # there is something in it
            folder.rmdir()
        os.close(lock)


def clear_abandoned(parent: Path) -> None:
    """Remove the temporary folders in `parent` whose process has ended, and what nobody finished for MONTH seconds."""
    old = [folder for folder in parent.glob(f"{UNFINISHED}*") if _idle(folder) > MONTH]
    for folder in [*parent.glob(f"{PREFIX}*"), *old]:
        with contextlib.suppress(OSError):  # gone meanwhile, or another's work
            lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _idle(folder: Path) -> float:
    """Seconds since anything changed in a folder or in those inside it; 0 where it has gone."""
    with contextlib.suppress(OSError):
        return time.time() - max(inside.stat().st_mtime for inside in [folder, *folder.iterdir()])
    return 0.0


def _locked(parent: Path) -> tuple[Path, int]:
    """A new folder and the lock on it. Between its making and its locking another process may clear it away."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=PREFIX))
        with contextlib.suppress(FileNotFoundError):
            lock = _lock(folder, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _lock(folder: Path, kind: int) -> int:
    """An open descriptor that holds the lock. Raises BlockingIOError where somebody else does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
