"""The small text files that probes read by the line: suites, rated words, groups, facts."""

from collections.abc import Iterator
from pathlib import Path

from lm.errors import UserError, require, shorten

QUOTED = 60
"""Characters of a line that an error repeats."""


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number, line) for each line that has something on it; the first line is number 1.

    Lines end as \\n, \\r\\n or \\r, and nowhere else: U+2028 may stand inside a JSON string. A byte-order mark belongs
    to no line. Raises UserError, with the line, for a file that is missing, is none (a folder, a pipe) or is not UTF-8
    text, and for a comment: none of the formats has comments, and one that is read as words would count as dropped.
    """
    path = Path(path)
    try:
        require(path.is_file() or not path.exists(), f"cannot read {path}: not a file of text")
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                refuse_unless(_is_text(line), path, number, "not UTF-8 text", line)
                require(not line.lstrip().startswith("#"), f"{path}, line {number}: a comment; remove it")
                if line.strip():
                    yield number, line.rstrip("\n")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _is_text(line: str) -> bool:
    """Whether a line read with `surrogateescape` is UTF-8 without zero bytes."""
    return "\0" not in line and not any("\udc80" <= character <= "\udcff" for character in line)


def refuse_unless(condition: bool, path: str | Path, number: int, expected: str, line: str) -> None:
    """Raise UserError with the file, the line's number and the beginning of the line unless the condition holds."""
    require(condition, f"{path}, line {number}: {expected}, not {shorten(line.strip(), QUOTED)!r}")
