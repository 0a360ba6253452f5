"""Models: what they are to everyone else (api), the architectures, their caches, taps and costs.

Knows nothing of training, files or sampling. Importing it registers the architectures that come with the project.

Axes, beside those of the README's glossary: R rows of key heads (B K), Q queries of such a row (G T, G query heads
sharing a key head), M tokens of a batch in one axis (B T), C pieces that a long axis is cut into (the slots of a cache,
the columns of a matrix, the tokens of a loss).
"""

from lm.model import recurrent, transformer
from lm.model.api import Inputs, LanguageModel, build, implements

__all__ = ["Inputs", "LanguageModel", "build", "implements", "recurrent", "transformer"]
