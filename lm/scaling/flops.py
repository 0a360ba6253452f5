"""FLOPs of a model, counted operation by operation; a multiply and an add are two."""

from lm.config import ModelConfig
from lm.model.transformer import parameter_count


def keys_seen(context: int, window: int | None) -> float:
    """Mean number of keys a position attends to in a full causal sequence, its own included."""
    w = min(window or context, context)
    return (w * (w + 1) / 2 + (context - w) * w) / context


def forward_flops(c: ModelConfig, context: int | None = None) -> dict[str, float]:
    """Matrix-product FLOPs of the forward pass per token, by part, at a sequence length (default: the context).

    Attention counts only the pairs the mask lets through. Norms, activations and softmax are left out: a few
    operations per value beside thousands.
    """
    T = context or c.context
    D, F, N, K, H = c.width, c.F, c.heads, c.K, c.H
    pairs = sum(keys_seen(T, window) for window in c.windows)
    return {
        "attention projections": c.layers * 2 * (D * N * H + 2 * D * K * H + N * H * D),
        "attention scores and values": 2 * 2 * N * H * pairs,
        "feed-forward": c.layers * 2 * D * F * (3 if c.activation == "swiglu" else 2),
        "head": 2 * D * c.V,
    }


def train_flops(c: ModelConfig, context: int | None = None) -> float:
    """Exact FLOPs of training per token: the backward pass costs twice the forward."""
    return 3 * sum(forward_flops(c, context).values())


def train_flops_6n(c: ModelConfig) -> float:
    """The usual estimate per token, 6 N with N all parameters."""
    return 6.0 * parameter_count(c)[0]
