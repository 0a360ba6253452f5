"""Errors that are the user's to mend: one sentence with the value and the way out."""

import contextlib
import difflib
import functools
import re
import sys
from collections.abc import Iterable, Iterator

LONGEST_LINE = 600
"""Characters of an error line."""
LONGEST_QUOTE = 160
"""Characters repeated of any one input."""


class UserError(ValueError):
    """Bad input. The command prints it on one line and exits with status 2; nothing is half-written."""


class Diverged(UserError):
    """Training stopped because the loss became infinite, NaN or exploded."""

    def __init__(self, message: str, lost: dict[str, str] | None = None):
        super().__init__(message)
        self.lost = lost or {}
        """What happened to each run that diverged, by its name."""


class Stopped(Exception):
    """Work was told to stop, has saved what it made, and goes on with the same command."""


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless condition holds."""
    if not condition:
        raise UserError(message)


def out_of_memory(error: MemoryError | RuntimeError) -> str | None:
    """The sentence for memory that was not there, as NumPy or XLA tells it; None for any other error."""
    said = str(error).strip().partition("\n")[0]
    if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said):
        return None
    said = said.replace("RESOURCE_EXHAUSTED:", "").strip() or "nothing more could be allocated"
    return f"out of memory: {said[:200].rstrip('.')}; lower the batch, the samples or the model's sizes"


_waiting: list[str] | None = None
"""Notices that are not told yet; None where they need not wait."""
_silent = False
"""Whether another process tells what there is to tell."""


def silence() -> None:
    """Tells no more notices: the first of several processes does."""
    global _silent
    _silent = True


def tell(message: str) -> None:
    """One line on standard error, once a process: what a person should know, and no error."""
    if _silent:
        return
    if _waiting is None:
        print_once(message)
    else:
        _waiting.append(message)


@functools.cache
def print_once(message: str) -> None:
    """A line that no process prints again."""
    print(f"lm: {one_line(message)}", file=sys.stderr)


@contextlib.contextmanager
def notices_wait() -> Iterator[None]:
    """Lets notices wait for the end of the block or for `tell_notices`; an error drops them, to stand alone."""
    global _waiting
    _waiting = []
    try:
        yield
        tell_notices()
    finally:
        _waiting = None


def tell_notices() -> None:
    """Tells what waits, and later notices at once: long work begins, or something is said anyway."""
    global _waiting
    waiting, _waiting = _waiting or (), None
    for message in waiting:
        print_once(message)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known word closest to a mistyped one, or nothing when none is close.

    The last part of a dotted name may stand for the whole: `layers` is close to `model.layers`.
    """
    if len(word) > LONGEST_QUOTE:
        return ""
    whole = list(known)
    by_leaf = {name.split(".")[-1]: name for name in whole}
    match = difflib.get_close_matches(word, whole, n=1, cutoff=0.6)
    match = match or [by_leaf[leaf] for leaf in difflib.get_close_matches(word, by_leaf, n=1, cutoff=0.6)]
    return f"; did you mean {match[0]}?" if match else ""


def one_line(message: str, inputs: Iterable[str] = ()) -> str:
    """An error on one printable line that repeats little of what was wrong, however long that was.

    Each of the inputs is shortened where the message repeats it, and so is whatever else looks like a quotation: a
    word, a text in quotation marks or brackets. What cannot be printed is escaped.
    """
    for text in sorted(inputs, key=len, reverse=True):
        if len(text) > LONGEST_QUOTE:
            message = message.replace(text, shorten(text)).replace(repr(text)[1:-1], shorten(repr(text)[1:-1]))
    message = printable(" ".join(message.split()))
    long = f"{{{LONGEST_QUOTE},}}"
    quotation = rf"'[^']{long}'|\"[^\"]{long}\"|\[[^\]]{long}\]|\{{[^}}]{long}\}}|\S{long}"
    message = re.sub(quotation, lambda found: shorten(found[0]), message)
    return shorten(message, LONGEST_LINE)


def shorten(text: str, longest: int = LONGEST_QUOTE) -> str:
    """The text, or its beginning and end with three dots for the middle."""
    end = longest // 3
    return text if len(text) <= longest else f"{text[: longest - end - 1]}…{text[-end:]}"


def printable(text: str) -> str:
    """Control characters, surrogates and whatever else cannot be printed, as Python writes them: \\x1b, \\udcff."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
