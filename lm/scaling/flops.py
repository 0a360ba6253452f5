"""FLOPs of a model, counted operation by operation; a multiply and an add are two.

Matrix products and everything else are kept apart: `forward_flops` and `train_flops` are matrix products alone, which
is what is usually meant, and what a run reports as flops_exact. `elementwise_flops` counts the rest. What papers count
instead is in lm/scaling/conventions.py.
"""

from typing import Literal

import jax

from lm.config import ModelConfig, OptimizerConfig
from lm.errors import require
from lm.model.attention import BLOCK, BLOCKS
from lm.model.transformer import parameter_count, shapes

Pairs = Literal["visible", "all", "computed"]
"""Which pairs of query and key count: those the mask lets through; all T x T, as most papers have it; or those that
the plain attention here computes, by blocks of queries."""
ACTIVATION = {"gelu": 9, "gelu_exact": 5, "relu": 1, "relu2": 2, "swiglu": 3}
"""Operations a hidden value, as lm.model.layers writes them; tanh, erf and the logistic function are one each."""
SOFTMAX = 7
"""Operations a score: scale, mask, maximum, subtract, exponential, sum, divide."""
UPDATE = {"adamw": 20, "lion": 15, "sgd": 10}
"""Operations a parameter: gradient's scale and norm, clipping, moments, direction, decay and update."""


def keys_seen(context: int, window: int | None) -> float:
    """Mean number of keys a position attends to in a full causal sequence, its own included."""
    w = min(window or context, context)
    return (w * (w + 1) / 2 + (context - w) * w) / context


def keys_computed(context: int) -> float:
    """Mean number of keys a position meets in lm.model.attention.attend_causal: blocks skip only what is after them."""
    block = context if context <= 2 * BLOCK else max(BLOCK, -(-context // BLOCKS))
    ends = [min(start + block, context) for start in range(0, context, block)]
    return sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False)) / context


def keys(c: ModelConfig, context: int, pairs: Pairs) -> float:
    """Keys a position meets, summed over layers."""
    require(pairs in ("visible", "all", "computed"), f"pairs {pairs!r}: one of visible, all, computed")
    if pairs == "visible":
        return sum(layers * keys_seen(context, window) for window, layers in c.layers_by_window.items())
    return c.layers * (context if pairs == "all" else keys_computed(context))


def forward_flops(c: ModelConfig, context: int | None = None, *, pairs: Pairs = "visible") -> dict[str, float]:
    """Matrix-product FLOPs of the forward pass per token, by part, at a sequence length (default: the context)."""
    T = context or c.context
    D, F, N, K, H = c.width, c.F, c.heads, c.K, c.H
    return {
        "attention projections": c.layers * 2 * (D * N * H + 2 * D * K * H + N * H * D),
        "attention scores and values": 2 * 2 * N * H * keys(c, T, pairs),
        "feed-forward": c.layers * 2 * D * F * (3 if c.activation == "swiglu" else 2),
        "head": 2 * D * c.V,
    }


def train_flops(c: ModelConfig, context: int | None = None, *, pairs: Pairs = "visible") -> float:
    """Exact FLOPs of training per token: the backward pass has two products for each of the forward pass, one for
    either factor. Work done twice to save memory (model.remat, train.loss_chunk) is not counted twice."""
    return 3 * sum(forward_flops(c, context, pairs=pairs).values())


def train_flops_6n(c: ModelConfig) -> float:
    """The usual estimate per token, 6 N with N all parameters."""
    return 6.0 * parameter_count(c)[0]


def elementwise_flops(c: ModelConfig, context: int | None = None, *, pairs: Pairs = "visible") -> dict[str, float]:
    """Every other operation of the forward pass and the loss per token, by part: one for each value it makes.

    Lookups and moves are free, and so are random bits and what a batch shares (rotary phases, masks). The backward pass
    of such work is taken as twice the forward, like that of products; XLA counts 1.5 to 2 times.
    """
    T = context or c.context
    D, F, N, K, H, V = c.width, c.F, c.heads, c.K, c.H, c.V
    rms = lambda width: 3 * width + 3  # noqa: E731  square, sum, scale by the root
    norm = rms(D) + D + (2 * D + 1 + D * c.bias) * (c.norm == "layernorm")
    gated = c.activation == "swiglu"
    return {
        "embedding": D * (c.positions in ("learned", "sinusoidal")) + rms(D) * c.embedding_norm,
        "norms": (2 * c.layers + 1) * norm + c.layers * (N + K) * (rms(H) + H) * c.qk_norm,
        "rotary positions": c.layers * (N + K) * 3 * H * (c.positions == "rotary"),
        "biases": c.layers * ((N + 2 * K) * H + F * (1 + gated) + 2 * D) * c.bias,
        "softmax": SOFTMAX * N * keys(c, T, pairs),
        "activation": c.layers * F * ACTIVATION[c.activation],
        "residuals": c.layers * 2 * D,
        "dropout": (2 * c.layers + 1) * 2 * D * (c.dropout > 0),
        "loss": V * (4 + 3 * (c.logit_softcap is not None) + (c.V != c.vocab)) + 3,
    }


def optimizer_flops(o: OptimizerConfig, c: ModelConfig) -> float:
    """FLOPs of the optimizer per step (not per token): an update of every parameter, and Muon's matrix products.

    Muon orthogonalises each m x n matrix of a block, m <= n, by rounds of three products: X X^T, its square, and
    their sum with X (Jordan et al. 2024).
    """
    total = parameter_count(c)[0]
    if o.name != "muon":
        return UPDATE[o.name] * total
    matrices = [leaf.shape for leaf in jax.tree.leaves(shapes(c)["blocks"]) if len(leaf.shape) == 3]
    sides = [(layers, min(rest), max(rest)) for layers, *rest in matrices]
    return UPDATE["adamw"] * total + o.newton_schulz * sum(
        layers * (4 * m * m * n + 2 * m**3) for layers, m, n in sides
    )
