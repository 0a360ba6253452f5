"""The same weights give the same logits, gradients and cached decoding as in `transformers`, a library of its own."""

import functools

import jax
import numpy as np
import pytest
from close import assert_close
from model_cases import forward, library, loss_and_gradient, some_tokens

from lm.config import ModelConfig
from lm.errors import UserError
from lm.exchange import shapes
from lm.exchange.tensors import to_ours
from lm.model.api import Inputs, build

B, T = 3, 12
SHAPE = dict(layers=2, width=32, heads=4, context=T, vocab=61, dtype="float32")
GPT2 = ModelConfig.gpt2(**SHAPE)
GROUPED = dict(feedforward=56, kv_heads=2, rotary_base=500.0)
LLAMAS = {
    "Llama, grouped heads, untied": ModelConfig.llama(**SHAPE, **GROUPED, tied=False),
    "Llama, grouped heads, tied": ModelConfig.llama(**SHAPE, **GROUPED, tied=True),
    "Llama, multi-head, wide heads": ModelConfig.llama(**SHAPE, feedforward=56, head_width=12, tied=False),
}
CASES = {"GPT-2": GPT2} | LLAMAS


def their_gpt2(c):
    transformers = library("transformers")
    config = transformers.GPT2Config(
        n_layer=c.layers, n_embd=c.width, n_head=c.heads, n_positions=c.context, vocab_size=c.vocab,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def their_llama(c):
    transformers = library("transformers")
    config = transformers.LlamaConfig(
        num_hidden_layers=c.layers, hidden_size=c.width, intermediate_size=c.F, num_attention_heads=c.heads,
        num_key_value_heads=c.K, head_dim=c.H, max_position_embeddings=c.context, vocab_size=c.vocab,
        rms_norm_eps=c.norm_epsilon, rope_parameters={"rope_type": "default", "rope_theta": c.rotary_base},
        rope_theta=c.rotary_base, tie_word_embeddings=c.tied, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def converted(name, tensors):
    """Our parameters, or our gradient, of tensors under their names."""
    f = shapes.family("llama" if name in LLAMAS else "gpt2")
    return to_ours(f, shapes.write(f, CASES[name]), CASES[name], tensors)


@functools.cache
def pair(name):
    """Their model with random weights that make every path matter, and our parameters converted from it."""
    torch = library("torch")
    torch.set_num_threads(1)
    c = CASES[name]
    theirs = (their_llama if name in LLAMAS else their_gpt2)(c).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1.5 * noise * weight.shape[-1] ** -0.5 if weight.ndim == 2 else weight + 0.3 * noise)
    state_dict = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}
    return theirs, converted(name, state_dict), state_dict


def their_logits_and_gradients(name):
    """Logits [B, T, vocab], mean next-token loss, and the gradient as a state dict."""
    torch = library("torch")
    theirs, *_ = pair(name)
    theirs.zero_grad()
    tokens_BT = torch.from_numpy(some_tokens(CASES[name], B)).long()
    logits_BTV = theirs(tokens_BT).logits
    loss = torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())
    loss.backward()
    gradient = {key: weight.grad.numpy() for key, weight in theirs.named_parameters()}
    return logits_BTV.detach().numpy(), loss.item(), gradient


every_model = pytest.mark.parametrize("name", CASES)
pytestmark = pytest.mark.parity


@every_model
def test_logits_equal_theirs(name):
    """At every position, in float32."""
    c, (_, params, _) = CASES[name], pair(name)
    theirs_BTV, *_ = their_logits_and_gradients(name)
    assert np.abs(theirs_BTV).max() > 1
    assert_close(forward(c)(params, some_tokens(c, B)), theirs_BTV, relative=1e-5)


@every_model
def test_gradients_equal_theirs(name):
    """Of the mean next-token loss, for every parameter: their gradients go through the same conversion."""
    c, (_, params, _) = CASES[name], pair(name)
    _, their_loss, their_gradient = their_logits_and_gradients(name)
    loss, gradient = loss_and_gradient(c)(params, some_tokens(c, B))
    assert float(loss) == pytest.approx(their_loss, rel=3e-6)
    expected = converted(name, their_gradient)
    flat, expected_flat = (jax.flatten_util.ravel_pytree(tree)[0] for tree in (gradient, expected))
    assert_close(flat, expected_flat, relative=3e-6)  # of the largest of all: GPT-2's key biases have none
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)) > 0.1


@every_model
def test_cached_decoding_equals_their_full_pass(name):
    """Five tokens at once, then one at a time."""
    c, (_, params, _) = CASES[name], pair(name)
    theirs_BTV, *_ = their_logits_and_gradients(name)
    tokens_BT, cache = some_tokens(c, B), build(c).state(B, T)

    @jax.jit
    def step(params, tokens_BT, cache):
        logits_BTV, cache = build(c).apply(params, Inputs(tokens_BT), state=cache)
        return logits_BTV[..., : c.vocab], cache

    for start, stop in [(0, 5), *((t, t + 1) for t in range(5, T))]:
        logits_BTV, cache = step(params, tokens_BT[:, start:stop], cache)
        assert_close(logits_BTV, theirs_BTV[:, start:stop], relative=1e-5)


def test_weights_that_do_not_fit_are_refused():
    """A missing tensor, an odd shape, a tensor too many, a head that is not the embedding."""
    _, _, state = pair("GPT-2")
    missing = {key: value for key, value in state.items() if key != "transformer.h.1.ln_2.bias"}
    with pytest.raises(UserError, match=r"h.1.ln_2.bias: no such tensor in this gpt2; did you mean h\.\d\.ln_\d\.bias"):
        converted("GPT-2", missing)
    odd = state | {"transformer.h.1.attn.c_attn.weight": np.zeros((32, 95))}
    with pytest.raises(UserError, match=r"c_attn.weight has shape \(32, 95\), which does not give .*kernel \(32, 32\)"):
        converted("GPT-2", odd)
    odd = state | {"transformer.h.2.ln_1.weight": np.ones(32)}
    with pytest.raises(UserError, match=r"h.2.ln_1.weight: 1 tensors that such a gpt2 has no place for"):
        converted("GPT-2", odd)
    untied = pair("Llama, grouped heads, untied")[2]
    with pytest.raises(UserError, match=r"lm_head\.weight is not the embedding, and config.json says tie_word_embed"):
        converted("Llama, grouped heads, tied", untied)


def test_parity_cannot_be_skipped_where_it_is_demanded(monkeypatch):
    """LM_REQUIRE_PARITY=1 turns a missing package into a failure; without it, into a skip."""
    monkeypatch.setenv("LM_REQUIRE_PARITY", "1")
    with pytest.raises(ModuleNotFoundError):
        library("no_such_library")
    monkeypatch.delenv("LM_REQUIRE_PARITY")
    with pytest.raises(pytest.skip.Exception):
        library("no_such_library")
