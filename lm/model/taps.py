"""Taps: read or edit the forward pass's intermediate values by name.

The model passes each named value through `taps(name, value)` once. Asking for nothing costs nothing: the call is gone
once traced. The same taps work in training, evaluation and cached decoding.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax

from lm.errors import nearest, require

Edit = Callable[[jax.Array, jax.Array | None], jax.Array]
"""edit(value, layer) -> value; `layer` is a traced integer inside a block, None outside."""


class Tap(NamedTuple):
    """A named value: the letters of its axes (see the glossary), and what it is."""

    axes: str
    meaning: str = ""


class Taps:
    """Collects the values named in `read` and passes those named in `edits` through their functions.

    Made anew for each trace. `values` afterwards holds what was read; the values of blocks are stacked over L.
    """

    def __init__(self, read: Iterable[str] = (), edits: Mapping[str, Edit] | None = None):
        self.read = frozenset(read)
        self.edits = dict(edits or {})
        self.values: dict[str, jax.Array] = {}
        self.layer: jax.Array | None = None

    def check(self, known: Iterable[str]) -> None:
        """Raise UserError for a name that is not among the model's."""
        known = list(known)
        for name in [*self.read, *self.edits]:
            require(name in known, f"tap {name!r}: no such tap{nearest(name, known)} (known: {', '.join(known)})")

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        """Called by the model at each named value, before that value is used."""
        if name in self.edits:
            value = self.edits[name](value, self.layer)
        if name in self.read:
            self.values[name] = value
        return value

    def wants(self, *names: str) -> bool:
        """Whether any of these is read or edited."""
        return any(name in self.read or name in self.edits for name in names)

    def inside(self, layer: jax.Array) -> "Taps":
        """The taps of one block: the scan over layers stacks what they collect."""
        taps = Taps(self.read, self.edits)
        taps.layer = layer
        return taps
