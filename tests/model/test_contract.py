"""What every model promises behind its interface: a new architecture, added to `model_cases.models`, is tested here.

What is peculiar to one has a file of its own.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import relative_error
from model_cases import VARIANTS, forward, in_chunks, lively, models, products, reader, some_tokens

from lm.config import ModelBase, ModelConfig, RecurrentConfig
from lm.errors import UserError
from lm.model.api import Inputs, build
from lm.model.loss import Batch, next_token
from lm.model.taps import Taps

B, T = 3, 12  # windows of 1, 2 and 3 tokens are long past
MODELS = models(context=T)
every_model = pytest.mark.parametrize("c", MODELS.values(), ids=MODELS)
FEW = {"multi-head rotary", "value residuals, grouped window, a base shape"} | (MODELS.keys() - VARIANTS.keys())
few_models = pytest.mark.parametrize("c", [MODELS[name] for name in sorted(FEW)], ids=sorted(FEW))
"""Every architecture, and of the transformer's variants two, where a file of its own tests the others more closely."""
CLOSE = 1e-5
"""Relative; the same float32 sums in another order."""


# --- the state -------------------------------------------------------------------------------------------------------
@every_model
@pytest.mark.parametrize(
    "width, counts",
    [
        pytest.param(1, [[1, 1, 1]] * T, id="one token at a time"),
        pytest.param(5, [[5, 2, 1], [1, 4, 0], [0, 1, 1], [5, 5, 4], [1, 0, 2]], id="uneven chunks of ragged rows"),
    ],
)
def test_reading_through_the_state_equals_the_full_pass(c, width, counts):
    """Every token at once, or in pieces that differ by row, some of them empty, others with padding."""
    params, tokens_BT = lively(c), some_tokens(c, B, T)
    full_BTV = np.asarray(forward(c)(params, tokens_BT))
    read_BT = np.arange(T) < np.sum(counts, axis=0)[:, None]
    logits_BTV, _ = in_chunks(c, params, tokens_BT, counts, width, build(c).state(B, T))
    assert relative_error(logits_BTV[read_BT], full_BTV[read_BT]) < CLOSE


@every_model
def test_ragged_prompts_equal_the_same_prompts_alone(c):
    """Nothing was read before: rows of 7, 3 and no tokens, padded to 8; then one more token for each."""
    params, tokens_BT, count_B = lively(c), some_tokens(c, B, T), np.array([7, 3, 0], np.int32)
    prompts = Inputs(tokens_BT[:, :8], count_B=count_B, first=True)
    _, state = jax.jit(functools.partial(build(c).hidden, state=build(c).state(B, T)))(params, prompts)
    next_B1 = np.take_along_axis(tokens_BT, count_B[:, None], axis=1)
    logits_B1V, _ = reader(c)(params, next_B1, state, np.ones(B, np.int32))
    full_BTV = np.asarray(forward(c)(params, tokens_BT))  # what follows a token does not matter: below
    assert relative_error(logits_B1V[:, 0], full_BTV[np.arange(B), count_B]) < CLOSE


@few_models
def test_no_more_than_the_context_is_read(c):
    m, params = build(c), lively(c)
    with pytest.raises(UserError, match="13 tokens are more than the model's context of 12"):
        m.hidden(params, Inputs(np.zeros((1, 13), np.int32)))
    with pytest.raises(UserError, match="cache of 13 tokens exceeds the model's context of 12"):
        m.state(1, 13)
    with pytest.raises(UserError, match="segments stand alone: with a state, one document a row"):
        m.hidden(params, Inputs(np.zeros((1, 1), np.int32), np.zeros((1, 1))), state=m.state(1, 12))


def test_a_configuration_without_a_module_is_told_what_it_lacks():
    class Shape(ModelBase):
        pass

    with pytest.raises(UserError, match=r"no module computes the models of Shape: .* @lm.implements\(Shape\)"):
        build(Shape())


