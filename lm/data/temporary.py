"""Temporary folders that a killed process leaves behind for the next to clear away.

Whoever works in one holds a lock on it, which goes with the process however it ends: what is not locked is abandoned.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

PREFIX = ".making-"
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
        try:
            os.rename(made, folder)
        except OSError:  # another process may have put its own there meanwhile
            if there := reopen(folder):  # made of the same, so the same
                return there
            os.rename(folder, temporary / "damaged")  # goes with the temporary folder
            os.rename(made, folder)
        return reopen(folder)


def clear_abandoned(parent: Path) -> None:
    """Remove the temporary folders in `parent` whose process has ended."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another's work
            lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


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
