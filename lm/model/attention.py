"""Causal self-attention: multi-head, grouped-query and multi-query, full or in a sliding window, cached or not."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.errors import require
from lm.model.cache import starts
from lm.model.layers import Linear, Norm, project, rotate, scaled
from lm.model.parametrization import branch_factor, output_scale, query_factor
from lm.model.taps import Taps

BLOCKS = 4
"""Blocks of queries in a long sequence; more skip more of the future, in smaller products."""
BLOCK = 32
"""Fewest queries in a block; sequences of up to two such are not worth cutting."""
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


class Stretch(NamedTuple):
    """Keys and values of S places, R = B·K rows of key heads, and which queries may see them (broadcast over B)."""

    k_RHS: jax.Array
    v_RSH: jax.Array
    mask_BTS: jax.Array
    held: jax.Array | None = None
    """Whether anything is in it, so that an empty one is not read; None if that is known."""


def attend(q_BKGTH: jax.Array, stretches: list[Stretch], taps: Taps) -> jax.Array:
    """Softmax attention over several stretches at once: the cache and the new tokens.

    Query head n = (k, g) reads key head k = n // G. Returns the mixture of values, [B, K, G, T, H]. Scores and softmax
    are float32.
    """
    B, K, G, T, H = q_BKGTH.shape
    q_RQH = q_BKGTH.reshape(B * K, G * T, H)  # one batch axis, as the cache has: no operand needs another view
    score = lambda k_RHS: jnp.einsum("RQH,RHS->RQS", q_RQH, k_RHS, preferred_element_type=jnp.float32)  # noqa: E731
    scores_RQS = jnp.concatenate([_if_held(s, score, s.k_RHS) for s in stretches], axis=-1)
    scores_BNTS = scores_RQS.reshape(B, K * G, T, -1)
    scores_BNTS = taps("attention.scores", scores_BNTS * H**-0.5)
    masks = [jnp.broadcast_to(s.mask_BTS, (B, *s.mask_BTS.shape[1:])) for s in stretches]
    mask_BTS = jnp.concatenate(masks, axis=-1)
    weights_BNTS = jax.nn.softmax(jnp.where(mask_BTS[:, None], scores_BNTS, MASKED), axis=-1)
    weights_RQS = taps("attention.weights", weights_BNTS).reshape(B * K, G * T, -1)

    heads_RQH, start = 0.0, 0
    for s in stretches:
        w_RQS = weights_RQS[..., start : start + s.v_RSH.shape[1]].astype(s.v_RSH.dtype)
        heads_RQH += _if_held(s, functools.partial(jnp.einsum, "RQS,RSH->RQH", w_RQS), s.v_RSH)
        start += s.v_RSH.shape[1]
    return heads_RQH.reshape(q_BKGTH.shape)


def _if_held(s: Stretch, product: Callable, x: jax.Array) -> jax.Array:
    """product(x); zeros, and x is not read, where the stretch holds nothing."""
    return product(x) if s.held is None else jax.lax.cond(s.held, product, lambda x: jnp.zeros_like(product(x)), x)


def attend_causal(q_BKGTH: jax.Array, k_RHT: jax.Array, v_RTH: jax.Array, mask_BTT: jax.Array, taps: Taps):
    """`attend` of tokens to each other, by blocks of queries which skip the keys after them: 3/8 less work."""
    T = q_BKGTH.shape[3]
    whole = T <= 2 * BLOCK or taps.wants("attention.scores", "attention.weights")  # who looks at scores sees all
    block = T if whole else max(BLOCK, -(-T // BLOCKS))
    heads = []
    for start in range(0, T, block):
        end = min(start + block, T)
        seen = Stretch(k_RHT[..., :end], v_RTH[:, :end], mask_BTT[:, start:end, :end])
        heads.append(attend(q_BKGTH[:, :, :, start:end], [seen], taps))
    return jnp.concatenate(heads, axis=3)


# --- cuDNN's fused kernel --------------------------------------------------------------------------------------------
def fused(asked: str, T: int, obstacle: str | None) -> bool:
    """Whether T tokens attend to each other by cuDNN: auto does where it can, unless one product would do anyway."""
    require(asked != "cudnn" or obstacle is None, f"model.attention cudnn: {obstacle}; use auto, or plain")
    return obstacle is None and (asked == "cudnn" or (asked == "auto" and T > 2 * BLOCK))


def obstacle_to_cudnn(capability: float | None, dtype, H: int, *, windowed: bool, packed: bool, tapped: bool):
    """Why cuDNN's kernel cannot be used, in words; None if it can. capability: see `cuda_capability`."""
    obstacles = {
        "it needs an NVIDIA GPU of compute capability 8.0 or more": capability is None or capability < 8,
        f"it computes in bfloat16 or float16, not {dtype}": str(dtype) not in ("bfloat16", "float16"),
        f"its heads are at most 128 wide and a multiple of 8, not {H}": H > 128 or H % 8 != 0,
        "it knows no sliding window here": windowed,
        "it knows no packed documents here": packed,
        "it never holds the scores and weights that a tap wants": tapped,
    }
    return next((obstacle for obstacle, stands in obstacles.items() if stands), None)


