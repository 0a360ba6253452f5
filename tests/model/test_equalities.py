"""Every clever path has a plain one beside it that it must equal: scanned and looped, packed and alone, and so on.

Cached decoding has its own file, test_cache.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close, relative_error
from model_cases import forward, lively, loss_and_gradient, small, some_tokens

from lm.model import transformer
from lm.model.api import Inputs, build
from lm.model.kernels import times
from lm.model.layers import dropout, random_bits
from lm.model.taps import Taps

CLOSE = 1e-5
"""Relative; the same float32 sums in another order."""


def key(seed):
    """A random key whose generator compiles fast."""
    return jax.random.key(seed, impl="unsafe_rbg")


# --- how the layers run ----------------------------------------------------------------------------------------------
DEEP = dict(layers=3, kv_heads=2, window=3, global_every=2, dropout=0.3, value_residual=True)


@pytest.mark.parametrize("how", [dict(unroll=3), dict(remat="full", unroll=2), dict(remat="dots")], ids=str)
def test_unrolled_and_rematerialised_layers_equal_the_scan(how):
    """Loss and gradients, with layers that differ (windowed and global) and with each layer's own dropout."""
    plain, clever = small(**DEEP), small(**DEEP, **how)
    params, tokens_BT = lively(plain), some_tokens(plain)
    loss, gradient = loss_and_gradient(plain)(params, tokens_BT, key(1))
    clever_loss, clever_gradient = loss_and_gradient(clever)(params, tokens_BT, key(1))
    assert relative_error(clever_loss, loss) < CLOSE
    assert relative_error(clever_gradient, gradient) < CLOSE
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradient)), "a parameter without a gradient"


# --- packed documents ------------------------------------------------------------------------------------------------
LENGTHS = [[3, 5], [2, 1, 4, 1]]
PACKED_BT = np.array([np.repeat(np.arange(len(row)), row) for row in LENGTHS], np.int32)
positions = pytest.mark.parametrize("kind", ["rotary", "learned", "sinusoidal", "none"])


def packed_model(kind):
    return small(positions=kind, kv_heads=2, window=4, global_every=2, value_residual=kind == "learned")


@positions
def test_packed_documents_equal_the_same_documents_alone(kind):
    """Positions restart and attention stays inside, for documents of one token and longer than the window."""
    c = packed_model(kind)
    params, tokens_BT = lively(c), some_tokens(c)
    together_BTV = forward(c)(params, tokens_BT, PACKED_BT)
    for row, lengths in enumerate(LENGTHS):
        for start, length in zip(np.cumsum([0, *lengths]), lengths, strict=False):
            alone_BT = np.zeros_like(tokens_BT)  # what follows a document does not matter: test_causality
            alone_BT[0, :length] = tokens_BT[row, start : start + length]
            alone_BTV = forward(c)(params, alone_BT)
            together_TV = together_BTV[row, start : start + length]
            assert relative_error(together_TV, alone_BTV[0, :length]) < CLOSE


@positions
def test_documents_do_not_leak_into_each_other(kind):
    """Changing every token of one packed document leaves the logits of the others the same to the last bit."""
    c = packed_model(kind)
    params, tokens_BT = lively(c), some_tokens(c)
    before_BTV = np.asarray(forward(c)(params, tokens_BT, PACKED_BT))
    for document in range(PACKED_BT.max() + 1):
        changed_BT = np.where(document == PACKED_BT, (tokens_BT + 1) % c.vocab, tokens_BT)
        differs_BT = (np.asarray(forward(c)(params, changed_BT, PACKED_BT)) != before_BTV).any(-1)
        np.testing.assert_array_equal(differs_BT, document == PACKED_BT)


# --- numerics --------------------------------------------------------------------------------------------------------
@functools.cache
def values_of(c, *names):
    """Compiled (params, tokens_BT, key=None) -> {tap: value}."""

    def read(params, tokens_BT, key=None):
        taps = Taps(names)
        build(c).apply(params, Inputs(tokens_BT), taps=taps, key=key)
        return taps.values

    return jax.jit(read)


def test_bfloat16_compute_is_close_to_float32():
    """Within a few of bfloat16's 2^-8 steps, not equal; softmax, norms and logits stay float32."""
    c32, c16 = small(dtype="float32"), small(dtype="bfloat16")
    params, tokens_BT = lively(c32), some_tokens(c32)
    names = ("logits", "residual.after", "attention.weights", "attention.out")
    exact, rough = values_of(c32, *names)(params, tokens_BT), values_of(c16, *names)(params, tokens_BT)
    assert rough["residual.after"].dtype == rough["attention.out"].dtype == jnp.bfloat16
    assert rough["attention.weights"].dtype == rough["logits"].dtype == jnp.float32
    assert 1e-4 < relative_error(rough["logits"][..., : c32.vocab], exact["logits"][..., : c32.vocab]) < 0.03
    assert_close(rough["attention.weights"].sum(-1), 1, relative=1e-6)


