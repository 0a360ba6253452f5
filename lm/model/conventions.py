"""What papers call the compute and the size of a model, side by side: one function a convention.

Each takes a model and a sequence length and gives FLOPs of training per token. Formulas written for one shape of
block are read here by their meaning: "the weights of attention" are those the configuration has, whatever its heads,
gates or head width, so that each equals its paper on the paper's own models. Those that count attention are for
transformers alone.
"""

import functools
import math
from collections.abc import Callable

from lm.config import ModelConfig
from lm.model.api import LanguageModel
from lm.model.parametrization import is_hidden_matrix


@functools.cache
def block_weights(model: LanguageModel) -> int:
    """Entries of the blocks' matrices: 12 L D^2 for the usual block. No biases, norms or embeddings."""
    return sum(math.prod(leaf.shape) for leaf, axes in model.with_axes(model.shapes()) if is_hidden_matrix(axes))


def head_weights(model: LanguageModel) -> int:
    """Entries of the head, tied or not."""
    return model.config.width * model.config.V


# --- parameters ------------------------------------------------------------------------------------------------------
def parameters(model: LanguageModel) -> dict[str, int]:
    """N as different papers count it.

    total: everything, a tied head once (Hoffmann et al. 2022, Gadre et al. 2024). nonembedding: without token and
    position embeddings and an untied head. blocks: the blocks' matrices alone, 12 L D^2 (Kaplan et al. 2020, eq. 2.1).
    blocks and head: what is multiplied with each token (Porian et al. 2024; nanochat's "transformer and lm_head").
    """
    total, nonembedding = model.parameter_count()
    blocks = block_weights(model)
    return {
        "total": total, "nonembedding": nonembedding, "blocks": blocks, "blocks and head": blocks + head_weights(model),
    }  # fmt: skip


# --- FLOPs of training per token -------------------------------------------------------------------------------------
def exact(model: LanguageModel, T: int) -> float:
    """Matrix products with only the pairs the mask lets through: what a run reports as flops_exact."""
    return model.cost(T).training_flops


def exact_with_elementwise(model: LanguageModel, T: int) -> float:
    """`exact` and every other operation, the backward pass of both at twice the forward."""
    cost = model.cost(T)
    return cost.training_flops + 3 * cost.elementwise_flops


def exact_all_pairs(model: LanguageModel, T: int) -> float:
    """`exact` with all T x T pairs, masked or not."""
    return model.cost(T, pairs="all").training_flops


def six_n_total(model: LanguageModel, T: int) -> float:
    """6 N, N all parameters: two FLOPs a weight forward, four backward (Hoffmann et al. 2022, section 3.3)."""
    return 6.0 * model.parameter_count()[0]


def six_n_nonembedding(model: LanguageModel, T: int) -> float:
    """6 N, N without token and position embeddings and an untied head; biases and norms stay in."""
    return 6.0 * model.parameter_count()[1]


def kaplan(model: LanguageModel, T: int) -> float:
    """6 N, N = 2 D L (2 N H + F), the blocks' matrices (Kaplan et al. 2020, eq. 2.1 and section 2.1)."""
    return 6.0 * block_weights(model)


def kaplan_context(model: LanguageModel, T: int) -> float:
    """3 (2 N + 2 L T N H): with the term of the context (Kaplan et al. 2020, eq. 2.2 and table 1), which their fits
    leave out. Causal: on average half the context is seen, by two products."""
    return 3 * (2.0 * block_weights(model) + 2 * _attention(model, T))


def kaplan_and_head(model: LanguageModel, T: int) -> float:
    """6 N, N with the head's weights, tied or not (Porian et al. 2024, "counting last layer FLOPs")."""
    return 6.0 * (block_weights(model) + head_weights(model))


def chinchilla(model: LanguageModel, T: int) -> float:
    """Embedding as a product, projections, all pairs with three operations a score for softmax, feed-forward and
    logits; backward twice the forward (Hoffmann et al. 2022, appendix F)."""
    return chinchilla_blocks(model, T) + 3 * 2 * (2.0 * head_weights(model))


def chinchilla_blocks(model: LanguageModel, T: int) -> float:
    """`chinchilla` without embedding and logits: this, not the formula as printed, gives their table A4."""
    c = model.config
    return 3 * (2.0 * block_weights(model) + c.layers * (2 * 2 * T * c.heads * c.H + 3 * c.heads * T))


def palm(model: LanguageModel, T: int) -> float:
    """6 N + 12 L N H T: all parameters and all pairs (Chowdhery et al. 2022, appendix B); the usual basis of MFU."""
    return 6.0 * model.parameter_count()[0] + 12 * _attention(model, T)


def deepseek(model: LanguageModel, T: int) -> float:
    """72 L D^2 + 12 L D T: blocks and all pairs, no head (DeepSeek-AI 2024, eq. 2: their M)."""
    return 6.0 * block_weights(model) + 12 * _attention(model, T)


def nanochat(model: LanguageModel, T: int) -> float:
    """6 (N - embedding) + 12 N H min(T, window) a layer (Karpathy 2025, `estimate_flops`); a tied head counts, since it
    is multiplied with. Norms without weights, no biases."""
    c = model.config
    seen = sum(layers * min(T, window or T) for window, layers in c.layers_by_window.items())
    return 6.0 * (block_weights(model) + head_weights(model)) + 12 * c.heads * c.H * seen


def _attention(model: LanguageModel, T: int) -> int:
    """L T N H."""
    c = model.config
    return c.layers * T * c.heads * c.H


CONVENTIONS: dict[str, Callable[[LanguageModel, int], float]] = {
    "exact": exact, "exact with elementwise": exact_with_elementwise, "exact, all pairs": exact_all_pairs,
    "6N total": six_n_total, "6N nonembedding": six_n_nonembedding,
    "Kaplan": kaplan, "Kaplan with context": kaplan_context, "Kaplan and head": kaplan_and_head,
    "Chinchilla": chinchilla, "Chinchilla table A4": chinchilla_blocks,
    "PaLM": palm, "DeepSeek": deepseek, "nanochat": nanochat,
}  # fmt: skip
ATTENTION = ("Kaplan with context", "Chinchilla", "Chinchilla table A4", "PaLM", "DeepSeek", "nanochat")
"""Those that count attention: a decoder-only transformer's."""


def conventions(model: LanguageModel, context: int | None = None) -> dict[str, float]:
    """FLOPs of training per token by every convention for this model, at a sequence length (default: the context)."""
    c = model.config
    T, attends = context or c.context, isinstance(c, ModelConfig) and c.encoder is None
    return {name: count(model, T) for name, count in CONVENTIONS.items() if attends or name not in ATTENTION}