def cuda_capability() -> float | None:
    """Compute capability of the NVIDIA GPU that JAX computes on, 9.0 for an H100; None on anything else."""
    device = jax.devices()[0]
    on_cuda = device.platform == "gpu" and "cuda" in device.client.platform_version.lower()
    return float(device.compute_capability) if on_cuda else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Past:
    """What one layer remembers: stretches of k [B·K, H, S] and v [B·K, S, H], and the position of each slot [B, S]."""

    k_CRHS: tuple[jax.Array, ...]
    v_CRSH: tuple[jax.Array, ...]
    positions_BS: jax.Array
    longest: jax.Array
    """Slots held, in the row that holds most."""

    def stretches(self, mask_BTS: jax.Array) -> list[Stretch]:
        """With the mask of all slots cut likewise."""
        first_slots = starts(self.v_CRSH)
        masks = jnp.split(mask_BTS, first_slots[1:], axis=-1)
        held = [None] if len(first_slots) == 1 else [self.longest > first for first in first_slots]
        return [Stretch(*of) for of in zip(self.k_CRHS, self.v_CRSH, masks, held, strict=True)]


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
        self.own_values = nnx.Param(jnp.float32(0.5), axes=()) if c.value_residual else None
        self.first_values = nnx.Param(jnp.float32(0.5), axes=()) if c.value_residual else None

    def __call__(self, x_BTD, positions_BT, window, same_BTT, past: Past | None, first_BTKH, taps: Taps):
        """Returns what attention adds, [B, T, D], the new keys [B, K, H, T] and values [B, K, T, H], and first_BTKH.

        positions_BT: absolute positions, B may be 1. same_BTT: pairs in the same document, or None. The past is only
        read; the caller appends the new keys and values to the cache once all layers are done. first_BTKH: the first
        layer's values of these tokens, which the first layer fills in; None without value residuals.
        """
        c, (B, T, _) = self.c, x_BTD.shape
        q_BTNH, k_BTKH, v_BTKH = self._project(x_BTD)
        if c.qk_norm:
            q_BTNH, k_BTKH = self.query_norm(q_BTNH), self.key_norm(k_BTKH)
        if c.positions == "rotary":
            q_BTNH = rotate(q_BTNH, positions_BT, c.rotary_base)
            k_BTKH = rotate(k_BTKH, positions_BT, c.rotary_base)
        q_BTNH = taps("attention.query", scaled(q_BTNH, query_factor(c)))
        k_BTKH = taps("attention.key", k_BTKH)
        if c.value_residual:  # Zhou et al. 2024, "Value Residual Learning": learned weights of both
            first_BTKH = jnp.where(taps.layer == 0, v_BTKH, first_BTKH)
            own, first = (weight[...].astype(v_BTKH.dtype) for weight in (self.own_values, self.first_values))
            v_BTKH = own * v_BTKH + first * first_BTKH
        v_BTKH = taps("attention.value", v_BTKH)

        k_BKHT, v_BKTH = k_BTKH.transpose(0, 2, 3, 1), v_BTKH.swapaxes(1, 2)
        if past is None and self._fused(q_BTNH, window, same_BTT, taps):
            heads_BTNH = jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, is_causal=True, implementation="cudnn")
        else:
            q_BKGTH = q_BTNH.reshape(B, T, c.K, -1, c.H).transpose(0, 2, 3, 1, 4)
            mask_BTT = visible(positions_BT, positions_BT, window, same_BTT)
            new = k_BKHT.reshape(-1, c.H, T), v_BKTH.reshape(-1, T, c.H), mask_BTT
            if past is None:
                heads_BKGTH = attend_causal(q_BKGTH, *new, taps)
            else:
                old = past.stretches(visible(positions_BT, past.positions_BS, window))
                heads_BKGTH = attend(q_BKGTH, [*old, Stretch(*new)], taps)
            heads_BTNH = heads_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, c.heads, c.H)
        heads_BTNH = taps("attention.heads", heads_BTNH)
        out_BTD = scaled(self.out(heads_BTNH.reshape(B, T, -1)), branch_factor(c))
        return taps("attention.out", out_BTD), (k_BKHT, v_BKTH), first_BTKH

    def _fused(self, q_BTNH, window, same_BTT, taps: Taps) -> bool:
        tapped = taps.wants("attention.scores", "attention.weights")
        obstacle = obstacle_to_cudnn(
            cuda_capability(), q_BTNH.dtype, self.c.H,
            windowed=window is not None, packed=same_BTT is not None, tapped=tapped,
        )  # fmt: skip
        return fused(self.c.attention, q_BTNH.shape[1], obstacle)

    def _project(self, x_BTD):
        """Queries, keys and values, [B, T, heads, H], by one product: three narrow ones would keep a CPU less busy."""
        c, maps = self.c, (self.query, self.key, self.value)
        if self.query.kernel.ndim == 3:  # laid out for single tokens
            return [m(x_BTD).reshape(*x_BTD.shape[:2], -1, c.H) for m in maps]
        kernel = jnp.concatenate([m.kernel[...] for m in maps], axis=1)
        bias = jnp.concatenate([m.bias[...] for m in maps]) if c.bias else None
        y_BTH = project(x_BTD, kernel, bias).reshape(*x_BTD.shape[:2], c.heads + 2 * c.K, c.H)
        return jnp.split(y_BTH, (c.heads, c.heads + c.K), axis=2)