def test_rounded_products_and_their_derivative_are_those_of_rounded_matrices():
    """Operands of all three products are bfloat16, sums float32: as in float64 of what was rounded. A slope that JAX
    derives itself would be half rounded."""
    rng = np.random.default_rng(0)
    x_MD, w_DF, slope_MF = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((6, 40), (40, 24), (6, 24)))
    product = jax.jit(lambda x, w: times(x, w, jnp.dtype("bfloat16")))
    y_MF, derive = jax.vjp(product, x_MD, w_DF)
    x, w, s = (np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x_MD, w_DF, slope_MF))
    made = (y_MF, *derive(slope_MF))
    for found, expected, exact in zip(made, (x @ w, s @ w.T, x.T @ s), (x_MD @ w_DF, None, None), strict=True):
        assert found.dtype == jnp.float32
        assert_close(found, expected, relative=1e-6)
        assert exact is None or relative_error(found, exact) > 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_products_leave_all_else_in_float32(tied):
    """The stream, the scores and the cache are float32; logits lie nearer to float32's than bfloat16's do, and
    generation's layouts, of few rows and of many, give the same."""
    c32, c16, c = (small(dtype=d, tied=tied) for d in ("float32", "bfloat16", "bfloat16_products"))
    params, tokens_BT = lively(c32), some_tokens(c32)
    names = ("logits", "residual.after", "attention.scores", "attention.key")
    exact, rough, made = (values_of(x, *names)(params, tokens_BT) for x in (c32, c16, c))
    assert {str(value.dtype) for value in made.values()} == {"float32"}
    logits = [np.asarray(x["logits"])[..., : c.vocab] for x in (exact, rough, made)]
    rougher, error = (np.sqrt(np.mean((x - logits[0]) ** 2)) / logits[0].std() for x in logits[1:])
    assert 1e-4 < error < rougher
    m = build(c)
    for rows in (1, len(tokens_BT)):
        laid_out = jax.jit(m.apply)(m.lay_out(params, rows), Inputs(tokens_BT[:rows]))[0]
        assert_close(laid_out[..., : c.vocab], made["logits"][:rows, :, : c.vocab], relative=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_padded_vocabulary_entries_do_not_exist(tied, softcap):
    """29 entries padded to 32: probability and gradient of the padding are exactly zero, the rest is as without."""
    padded = small(tied=tied, logit_softcap=softcap, vocab_multiple=8)
    exact = small(tied=tied, logit_softcap=softcap, vocab_multiple=1)
    assert (padded.V, exact.V) == (32, 29)
    rng = np.random.default_rng(0)
    h_BTD, head_VD = (rng.normal(size=size).astype(np.float32) for size in ((2, 3, 16), (32, 16)))

    def log_probabilities(head_VD, c):
        params = lively(c) | ({"embedding": head_VD} if tied else {"head": head_VD.T})
        return jax.nn.log_softmax(build(c).logits(params, h_BTD))

    assert (np.exp(log_probabilities(head_VD, padded)[..., 29:]) == 0).all()
    assert_close(log_probabilities(head_VD, padded)[..., :29], log_probabilities(head_VD[:29], exact), relative=1e-5)
    gradient = jax.grad(lambda head_VD, c: log_probabilities(head_VD, c)[..., :29].sum())
    assert (gradient(head_VD, padded)[29:] == 0).all()
    assert relative_error(gradient(head_VD, padded)[:29], gradient(head_VD[:29], exact)) < CLOSE


def test_softcap_bounds_logits_smoothly():
    """c tanh(x / c): below c in size, nearly x where x is small, the same order."""
    cap = 3.0
    h_BTD = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    plain, capped = small(vocab=32), small(vocab=32, logit_softcap=cap)
    logits_BTV = np.asarray(build(plain).logits(lively(plain), h_BTD))
    capped_BTV = np.asarray(build(capped).logits(lively(plain), h_BTD))
    assert np.abs(logits_BTV).max() > cap > np.abs(capped_BTV).max()
    assert_close(capped_BTV, cap * np.tanh(logits_BTV / cap), relative=1e-5)


def test_a_tied_head_is_the_embedding_used_twice():
    """One array whose gradient is the sum of what the embedding and an untied head of the same values receive."""
    tied, untied = small(tied=True), small(tied=False)
    params, tokens_BT = lively(tied), some_tokens(tied)
    assert "head" not in params
    apart = params | {"head": params["embedding"].T}
    loss, gradient = loss_and_gradient(tied)(params, tokens_BT)
    apart_loss, apart_gradient = loss_and_gradient(untied)(apart, tokens_BT)
    assert relative_error(loss, apart_loss) < CLOSE
    assert relative_error(gradient["embedding"], apart_gradient["embedding"] + apart_gradient["head"].T) < CLOSE
    assert relative_error(gradient["embedding"], apart_gradient["embedding"]) > 0.01


# --- dropout ---------------------------------------------------------------------------------------------------------
def test_dropout_needs_a_key_and_is_a_function_of_it():
    """Without a key the model is as with rate 0; one key always gives the same, another key something else."""
    dropping, plain = small(dropout=0.4), small(dropout=0.0)
    params, tokens_BT = lively(plain), some_tokens(plain)
    run = lambda c, seed: np.asarray(forward(c)(params, tokens_BT, None, key(seed)))  # noqa: E731
    # Exact: without a key both configurations make the same program.
    np.testing.assert_array_equal(forward(dropping)(params, tokens_BT), forward(plain)(params, tokens_BT))
    np.testing.assert_array_equal(run(dropping, 1), run(dropping, 1))
    assert (run(dropping, 1) != run(dropping, 2)).any(-1).all()


def test_dropout_zeroes_at_its_rate_and_preserves_the_mean():
    """Over 100,000 entries, within five standard errors."""
    rate, count = 0.3, 100_000
    dropped = np.asarray(dropout(jnp.ones(count), rate, jax.random.key(0)))
    assert set(np.unique(dropped)) == {0, np.float32(1 / (1 - rate))}
    assert abs((dropped == 0).mean() - rate) < 5 * (rate * (1 - rate) / count) ** 0.5
    assert abs(dropped.mean() - 1) < 5 * (rate / (1 - rate) / count) ** 0.5


def test_random_bits_are_as_good_as_dropout_needs():
    """Of three keys: every bit of a number is even odds, alone, beside that of the next place, the next row, another
    key's, and every other bit; within five standard errors of 2^16 numbers. The shape does not matter, the key does."""
    keys = [jax.random.key(0), jax.random.key(1), jax.random.fold_in(jax.random.key(0), 1)]
    bits = [np.asarray(random_bits(key, (4, 128, 128))) for key in keys]
    np.testing.assert_array_equal(bits[0].ravel(), random_bits(keys[0], (1 << 16,)))
    unpack = lambda numbers: np.unpackbits(numbers.ravel().view(np.uint8)).reshape(-1, 32).astype(np.int8)  # noqa: E731
    first = unpack(bits[0])
    limit = 5 * 0.5 / first.shape[0] ** 0.5
    assert abs(first.mean(0) - 0.5).max() < limit
    beside = [first[1:], first[128:], first[128 * 128 :], *(unpack(other) for other in bits[1:])]
    beside += [np.roll(first, shift, axis=1) for shift in range(1, 32)]
    for other in beside:
        assert abs((first[: len(other)] == other).mean(0) - 0.5).max() < limit


def test_dropout_falls_on_the_embedding_and_on_each_half_block_independently():
    """What each half-block adds is zeroed in places of its own, in every layer; so is the embedding."""
    c = small(dropout=0.5, layers=3, width=32)
    names = ("embedding", "residual.before", "residual.middle", "residual.after")
    read = values_of(c, *names)(lively(c), some_tokens(c, batch=8), key(0))
    before, middle, after = (np.asarray(read[name]) for name in names[1:])
    zeroed = [np.asarray(read["embedding"]) == 0, *(middle == before), *(after == middle)]
    for i, mask in enumerate(zeroed):
        assert abs(mask.mean() - 0.5) < 0.06, "five standard errors of 2048 entries"
        for other in zeroed[:i]:
            assert abs((mask == other).mean() - 0.5) < 0.06


def test_layers_are_written_out_where_that_pays(monkeypatch):
    """All of a few on a CPU; one at a time on an accelerator, or where they are many; as many as asked for."""
    assert transformer.written_out(small(layers=3, unroll=2)) == 2 and transformer.written_out(small(unroll=9)) == 2
    for backend, layers, expected in (("cpu", 8, 8), ("cpu", 9, 1), ("gpu", 4, 1)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert transformer.written_out(small(layers=layers, unroll=None)) == expected
