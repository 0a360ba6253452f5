"""CompleteP: what is scaled so that settings found on a small model serve a wider and deeper one.

Dey et al. 2025, "Don't be lazy" (table 1, equation 40, alpha = 1), which takes muP (Yang et al. 2022) to depth. With
m = width / base_width and l = layers / base_layers, each 1 where there is no base:

                              init variance        forward        rate   decay   Adam's epsilon
    embedding, positions      as at the base       1              1      none    1 / m
    matrices in blocks        1 / rows             1              1 / m  m       1 / (m l)
    norms, biases in blocks                        1              1      none    1 / (m l)
    last norm                                      1              1      none    1 / m
    untied head               as at the base, or 0 1 / m (logits) 1      1       1 / m
    what a half-block adds    its last matrix's: 1 / (2 base_layers rows), or 0; times 1 / l
    attention's scores        sqrt(base_head_width) / H instead of 1 / sqrt(H), where heads widen

so that a model at its base shape is the one without a base, bit for bit. Feed-forward width and the heads' together
are taken to grow in proportion to the width. Decay is multiplied with the rate: a matrix loses the same share of itself
in a step at any width. Lion's signs are scaled as Adam's directions. Muon's steps are orthogonal whatever the
gradient's size, and sqrt(columns / rows) large where that is above 1, which is right at any width (Yang, Simon and
Bernstein 2023, "A spectral condition"): the rate and decay of its matrices stay. Clipping and z-loss are not scaled.
"""

import dataclasses

from lm.config import ModelConfig


def is_matrix(axes: tuple[str, ...]) -> bool:
    """A map between two widths: not a scale, a bias or what embeds (one row a token, a position, an input vector's
    entry)."""
    inner = axes[1:] if axes[:1] == ("L",) else axes
    return len(inner) == 2 and inner[0] not in ("V", "T", "E")


def is_hidden_matrix(axes: tuple[str, ...]) -> bool:
    """A matrix inside a block: those Muon orthogonalises, and whose rate falls with the width."""
    return is_matrix(axes) and "V" not in axes


def width_ratio(c: ModelConfig) -> float:
    """m, how many times as wide as the base the model is."""
    return c.width / (c.base_width or c.width)


def depth_ratio(c: ModelConfig) -> float:
    """l, how many times as deep as the base the model is."""
    return c.layers / (c.base_layers or c.layers)


# --- the start and the forward pass ----------------------------------------------------------------------------------
def embedding_scale(c: ModelConfig) -> float:
    """Standard deviation of embeddings, learned positions and an untied head at the start.

    Small enough that logits of a tied head start near zero and the first loss near ln V.
    """
    width = c.base_width or c.width
    scale = min(0.02, 0.3 * width**-0.5)
    # With blocks that add nothing yet a tied head reads the token's own embedding: its logit is scale * D.
    return min(scale, 2 / width) if c.tied and c.zero_init else scale


def output_scale(c: ModelConfig) -> float:
    """Initial scale of what a half-block adds: zero, or 1/sqrt(2 L) as in GPT-2, so depth does not add variance."""
    return 0.0 if c.zero_init else (2 * (c.base_layers or c.layers)) ** -0.5


def branch_factor(c: ModelConfig) -> float:
    """The factor of what a half-block adds to the residual stream."""
    return 1 / depth_ratio(c)


def query_factor(c: ModelConfig) -> float:
    """The factor of the queries, whose products with keys attention divides by sqrt(H)."""
    return (c.base_head_width / c.H) ** 0.5 if c.base_width and c.base_head_width else 1.0


def logit_factor(c: ModelConfig) -> float:
    """The factor of the logits."""
    return 1 / width_ratio(c)


# --- the optimizer ---------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Multipliers:
    """What the optimizer's settings are multiplied by for one parameter."""

    rate: float = 1.0
    decay: float = 1.0
    epsilon: float = 1.0


def multipliers(c: ModelConfig, optimizer: str, axes: tuple[str, ...]) -> Multipliers:
    """What a parameter with these axes gets; optimizer: as OptimizerConfig names it."""
    wider, deeper = width_ratio(c), depth_ratio(c)
    hidden = is_hidden_matrix(axes)
    by_adam = optimizer == "adamw" or (optimizer == "muon" and not hidden)
    epsilon = 1 / (wider * (deeper if axes[0] == "L" else 1)) if by_adam else 1.0
    if hidden and optimizer != "muon":
        return Multipliers(rate=1 / wider, decay=wider, epsilon=epsilon)
    return Multipliers(epsilon=epsilon)
