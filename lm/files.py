"""Files that are there whole, or not at all."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def whole(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """A file to write, text ("w", UTF-8) or bytes ("wb"), which takes the place of `path` at the end.

    Until it is whole and on the disk, what stood at `path` stays as it was; of one that fails nothing is left. A link
    is followed. Raises OSError, which names `path`, where it cannot be written or is no regular file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # a folder; a device or pipe, which would become a file
        raise OSError(errno.EINVAL, "Is not a regular file", str(path))
    temporary = target.with_name(f".{target.name[:48]}.{secrets.token_hex(4)}")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(temporary, mode.replace("w", "x"), **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # some disks say only now that they are full
        os.replace(temporary, target)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # a full disk names no file
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
