"""Values against their annotations: the same check for a configuration written in Python and one read from JSON."""

import dataclasses
import functools
import numbers
import types
import typing
from typing import Any, Literal

from lm.errors import UserError, nearest

_hints = functools.cache(typing.get_type_hints)
_NUMBERS = {int: numbers.Integral, float: numbers.Real}


def check_types(part: Any, prefix: str) -> None:
    """Refuse a dataclass field of the wrong type or choice; lists become tuples, and whole numbers floats."""
    hints = _hints(type(part))
    for field in dataclasses.fields(part):
        value = coerce(getattr(part, field.name), hints[field.name], prefix + field.name)
        object.__setattr__(part, field.name, value)


def coerce(value: Any, hint: Any, name: str) -> Any:
    """The value as its type, or a UserError: tuples come back from lists, whole numbers serve as floats."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for choice in choices:
            try:
                return coerce(value, choice, name)
            except UserError:
                continue
    elif origin is Literal:
        if value in choices:
            return value
        raise UserError(f"{name} {value!r}: one of {', '.join(map(str, choices))}{nearest(str(value), choices)}")
    elif origin is tuple and isinstance(value, list | tuple):
        return tuple(coerce(item, choices[0], name) for item in value)
    elif hint in _NUMBERS and isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool):
        return hint(value)  # NumPy's numbers as well
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise UserError(f"{name} {value!r}: expected {getattr(hint, '__name__', hint)}")
