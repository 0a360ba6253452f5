"""A little model that has opinions, standing in for what `lm.load` returns."""

import jax
import numpy as np

from lm.config import DataConfig, Experiment, ModelConfig
from lm.model.api import build
from lm.model.trained import Trained
from lm.tokenizer import CharTokenizer

ALPHABET = " ,.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""65 characters, each the token of its place here, padded to V = 72."""


class Letters(CharTokenizer):
    """The alphabet, with any token for the end of text: as it stands a padded entry, so that no text ever ends."""

    def __init__(self, end: int = 71):
        super().__init__(ALPHABET)
        self.n_vocab, self.eot_token = len(ALPHABET), end


def little(tokenizer=None, **changes) -> Trained:
    """L=2, D=16, N=4, T=32 of random parameters, scaled so that every token and position sways the next one."""
    tokenizer = tokenizer or Letters()
    shape = dict(layers=2, width=16, heads=4, context=32, vocab=tokenizer.n_vocab, zero_init=False, dtype="float32")
    # Drawn by NumPy, since compiling the model's own initialisation takes seconds.
    c, rng = ModelConfig(**(shape | changes)), np.random.default_rng(0)

    def draw(path, leaf):
        kind = path[-1].key
        scale = {"kernel": 0.4, "head": 0.8, "embedding": 1.5}.get(kind, 0.5)
        values = scale * rng.normal(size=leaf.shape) + (kind == "scale")
        return jax.numpy.asarray(values, "float32")

    params = jax.tree.map_with_path(draw, build(c).shapes())
    data = DataConfig() if c.encoder is None else DataConfig(examples="pairs.tsv")
    return Trained(params, tokenizer, Experiment(model=c, data=data), step=0)
