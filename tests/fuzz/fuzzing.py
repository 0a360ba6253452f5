"""A place full of files, whole and damaged; what a command line came to; and what it may not come to."""

import contextlib
import dataclasses
import io
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from lm.cli import main

LONGEST_LINE = 700
LIMIT = 60
"""Seconds after which a command line counts as hanging."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command line came to; `escaped` is the end of the traceback of an exception that left `main`."""

    arguments: list[str]
    status: int | None
    err: str
    escaped: str
    left: tuple[str, ...]
    seconds: float

    def faults(self) -> list[str]:
        """What is wrong with it, in words."""
        lines = self.err.splitlines()
        found = [self.escaped] if self.escaped else []
        if not self.escaped and self.status not in (0, 1, 2, 75):
            found.append(f"exit status {self.status}")
        if self.status == 2:
            told = [line for line in lines if line.startswith("lm: ")]
            if len(lines) != 1 or len(told) != 1 or not self.err.endswith("\n"):
                found.append(f"not one line: {self.err[:300]!r}")
            if any(len(line) > LONGEST_LINE or not line.isprintable() for line in lines):
                found.append(f"not a short printable line: {self.err[:300]!r}")
            if self.left:
                found.append(f"left behind or changed: {', '.join(self.left[:5])}")
        if any(".part" in name or "/." in name.removesuffix("/.lock") for name in self.left):
            found.append(f"temporary files: {', '.join(self.left[:5])}")
        if "Traceback" in self.err:
            found.append(f"a traceback on standard error: {self.err[-300:]!r}")
        return found

    def __str__(self) -> str:
        return f"lm {' '.join(map(repr, (a if len(a) < 90 else a[:80] + '...' for a in self.arguments)))}"


class TooLong(BaseException):
    """A command line took more than LIMIT seconds."""


@contextlib.contextmanager
def limited(seconds: float):
    """Raise TooLong in the block after so many seconds: of reading a pipe that nobody writes, for example."""

    def end(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(arguments: list[str], place: Path) -> Outcome:
    """Run a command line in this process, in the current folder `place`, with nothing on standard input."""
    before, start = standing(place), time.perf_counter()
    out, err, stdin, escaped, status = io.StringIO(), io.StringIO(), sys.stdin, "", None
    sys.stdin = io.TextIOWrapper(io.BytesIO(b""))
    try:
        with limited(LIMIT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(arguments))
    except TooLong:
        escaped = f"still running after {LIMIT} seconds"
    except SystemExit as end:  # help, and nothing else, ends so
        status = 0 if not end.code else None
        escaped = f"SystemExit {end.code}" if end.code else ""
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "/lm/" in f.filename][-1:]
        said = "".join(traceback.format_exception_only(error)).strip()[-300:]
        escaped = f"{said} at {where.filename}:{where.lineno}" + "".join(f" from {f.filename}:{f.lineno}" for f in ours)
    finally:
        sys.stdin = stdin
    after = standing(place)
    left = tuple(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)))
    return Outcome(list(arguments), status, err.getvalue(), escaped, left, time.perf_counter() - start)


def standing(place: Path) -> dict[str, int]:
    """Every file and folder below a place, with a hash of what it holds."""
    found = {}
    for folder, folders, files in os.walk(place):
        for name in files:
            path = Path(folder, name)
            held = path.read_bytes() if path.is_file() else os.readlink(path) if path.is_symlink() else b""
            found[f"{folder}/{name}"] = hash(held)
        found |= {f"{folder}/{name}": 0 for name in folders}
    return found


def told(bad: list[Outcome]) -> str:
    """Command lines with what is wrong with each."""
    return "\n".join(f"{case}\n    {'; '.join(case.faults())}" for case in bad)


# --- files -----------------------------------------------------------------------------------------------------------
def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes of a file after something happened to them."""
    middle = rng.randrange(len(content) + 1)
    flipped = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 8))):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    line = content.split(b"\n")[0] + b"\n"
    return rng.choice([
        b"", b"\n\n\n", content[:middle], bytes(flipped), b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"),
        content[:middle] + b"\xff\xfe" + content[middle:], content[:middle] + b"\0" * 9 + content[middle:],
        content[:middle] + b'"' + content[middle:], content + b"\x1b[31m\xe2\x80\xa8\n" + content, line, line * 3,
        b"[" * 100_000, b'{"a":' * 50_000, b"null", b"[]", b"{}", b"7", b'"text"', b"NaN", rng.randbytes(300),
        content[:middle] + b"x" * 200_000 + content[middle:], content.replace(b"1", b"-1"),
        content.replace(b"0", b"9" * 40), content.replace(b"e", b"inf"),
        content.decode("utf-8", "replace").encode("utf-16"),
    ])  # fmt: skip


def mangled_json(value, rng: random.Random):
    """A JSON value with one place in it changed: gone, of another type, or out of bounds."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        copy = value.copy()
        if rng.random() < 0.15:
            del copy[key]
        else:
            copy[key] = mangled_json(value[key], rng)
        return copy
    return rng.choice(
        [
            None,
            True,
            -1,
            0,
            2**31,
            10**30,
            1.5,
            float("nan"),
            float("inf"),
            "",
            "x" * 5000,
            "\0",
            "²",
            [],
            {},
            [[]],
            value,
        ]
    )


def mangled(content: bytes, rng: random.Random) -> bytes:
    """The bytes of a JSON file whose value was changed."""
    return json.dumps(mangled_json(json.loads(content), rng)).encode()
