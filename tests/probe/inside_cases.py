"""Small models with opinions for the probes, as `lm.load` would return them."""

import jax
import numpy as np

from lm.config import Experiment, ModelConfig
from lm.model.api import build
from lm.model.trained import Trained
from lm.tokenizer import CharTokenizer

TEXT = "the king sat on a mat"
HARD = dict(kv_heads=2, window=5, global_every=2, layers=3, value_residual=True)
"""Grouped queries, layers with a sliding window shorter than the texts, one layer without."""


def in_hand(params: dict, **shape) -> Trained:
    """A model of letters, a space and a full stop, which starts every text from end-of-text."""
    tokenizer = CharTokenizer(" .abcdefghijklmnopqrstuvwxyz")
    shape = dict(vocab=tokenizer.n_vocab, dtype="float32", zero_init=False) | shape
    return Trained(params, tokenizer, Experiment(model=ModelConfig(**shape)), step=0)


def lively(seed: int = 0, **changes) -> Trained:
    """L=2, D=16, N=4, T=32; every path matters: uneven scales, attention far from uniform."""
    shape = dict(layers=2, width=16, heads=4, context=32, feedforward=24) | changes
    m = in_hand({}, **shape)
    c, rng = m.experiment.model, np.random.default_rng(seed)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("kernel", "embedding", "head"):
            scale = {"kernel": 1.5 * leaf.shape[-2] ** -0.5, "embedding": 1.0, "head": 0.7}[kind]
            return jax.numpy.asarray(scale * rng.normal(size=leaf.shape), "float32")
        return jax.numpy.asarray(1 + 0.3 * rng.normal(size=leaf.shape), "float32")

    return in_hand(jax.tree.map_with_path(draw, build(c).shapes()), **shape)


BIG = 100.0
"""A score that leaves nothing to other keys."""


def planted() -> Trained:
    """Two layers without feed-forward: heads that are exactly what their scores should call them.

    The stream holds the token (V places), the token before it (V, empty at first) and the position (T). Layer 0: head 0
    looks at the token before and writes it down, head 1 at the first, head 2 at itself, head 3 at all alike. Layer 1:
    head 0 looks for the current token among those that were before another (Olsson et al. 2022); others at all alike.
    """
    V, T = 32, 16
    D, H = 2 * V + T, 2 * V + T
    shape = dict(layers=2, width=D, heads=4, head_width=H, context=T, positions="learned", qk_norm=False, feedforward=8)
    m = in_hand({}, **shape)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), build(m.experiment.model).shapes())
    for norm in (params["final_norm"], params["blocks"]["attention_norm"], params["blocks"]["feedforward_norm"]):
        norm["scale"][:] = 1
    token, before, position = np.arange(V), V + np.arange(V), 2 * V + np.arange(T)
    params["embedding"][token, token] = 1
    params["position"][np.arange(T), position] = 1
    params["head"][token, token] = 1
    query, key, value, out = (
        params["blocks"]["attention"][name]["kernel"] for name in ("query", "key", "value", "out")
    )
    query, key, value = (w.reshape(2, D, 4, H) for w in (query, key, value))
    query[0, position[1:], 0, position[:-1]] = BIG
    query[0, position, 1, position[0]] = BIG
    query[0, position, 2, position] = BIG
    for head in range(3):
        key[0, position, head, position] = BIG
    value[0, token, 0, token] = 1
    out.reshape(2, 4, H, D)[0, 0, token, before] = 1
    query[1, token, 0, token] = BIG
    key[1, before, 0, token] = BIG
    return in_hand(jax.tree.map(jax.numpy.asarray, params), **shape)
