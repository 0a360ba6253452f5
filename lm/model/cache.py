"""KVCache: keys and values of what was read so far, an explicit pytree.

A token at absolute position p lives in slot p of its row. Slots at or past a row's length hold leftovers (padding of
ragged prompts) which no query can see, because their position counts as infinitely far ahead; later tokens overwrite
them. So ragged rows, chunked prefill and decoding all go through attention's one mask function.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lm.config import ModelConfig

FAR = jnp.iinfo(jnp.int32).max


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """k, v: [L, B, S, K, H] in the compute dtype; length: [B] tokens held by each row."""

    k_LBSKH: jax.Array
    v_LBSKH: jax.Array
    length_B: jax.Array

    @classmethod
    def empty(cls, c: ModelConfig, batch: int, capacity: int, dtype) -> "KVCache":
        """Room for `capacity` tokens in each of `batch` rows."""
        zeros = lambda: jnp.zeros((c.layers, batch, capacity, c.K, c.H), dtype)  # noqa: E731  (two: both may be donated)
        return cls(zeros(), zeros(), jnp.zeros(batch, jnp.int32))

    @property
    def capacity(self) -> int:
        return self.k_LBSKH.shape[2]

    def slot_positions(self) -> jax.Array:
        """[B, S] absolute position of each slot, FAR where nothing is held."""
        slots = jnp.arange(self.capacity)
        return jnp.where(slots < self.length_B[:, None], slots, FAR)

    def next_positions(self, count: int) -> jax.Array:
        """[B, T] positions of the next `count` tokens of each row."""
        return self.length_B[:, None] + jnp.arange(count)

    def append(self, k_LBTKH: jax.Array, v_LBTKH: jax.Array, count_B: jax.Array) -> "KVCache":
        """Write T new tokens behind each row's last, and count the first `count_B` of them as held.

        One write for all layers, after they have all read the old cache: written layer by layer inside the loop over
        layers, XLA copies the whole cache for each.
        """
        slots_BT = self.next_positions(k_LBTKH.shape[2])
        rows_B1 = jnp.arange(self.length_B.shape[0])[:, None]
        write = lambda old, new: old.at[:, rows_B1, slots_BT].set(new.astype(old.dtype), mode="drop")  # noqa: E731
        return KVCache(write(self.k_LBSKH, k_LBTKH), write(self.v_LBSKH, v_LBTKH), self.length_B + count_B)
