"""Recurrent models are torch's, to rounding: outputs, states and gradients. What all models share: test_contract.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from model_cases import library, lively, some_tokens

from lm.config import RecurrentConfig
from lm.model.api import Inputs, build

B, T, D, L = 3, 7, 12, 2
CELLS = {"lstm": "LSTM", "rnn": "RNN"}


def config(cell: str) -> RecurrentConfig:
    return RecurrentConfig(layers=L, width=D, cell=cell, context=T, vocab=29, dtype="float32")


def their_module(cell: str, params: dict):
    """torch's module holding our parameters; its second bias, which ours does not have, at zero."""
    torch = library("torch")
    module = getattr(torch.nn, CELLS[cell])(D, D, num_layers=L, batch_first=True)
    blocks = params["blocks"]
    with torch.no_grad():
        for layer in range(L):
            getattr(module, f"weight_ih_l{layer}").copy_(torch.tensor(blocks["input"]["kernel"][layer].T))
            getattr(module, f"weight_hh_l{layer}").copy_(torch.tensor(blocks["recurrent"][layer].T))
            getattr(module, f"bias_ih_l{layer}").copy_(torch.tensor(blocks["input"]["bias"][layer]))
            getattr(module, f"bias_hh_l{layer}").zero_()
    return torch, module


@pytest.mark.parity
@pytest.mark.parametrize("cell", CELLS)
def test_a_recurrent_model_is_torchs(cell):
    """Hidden states, logits, the state after reading, and the gradients of a weighted sum of logits, within 1e-6."""
    c, weights_BTV = config(cell), np.random.default_rng(1).normal(size=(B, T, 29)).astype(np.float32)
    params, tokens_BT = lively(c), some_tokens(c, B)
    params["blocks"]["recurrent"] *= 0.5  # as drawn, a tanh RNN would double a rounding error every few tokens
    torch, module = their_module(cell, params)
    embedding = torch.tensor(params["embedding"], requires_grad=True)
    head = torch.tensor(params["head"], requires_grad=True)
    h, state = module(embedding[torch.tensor(tokens_BT).long()])
    logits = h @ head
    (logits[..., :29] * torch.tensor(weights_BTV)).sum().backward()

    def weighed(params):
        h_BTD, state = build(c).hidden(params, Inputs(jnp.asarray(tokens_BT)), state=build(c).state(B, T))
        logits_BTV = build(c).logits(params, h_BTD)[..., :29]
        return jnp.sum(logits_BTV * weights_BTV), (h_BTD, logits_BTV, state)

    (_, (h_BTD, logits_BTV, ours)), gradient = jax.jit(jax.value_and_grad(weighed, has_aux=True))(params)
    assert_close(h_BTD, h.detach().numpy(), relative=1e-6)
    assert_close(logits_BTV, logits.detach().numpy()[..., :29], relative=1e-6)
    theirs = state if cell == "lstm" else (state, None)
    assert_close(ours.h_LBD, theirs[0].detach().numpy(), relative=1e-6)
    assert (ours.c_LBD is None) == (theirs[1] is None)
    if ours.c_LBD is not None:
        assert_close(ours.c_LBD, theirs[1].detach().numpy(), relative=1e-6)
    assert_close(gradient["embedding"], embedding.grad.numpy(), relative=3e-6)
    assert_close(gradient["head"][:, :29], head.grad.numpy()[:, :29], relative=3e-6)
    for layer in range(L):
        for ours, theirs in (
            (gradient["blocks"]["input"]["kernel"][layer].T, f"weight_ih_l{layer}"),
            (gradient["blocks"]["recurrent"][layer].T, f"weight_hh_l{layer}"),
            (gradient["blocks"]["input"]["bias"][layer], f"bias_ih_l{layer}"),
        ):
            assert_close(ours, getattr(module, theirs).grad.numpy(), relative=3e-6, what=theirs)


def test_an_lstm_starts_out_remembering():
    """The forget gates' biases are one, all others zero; a tanh RNN has no gates."""
    bias_LF = build(config("lstm")).init(0)["blocks"]["input"]["bias"]
    np.testing.assert_array_equal(bias_LF, np.repeat([[0, 1, 0, 0]], D, axis=1).reshape(1, -1).repeat(L, axis=0))
    assert not build(config("rnn")).init(0)["blocks"]["input"]["bias"].any()


@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_is_near_that_of_a_uniform_guess(tied):
    c = RecurrentConfig(layers=2, width=64, context=16, vocab=250, tied=tied)
    tokens_BT = some_tokens(c, 8)
    logits_BTV, _ = build(c).apply(build(c).init(0), Inputs(tokens_BT))
    nats = -np.take_along_axis(jax.nn.log_softmax(logits_BTV), (tokens_BT[..., None] * 7 + 3) % 250, -1)
    assert nats.mean() == pytest.approx(np.log(250), rel=0.05)
