"""Models: what they are to everyone else (api), the transformer, its cache and its taps.

Knows nothing of training, files or sampling. Importing it registers the architectures that come with the project.
"""

from lm.model import transformer
from lm.model.api import Inputs, LanguageModel, build, register

__all__ = ["Inputs", "LanguageModel", "build", "register", "transformer"]
