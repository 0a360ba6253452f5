"""What the numbers of a configuration may be, and durations. A setting's own limit stands beside its type."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lm.errors import UserError, require
from lm.typed import Range, shown

COUNT = Range(least=1, below=2**31)  # shapes and steps are 32-bit integers on the device
Count = Annotated[int, COUNT]
MaybeCount = Annotated[int | None, COUNT]
Whole = Annotated[int, Range(least=0, below=2**31)]
Positive = Annotated[float, Range(above=0, below=math.inf)]
MaybePositive = Annotated[float | None, Range(above=0, below=math.inf)]
NotNegative = Annotated[float, Range(least=0, below=math.inf)]
BelowOne = Annotated[float, Range(least=0, below=1)]
Fraction = Annotated[float, Range(least=0, most=1)]
Level = Annotated[float, Range(above=0, below=1, why="such as 0.9")]
Seed = Annotated[int, Range(least=0, below=2**32, why="JAX makes its keys from 32 bits, and others would repeat these")]


@dataclass(frozen=True)
class IsFile:
    """The limit of a path to read: a regular file, for a pipe might never end and a device does not."""

    def check(self, path: Path, name: str, *, optional: bool = False) -> None:
        """Raise UserError unless there is such a file."""
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "no such file"
            raise UserError(f"{name} {path}: {what}")


InputFile = Annotated[Path, IsFile()]


# --- durations -------------------------------------------------------------------------------------------------------
Duration = int | str
"""2000, "2000 steps", "5M tokens", "3 epochs" or "10%" (of the run)."""

_DURATION = re.compile(
    r"\s*([0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?(?:e[0-9]{1,2})?)\s*([kKMGB]?)\s*(%|steps?|tokens?|epochs?)?\s*"
)
_SCALE = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}


def parse_duration(value: Duration, name: str = "duration") -> tuple[float, str]:
    """A duration as (amount, unit), the unit one of steps, tokens, epochs, %."""
    match = _DURATION.fullmatch(value if isinstance(value, str) else shown(value))
    wanted = "steps (2000), tokens (5M tokens), epochs (2 epochs) or 5%"
    require(match is not None, f"{name} {shown(value)}: expected {wanted}")
    number, scale, unit = match.groups()
    unit = "steps" if unit is None else unit if unit == "%" else unit.rstrip("s") + "s"
    return float(number) * _SCALE[scale], unit


def duration_steps(value: Duration, name: str, *, batch_tokens: int, epoch_tokens: int, total: int | None) -> int:
    """A duration in whole optimizer steps, rounded to the nearest; a percentage is of `total` steps."""
    amount, unit = parse_duration(value, name)
    if unit == "%":
        require(total is not None, f"{name} {shown(value)}: a percentage needs a total; give steps, tokens or epochs")
        steps = round(amount / 100 * total)
    else:
        tokens = {"steps": batch_tokens, "tokens": 1, "epochs": epoch_tokens}[unit]
        steps = round(amount * tokens / batch_tokens)
    require(steps < COUNT.below, f"{name} {shown(value)}: {steps:.4g} steps; must be below 2^31")
    return steps


@dataclass(frozen=True)
class Span:
    """The limit of a duration."""

    positive: bool = True

    def check(self, value: Duration, name: str, *, optional: bool = False) -> None:
        """Raise UserError for a duration that the setting may not be."""
        amount, unit = parse_duration(value, name)
        require(amount > 0 or not self.positive, f"{name} {shown(value)}: must be positive")
        most, power = (2**31, 31) if unit == "steps" else (2**63, 63)
        require(amount < most, f"{name} {shown(value)}: must be below 2^{power} {unit}")


Length = Annotated[Duration, Span()]
MaybeLength = Annotated[Duration, Span(positive=False)]
