"""Counts of FLOPs against the program's own matrix products, XLA's cost analysis and published tables."""

import csv
import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import products
from tiny import QUICK

from lm.config import Experiment, ModelConfig, OptimizerConfig
from lm.errors import UserError
from lm.model.api import build
from lm.model.attention import keys_met
from lm.model.conventions import CONVENTIONS, block_weights, conventions, parameters
from lm.model.loss import Batch, next_token
from lm.training import optimizers
from lm.training.optimizers import optimizer_flops
from lm.training.step import hyperparameters, init_state, optimizer_of

B = 8
SHAPES = {
    "bytes": dict(layers=2, width=32, heads=2, vocab=257, tied=True, context=128),
    "one head": dict(layers=1, width=16, heads=1, vocab=257, tied=True, context=64),
    "three layers": dict(layers=3, width=48, heads=3, vocab=65, context=100),
    "grouped": dict(layers=1, width=64, heads=4, kv_heads=2, vocab=264, context=48),
    "multi-query": dict(layers=1, width=64, heads=4, kv_heads=1, head_width=32, vocab=264, context=256),
    "swiglu": dict(layers=2, width=64, heads=4, vocab=264, context=48, activation="swiglu", qk_norm=False),
    "window": dict(layers=2, width=32, heads=2, vocab=264, context=160, window=8, global_every=2),
    "gpt2": dict(
        layers=1, width=64, heads=4, vocab=500, tied=True, context=72, norm="layernorm", bias=True,
        positions="learned", activation="gelu", qk_norm=False,
    ),
    "sinusoids": dict(layers=1, width=32, heads=2, vocab=264, context=40, positions="sinusoidal", embedding_norm=True),
    "value residuals": dict(layers=2, width=48, heads=4, kv_heads=2, vocab=264, context=40, value_residual=True),
    "softcap": dict(layers=1, width=32, heads=2, vocab=260, context=40, logit_softcap=20.0, positions="none"),
}  # fmt: skip
shapes = pytest.mark.parametrize("name", SHAPES)


def config(name: str, **changes) -> ModelConfig:
    c = ModelConfig(**SHAPES[name] | dict(dtype="float32") | changes)
    return dataclasses.replace(c, unroll=c.layers)  # XLA counts the body of a loop once


def loss(c: ModelConfig):
    """Summed loss of B windows, and what to lower it with."""

    def total(params, tokens):
        return next_token(build(c), params, Batch(tokens)).nats.target.sum()

    return total, (build(c).shapes(), jax.ShapeDtypeStruct((B, c.context + 1), np.int32))


@shapes
def test_matrix_products_are_those_of_the_program(name):
    """To the last product: forward, and forward with backward, as the program is written, scanned over layers."""
    c = config(name)
    total, arguments = loss(dataclasses.replace(c, unroll=1))
    tokens = B * c.context
    forward = products(jax.make_jaxpr(total)(*arguments).jaxpr) / tokens
    assert forward == pytest.approx(build(c).cost(pairs="computed").forward_flops, rel=1e-12)
    both = products(jax.make_jaxpr(jax.grad(total))(*arguments).jaxpr) / tokens
    assert both == pytest.approx(build(c).cost(pairs="computed").training_flops, rel=1e-12)


@shapes
def test_all_operations_agree_with_xla(name):
    """Matrix products and the rest within 2% of what XLA counts in the compiled forward pass and loss.

    It has transcendental functions apart, each one operation, as here.
    """
    c = config(name)
    total, arguments = loss(c)
    cost = jax.jit(total).lower(*arguments).compile(QUICK).cost_analysis()
    counted = (cost["flops"] + cost["transcendentals"]) / (B * c.context)
    ours = build(c).cost(pairs="computed")
    assert counted == pytest.approx(ours.forward_flops + ours.elementwise_flops, rel=0.02)


@pytest.mark.parametrize("name", ["one head", "grouped", "gpt2", "softcap"])
def test_the_backward_pass_agrees_with_xla(name):
    """Twice the forward, elementwise work too: within 4% of XLA's count before it fuses and recomputes.

    Of elementwise work that is generous, by as much as a half: a softmax's derivative costs little more than itself.
    """
    c = config(name)
    total, arguments = loss(c)
    cost = jax.jit(jax.value_and_grad(total)).lower(*arguments).cost_analysis()
    counted = (cost["flops"] + cost["transcendentals"]) / (B * c.context)
    ours = build(c).cost(pairs="computed")
    assert counted == pytest.approx(ours.training_flops + 3 * ours.elementwise_flops, rel=0.04)


