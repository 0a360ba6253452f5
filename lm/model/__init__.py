"""Models: what they are to everyone else (api), the architectures, their caches, taps and costs.

Knows nothing of training, files or sampling. Importing it registers the architectures that come with the project, and
gives the parts that another is made of.

Axes, beside those of the README's glossary: R rows of key heads (B K), Q queries of such a row (G T, G query heads
sharing a key head), U tokens of a window (T + 1: inputs and targets one apart), M tokens of a batch in one axis (B T),
I vectors that stand before the tokens, E the width of one, C pieces that a long axis is cut into (the slots of a cache,
the columns of a matrix, the tokens of a loss).
"""

from lm.model import recurrent, transformer
from lm.model.api import Inputs, LanguageModel, build, implements
from lm.model.attention import Attention, CrossAttention, attend, attend_among
from lm.model.cache import KeysValues, KVCache
from lm.model.conventions import conventions, parameters
from lm.model.cost import Cost
from lm.model.kernels import over_layers
from lm.model.layers import (
    ACTIVATIONS,
    FeedForward,
    Linear,
    Norm,
    compute_dtype,
    dropout,
    loss_operations,
    product_dtype,
    project,
    sinusoids,
    vocabulary_logits,
)
from lm.model.loss import Batch, corrupt, masked, next_token
from lm.model.mask import Mask, Places
from lm.model.rotary import frequencies, rotate
from lm.model.taps import Tap, Taps
from lm.model.trained import Trained

__all__ = [
    "ACTIVATIONS", "Attention", "Batch", "Cost", "CrossAttention", "FeedForward", "Inputs", "KVCache", "KeysValues",
    "LanguageModel", "Linear", "Mask", "Norm", "Places", "Tap", "Taps", "Trained", "attend", "attend_among", "build",
    "compute_dtype", "conventions", "corrupt", "dropout", "frequencies", "implements", "loss_operations", "masked",
    "next_token", "over_layers", "parameters", "product_dtype", "project", "recurrent", "rotate", "sinusoids",
    "transformer", "vocabulary_logits",
]  # fmt: skip
