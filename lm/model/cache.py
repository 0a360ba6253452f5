"""KVCache: keys and values of what was read so far, an explicit pytree, and what attention reads of it.

A token at absolute position p lives in slot p of its row. Slots at or past a row's length hold leftovers (padding of
ragged prompts) which no query can see, because their position counts as infinitely far ahead; later tokens overwrite
them. So ragged rows, chunked prefill and decoding all go through attention's one mask.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.model.kernels import Apart
from lm.model.mask import FAR, Places

STRETCH_SLOTS, STRETCH_BYTES = 64, 1 << 18
"""Least slots in a stretch of a cache, and least bytes of their keys: shorter ones cost more than not reading saves."""
MOST_STRETCHES = 8
"""A layer; each is compiled apart."""


# --- what attention reads --------------------------------------------------------------------------------------------
def scores(q_RQH: jax.Array, k_RHS: jax.Array) -> jax.Array:
    """Products of queries with the cache's keys, [R, Q, S] in float32."""
    return jnp.einsum("RQH,RHS->RQS", q_RQH, k_RHS, preferred_element_type=jnp.float32)


def mixture(weights_RQS: jax.Array, v_RSH: jax.Array) -> jax.Array:
    """Values weighted, [R, Q, H]."""
    return jnp.einsum("RQS,RSH->RQH", weights_RQS.astype(v_RSH.dtype), v_RSH)


class KeysValues(NamedTuple):
    """Keys and values of S places, R = B K rows of key heads."""

    k_RSH: jax.Array
    v_RSH: jax.Array

    def scores(self, q_RQH: jax.Array) -> jax.Array:
        """Products of queries with keys, [R, Q, S] in float32."""
        return jnp.einsum("RQH,RSH->RQS", q_RQH, self.k_RSH, preferred_element_type=jnp.float32)

    def mix(self, weights_RQS: jax.Array) -> jax.Array:
        """Values weighted, [R, Q, H]."""
        return mixture(weights_RQS, self.v_RSH)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Past:
    """One layer's cache: KeysValues in stretches of slots, of which those that hold nothing are not read."""

    k_CRHS: tuple[jax.Array, ...]
    v_CRSH: tuple[jax.Array, ...]
    places: Places
    longest: jax.Array
    """Slots held, in the row that holds most."""

    def scores(self, q_RQH: jax.Array) -> jax.Array:
        """As KeysValues.scores, over all slots; zeros where a stretch holds nothing."""
        score = functools.partial(scores, q_RQH)
        each = zip(self.k_CRHS, starts(self.v_CRSH), strict=True)
        return jnp.concatenate([self._if_held(start, score, k_RHS) for k_RHS, start in each], axis=-1)

    def mix(self, weights_RQS: jax.Array) -> jax.Array:
        """As KeysValues.mix, over all slots."""
        total_RQH = 0.0
        for v_RSH, start in zip(self.v_CRSH, starts(self.v_CRSH), strict=True):
            part_RQS = weights_RQS[..., start : start + v_RSH.shape[1]]
            total_RQH += self._if_held(start, functools.partial(mixture, part_RQS), v_RSH)
        return total_RQH

    def _if_held(self, start: int, product: Callable, x: jax.Array) -> jax.Array:
        """product(x), or zeros without reading x where nothing is held from slot `start` on."""
        if len(self.v_CRSH) == 1:
            return product(x)
        return jax.lax.cond(self.longest > start, product, lambda x: jnp.zeros_like(product(x)), x)


