"""Errors that are the user's to mend: one sentence with the value and the way out."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The command prints it on one line and exits with status 2; nothing is half-written."""


class Diverged(UserError):
    """Training stopped because the loss became infinite, NaN or exploded."""

    def __init__(self, message: str, lost: dict[str, str] | None = None):
        super().__init__(message)
        self.lost = lost or {}
        """Of each run that diverged, by name, what happened."""


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


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known word closest to a mistyped one, or nothing when none is close.

    Of dotted names the last part may stand for the whole: `layers` is close to `model.layers`.
    """
    whole = list(known)
    by_leaf = {name.split(".")[-1]: name for name in whole}
    match = difflib.get_close_matches(word, whole, n=1, cutoff=0.6)
    match = match or [by_leaf[leaf] for leaf in difflib.get_close_matches(word, by_leaf, n=1, cutoff=0.6)]
    return f"; did you mean {match[0]}?" if match else ""