# --- layouts ---------------------------------------------------------------------------------------------------------
@few_models
@pytest.mark.parametrize("rows", [1, 3])
def test_parameters_laid_out_for_generating_are_the_same_model(c, rows):
    """Layers apart, and for a single row matrices cut for the cores and turned over: the loop equals the scan."""
    m, params, tokens_BT = build(c), lively(c), some_tokens(c, rows, 1)
    plain, laid = (
        jax.jit(m.apply)(p, Inputs(tokens_BT), state=m.state(rows, T)) for p in (params, m.lay_out(params, rows))
    )
    assert relative_error(laid[0][..., : c.vocab], plain[0][..., : c.vocab]) < CLOSE
    assert relative_error(laid[1], plain[1]) < CLOSE


@every_model
def test_axes_name_every_dimension_of_every_parameter(c):
    """One letter a dimension, each letter of one size; only what is in `blocks` is stacked along L."""
    sizes = {"L": {c.layers}, "V": {c.V}, "D": {c.width}}
    paths = [path for path, _ in jax.tree.leaves_with_path(build(c).shapes())]
    for path, (leaf, axes) in zip(paths, build(c).with_axes(build(c).shapes()), strict=True):
        assert len(axes) == len(leaf.shape) and leaf.dtype == np.float32, path
        assert ("L" in axes) == (path[0].key == "blocks") and "L" not in axes[1:], path
        for letter, size in zip(axes, leaf.shape, strict=True):
            sizes.setdefault(letter, set()).add(size)
    assert all(len(found) == 1 for found in sizes.values()), sizes


# --- who sees what ---------------------------------------------------------------------------------------------------
@every_model
def test_changed_future_tokens_change_nothing_before(c):
    """Tokens after t are others: the logits up to t are the same to the last bit, and the one after is not."""
    params, tokens_BT = lively(c), np.repeat(some_tokens(c, 1, T), B, axis=0)
    before_BTV = np.asarray(forward(c)(params, tokens_BT))  # exact: one program, the same shapes
    for t_B in np.arange(T).reshape(-1, B):
        is_future_BT = np.arange(T) > t_B[:, None]
        after_BTV = np.asarray(forward(c)(params, np.where(is_future_BT, (tokens_BT + 1) % c.vocab, tokens_BT)))
        differs_BT = (before_BTV != after_BTV).any(-1)
        assert not differs_BT[~is_future_BT].any()
        assert all(differs_BT[b, t + 1] for b, t in enumerate(t_B) if t + 1 < T)


@few_models
def test_no_position_learns_anything_of_its_future(c):
    """By the gradient of the logits at t with respect to every embedding."""
    m, params = build(c), jax.tree.map(jnp.asarray, lively(c))
    tokens_BT = np.repeat(some_tokens(c, 1, T), T, axis=0)
    is_future_BT = np.arange(T) > np.arange(T)[:, None]

    def own_logits(push_BTD):
        taps = Taps(edits={"embedding": lambda x_BTD, layer: x_BTD + push_BTD})
        logits_BTV, _ = m.apply(params, Inputs(tokens_BT), taps=taps)
        return jnp.sum(logits_BTV[np.arange(T), np.arange(T), : c.vocab] @ jnp.linspace(-1, 2, c.vocab))  # row t's at t

    influence_BT = np.abs(jax.jit(jax.grad(own_logits))(np.zeros((T, T, c.width), np.float32))).sum(-1)
    assert (influence_BT[is_future_BT] == 0).all() and (np.diagonal(influence_BT) != 0).all()


@few_models
def test_packed_documents_equal_the_same_documents_alone(c):
    """Whatever is remembered, and positions, begin anew in each: of one token, and longer than a window."""
    lengths, params, tokens_BT = [[3, 9], [2, 1, 8, 1], [12]], lively(c), some_tokens(c, B, T)
    segments_BT = np.array([np.repeat(np.arange(len(row)), row) for row in lengths], np.int32)
    together_BTV = np.asarray(forward(c)(params, tokens_BT, segments_BT))
    for row, documents in enumerate(lengths):
        for start, length in zip(np.cumsum([0, *documents]), documents, strict=False):
            alone_BT = np.zeros_like(tokens_BT)  # what follows a document does not matter
            alone_BT[0, :length] = tokens_BT[row, start : start + length]
            alone_BTV = forward(c)(params, alone_BT)
            assert relative_error(together_BTV[row, start : start + length], alone_BTV[0, :length]) < CLOSE