# --- the cache -------------------------------------------------------------------------------------------------------
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SourceCache:
    """Keys and values of a source for each layer's cross-attention, made once, and the places they stand at."""

    layers: Apart | None
    places: Places

    @classmethod
    def apart(cls, stacked: KeysValues, places: Places) -> "SourceCache":
        """Of keys and values stacked along L."""
        k_LRHS, v_LRSH = stacked
        return cls(Apart(tuple(map(KeysValues, k_LRHS, v_LRSH))), places)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """For each layer, stretches of slots, in the compute dtype: k [B K, H, S], v [B K, S, H].

    length_B: tokens written of each row. Layers are apart, and each lies just as the product with a query reads it, so
    that decoding updates it in place: any slice, transposition or reshape in between would be a copy of the whole
    cache, token after token. For the same reason a large cache is cut into stretches: those still empty are not read;
    and what one token made waits in new_*, to be written before the next is read: after the reads, XLA would copy.
    """

    k_LCRHS: tuple[tuple[jax.Array, ...], ...]
    v_LCRSH: tuple[tuple[jax.Array, ...], ...]
    length_B: jax.Array
    new_k_LBKHT: jax.Array
    new_v_LBKTH: jax.Array
    new_B: jax.Array
    """How many of the waiting tokens (T is 1) count, none or one a row."""
    source: "SourceCache | None" = None
    """What cross-attention reads, in a decoder beside an encoder."""
    open_B: jax.Array | None = None
    """How many of each row's first places all may see, whatever the window, under the mask "prefix"."""

    @classmethod
    def empty(cls, c: ModelConfig, batch: int, capacity: int, dtype) -> "KVCache":
        """Room for `capacity` tokens in each of `batch` rows."""
        rooms = _stretches(capacity, batch * c.K * c.H * jnp.dtype(dtype).itemsize)
        R = batch * c.K
        k_LCRHS = tuple(tuple(jnp.zeros((R, c.H, room), dtype) for room in rooms) for _ in range(c.layers))
        v_LCRSH = tuple(tuple(jnp.zeros((R, room, c.H), dtype) for room in rooms) for _ in range(c.layers))
        new_k, new_v = (jnp.zeros((c.layers, batch, c.K, *axes), dtype) for axes in ((c.H, 1), (1, c.H)))
        none_B = jnp.zeros(batch, jnp.int32)
        return cls(k_LCRHS, v_LCRSH, length_B=none_B, new_k_LBKHT=new_k, new_v_LBKTH=new_v, new_B=none_B)

    @property
    def capacity(self) -> int:
        return sum(v_RSH.shape[1] for v_RSH in self.v_LCRSH[0])

    # --- reading: of a cache in which nothing waits ------------------------------------------------------------------
    def places(self) -> Places:
        """The position of each slot, FAR where nothing is held."""
        slots = jnp.arange(self.capacity)
        return Places(jnp.where(slots < self.length_B[:, None], slots, FAR))

    def next_positions(self, count: int) -> jax.Array:
        """[B, T] positions of the next `count` tokens of each row."""
        return self.length_B[:, None] + jnp.arange(count)

    def layers(self) -> Apart:
        """Each layer's (k, v) stretches."""
        return Apart(tuple(zip(self.k_LCRHS, self.v_LCRSH, strict=True)))

    # --- writing -----------------------------------------------------------------------------------------------------
    def settled(self) -> "KVCache":
        """With what was waiting written, before anything is read."""
        waiting = self.append(self.new_k_LBKHT, self.new_v_LBKTH, self.new_B, self.next_positions(1))
        return jax.lax.optimization_barrier(waiting)

    def grown(self, k_LBKHT: jax.Array, v_LBKTH: jax.Array, count_B: jax.Array, slots_BT: jax.Array) -> "KVCache":
        """After reading T tokens, of which `count_B` of each row count: one waits, several are written."""
        if v_LBKTH.shape[3] == 1:
            k_LBKHT, v_LBKTH = k_LBKHT.astype(self.new_k_LBKHT.dtype), v_LBKTH.astype(self.new_v_LBKTH.dtype)
            return dataclasses.replace(self, new_k_LBKHT=k_LBKHT, new_v_LBKTH=v_LBKTH, new_B=count_B)
        return self.append(k_LBKHT, v_LBKTH, count_B, slots_BT)

    def append(self, k_LBKHT: jax.Array, v_LBKTH: jax.Array, count_B: jax.Array, slots_BT: jax.Array) -> "KVCache":
        """Write T new tokens to their slots, and count `count_B` of each row as held; nothing waits.

        A slot that is FAR takes nothing; slots from the new length on hold leftovers, which are overwritten.
        """
        B = len(self.length_B)
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
        k_LCRHS, v_LCRSH = zip(*written, strict=True)
        none_B = jnp.zeros_like(self.new_B)
        return dataclasses.replace(
            self, k_LCRHS=k_LCRHS, v_LCRSH=v_LCRSH, length_B=self.length_B + count_B, new_B=none_B
        )


def starts(v_CRSH: tuple[jax.Array, ...]) -> list[int]:
    """The first slot of each stretch."""
    return list(itertools.accumulate((v_RSH.shape[1] for v_RSH in v_CRSH[:-1]), initial=0))


def _stretches(capacity: int, slot_bytes: int) -> list[int]:
    """Slots of each stretch, for keys of so many bytes a slot. One where a branch would make the device wait."""
    least = max(STRETCH_SLOTS, -(-STRETCH_BYTES // slot_bytes))
    parts = min(max(1, capacity // least), MOST_STRETCHES) if jax.default_backend() == "cpu" else 1
    bounds = [capacity * part // parts for part in range(parts + 1)]
    return [end - start for start, end in itertools.pairwise(bounds)]
