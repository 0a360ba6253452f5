"""Taps: read or edit the forward pass's intermediate values by name.

The model passes each named value through `taps(name, value)` once. Asking for nothing costs nothing: the call is gone
once traced. The same taps work in training, evaluation and cached decoding.
"""

from collections.abc import Callable, Iterable, Mapping

import jax

from lm.errors import nearest, require

Edit = Callable[[jax.Array, jax.Array | None], jax.Array]
"""edit(value, layer) -> value; `layer` is a traced integer inside a block, None outside."""

MODEL_TAPS = {
    "embedding": "B T D, what enters the first block",
    "residual.final": "B T D, after the last norm; the head reads it",
    "logits": "B T V, padded entries masked",
}
LAYER_TAPS = {
    "residual.before": "L B T D, what enters the block",
    "attention.query": "L B T N H, normalised and rotated",
    "attention.key": "L B T K H, normalised and rotated",
    "attention.value": "L B T K H",
    "attention.scores": "L B N T S, before the mask; S is the cache's slots, then the new tokens",
    "attention.weights": "L B N T S, rows sum to one",
    "attention.heads": "L B T N H, each head's mixture of values",
    "attention.out": "L B T D, what attention adds to the residual stream",
    "residual.middle": "L B T D",
    "mlp.hidden": "L B T F, after the nonlinearity",
    "mlp.out": "L B T D, what the feed-forward layer adds",
    "residual.after": "L B T D, what leaves the block",
}


class Taps:
    """Collects the values named in `read` and passes those named in `edits` through their functions.

    Made anew for each trace. `values` afterwards holds what was read; the values of blocks are stacked over L.
    """

    def __init__(self, read: Iterable[str] = (), edits: Mapping[str, Edit] | None = None):
        self.read = frozenset(read)
        self.edits = dict(edits or {})
        self.values: dict[str, jax.Array] = {}
        self.layer: jax.Array | None = None
        known = [*MODEL_TAPS, *LAYER_TAPS]
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
