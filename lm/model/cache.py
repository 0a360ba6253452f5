"""KVCache: keys and values of what was read so far, an explicit pytree.

A token at absolute position p lives in slot p of its row. Slots at or past a row's length hold leftovers (padding of
ragged prompts) which no query can see, because their position counts as infinitely far ahead; later tokens overwrite
them. So ragged rows, chunked prefill and decoding all go through attention's one mask function.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from lm.config import ModelConfig

FAR = jnp.iinfo(jnp.int32).max
STRETCH_SLOTS, STRETCH_BYTES = 64, 1 << 18
"""Least slots in a stretch of a cache, and least bytes of their keys: shorter ones cost more than not reading saves."""
MOST_STRETCHES = 8
"""A layer; each is compiled apart."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """For each layer, stretches of slots, in the compute dtype: k [B·K, H, S], v [B·K, S, H].

    length: [B] tokens held by each row. Layers are apart, and each lies just as the product with a query reads it, so
    that decoding updates it in place: any slice, transposition or reshape in between would be a copy of the whole
    cache, token after token. For the same reason a large cache is cut into stretches: those still empty are not read.
    """

    k_LCRHS: tuple[tuple[jax.Array, ...], ...]
    v_LCRSH: tuple[tuple[jax.Array, ...], ...]
    length_B: jax.Array

    @classmethod
    def empty(cls, c: ModelConfig, batch: int, capacity: int, dtype) -> "KVCache":
        """Room for `capacity` tokens in each of `batch` rows."""
        rooms = _stretches(capacity, batch * c.K * c.H * jnp.dtype(dtype).itemsize)
        zeros = lambda *shape: jnp.zeros((batch * c.K, *shape), dtype)  # noqa: E731
        k_LCRHS = tuple(tuple(zeros(c.H, room) for room in rooms) for _ in range(c.layers))
        v_LCRSH = tuple(tuple(zeros(room, c.H) for room in rooms) for _ in range(c.layers))
        return cls(k_LCRHS, v_LCRSH, jnp.zeros(batch, jnp.int32))

    @property
    def capacity(self) -> int:
        return sum(v_RSH.shape[1] for v_RSH in self.v_LCRSH[0])

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

        def write(k_RHS, v_RSH, k_BTKH, v_BTKH, first):
            k_BKHS, v_BKSH = (x.reshape(B, -1, *x.shape[1:]) for x in (k_RHS, v_RSH))
            here_BT = jnp.where(slots_BT < first, FAR, slots_BT - first) if first else slots_BT  # others are dropped
            k_BKHS = k_BKHS.at[rows_B1, :, :, here_BT].set(k_BTKH.astype(k_RHS.dtype), mode="drop")
            v_BKSH = v_BKSH.at[rows_B1, :, here_BT].set(v_BTKH.astype(v_RSH.dtype), mode="drop")
            return k_BKHS.reshape(k_RHS.shape), v_BKSH.reshape(v_RSH.shape)

        def write_layer(k_CRHS, v_CRSH, k_BKHT, v_BKTH):
            new = k_BKHT.transpose(0, 3, 1, 2), v_BKTH.swapaxes(1, 2)
            written = [write(k, v, *new, first) for k, v, first in zip(k_CRHS, v_CRSH, starts(v_CRSH), strict=True)]
            return tuple(zip(*written, strict=True))

        written = [write_layer(*layer) for layer in zip(self.k_LCRHS, self.v_LCRSH, k_LBKHT, v_LBKTH, strict=True)]
        return KVCache(*zip(*written, strict=True), self.length_B + count_B)


def starts(v_CRSH: tuple[jax.Array, ...]) -> list[int]:
    """The first slot of each stretch."""
    return list(itertools.accumulate((v_RSH.shape[1] for v_RSH in v_CRSH[:-1]), initial=0))


def _stretches(capacity: int, slot_bytes: int) -> list[int]:
    """Slots of each stretch, for keys of so many bytes a slot. One where a branch would make the device wait."""
    least = max(STRETCH_SLOTS, -(-STRETCH_BYTES // slot_bytes))
    parts = min(max(1, capacity // least), MOST_STRETCHES) if jax.default_backend() == "cpu" else 1
    bounds = [capacity * part // parts for part in range(parts + 1)]
    return [end - start for start, end in itertools.pairwise(bounds)]
