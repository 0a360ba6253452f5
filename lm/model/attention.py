"""Causal self-attention: multi-head, grouped-query and multi-query, full or in a sliding window, cached or not."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.model.layers import Linear, Norm, output_scale, rotate
from lm.model.taps import Taps

MASKED = -1e30
"""Score of a pair that must not attend: its weight and its gradient are exactly zero."""


def visible(queries_BT: jax.Array, keys_BS: jax.Array, window: jax.Array | None, same_BTS=None) -> jax.Array:
    """The one mask: may the query at this absolute position see the key at that one? [B, T, S] booleans.

    window: tokens seen, the query's own included; None is everything before it. same_BTS: same document, if it matters.
    """
    mask_BTS = keys_BS[:, None, :] <= queries_BT[:, :, None]
    if window is not None:
        mask_BTS &= keys_BS[:, None, :] > queries_BT[:, :, None] - window
    return mask_BTS if same_BTS is None else mask_BTS & same_BTS


def attend(q_BTNH: jax.Array, parts: list[tuple[jax.Array, jax.Array, jax.Array]], taps: Taps) -> jax.Array:
    """Softmax attention over several stretches of keys at once: the cache and the new tokens.

    parts: (k_BSKH, v_BSKH, mask_BTS) each, masks broadcasting over B. Query head n = (k, g) reads key head k = n // G.
    Returns the mixture of values, [B, T, N, H]. Scores and softmax are float32.
    """
    B, T, N, H = q_BTNH.shape
    K = parts[0][0].shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BNTS = jnp.concatenate(
        [
            jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k, preferred_element_type=jnp.float32).reshape(B, N, T, -1)
            for k, _, _ in parts
        ],
        axis=-1,
    )
    scores_BNTS = taps("attention.scores", scores_BNTS * H**-0.5)
    mask_BTS = jnp.concatenate([jnp.broadcast_to(mask, (B, *mask.shape[1:])) for *_, mask in parts], axis=-1)
    weights_BNTS = jax.nn.softmax(jnp.where(mask_BTS[:, None], scores_BNTS, MASKED), axis=-1)
    weights_BNTS = taps("attention.weights", weights_BNTS)

    heads_BTKGH, start = 0.0, 0
    for _, v_BSKH, _ in parts:
        w = weights_BNTS[..., start : start + v_BSKH.shape[1]].astype(v_BSKH.dtype)
        heads_BTKGH += jnp.einsum("BKGTS,BSKH->BTKGH", w.reshape(B, K, N // K, T, -1), v_BSKH)
        start += v_BSKH.shape[1]
    return taps("attention.heads", heads_BTKGH.reshape(B, T, N, H))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Past:
    """What one layer remembers: k, v [B, S, K, H] and the position of each slot [B, S]."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    positions_BS: jax.Array


class Attention(nnx.Module):
    """Project to queries, keys and values, attend, project back."""

    def __init__(self, c: ModelConfig, rngs):
        self.c = c
        self.query = Linear(c, c.width, c.heads * c.H, ("D", "NH"), rngs)
        self.key = Linear(c, c.width, c.K * c.H, ("D", "KH"), rngs)
        self.value = Linear(c, c.width, c.K * c.H, ("D", "KH"), rngs)
        self.out = Linear(c, c.heads * c.H, c.width, ("NH", "D"), rngs, scale=output_scale(c))
        self.query_norm = Norm(c, c.H, "H", "rmsnorm") if c.qk_norm else None
        self.key_norm = Norm(c, c.H, "H", "rmsnorm") if c.qk_norm else None

    def __call__(self, x_BTD, positions_BT, window, same_BTT, past: Past | None, taps: Taps):
        """Returns what attention adds, [B, T, D], and the new keys and values, [B, T, K, H] each.

        positions_BT: absolute positions, B may be 1. same_BTT: pairs in the same document, or None. The past is only
        read; the caller appends the new keys and values to the cache once all layers are done.
        """
        B, T, _ = x_BTD.shape
        q_BTNH = self.query(x_BTD).reshape(B, T, self.c.heads, self.c.H)
        k_BTKH = self.key(x_BTD).reshape(B, T, self.c.K, self.c.H)
        v_BTKH = self.value(x_BTD).reshape(B, T, self.c.K, self.c.H)
        if self.c.qk_norm:
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        if self.c.positions == "rotary":
            q_BTNH = rotate(q_BTNH, positions_BT, self.c.rotary_base)
            k_BTKH = rotate(k_BTKH, positions_BT, self.c.rotary_base)
        q_BTNH = taps("attention.query", q_BTNH)
        k_BTKH = taps("attention.key", k_BTKH)
        v_BTKH = taps("attention.value", v_BTKH)

        parts = [(k_BTKH, v_BTKH, visible(positions_BT, positions_BT, window, same_BTT))]
        if past is not None:
            parts.insert(0, (past.k_BSKH, past.v_BSKH, visible(positions_BT, past.positions_BS, window)))
        heads_BTNH = attend(q_BTNH, parts, taps)
        return taps("attention.out", self.out(heads_BTNH.reshape(B, T, -1))), (k_BTKH, v_BTKH)
