"""What papers call the compute and the size of a model, side by side: one function a convention.

Each takes a ModelConfig and a sequence length and gives FLOPs of training per token. Formulas written for one shape of
block are read here by their meaning: "the weights of attention" are those the configuration has, whatever its heads,
gates or head width, so that each equals its paper on the paper's own models.
"""

from collections.abc import Callable

from lm.config import ModelConfig
from lm.model.transformer import parameter_count
from lm.scaling.flops import elementwise_flops, train_flops


def block_weights(c: ModelConfig) -> int:
    """Entries of the blocks' matrices: 12 L D^2 for the usual block. No biases, norms or embeddings."""
    attention = 2 * c.width * c.H * (c.heads + c.K)
    return c.layers * (attention + c.width * c.F * (3 if c.activation == "swiglu" else 2))


# --- parameters ------------------------------------------------------------------------------------------------------
def parameters(c: ModelConfig) -> dict[str, int]:
    """N as different papers count it.

    total: everything, a tied head once (Hoffmann et al. 2022, Gadre et al. 2024). nonembedding: without token and
    position embeddings and an untied head. blocks: the blocks' matrices alone, 12 L D^2 (Kaplan et al. 2020, eq. 2.1).
    blocks and head: what is multiplied with each token (Porian et al. 2024; nanochat's "transformer and lm_head").
    """
    total, nonembedding = parameter_count(c)
    blocks = block_weights(c)
    return {
        "total": total, "nonembedding": nonembedding, "blocks": blocks, "blocks and head": blocks + c.width * c.V,
    }  # fmt: skip


# --- FLOPs of training per token -------------------------------------------------------------------------------------
def exact(c: ModelConfig, T: int) -> float:
    """Matrix products with only the pairs the mask lets through: what a run reports as flops_exact."""
    return train_flops(c, T)


def exact_with_elementwise(c: ModelConfig, T: int) -> float:
    """`exact` and every other operation, the backward pass of both at twice the forward."""
    return train_flops(c, T) + 3 * sum(elementwise_flops(c, T).values())


def exact_all_pairs(c: ModelConfig, T: int) -> float:
    """`exact` with all T x T pairs, masked or not."""
    return train_flops(c, T, pairs="all")


def six_n_total(c: ModelConfig, T: int) -> float:
    """6 N, N all parameters: two FLOPs a weight forward, four backward (Hoffmann et al. 2022, section 3.3)."""
    return 6.0 * parameter_count(c)[0]


def six_n_nonembedding(c: ModelConfig, T: int) -> float:
    """6 N, N without token and position embeddings and an untied head; biases and norms stay in."""
    return 6.0 * parameter_count(c)[1]


def kaplan(c: ModelConfig, T: int) -> float:
    """6 N, N = 2 D L (2 N H + F), the blocks' matrices (Kaplan et al. 2020, eq. 2.1 and section 2.1)."""
    return 6.0 * block_weights(c)


def kaplan_context(c: ModelConfig, T: int) -> float:
    """3 (2 N + 2 L T N H): with the term of the context (Kaplan et al. 2020, eq. 2.2 and table 1), which their fits
    leave out. Causal: on average half the context is seen, by two products."""
    return 3 * (2.0 * block_weights(c) + 2 * c.layers * T * c.heads * c.H)


def kaplan_and_head(c: ModelConfig, T: int) -> float:
    """6 N, N with the head's weights, tied or not (Porian et al. 2024, "counting last layer FLOPs")."""
    return 6.0 * (block_weights(c) + c.width * c.V)


def chinchilla(c: ModelConfig, T: int) -> float:
    """Embedding as a product, projections, all pairs with three operations a score for softmax, feed-forward and
    logits; backward twice the forward (Hoffmann et al. 2022, appendix F)."""
    return chinchilla_blocks(c, T) + 3 * (2.0 * c.V * c.width + 2.0 * c.width * c.V)


def chinchilla_blocks(c: ModelConfig, T: int) -> float:
    """`chinchilla` without embedding and logits: this, not the formula as printed, gives their table A4."""
    return 3 * (2.0 * block_weights(c) + c.layers * (2 * 2 * T * c.heads * c.H + 3 * c.heads * T))


def palm(c: ModelConfig, T: int) -> float:
    """6 N + 12 L N H T: all parameters and all pairs (Chowdhery et al. 2022, appendix B); the usual basis of MFU."""
    return 6.0 * parameter_count(c)[0] + 12 * c.layers * c.heads * c.H * T


def deepseek(c: ModelConfig, T: int) -> float:
    """72 L D^2 + 12 L D T: blocks and all pairs, no head (DeepSeek-AI 2024, eq. 2: their M)."""
    return 6.0 * block_weights(c) + 12 * c.layers * c.heads * c.H * T


def nanochat(c: ModelConfig, T: int) -> float:
    """6 (N - embedding) + 12 N H min(T, window) a layer (Karpathy 2025, `estimate_flops`); a tied head counts, since it
    is multiplied with. Norms without weights, no biases."""
    seen = sum(layers * min(T, window or T) for window, layers in c.layers_by_window.items())
    return 6.0 * (block_weights(c) + c.width * c.V) + 12 * c.heads * c.H * seen


CONVENTIONS: dict[str, Callable[[ModelConfig, int], float]] = {
    "exact": exact, "exact with elementwise": exact_with_elementwise, "exact, all pairs": exact_all_pairs,
    "6N total": six_n_total, "6N nonembedding": six_n_nonembedding,
    "Kaplan": kaplan, "Kaplan with context": kaplan_context, "Kaplan and head": kaplan_and_head,
    "Chinchilla": chinchilla, "Chinchilla table A4": chinchilla_blocks,
    "PaLM": palm, "DeepSeek": deepseek, "nanochat": nanochat,
}  # fmt: skip


def conventions(c: ModelConfig, context: int | None = None) -> dict[str, float]:
    """FLOPs of training per token by every convention, at a sequence length (default: the context)."""
    return {name: of(c, context or c.context) for name, of in CONVENTIONS.items()}
