"""Values against their annotations: the same check for a configuration written in Python and one read from JSON.

A setting says what it may be where it is declared: its type, and beside it a limit, Annotated[int, Range(least=1)].
"""

import dataclasses
import functools
import math
import numbers
import struct
import types
import typing
from typing import Any, Literal

from lm.errors import UserError, nearest

_NUMBERS = {int: numbers.Integral, float: numbers.Real}


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """The annotation of each field of a dataclass, with what stands beside the type."""
    known = typing.get_type_hints(kind, include_extras=True)
    return {field.name: known[field.name] for field in dataclasses.fields(kind)}


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may be. Floats must be within it as float32 too, since that is how they are used."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    why: str = ""

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def check(self, value: float, name: str, *, optional: bool = False) -> None:
        """Raise UserError for a number that the setting may not be; optional: None would do."""
        if value in self and (not isinstance(value, float) or _float32(value) in self):
            return
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        bounds = [
            f"{word} {_bound(bound)}" for word, bound in words.items() if bound not in (None, math.inf, -math.inf)
        ]
        bounds += ["finite"] if math.inf in (self.below, self.most) else []
        stored = f" in float32, where it is {_float32(value):g}" if value in self else ""
        none, why = ", or None" if optional else "", f": {self.why}" if self.why else ""
        raise UserError(f"{name} {shown(value)}: must be {' and '.join(bounds)}{stored}{none}{why}")


DEFAULTS: dict[Any, Range] = {float: Range(above=-math.inf, below=math.inf), int: Range(least=-(2**31), below=2**31)}
"""The limits of numbers that declare none."""


def check_types(part: Any, prefix: str) -> None:
    """Refuse a dataclass field of the wrong type, choice or range; lists become tuples, and whole numbers floats."""
    for name, hint in hints(type(part)).items():
        object.__setattr__(part, name, coerce(getattr(part, name), hint, prefix + name))


def coerce(value: Any, hint: Any, name: str) -> Any:
    """The value as its type and within its limit, or a UserError.

    Lists become tuples, and whole numbers serve as floats.
    """
    kind, limit = divide(hint)
    value = _as_type(value, kind, name)
    if limit is not None and value is not None:
        limit.check(value, name, optional=types.NoneType in typing.get_args(kind))
    return value


def shown(value: Any) -> str:
    """The value as Python writes it, cut to what a line can hold."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write the digits of very long ones
        return f"of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def divide(hint: Any) -> tuple[Any, Any]:
    """An annotation's type, and its limit: whatever has `check(value, name, optional=...)`, or None."""
    if typing.get_origin(hint) is typing.Annotated:
        kind, *extras = typing.get_args(hint)
        return kind, next((extra for extra in extras if hasattr(extra, "check")), None)
    kinds = (hint,) if typing.get_origin(hint) is tuple else (hint, *typing.get_args(hint))
    return hint, next((DEFAULTS[kind] for kind in kinds if kind in DEFAULTS), None)


def _as_type(value: Any, hint: Any, name: str) -> Any:
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for choice in choices:
            try:
                return _as_type(value, choice, name)
            except UserError:
                continue
    elif origin is Literal:
        if value in choices:
            return value
        raise UserError(f"{name} {shown(value)}: one of {', '.join(map(str, choices))}{nearest(str(value), choices)}")
    elif origin is tuple and isinstance(value, list | tuple):
        return tuple(_as_type(item, choices[0], name) for item in value)
    elif hint in _NUMBERS and isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool):
        try:
            return hint(value)  # Python's own, of any library's numbers
        except OverflowError as error:
            raise UserError(f"{name} {shown(value)}: too large for a {hint.__name__}") from error
    elif isinstance(hint, type) and (
        type(value) is hint or (dataclasses.is_dataclass(value) and isinstance(value, hint))
    ):
        return value
    raise UserError(f"{name} {shown(value)}: expected {getattr(hint, '__name__', hint)}")


def _float32(value: float) -> float:
    """The nearest float32. What is below its normal numbers is zero, as on devices that flush it."""
    if abs(value) < 2.0**-126:
        return 0.0
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def _bound(number: float) -> str:
    power = number.bit_length() - 1 if isinstance(number, int) and number > 0 else 0
    return f"2^{power}" if power > 20 and number == 1 << power else f"{number:g}"