def test_pairs():
    """All pairs are twice the visible ones but for the diagonal; four blocks of queries compute 5/8 of them."""
    c = config("bytes")
    costs = [build(c).cost(pairs=pairs) for pairs in ("visible", "all")]
    visible, every = (cost.products["attention scores and values"] for cost in costs)
    assert every / visible == pytest.approx(2 * 128 / 129)
    assert keys_met(128, None, "computed") == 128 * 5 / 8 and keys_met(64, None, "computed") == 64
    for T in (1, 3, 64, 65, 100, 511, 1024):
        assert keys_met(T, None, "visible") <= keys_met(T, None, "computed") <= keys_met(T, None, "all") == T
    with pytest.raises(UserError, match="one of visible, all, computed"):
        build(c).cost(pairs="most")


def test_value_residuals_cost_what_they_compute():
    """Two multiplications and an addition for each of a token's values, in every layer; XLA counts about as many."""
    plain, mixed = config("grouped"), config("grouped", value_residual=True)
    counted = [build(c).cost().elementwise_flops for c in (plain, mixed)]
    assert counted[1] - counted[0] == 3 * plain.layers * plain.K * plain.H


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "muon"])
def test_the_optimizer_agrees_with_xla(name):
    """An update, clipping and decay included, within 3% of XLA's count; Muon's products dominate."""
    e = Experiment(model=config("bytes"), optimizer=OptimizerConfig(name=name))
    state, hyper = jax.eval_shape(lambda: init_state(e)), hyperparameters(e, e.steps(10_000))

    def update(gradients, optimizer, params):
        gradients, norm = optimizers.clip(jax.tree.map(lambda g: 0.5 * g, gradients), hyper["clip"])
        directions, optimizer = optimizer_of(e).update(gradients, optimizer, params)
        return optimizers.apply(e.optimizer, build(e.model), params, directions, 0.5, hyper), optimizer, norm

    cost = jax.jit(update).lower(state.params, state.optimizer, state.params).cost_analysis()
    counted = cost["flops"] + cost["transcendentals"]
    assert optimizer_flops(e.optimizer, build(e.model)) == pytest.approx(counted, rel=0.03)


# --- by hand ---------------------------------------------------------------------------------------------------------
@settings(deadline=None)
@given(context=st.integers(1, 60), window=st.none() | st.integers(1, 80))
def test_keys_seen_equals_counting_them(context, window):
    seen = [sum(1 for key in range(q + 1) if window is None or key > q - window) for q in range(context)]
    assert keys_met(context, window, "visible") == pytest.approx(sum(seen) / context)


def test_flops_by_hand():
    """L=1, D=8, N=2, K=1, H=4, F=16, T=4, V=16, one multiply-add being two."""
    c = ModelConfig(layers=1, width=8, heads=2, kv_heads=1, feedforward=16, context=4, vocab=16)
    parts = build(c).cost().products
    assert parts["attention projections"] == 2 * (8 * 8 + 8 * 4 + 8 * 4 + 8 * 8)
    assert parts["attention scores and values"] == 2 * 2 * 2 * 4 * (1 + 2 + 3 + 4) / 4
    assert parts["feed-forward"] == 2 * 2 * 8 * 16
    assert parts["head"] == 2 * 8 * 16
    assert build(c).cost().training_flops == 3 * sum(parts.values())
    gated = dataclasses.replace(c, activation="swiglu")
    assert build(gated).cost().products["feed-forward"] == 3 * 2 * 8 * 16
    assert conventions(build(c))["6N total"] == 6 * sum(leaf.size for leaf in jax.tree.leaves(build(c).init(0)))


def test_a_window_costs_what_it_sees():
    """Windows of 2 in a context of 4 see 1, 2, 2, 2 keys; every second layer sees 1, 2, 3, 4."""
    c = ModelConfig(layers=2, width=8, heads=2, context=4, vocab=16, window=2, global_every=2)
    assert build(c).cost().products["attention scores and values"] == 2 * 2 * 2 * 4 * (7 / 4 + 10 / 4)


# --- what papers count -----------------------------------------------------------------------------------------------
GPT2 = ModelConfig.gpt2()


def test_kaplan_and_deepseek_on_their_own_block():
    """12 L D^2 weights; 2 L T D forward for the context; M = 72 L D^2 + 12 L D T."""
    L, D, T = 12, 768, 1024
    found = conventions(build(GPT2))
    assert parameters(build(GPT2))["blocks"] == block_weights(build(GPT2)) == 12 * L * D * D
    assert found["Kaplan"] == 72 * L * D * D
    assert found["Kaplan with context"] == 3 * (2 * 12 * L * D * D + 2 * L * T * D)
    assert found["DeepSeek"] == 72 * L * D * D + 12 * L * D * T


