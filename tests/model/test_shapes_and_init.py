"""Parameter counts against published models, axes against shapes, and a start near the loss of knowing nothing."""

import math
import resource

import jax
import numpy as np
import pytest
from model_cases import VARIANTS, forward, small, some_tokens

from lm.config import ModelConfig
from lm.errors import UserError
from lm.model.api import build

PUBLISHED = {
    "GPT-2 124M": (ModelConfig.gpt2("124M", vocab_multiple=1), 124_439_808),
    "GPT-2 350M": (ModelConfig.gpt2("350M", vocab_multiple=1), 354_823_168),
    "GPT-2 774M": (ModelConfig.gpt2("774M", vocab_multiple=1), 774_030_080),
    "GPT-2 1558M": (ModelConfig.gpt2("1558M", vocab_multiple=1), 1_557_611_200),
    "llama2.c 15M": (ModelConfig.llama("15M"), 15_191_712),
    "llama2.c 42M": (ModelConfig.llama("42M"), 41_689_600),
    "llama2.c 110M": (ModelConfig.llama("110M"), 109_529_856),
    "Llama 3.2 1B": (ModelConfig.llama("1B"), 1_235_814_400),
}


@pytest.mark.parametrize("c, published", PUBLISHED.values(), ids=PUBLISHED)
def test_parameter_counts_are_the_published_ones(c, published):
    """Counted from shapes: the billion of the largest are never allocated."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total, nonembedding = build(c).parameter_count()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000, "kilobytes"
    assert total == published
    positions = c.context * c.width if c.positions == "learned" else 0
    assert nonembedding == published - c.V * c.width - positions


def test_an_untied_head_counts_as_embedding():
    """params_nonembedding is the same with and without it; the total is V D more."""
    tied, untied = build(small(tied=True)).parameter_count(), build(small()).parameter_count()
    assert untied[0] - tied[0] == 32 * 16
    assert untied[1] == tied[1]


@pytest.mark.parametrize("size", ["125M", "1b"])
def test_unknown_sizes_are_refused(size):
    with pytest.raises(UserError, match=f"{size}'.*one of .*15M|{size}'.*one of 124M"):
        ModelConfig.llama(size)
    with pytest.raises(UserError, match="one of 124M, 350M, 774M, 1558M"):
        ModelConfig.gpt2(size)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_axes_name_every_dimension_of_every_parameter(changes):
    """One letter a dimension, each of that letter's size; only blocks are stacked along L."""
    c = small(**changes, head_width=6)
    size = dict(L=c.layers, V=32, D=16, T=8, F=24, H=6, NH=4 * 6, KH=c.K * 6)
    axes = jax.tree.leaves_with_path(build(c).axes(), is_leaf=lambda x: isinstance(x, tuple))
    shapes = jax.tree.leaves_with_path(build(c).shapes())
    assert [path for path, _ in axes] == [path for path, _ in shapes]
    for (path, names), (_, leaf) in zip(axes, shapes, strict=True):
        assert tuple(size[name] for name in names) == leaf.shape, path
        assert (names[0] == "L") == (path[0].key == "blocks"), path
        assert leaf.dtype == np.float32, path


def test_running_the_layers_differently_keeps_the_parameters():
    """One layout, whatever unroll, remat, dropout and dtype: a checkpoint loads under any."""
    assert build(small(unroll=2, remat="full", dropout=0.1, dtype="bfloat16")).shapes() == build(small()).shapes()


STARTS = {
    "default": ModelConfig(layers=2, width=32, heads=2, context=16, vocab=256),
    "tied, D=768, zero_init": ModelConfig(layers=1, width=768, heads=2, context=16, vocab=256, tied=True),
    "tied, D=768": ModelConfig(layers=1, width=768, heads=2, context=16, vocab=256, tied=True, zero_init=False),
    "like GPT-2": ModelConfig.gpt2(layers=2, width=64, heads=2, context=16, vocab=250),
    "like Llama": ModelConfig.llama(layers=2, width=64, heads=4, kv_heads=2, feedforward=96, context=16, vocab=500),
    "sinusoidal, embedding norm": small(positions="sinusoidal", embedding_norm=True, context=16, vocab=250),
}


@pytest.mark.parametrize("c", STARTS.values(), ids=STARTS)
def test_the_first_loss_is_that_of_a_uniform_guess(c):
    """Within 2% of ln V, the vocabulary without its padding."""
    params, tokens_BT = build(c).init(0), some_tokens(c, batch=8)
    logits_BTV = np.asarray(forward(c)(params, tokens_BT), np.float64)
    log_sums_BT = np.log(np.exp(logits_BTV).sum(-1))
    loss = (log_sums_BT[:, :-1] - np.take_along_axis(logits_BTV[:, :-1], tokens_BT[:, 1:, None], -1)[..., 0]).mean()
    assert loss == pytest.approx(math.log(c.vocab), rel=0.02)


DEEP = small(layers=8, width=64, feedforward=96)


def test_the_start_is_a_function_of_the_seed_alone():
    """The same twice, another with another seed; no two layers and no two matrices alike."""
    first, again, other = (jax.device_get(build(DEEP).init(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    drawn = {}
    for (path, names), value, elsewhere in zip(
        jax.tree.leaves_with_path(build(DEEP).axes(), is_leaf=lambda x: isinstance(x, tuple)),
        jax.tree.leaves(first),
        jax.tree.leaves(other),
        strict=True,
    ):
        if len(names) - (names[0] == "L") == 1:
            continue  # norms start at one
        assert (np.asarray(value) != elsewhere).all(), path
        for layer, matrix in enumerate(value if names[0] == "L" else [value]):
            drawn[jax.tree_util.keystr(path), layer] = np.asarray(matrix).ravel()[:64] / np.std(matrix)
    columns = np.corrcoef(np.stack(list(drawn.values())))
    assert np.abs(columns - np.eye(len(drawn))).max() < 0.6, "independent draws of 64 correlate by 0.125"


def test_scales_of_the_start():
    """Kernels keep a unit input's variance; what half-blocks add is 1/sqrt(2 L) of that, or zero with zero_init."""
    blocks = build(DEEP).init(0)["blocks"]
    for kernel, rows, scale in (
        (blocks["attention"]["query"]["kernel"], 64, 1),
        (blocks["feedforward"]["inner"]["kernel"], 64, 1),
        (blocks["attention"]["out"]["kernel"], 64, 1 / 4),
        (blocks["feedforward"]["outer"]["kernel"], 96, 1 / 4),
    ):
        assert np.std(kernel) == pytest.approx(scale * rows**-0.5, rel=0.03)
    zero = build(STARTS["default"]).init(0)
    for kernel in (
        zero["head"],
        zero["blocks"]["attention"]["out"]["kernel"],
        zero["blocks"]["feedforward"]["outer"]["kernel"],
    ):
        assert (np.asarray(kernel) == 0).all()
    assert (np.asarray(zero["blocks"]["feedforward"]["inner"]["kernel"]) != 0).all()
