"""Taps: every named value can be read and edited, in full passes and cached decoding; unasked they cost nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close, relative_error
from model_cases import forward, lively, small, some_tokens

from lm.errors import UserError
from lm.model.api import Inputs, build
from lm.model.taps import Taps
from lm.model.transformer import TAPS

ALL = list(TAPS)
B, T = 5, 8
SHAPE = dict(vocab=32, layers=3, kv_heads=2, head_width=6, context=T, window=4, global_every=3)
C = small(**SHAPE)
SIZE = dict(L=3, B=B, T=T, S=T, N=4, K=2, H=6, D=16, F=24, V=32)


@functools.cache
def read_all(c):
    """Compiled (params, tokens_BT) -> {tap: value}, logits among them."""

    def read(params, tokens_BT):
        taps = Taps(ALL)
        build(c).apply(params, Inputs(tokens_BT), taps=taps)
        return taps.values

    return jax.jit(read)


@functools.cache
def values(seed=0):
    return jax.device_get(read_all(C)(lively(C), some_tokens(C, B, seed=seed)))


def edited(edits, read=("logits",), params=None, seed=0):
    """{tap: value} of a run with edits."""

    def run(params, tokens_BT):
        taps = Taps(read, edits)
        build(C).apply(params, Inputs(tokens_BT), taps=taps)
        return taps.values

    return jax.jit(run)(params or lively(C), some_tokens(C, B, seed=seed))


# --- reading ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ALL)
def test_every_tap_has_the_shape_its_description_says(name):
    """Every value has the axes that TAPS says, and is a real one."""
    value = values()[name]
    assert value.shape == tuple(SIZE[letter] for letter in TAPS[name].axes)
    assert np.isfinite(value).all()
    assert np.std(value) > 0.01


def test_taps_of_a_block_add_up():
    """The residual stream is the embedding plus what each half-block adds; each tap is where its name says."""
    v = values()
    close = functools.partial(assert_close, relative=1e-5)
    close(v["residual.before"][0], v["embedding"])
    close(v["residual.before"][1:], v["residual.after"][:-1])
    close(v["residual.middle"], v["residual.before"] + v["attention.out"])
    close(v["residual.after"], v["residual.middle"] + v["mlp.out"])
    params = lively(C)
    close(v["logits"], (v["residual.final"] @ params["head"]))
    blocks = params["blocks"]
    close(v["mlp.out"], np.einsum("LBTF,LFD->LBTD", v["mlp.hidden"], blocks["feedforward"]["outer"]["kernel"]))
    heads_LBTNH = v["attention.heads"].reshape(3, B, T, -1)
    close(v["attention.out"], np.einsum("LBTH,LHD->LBTD", heads_LBTNH, blocks["attention"]["out"]["kernel"]))


def test_attention_taps_are_the_textbook_formula():
    """Scores, weights and mixtures written out a head at a time, query head n reading key head n // 2."""
    v = values()
    for layer, window in enumerate(C.windows):
        for n in range(4):
            q_BTH, k_BSH, u_BSH = (v[f"attention.{what}"][layer, :, :, i] for what, i in
                                   (("query", n), ("key", n // 2), ("value", n // 2)))  # fmt: skip
            scores_BTS = q_BTH @ k_BSH.swapaxes(1, 2) / 6**0.5
            assert_close(v["attention.scores"][layer, :, n], scores_BTS, relative=1e-5)
            t, s = np.indices((T, T))
            weights_BTS = np.exp(scores_BTS) * ((s <= t) & (t - s < (window or T)))
            weights_BTS /= weights_BTS.sum(-1, keepdims=True)
            assert_close(v["attention.weights"][layer, :, n], weights_BTS, relative=1e-5)
            assert_close(v["attention.heads"][layer, :, :, n], weights_BTS @ u_BSH, relative=1e-5)


def test_value_residuals_are_the_textbook_formula():
    """In every layer, a x its own values + b x the first layer's, grouped heads and all; at first, half of each."""
    c = small(**SHAPE, value_residual=True)
    params, tokens_BT = lively(c), some_tokens(c, B)
    blocks, v = params["blocks"], read_all(c)(params, tokens_BT)
    x_LBTD = v["residual.before"]
    x_LBTD = x_LBTD / np.sqrt(np.square(x_LBTD).mean(-1, keepdims=True) + c.norm_epsilon)
    x_LBTD = x_LBTD * blocks["attention_norm"]["scale"][:, None, None]
    attention = blocks["attention"]
    own_LBTKH = np.einsum("LBTD,LDI->LBTI", x_LBTD, attention["value"]["kernel"]).reshape(3, B, T, 2, 6)
    a_L, b_L = (attention[name].reshape(3, 1, 1, 1, 1) for name in ("own_values", "first_values"))
    expected_LBTKH = a_L * own_LBTKH + b_L * own_LBTKH[:1]
    assert_close(v["attention.value"], expected_LBTKH, relative=1e-5)
    start = build(c).init(0)["blocks"]["attention"]
    assert (start["own_values"] == 0.5).all() and (start["first_values"] == 0.5).all()


def test_attention_weights_are_distributions_over_the_past():
    """Rows sum to one; nothing falls on the future."""
    weights_LBNTS = values()["attention.weights"]
    assert_close(weights_LBNTS.sum(-1), 1, relative=1e-6)
    assert (weights_LBNTS[..., ~np.tri(T, dtype=bool)] == 0).all()


def test_reading_changes_nothing():
    """The logits are those of a run without taps."""
    plain_BTV = forward(C)(lively(C), some_tokens(C, B))
    assert relative_error(values()["logits"], plain_BTV) < 1e-6


def test_taps_read_the_same_however_the_layers_run():
    """Unrolled and rematerialised, stacked over L in order."""
    clever = read_all(small(**SHAPE, unroll=2, remat="full"))(lively(C), some_tokens(C, B))
    assert relative_error(clever, values()) < 1e-5


def test_unread_taps_leave_the_program_unchanged():
    """No taps, empty taps and an edit that changes nothing lower to the same text; reading one does not."""

    def text(make_taps):
        def run(params, tokens_BT):
            taps = make_taps()
            logits_BTV, _ = build(C).apply(params, Inputs(tokens_BT), taps=taps)
            return logits_BTV, taps.values if taps else {}

        return jax.jit(run).lower(build(C).shapes(), some_tokens(C, B)).as_text()

    plain = text(lambda: None)
    assert text(Taps) == plain
    assert text(lambda: Taps(edits={"mlp.out": lambda value, layer: value})) == plain
    assert text(lambda: Taps(["mlp.out"])) != plain


def test_taps_in_cached_decoding_equal_those_of_the_full_pass():
    """Three tokens read into a cache, then one at a time; weights fall on the cache's slots, then the new token."""
    params, tokens_BT, full = lively(C), some_tokens(C, B), values()

    @jax.jit
    def step(params, tokens_BT, cache):
        taps = Taps(ALL)
        _, cache = build(C).apply(params, Inputs(tokens_BT), state=cache, taps=taps)
        return taps.values, cache

    cache = build(C).state(B, T)
    for start, stop in ((0, 3), (3, 4), (4, 5), (5, 6)):
        read, cache = step(params, tokens_BT[:, start:stop], cache)
        for name in ALL:
            axis = -2 if name in ("attention.scores", "attention.weights") else TAPS[name].axes.index("T")
            expected = np.take(full[name], range(start, stop), axis=axis)
            value = np.asarray(read[name])
            if axis == -2:
                value = np.concatenate([value[..., :start], value[..., T:]], axis=-1)
                expected = expected[..., :stop]
            assert_close(value, expected, relative=1e-5, what=f"{name} at {start}")


# --- editing ---------------------------------------------------------------------------------------------------------
def test_ablating_every_block_leaves_embedding_and_head():
    """With nothing added by any half-block, the logits are those of the embedding, normed and projected."""
    zero = lambda value, layer: jnp.zeros_like(value)  # noqa: E731
    read = edited({"attention.out": zero, "mlp.out": zero})
    embedding_BTD = lively(C)["embedding"][some_tokens(C, B)]
    normed_BTD = embedding_BTD / np.sqrt((embedding_BTD**2).mean(-1, keepdims=True) + C.norm_epsilon)
    logits_BTV = normed_BTD * lively(C)["final_norm"]["scale"] @ lively(C)["head"]
    assert relative_error(read["logits"], logits_BTV) < 1e-5


def test_patching_the_residual_of_another_run_reproduces_it():
    """After a patch in layer 1, run 0 ends as run 1 does; before it, it is still itself."""
    other = values(seed=1)["residual.after"][1]
    patch = lambda value, layer: jnp.where(layer == 1, other, value)  # noqa: E731
    read = edited({"residual.after": patch}, read=("logits", "residual.before", "residual.after"))
    assert relative_error(read["logits"], values(seed=1)["logits"]) < 1e-5
    assert relative_error(read["residual.before"][:2], values(seed=0)["residual.before"][:2]) < 1e-5
    assert relative_error(read["residual.before"][2], values(seed=1)["residual.before"][2]) < 1e-5


def test_edits_fall_on_the_layer_they_name():
    """Silencing the feed-forward layer of layer 1 equals zeroing its output matrix; other layers still speak."""
    silence = lambda value, layer: jnp.where(layer == 1, 0, value)  # noqa: E731
    read = edited({"mlp.out": silence}, read=("logits", "mlp.out"))
    assert (read["mlp.out"][1] == 0).all()
    assert (read["mlp.out"][0] != 0).any() and (read["mlp.out"][2] != 0).any()
    params = lively(C)
    params["blocks"]["feedforward"]["outer"]["kernel"][1] = 0
    assert relative_error(read["logits"], read_all(C)(params, some_tokens(C, B))["logits"]) < 1e-5


def test_ablating_a_head_equals_cutting_it_out_of_the_output_matrix():
    """Head 2 of every layer: its 6 rows of attention.out's kernel."""
    read = edited({"attention.heads": lambda heads_BTNH, layer: heads_BTNH.at[:, :, 2].set(0)})
    params = lively(C)
    params["blocks"]["attention"]["out"]["kernel"][:, 12:18] = 0
    assert relative_error(read["logits"], read_all(C)(params, some_tokens(C, B))["logits"]) < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_every_tap_can_be_edited(name):
    """Halving any of them changes the logits; what is read is what was edited."""
    read = edited({name: lambda value, layer: value * 0.5}, read=("logits", name))
    assert relative_error(read["logits"], values()["logits"]) > 1e-3
    if "L" not in TAPS[name].axes:
        assert relative_error(read[name], values()[name] * 0.5) < 1e-5
    else:
        assert relative_error(read[name][0], values()[name][0] * 0.5) < 1e-5


@pytest.mark.parametrize("make", [lambda name: Taps([name]), lambda name: Taps(edits={name: jnp.sin})])
def test_an_unknown_tap_is_refused_with_the_nearest(make):
    with pytest.raises(UserError, match=r"tap 'attention.weigths': no such tap; did you mean attention.weights\?"):
        build(C).apply(lively(C), Inputs(some_tokens(C)), taps=make("attention.weigths"))