def test_palm_on_gpt2():
    """6 N + 12 L D T, N the published 124,439,808 and 47 rows of padding."""
    padded = 124_439_808 + 47 * 768
    assert conventions(build(GPT2))["6N total"] == 6 * padded
    assert conventions(build(GPT2))["PaLM"] == 6 * padded + 12 * 12 * 768 * 1024


def test_nanochat_on_its_own_model():
    """d20: 20 layers, D=1280, T=2048, V=65,536, untied: 560,988,160 parameters and 3.491758e9 FLOPs a token."""
    d20 = ModelConfig(layers=20, width=1280, heads=10, context=2048, vocab=65_536)
    assert block_weights(build(d20)) + 2 * 1280 * 65_536 == 560_988_160
    assert conventions(build(d20))["nanochat"] == pytest.approx(3.491758e9, rel=1e-6)


def test_a_window_caps_what_nanochat_counts():
    windowed = dataclasses.replace(GPT2, window=256, global_every=4)
    saved = conventions(build(GPT2))["nanochat"] - conventions(build(windowed))["nanochat"]
    assert saved == 12 * 768 * 9 * (1024 - 256)


def test_conventions_differ_where_they_should():
    """A large vocabulary on a small model: what leaves the head out is far below; all take another length."""
    c = ModelConfig(layers=2, width=32, heads=2, context=128, vocab=1024, tied=True)
    found = conventions(build(c))
    assert list(found) == list(CONVENTIONS)
    assert found["exact"] / found["6N nonembedding"] > 2 and found["Kaplan and head"] / found["Kaplan"] > 2
    assert found["exact"] < found["exact with elementwise"] and found["exact"] < found["exact, all pairs"]
    assert conventions(build(c), 64)["PaLM"] == found["PaLM"] - 12 * 2 * 32 * 64


CHINCHILLA_A4 = [
    # layers, D, heads, F, ratio of their count to 6 N D
    (10, 640, 10, 2560, 1.025036), (20, 1024, 16, 4096, 1.100817), (24, 1280, 10, 5120, 1.082919),
    (26, 1792, 14, 7168, 1.044094), (28, 2048, 16, 8192, 1.032902), (40, 3584, 28, 14336, 0.994114),
]  # fmt: skip


def chinchilla_model(layers: int, D: int, heads: int, F: int) -> ModelConfig:
    # Only shapes matter here. Two of their widths are not a multiple of the heads: key width is D // heads there.
    return ModelConfig(
        layers=layers, width=D, heads=heads, head_width=D // heads, feedforward=F, context=2048, vocab=32_000,
        positions="none",
    )  # fmt: skip


def chinchilla_params(c: ModelConfig) -> int:
    """Their N: relative positions (one more D x D and two biases a layer), biases, layer norms, head, no embedding."""
    layer = 5 * c.width**2 + 6 * c.width + 2 * c.width * c.F + c.F + c.width + 4 * c.width
    return c.layers * layer + 2 * c.width + c.width * c.V


@pytest.mark.parametrize("layers, D, heads, F, ratio", CHINCHILLA_A4)
def test_chinchilla_table_a4(layers, D, heads, F, ratio):
    """Hoffmann et al. 2022, table A4: FLOPs by their formula over 6 N D, for six sizes."""
    c = chinchilla_model(layers, D, heads, F)
    assert conventions(build(c))["Chinchilla table A4"] / (6 * chinchilla_params(c)) == pytest.approx(ratio, abs=1e-6)


def test_chinchilla_table_in_full():
    """FLOPs of a sequence with and without embedding and logits, and N, in the file that LM_DATA names."""
    path = Path(os.environ.get("LM_DATA", "")) / "scaling" / "flops_chinchilla_tableA4.csv"
    if not os.environ.get("LM_DATA") or not path.is_file():
        pytest.skip("LM_DATA names no folder with scaling/flops_chinchilla_tableA4.csv")
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 6
    for row in rows:
        shape = (int(row[key]) for key in ("n_layers", "d_model", "n_heads", "ffw_size"))
        c = chinchilla_model(*shape)
        assert chinchilla_params(c) == int(row["N_chinchilla"])
        found = conventions(build(c))
        without, whole = row["train_flops_per_seq_no_emb_no_logits"], row["train_flops_per_seq_with_emb_and_logits"]
        assert found["Chinchilla table A4"] * 2048 == float(without)
        assert found["Chinchilla"] * 2048 == float(whole)
