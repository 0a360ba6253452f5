"""Models: what they are to everyone else (api), the architectures, their caches, taps and costs.

Knows nothing of training, files or sampling. Importing it registers the architectures that come with the project, and
gives the parts that another is made of.

Axes, beside those of the README's glossary: R rows of key heads (B K), Q queries of such a row (G T, G query heads
sharing a key head), M tokens of a batch in one axis (B T), C pieces that a long axis is cut into (the slots of a cache,
the columns of a matrix, the tokens of a loss).
"""

from lm.model import recurrent, transformer
from lm.model.api import Inputs, LanguageModel, build, implements
from lm.model.cost import Cost
from lm.model.kernels import over_layers
from lm.model.layers import Linear, Norm, compute_dtype, dropout, loss_operations, project, vocabulary_logits
from lm.model.taps import Tap, Taps

__all__ = [
    "Cost", "Inputs", "LanguageModel", "Linear", "Norm", "Tap", "Taps", "build", "compute_dtype", "dropout",
    "implements", "loss_operations", "over_layers", "project", "recurrent", "transformer", "vocabulary_logits",
]  # fmt: skip
