"""Attention: multi-head, grouped-query and multi-query, under any mask, with a cache or without."""

from collections.abc import Sequence
from typing import get_args

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.errors import require
from lm.model.cache import KeysValues, Past
from lm.model.cost import Cost, Pairs
from lm.model.kernels import side_by_side
from lm.model.layers import Linear, Norm, scaled, squashed
from lm.model.mask import Mask, Places
from lm.model.parametrization import output_scale, query_factor
from lm.model.rotary import rotate
from lm.model.taps import Taps

BLOCKS = 4
"""Blocks of queries in a long sequence; more skip more of the future, in smaller products."""
BLOCK = 32
"""Fewest queries in a block; sequences of up to two such are not worth cutting."""
MASKED = -1e30
"""Score of a pair that must not attend: its weight and its gradient are exactly zero."""
SOFTMAX = 5
"""Operations a score: mask, maximum, subtract, exponential, sum. Scaling and dividing are two for each of a query's H
numbers."""
PAIRS = ("attention.scores", "attention.weights")
"""Taps on every pair of query and key, which no fused or blockwise product ever holds."""


def attend(
    q_BKGTH: jax.Array,
    memories: Sequence[KeysValues | Past],
    masks: Sequence[jax.Array],
    taps: Taps,
    name: str = "attention",
    *,
    softcap: float | None = None,
) -> jax.Array:
    """Softmax attention over several memories at once, such as the cache and the new tokens, each under its mask.

    Query head n = (k, g) reads key head k = n // G. Returns the mixture of values, [B, K, G, T, H]. Scores and softmax
    are float32. name: the first word of their taps. softcap: squashes scores, see `layers.squashed`.
    """
    B, K, G, T, H = q_BKGTH.shape
    q_RQH = q_BKGTH.reshape(B * K, G * T, H) * H**-0.5  # one batch axis, as the cache has: no operand is copied
    scores_RQS = jnp.concatenate([memory.scores(q_RQH) for memory in memories], axis=-1)
    scores_BNTS = taps(f"{name}.scores", squashed(scores_RQS.reshape(B, K * G, T, -1), softcap))
    mask_BTS = jnp.concatenate([jnp.broadcast_to(mask, (B, *mask.shape[1:])) for mask in masks], axis=-1)
    scores_BNTS = jnp.where(mask_BTS[:, None], scores_BNTS, MASKED)
    # Softmax: the mixture is divided by the weights' sum, H numbers a query, where the weights would be S.
    weights_BNTS = jnp.exp(scores_BNTS - jax.lax.stop_gradient(jnp.max(scores_BNTS, axis=-1, keepdims=True)))
    sum_BNT1 = jnp.sum(weights_BNTS, axis=-1, keepdims=True)
    if taps.wants(f"{name}.weights"):
        weights_BNTS, sum_BNT1 = taps(f"{name}.weights", weights_BNTS / sum_BNT1), jnp.ones_like(sum_BNT1)
    weights_RQS = weights_BNTS.reshape(B * K, G * T, -1)

    heads_RQH, start = 0.0, 0
    for memory, mask in zip(memories, masks, strict=True):
        end = start + mask.shape[-1]
        heads_RQH += memory.mix(weights_RQS[..., start:end])
        start = end
    return (heads_RQH / sum_BNT1.reshape(B * K, G * T, 1)).astype(q_BKGTH.dtype).reshape(q_BKGTH.shape)


def attend_among(
    q_BKGTH: jax.Array, new: KeysValues, here: Places, mask: Mask, taps: Taps, *, softcap: float | None = None
) -> jax.Array:
    """`attend` of tokens to each other. Where nothing after a query is seen, by blocks of queries which skip the keys
    after them: 3/8 less work. Reading or editing scores or weights keeps them whole."""
    T = q_BKGTH.shape[3]
    heads = []
    for start, end in [(0, T)] if mask.looks_ahead or taps.wants(*PAIRS) else query_blocks(T):
        seen = KeysValues(new.k_RSH[:, :end], new.v_RSH[:, :end])
        mask_BTS = mask(here.between(start, end), here.between(0, end))
        heads.append(attend(q_BKGTH[:, :, :, start:end], [seen], [mask_BTS], taps, softcap=softcap))
    return jnp.concatenate(heads, axis=3)


