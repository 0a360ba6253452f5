"""Adapters change hidden matrices and nothing else, by alpha / r A B, and nothing at the start."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from lm.config import ModelConfig, RecurrentConfig
from lm.model.adapters import Adapters
from lm.model.api import build
from lm.model.parametrization import is_hidden_matrix

SHAPE = dict(layers=2, width=16, heads=2, feedforward=24, context=8, vocab=11, vocab_multiple=8)
MODELS = {
    "tied": ModelConfig(**SHAPE, tied=True, activation="swiglu"),
    "untied": ModelConfig(**SHAPE, tied=False, bias=True, positions="learned"),
    "recurrent": RecurrentConfig(layers=2, width=16, cell="lstm", context=8, vocab=11, vocab_multiple=8),
}


@pytest.fixture(params=MODELS)
def model(request):
    return build(MODELS[request.param])


def test_fresh_adapters_change_no_number(model):
    base, adapters = model.init(0), Adapters(model, 3, 16.0)
    for before, after in zip(*map(jax.tree.leaves, (base, adapters.merged(base, adapters.init(1)))), strict=True):
        np.testing.assert_array_equal(after, before)  # but for the sign of a zero


def test_merged_is_the_base_and_the_product(model):
    """Of hidden matrices; all others, embeddings and heads among them, are the base's."""
    base, adapters = model.init(0), Adapters(model, 2, 6.0)
    fresh = adapters.init(1)
    trained = jax.tree.map(lambda x: x + np.random.default_rng(0).normal(size=x.shape).astype(np.float32), fresh)
    merged = adapters.merged(base, trained)
    pairs = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(trained)}
    axes = jax.tree.leaves(model.axes(), is_leaf=lambda x: isinstance(x, tuple))
    leaves = jax.tree.leaves_with_path(base)
    changed = 0
    for (path, before), after, letters in zip(leaves, jax.tree.leaves(merged), axes, strict=True):
        where = jax.tree_util.keystr(path)
        if is_hidden_matrix(letters):
            product = np.asarray(pairs[where + "['a']"], np.float64) @ np.asarray(pairs[where + "['b']"], np.float64)
            assert np.asarray(after) == pytest.approx(np.asarray(before) + 6.0 / 2 * product, abs=1e-5)
            changed += 1
        else:
            assert where + "['a']" not in pairs and tiny.same_bits(before, after)
    assert 2 * changed == len(pairs) > 0


def test_adapters_have_axes_and_shapes(model):
    """As many letters as axes, R of the rank; the same seed gives the same, another another."""
    adapters = Adapters(model, 3, 16.0)
    made = adapters.init(5)
    for leaf, letters in adapters.with_axes(made):
        assert len(letters) == leaf.ndim and leaf.shape[letters.index("R")] == 3
    assert tiny.same_bits(made, adapters.init(5)) and not tiny.same_bits(made, adapters.init(6))
    assert adapters.parameter_count()[0] == sum(leaf.size for leaf in jax.tree.leaves(made))
    assert jax.tree.map(lambda s: (s.shape, s.dtype), adapters.shapes()) == jax.tree.map(
        lambda x: (x.shape, x.dtype), made
    )


def test_equal_adapters_are_one_static_argument():
    model = build(MODELS["tied"])
    assert hash(Adapters(model, 2, 1.0)) == hash(Adapters(build(dataclasses.replace(MODELS["tied"])), 2, 1.0))
