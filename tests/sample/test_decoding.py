"""Decoding through the cache gives what computing everything again for each token gives."""

import jax
import numpy as np
import pytest
from close import assert_close
from sample_cases import little

from lm.model.api import Inputs
from lm.model.kernels import SplitMatrix
from lm.sample.decoding import full_logits, prefill
from lm.sample.generate import generate, generate_naive
from lm.sample.samplers import Sampler

GREEDY = Sampler(temperature=0)
RAGGED = ["", "q", "The 7", "Two households of"]
"""1, 1, 5 and 17 tokens: no, few and more tokens than a window of 5 or a context of 16."""

HEADS = {"multi-head": 4, "grouped": 2, "multi-query": 1}
WINDOWS = {
    "full": {},
    "window": {"window": 5},
    "window with global layers": {"window": 5, "global_every": 2},
}
CASES = [
    pytest.param(dict(kv_heads=K, positions=positions, unroll=unroll, **window), id=f"{heads}, {name}, {positions}")
    for h, (heads, K) in enumerate(HEADS.items())
    for w, (name, window) in enumerate(WINDOWS.items())
    for positions, unroll in [(("rotary", "learned", "sinusoidal")[(h + w) % 3], 1 + (h + 2 * w) % 2)]
]
"""Every kind of head with every kind of window; positions and unrolling go round, each meeting each of the others."""


@pytest.mark.parametrize("changes", CASES)
def test_greedy_generation_equals_the_naive_loop_before_and_past_the_context(changes):
    """Ragged rows in one batch, 40 tokens in a context of 16: each row slides several times, at its own moments."""
    m = little(context=16, **changes)
    samples = generate(m, RAGGED, GREEDY, max_tokens=40, past_context="slide")
    for sample, prompt in zip(samples, RAGGED, strict=True):
        start = m.tokenizer.encode_ordinary(prompt) or [m.tokenizer.eot_token]
        tokens, logprobs = generate_naive(m, start, 40)
        assert sample.tokens == tokens
        assert_close(np.exp(sample.logprobs), np.exp(logprobs), relative=1e-4)  # near 0 a logarithm is rounding alone
    made = {token for sample in samples for token in sample.tokens}
    assert len(made) > 3, "the model repeats itself: the comparison says little"


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2, "window": 5}])
def test_generation_from_a_cache_in_stretches_equals_the_naive_loop(changes, monkeypatch):
    """Four stretches of five slots, filled, and emptied by sliding, at different moments of the rows."""
    monkeypatch.setattr("lm.model.cache.STRETCH_SLOTS", 5)
    monkeypatch.setattr("lm.model.cache.STRETCH_BYTES", 1)
    m = little(context=20, **changes)
    samples = generate(m, RAGGED, GREEDY, max_tokens=40, past_context="slide")
    for sample, prompt in zip(samples, RAGGED, strict=True):
        start = m.tokenizer.encode_ordinary(prompt) or [m.tokenizer.eot_token]
        assert sample.tokens == generate_naive(m, start, 40)[0]


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2, "window": 3, "positions": "learned", "value_residual": True}])
def test_prefill_in_chunks_equals_one_prefill_equals_the_full_pass(changes):
    """Ragged rows, padded at the end of each chunk, through a window (3) shorter than a chunk (5)."""
    m = little(context=16, **changes)
    c, length_B = m.experiment.model, np.array([16, 9, 3])
    tokens_BT = np.random.default_rng(0).integers(0, c.vocab, (3, 16)).astype(np.int32)
    expected_BTV = full_logits(m.model, m.params, tokens_BT)

    @jax.jit
    def read(chunk_BT, count_B, cache):
        return m.model.apply(m.params, Inputs(chunk_BT, count_B=count_B), state=cache)

    chunked, start_B = m.model.state(3, 16), np.zeros(3, np.int32)
    for width in (5, 5, 5, 5):  # rows end inside chunks and before them; the last goes past the capacity
        count_B = np.clip(length_B - start_B, 0, width)
        chunk_BT = np.zeros((3, width), np.int32)  # each row's next tokens, padded on the right
        for b in range(3):
            chunk_BT[b, : count_B[b]] = tokens_BT[b, start_B[b] : start_B[b] + count_B[b]]
        logits_BTV, chunked = read(chunk_BT, count_B, chunked)
        for b in range(3):
            there = slice(start_B[b], start_B[b] + count_B[b])  # padding's logits mean nothing
            assert_close(logits_BTV[b, : count_B[b], : c.vocab], expected_BTV[b, there, : c.vocab], relative=1e-4)
        start_B = start_B + count_B

    whole = prefill(m.model, m.model.lay_out(m.params, 3), Inputs(tokens_BT, count_B=length_B, first=True), capacity=16)
    np.testing.assert_array_equal(whole.length_B, chunked.length_B)
    for b, n in enumerate(length_B):
        heads = slice(b * c.K, (b + 1) * c.K)
        for (one,), (other,) in zip(whole.k_LCRHS, chunked.k_LCRHS, strict=True):
            assert_close(one[heads, :, :n], other[heads, :, :n], relative=1e-4)
        for (one,), (other,) in zip(whole.v_LCRSH, chunked.v_LCRSH, strict=True):
            assert_close(one[heads, :n], other[heads, :n], relative=1e-4)


def test_log_probabilities_are_the_models_own_under_any_sampler():
    """Equal to log softmax of the full pass over prompt and continuation, whatever was filtered on the way."""
    m = little()
    prompt = "Cheese"
    sampler = Sampler(temperature=1.7, top_k=40, top_p=0.95, min_p=0.001, repetition_penalty=1.3)
    for sample in generate(m, [prompt], sampler, max_tokens=20, samples=2):
        start = m.tokenizer.encode_ordinary(prompt)
        tokens = start + sample.tokens
        logprobs_TV = jax.nn.log_softmax(full_logits(m.model, m.params, np.array([tokens], np.int32))[0])
        expected = [logprobs_TV[t - 1, tokens[t]] for t in range(len(start), len(tokens))]
        assert_close(sample.logprobs, expected, relative=1e-4)


@pytest.mark.parametrize("changes", [{}, {"tied": True, "bias": True, "kv_heads": 2, "feedforward": 33}])
@pytest.mark.parametrize("single", [True, False])
def test_parameters_laid_out_for_decoding_are_the_same_model(changes, single):
    """Layers apart, matrices cut for the cores and turned over (33 columns cannot be cut in two): the same logits."""
    m = little(context=16, **changes)
    c = m.experiment.model
    tokens_BT = np.random.default_rng(0).integers(0, c.vocab, (1, 1) if single else (3, 1)).astype(np.int32)
    laid_out = m.model.lay_out(m.params, len(tokens_BT))
    inputs = Inputs(np.tile(tokens_BT, (1, 4)), count_B=np.full(len(tokens_BT), 4), first=True)
    cache = prefill(m.model, laid_out, inputs, capacity=16)
    first = laid_out["blocks"]["attention"]["query"]["kernel"].layers[0]
    assert isinstance(first, SplitMatrix) == single

    apply = jax.jit(m.model.apply)
    plain_BTV, plain = apply(m.params, Inputs(tokens_BT), state=cache)
    laid_BTV, laid = apply(laid_out, Inputs(tokens_BT), state=cache)
    assert_close(laid_BTV[..., : c.vocab], plain_BTV[..., : c.vocab], relative=1e-5)
    assert_close(laid.new_k_LBKHT, plain.new_k_LBKHT, relative=1e-5)
