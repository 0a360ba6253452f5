"""CompleteP: the standard model at its base shape, its table elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from close import assert_close
from model_cases import forward, lively, small, some_tokens

from lm.config import Experiment, ModelConfig, OptimizerConfig
from lm.errors import UserError
from lm.model.api import build
from lm.model.loss import Batch
from lm.training import optimizers
from lm.training.step import TrainState, hyperparameters, optimizer_of, train_step

WIDE = ModelConfig(
    layers=6, width=32, heads=2, context=6, feedforward=96, vocab=10, norm="layernorm", bias=True, positions="learned",
    activation="swiglu", value_residual=True, zero_init=False, base_width=8, base_head_width=4, base_layers=2,
)  # fmt: skip
"""Every kind of parameter, at m = 4 and l = 3."""


def names(tree) -> dict:
    return {".".join(key.key for key in path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def is_hidden(name: str) -> bool:
    return name.startswith("blocks.") and name.endswith(".kernel")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_at_its_base_shape_a_model_is_the_standard_one(corpus, optimizer):
    """Bits of parameters and optimizer after three steps, and so of all that they came from."""
    e = tiny.experiment(corpus, optimizer__name=optimizer, model__vocab=29, optimizer__epsilon=1e-3)
    ends = []
    for base in ({}, {"model__base_width": 16, "model__base_head_width": 8, "model__base_layers": 2}):
        each = tiny.replaced(e, **base)
        params = build(each.model).init(0)
        state = TrainState(params, optimizer_of(each).init(params), jnp.int32(0), {
            name: jnp.float32(0) for name in ("nats", "tokens", "gradient_norm", "steps")
        })  # fmt: skip
        step = jax.jit(lambda state, batch, hyper, each=each: train_step(state, batch, hyper, each)[0])
        hyper = hyperparameters(each, each.steps(1000))
        for i in range(3):
            state = step(state, Batch(some_tokens(each.model, batch=4, length=17, seed=i)), hyper)
        ends.append(state)
    assert tiny.same_bits(*ends)  # at its base shape every factor is one, and a product with one does not round


def test_the_start_is_scaled_as_the_table_says():
    """Embeddings, positions, head as at the base; matrices by their rows; what half-blocks add by the base's depth."""
    c = dataclasses.replace(WIDE, width=512, feedforward=768, vocab=500, base_width=256)
    found, base = (
        names(build(c).init(0)),
        names(build(dataclasses.replace(c, width=256, base_width=None)).init(0)),
    )
    for name in ("embedding", "position", "head"):
        assert found[name].std() == pytest.approx(base[name].std(), rel=0.05)
    rows = {"attention.query": 512, "attention.value": 512, "feedforward.inner": 512, "feedforward.gate": 512}
    for name, count in rows.items():
        assert found[f"blocks.{name}.kernel"].std() == pytest.approx(count**-0.5, rel=0.02)
    for name, count in {"attention.out": 512, "feedforward.outer": 768}.items():
        assert found[f"blocks.{name}.kernel"].std() == pytest.approx((4 * count) ** -0.5, rel=0.02)
    tied = small(width=256, tied=True, zero_init=True, heads=4)
    at_base, wide = (dataclasses.replace(tied, width=D, base_width=64) for D in (64, 256))
    stds = [float(np.std(build(each).init(0)["embedding"])) for each in (at_base, wide)]
    assert stds[1] == pytest.approx(stds[0], rel=0.05) and stds[0] == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("changes", [{"base_head_width": 2}, {"qk_norm": False}, {"base_head_width": 2, "tied": True}])
def test_the_forward_pass_is_the_standard_one_of_scaled_weights(changes):
    """Logits / m, half-blocks / l, queries times sqrt(base H / H) where heads widen."""
    c = small(width=32, layers=3, base_width=8, base_layers=1, bias=True, **changes)
    params, tokens_BT = lively(c), some_tokens(c)
    plain = jax.tree.map(np.asarray, params)
    for half, last in (("attention", "out"), ("feedforward", "outer")):
        for part in ("kernel", "bias"):
            plain["blocks"][half][last][part] = plain["blocks"][half][last][part] / 3
    if "base_head_width" in changes:
        plain["blocks"]["attention"]["query_norm"]["scale"] = plain["blocks"]["attention"]["query_norm"]["scale"] / 2
    standard = forward(dataclasses.replace(c, base_width=None, base_layers=None))(plain, tokens_BT)
    assert_close(forward(c)(params, tokens_BT), np.asarray(standard) / 4, relative=2e-5)


def ones(c: ModelConfig) -> dict:
    return jax.tree.map(lambda s: jnp.ones(s.shape), build(c).shapes())


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "muon"])
def test_rates_and_decay_by_the_table(optimizer):
    """p = 1, direction = 1: p - rate (1 + decay). Hidden matrices: a quarter of the rate, four times the decay."""
    o, h = OptimizerConfig(name=optimizer), dict(learning_rate=0.04, matrix_learning_rate=0.02, weight_decay=0.5)
    h = {name: jnp.float32(value) for name, value in h.items()}
    after = names(optimizers.apply(o, build(WIDE), ones(WIDE), ones(WIDE), jnp.float32(1), h))
    for name, value in after.items():
        if is_hidden(name):
            step = 0.02 * (1 + 0.5) if optimizer == "muon" else 0.01 * (1 + 4 * 0.5)
        else:
            step = 0.04 * (1 + 0.5 * (name == "head"))
        assert_close(value, 1 - step, relative=1e-6, what=name)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_adams_epsilon_by_the_table(optimizer):
    """One step of gradients as small as epsilon: g / (|g| + s epsilon), s = 1/12 in blocks and 1/4 elsewhere."""
    o = OptimizerConfig(name=optimizer, epsilon=1e-3)
    transform = optimizers.direction(o, build(WIDE))
    gradients = jax.tree.map(lambda p: 1e-3 * p, ones(WIDE))
    directions = names(transform.update(gradients, transform.init(ones(WIDE)), ones(WIDE))[0])
    for name, value in directions.items():
        if optimizer == "adamw" or not is_hidden(name):
            s = 1 / 12 if name.startswith("blocks.") else 1 / 4
            assert_close(value, 1 / (1 + s), relative=1e-5, what=name)


def test_what_cannot_carry_over_is_refused():
    with pytest.raises(UserError, match="sgd does not go with"):
        Experiment(model=ModelConfig(base_width=64), optimizer=OptimizerConfig(name="sgd"))
    with pytest.raises(UserError, match=r"model\.base_width 0"):
        ModelConfig(base_width=0)
    with pytest.raises(UserError, match="at the base width heads are 8 wide"):
        ModelConfig(width=64, heads=8, base_width=64, base_head_width=16)
