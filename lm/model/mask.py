"""Who may attend to whom, as data: made into booleans for the queries and keys at hand, block by block.

One rule serves training, packed documents, windows, prompts of uneven lengths, decoding through a cache, text that is
read both ways, a prefix that all may see, and attention to another sequence.
"""

import dataclasses

import jax
import jax.numpy as jnp

FAR = jnp.iinfo(jnp.int32).max
"""Position of a place that holds nothing: no query sees so far ahead."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Where S tokens stand: absolute positions [B, S] (B may be 1) and, where it matters, their documents [B, S]."""

    positions_BS: jax.Array
    documents_BS: jax.Array | None = None

    def between(self, start: int, end: int) -> "Places":
        """The places from start up to end."""
        return jax.tree.map(lambda x_BS: x_BS[:, start:end], self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """What a query may see, all of it together.

    causal: nothing after itself; otherwise it reads both ways. window: only so many tokens back, its own included; None
    is all of them. first_B: whatever the window and the direction, the places before this number in each row. Where
    places have documents, only the query's own.
    """

    causal: bool = dataclasses.field(default=True, metadata=dict(static=True))
    window: jax.Array | int | None = None
    first_B: jax.Array | None = None

    @property
    def looks_ahead(self) -> bool:
        """Whether a query may see anything after itself."""
        return not self.causal or self.first_B is not None

    def __call__(self, queries: Places, keys: Places) -> jax.Array:
        """[B, T, S] booleans."""
        query_BT1, key_B1S = queries.positions_BS[:, :, None], keys.positions_BS[:, None, :]
        seen_BTS = key_B1S <= query_BT1 if self.causal else (key_B1S < FAR) & (query_BT1 >= 0)
        if self.window is not None:
            seen_BTS &= key_B1S > query_BT1 - self.window
            if not self.causal:
                seen_BTS &= key_B1S < query_BT1 + self.window
        if self.first_B is not None:
            seen_BTS |= key_B1S < self.first_B[:, None, None]
        if queries.documents_BS is not None:
            seen_BTS &= queries.documents_BS[:, :, None] == keys.documents_BS[:, None, :]
        return seen_BTS
