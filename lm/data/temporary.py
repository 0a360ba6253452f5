"""Temporary folders that a killed process leaves behind for the next to clear away.

Whoever works in one holds a lock on it, which goes with the process however it ends: what is not locked is abandoned.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = ".making-"


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
