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
    """One array a layer, in the compute dtype: k [B·K, H, S], v [B·K, S, H]. length: [B] tokens held by each row.

    Layers are apart, and each lies just as the product with a query reads it, so that decoding updates it in place: any
    slice, transposition or reshape in between would be a copy of the whole cache, token after token.
    """

    k_LRHS: tuple[jax.Array, ...]
    v_LRSH: tuple[jax.Array, ...]
    length_B: jax.Array

    @classmethod
    def empty(cls, c: ModelConfig, batch: int, capacity: int, dtype) -> "KVCache":
        """Room for `capacity` tokens in each of `batch` rows."""
        zeros = lambda *shape: tuple(jnp.zeros((batch * c.K, *shape), dtype) for _ in range(c.layers))  # noqa: E731
        return cls(zeros(c.H, capacity), zeros(capacity, c.H), jnp.zeros(batch, jnp.int32))

    @property
    def capacity(self) -> int:
        return self.v_LRSH[0].shape[1]

    def slot_positions(self) -> jax.Array:
        """[B, S] absolute position of each slot, FAR where nothing is held."""
        slots = jnp.arange(self.capacity)
        return jnp.where(slots < self.length_B[:, None], slots, FAR)

    def next_positions(self, count: int) -> jax.Array:
        """[B, T] positions of the next `count` tokens of each row."""
        return self.length_B[:, None] + jnp.arange(count)

    def append(self, k_LBKHT: jax.Array, v_LBKTH: jax.Array, count_B: jax.Array) -> "KVCache":
        """Write T new tokens behind each row's last, and count the first `count_B` of them as held."""
        slots_BT = self.next_positions(v_LBKTH.shape[3])
        B = slots_BT.shape[0]
        rows_B1 = jnp.arange(B)[:, None]

        def write(k_RHS, v_RSH, k_BKHT, v_BKTH):
            k_BTKH, v_BTKH = k_BKHT.transpose(0, 3, 1, 2), v_BKTH.swapaxes(1, 2)
            k_BKHS, v_BKSH = (x.reshape(B, -1, *x.shape[1:]) for x in (k_RHS, v_RSH))
            k_BKHS = k_BKHS.at[rows_B1, :, :, slots_BT].set(k_BTKH.astype(k_RHS.dtype), mode="drop")
            v_BKSH = v_BKSH.at[rows_B1, :, slots_BT].set(v_BTKH.astype(v_RSH.dtype), mode="drop")
            return k_BKHS.reshape(k_RHS.shape), v_BKSH.reshape(v_RSH.shape)

        written = [write(*layer) for layer in zip(self.k_LRHS, self.v_LRSH, k_LBKHT, v_LBKTH, strict=True)]
        return KVCache(*zip(*written, strict=True), self.length_B + count_B)