# --- taps ------------------------------------------------------------------------------------------------------------
@few_models
def test_every_tap_is_read_with_its_axes_and_can_be_edited(c):
    """Its letters say its shape; what is read is what was edited, and the logits hear of it."""
    m, params, tokens_BT = build(c), jax.tree.map(jnp.asarray, lively(c)), some_tokens(c, B, T)
    assert {"embedding", "residual.after", "logits"} <= set(m.taps), "what probes of any model read"

    def read(edits):
        taps = Taps(m.taps, edits)
        m.apply(params, Inputs(tokens_BT), taps=taps)
        return taps.values

    plain, size = jax.jit(functools.partial(read, {}))(), {"L": c.layers, "B": B, "T": T, "D": c.width, "V": c.V}
    for name, tap in m.taps.items():
        assert plain[name].ndim == len(tap.axes), name
        known = [(letter, axis) for letter, axis in zip(tap.axes, plain[name].shape, strict=True) if letter in size]
        assert all(size[letter] == axis for letter, axis in known), name
    for name in ("embedding", "residual.after"):
        edited = jax.jit(functools.partial(read, {name: lambda value, layer: value * 0.5}))()
        first = (lambda x: x[0]) if "L" in m.taps[name].axes else (lambda x: x)
        assert relative_error(first(edited[name]), first(plain[name]) * 0.5) < CLOSE
        assert relative_error(edited["logits"][..., : c.vocab], plain["logits"][..., : c.vocab]) > 1e-3
    with pytest.raises(UserError, match=r"tap 'embeding': no such tap; did you mean embedding\?"):
        m.apply(params, Inputs(tokens_BT), taps=Taps(["embeding"]))


# --- costs -----------------------------------------------------------------------------------------------------------
@every_model
def test_flops_are_those_of_the_program(c):
    """Matrix products to the last one: forward, and forward with backward, where remat makes some of them again."""
    m = build(c)

    def loss(params, tokens_BU):
        return next_token(m, params, Batch(tokens_BU)).nats.target.sum()

    arguments, tokens = (m.shapes(), jax.ShapeDtypeStruct((B, T + 1), np.int32)), B * T
    cost = m.cost(pairs="computed")
    assert products(jax.make_jaxpr(loss)(*arguments).jaxpr) / tokens == pytest.approx(cost.forward_flops, rel=1e-12)
    both = products(jax.make_jaxpr(jax.grad(loss))(*arguments).jaxpr) / tokens
    if getattr(c, "remat", "none") != "none":
        assert cost.training_flops < both < cost.training_flops + cost.forward_flops
    else:
        assert both == pytest.approx(cost.training_flops, rel=1e-12)


@every_model
def test_all_operations_agree_with_xla(c):
    """Matrix products and the rest, forward and loss, within 2% of XLA's count of the program before it fuses it.

    XLA counts the body of a loop once: layers are written out, and of a recurrence one token is counted.
    """
    c = dataclasses.replace(c, width=64, context=1 if isinstance(c, RecurrentConfig) else 16)
    if isinstance(c, ModelConfig):
        c = dataclasses.replace(c, unroll=c.layers, feedforward=96, base_width=None, base_head_width=None, remat="none")
    m = build(dataclasses.replace(c, layers=1) if isinstance(c, RecurrentConfig) else c)

    def loss(params, tokens_BU):
        return next_token(m, params, Batch(tokens_BU)).nats.target.sum()

    T = m.config.context
    lowered = jax.jit(loss).lower(m.shapes(), jax.ShapeDtypeStruct((8, T + 1), np.int32)).cost_analysis()
    counted = (lowered["flops"] + lowered["transcendentals"]) / (8 * T)
    cost = m.cost(pairs="computed")
    assert counted == pytest.approx(cost.forward_flops + cost.elementwise_flops, rel=0.02)