def query_blocks(T: int) -> list[tuple[int, int]]:
    """First query of each block, and the one after its last: a query of the block meets the keys before that one."""
    block = T if T <= 2 * BLOCK else max(BLOCK, -(-T // BLOCKS))
    return [(start, min(start + block, T)) for start in range(0, T, block)]


def keys_met(T: int, window: int | None, pairs: Pairs, *, causal: bool = True) -> float:
    """Mean number of keys that a position of a sequence meets, its own included; see `Pairs`."""
    require(pairs in get_args(Pairs), f"pairs {pairs!r}: one of {', '.join(get_args(Pairs))}")
    if pairs == "all" or (not causal and (pairs == "computed" or window is None)):
        return T
    if not causal:
        return sum(min(t + window, T) - max(t - window + 1, 0) for t in range(T)) / T
    if pairs == "computed":
        return sum((end - start) * end for start, end in query_blocks(T)) / T
    w = min(window or T, T)
    return (w * (w + 1) / 2 + (T - w) * w) / T


# --- cuDNN's fused kernel --------------------------------------------------------------------------------------------
def fused(asked: str, T: int, obstacle: str | None) -> bool:
    """Whether T tokens attend to each other by cuDNN: auto does where it can, unless one product would do anyway."""
    require(asked != "cudnn" or obstacle is None, f"model.attention cudnn: {obstacle}; use auto, or plain")
    return obstacle is None and (asked == "cudnn" or (asked == "auto" and T > 2 * BLOCK))


def obstacle_to_cudnn(
    capability: float | None, dtype, H: int, *, windowed: bool, packed: bool, capped: bool, tapped: bool
):
    """Why cuDNN's kernel cannot be used, in words; None if it can. capability: see `cuda_capability`."""
    obstacles = {
        "it needs an NVIDIA GPU of compute capability 8.0 or more": capability is None or capability < 8,
        f"it computes in bfloat16 or float16, not {dtype}": str(dtype) not in ("bfloat16", "float16"),
        f"its heads are at most 128 wide and a multiple of 8, not {H}": H > 128 or H % 8 != 0,
        "it knows no sliding window here": windowed,
        "it knows no packed documents here": packed,
        "it squashes no scores here": capped,
        "it never holds the scores and weights that a tap wants": tapped,
    }
    return next((obstacle for obstacle, stands in obstacles.items() if stands), None)


def cuda_capability() -> float | None:
    """Compute capability of the NVIDIA GPU that JAX computes on, 9.0 for an H100; None on anything else."""
    device = jax.local_devices()[0]
    on_cuda = device.platform == "gpu" and "cuda" in device.client.platform_version.lower()
    return float(device.compute_capability) if on_cuda else None


# --- the layer -------------------------------------------------------------------------------------------------------
class Attention(nnx.Module):
    """Project to queries, keys and values, rotate, attend, project back."""

    def __init__(self, c: ModelConfig, rngs):
        self.c = c
        biased, N, K, H = bool(c.bias), c.heads, c.K, c.H
        self.query = Linear(c, c.width, N * H, ("D", "NH"), rngs, biased=biased)
        self.key = Linear(c, c.width, K * H, ("D", "KH"), rngs, biased=biased)
        self.value = Linear(c, c.width, K * H, ("D", "KH"), rngs, biased=biased)
        self.out = Linear(c, N * H, c.width, ("NH", "D"), rngs, scale=output_scale(c))
        together = c.qk_norm == "width"
        self.query_norm = Norm(c, N * H if together else H, "NH" if together else "H", "rmsnorm") if c.qk_norm else None
        self.key_norm = Norm(c, K * H if together else H, "KH" if together else "H", "rmsnorm") if c.qk_norm else None
        self.own_values = nnx.Param(jnp.float32(0.5), axes=()) if c.value_residual else None
        self.first_values = nnx.Param(jnp.float32(0.5), axes=()) if c.value_residual else None

    def __call__(
        self, x_BTD, here: Places, mask: Mask, past: Past | None, first_BTKH, taps: Taps, *,
        frequencies_R: jax.Array | None = None,
    ):  # fmt: skip
        """Returns what attention gives, [B, T, D], the new keys [B, K, H, T] and values [B, K, T, H], and first_BTKH.

        The past is only read; the new keys and values go to the cache once all layers are done. first_BTKH: the first
        layer's values of these tokens, which the first layer fills in; None without value residuals. frequencies_R: the
        layer's row of `rotary.frequencies`; None without rotary positions.
        """
        c, (B, T, _) = self.c, x_BTD.shape
        q_BTNH, k_BTKH, v_BTKH = self._project(x_BTD)
        if c.qk_norm:
            q_BTNH, k_BTKH = self._normed(self.query_norm, q_BTNH), self._normed(self.key_norm, k_BTKH)
        if frequencies_R is not None:
            q_BTNH = rotate(q_BTNH, here.positions_BS, frequencies_R)
            k_BTKH = rotate(k_BTKH, here.positions_BS, frequencies_R)
        q_BTNH = taps("attention.query", scaled(q_BTNH, query_factor(c)))
        k_BTKH = taps("attention.key", k_BTKH)
        if c.value_residual:  # Zhou et al. 2024, "Value Residual Learning": learned weights of both
            first_BTKH = jnp.where(taps.layer == 0, v_BTKH, first_BTKH)
            own, first = (weight[...].astype(v_BTKH.dtype) for weight in (self.own_values, self.first_values))
            v_BTKH = own * v_BTKH + first * first_BTKH
        v_BTKH = taps("attention.value", v_BTKH)

        k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
        new = KeysValues(k_BKTH.reshape(-1, T, c.H), v_BKTH.reshape(-1, T, c.H))
        if past is None and not mask.looks_ahead and self._fused(q_BTNH, here, mask, taps):
            heads_BTNH = jax.nn.dot_product_attention(q_BTNH, k_BTKH, v_BTKH, is_causal=True, implementation="cudnn")
        elif past is None:
            heads_BTNH = _side_by_side(
                attend_among(_grouped(q_BTNH, c.K), new, here, mask, taps, softcap=c.attention_softcap)
            )
        else:
            masks = [mask(here, past.places), mask(here, here)]
            heads_BKGTH = attend(_grouped(q_BTNH, c.K), [past, new], masks, taps, softcap=c.attention_softcap)
            heads_BTNH = _side_by_side(heads_BKGTH)
        heads_BTNH = taps("attention.heads", heads_BTNH)
        return self.out(heads_BTNH.reshape(B, T, -1)), (k_BKTH.swapaxes(2, 3), v_BKTH), first_BTKH

    @staticmethod
    def cost(c: ModelConfig, T: int, window: int | None, pairs: Pairs) -> Cost:
        D, N, K, H = c.width, c.heads, c.K, c.H
        keys = keys_met(T, window, pairs, causal=c.mask != "full")
        return Cost(
            products={
                "attention projections": 2 * (D * N * H + 2 * D * K * H + N * H * D),
                "attention scores and values": 2 * 2 * N * H * keys,
            },
            elementwise={
                "norms": (N + K) * Norm.operations(c, H, "rmsnorm") * bool(c.qk_norm),
                "rotary positions": (N + K) * 3 * H * (c.positions == "rotary"),
                "value residuals": 3 * K * H * c.value_residual,
                "biases": (N + 2 * K) * H * bool(c.bias) + D * (c.bias is True),
                "softmax": (SOFTMAX + 3 * (c.attention_softcap is not None)) * N * keys + 2 * N * H,
            },
            kept=2 * (N + K) * H,
            remembered=2 * K * H * keys,
        )

    def _fused(self, q_BTNH, here: Places, mask: Mask, taps: Taps) -> bool:
        obstacle = obstacle_to_cudnn(
            cuda_capability(), q_BTNH.dtype, self.c.H, windowed=mask.window is not None,
            packed=here.documents_BS is not None, capped=self.c.attention_softcap is not None,
            tapped=taps.wants(*PAIRS),
        )  # fmt: skip
        return fused(self.c.attention, q_BTNH.shape[1], obstacle)

    @staticmethod
    def _normed(norm: Norm, x_BTNH: jax.Array) -> jax.Array:
        """Queries or keys through their norm, which is of each head's width or of all heads' together."""
        B, T, N, H = x_BTNH.shape
        return norm(x_BTNH.reshape(B, T, -1, norm.scale.shape[-1])).reshape(B, T, N, H)

    def _project(self, x_BTD):
        """Queries, keys and values, [B, T, heads, H]."""
        maps, x_MD = (self.query, self.key, self.value), x_BTD.reshape(-1, x_BTD.shape[-1])
        made = side_by_side(x_MD, [m.kernel[...] for m in maps], self.query.dtype)
        if self.c.bias:
            made = [y_MF + m.bias[...].astype(y_MF.dtype) for y_MF, m in zip(made, maps, strict=True)]
        return [y_MF.reshape(*x_BTD.shape[:2], -1, self.c.H) for y_MF in made]


class CrossAttention(nnx.Module):
    """Attention of a decoder's tokens to an encoder's states: queries of the one, keys and values of the other.

    Every token sees all of its source (Vaswani et al. 2017, section 3.2.3). Nothing is rotated: places in two sequences
    have no distance.
    """

    def __init__(self, c: ModelConfig, rngs):
        self.c = c
        self.query = Linear(c, c.width, c.heads * c.H, ("D", "NH"), rngs, biased=bool(c.bias))
        self.key = Linear(c, c.encoder.width, c.K * c.H, ("D", "KH"), rngs, biased=bool(c.bias))
        self.value = Linear(c, c.encoder.width, c.K * c.H, ("D", "KH"), rngs, biased=bool(c.bias))
        self.out = Linear(c, c.heads * c.H, c.width, ("NH", "D"), rngs, scale=output_scale(c))
        self.query_norm = Norm(c, c.H, "H", "rmsnorm") if c.qk_norm else None
        self.key_norm = Norm(c, c.H, "H", "rmsnorm") if c.qk_norm else None

    def remember(self, states_BSD: jax.Array) -> KeysValues:
        """The keys and values of a source, of which `__call__` makes use."""
        c, (B, S, _) = self.c, states_BSD.shape
        k_BSKH, v_BSKH = (m(states_BSD).reshape(B, S, c.K, c.H) for m in (self.key, self.value))
        if c.qk_norm:
            k_BSKH = self.key_norm(k_BSKH)
        return KeysValues(*(x_BSKH.swapaxes(1, 2).reshape(-1, S, c.H) for x_BSKH in (k_BSKH, v_BSKH)))

    def __call__(self, x_BTD: jax.Array, source: KeysValues, mask_BTS: jax.Array, taps: Taps) -> jax.Array:
        """What cross-attention gives, [B, T, D]."""
        c, (B, T, _) = self.c, x_BTD.shape
        q_BTNH = self.query(x_BTD).reshape(B, T, c.heads, c.H)
        if c.qk_norm:
            q_BTNH = self.query_norm(q_BTNH)
        q_BKGTH = _grouped(scaled(q_BTNH, query_factor(c)), c.K)
        heads_BTNH = _side_by_side(attend(q_BKGTH, [source], [mask_BTS], taps, "cross", softcap=c.attention_softcap))
        heads_BTNH = taps("cross.heads", heads_BTNH)
        return self.out(heads_BTNH.reshape(B, T, -1))

    @staticmethod
    def cost(c: ModelConfig, T: int) -> Cost:
        """A token's share: its own query, scores and output, and of the source's S keys and values those of S / T."""
        D, N, K, H, S = c.width, c.heads, c.K, c.H, c.encoder.context
        return Cost(
            products={
                "cross-attention projections": 2 * (D * N * H + N * H * D + 2 * c.encoder.width * K * H * S / T),
                "cross-attention scores and values": 2 * 2 * N * H * S,
            },
            elementwise={
                "norms": (N + K * S / T) * Norm.operations(c, H, "rmsnorm") * bool(c.qk_norm),
                "biases": (N * H + 2 * K * H * S / T) * bool(c.bias) + D * (c.bias is True),
                "softmax": (SOFTMAX + 3 * (c.attention_softcap is not None)) * N * S + 2 * N * H,
            },
            kept=2 * (N + K * S / T) * H,
            remembered=2 * K * H * S,
        )


def _grouped(q_BTNH: jax.Array, K: int) -> jax.Array:
    """[B, K, G, T, H]: the query heads beside the key head they read."""
    B, T, N, H = q_BTNH.shape
    return q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)


def _side_by_side(heads_BKGTH: jax.Array) -> jax.Array:
    """[B, T, N, H]: the inverse of `_grouped`."""
    B, K, G, T, H = heads_BKGTH.shape
    return heads_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)
