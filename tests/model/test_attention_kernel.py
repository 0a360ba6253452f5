"""Which kernel attends, and that cuDNN's is called with what plain attention computes. Nothing here needs a GPU."""

import functools

import jax
import jax.numpy as jnp
import pytest
from close import relative_error
from model_cases import lively, loss_and_gradient, small, some_tokens

from lm.errors import UserError
from lm.model import attention
from lm.model.api import Inputs, build
from lm.model.taps import Taps

CAN = dict(capability=9.0, dtype=jnp.dtype("bfloat16"), H=64, windowed=False, packed=False, capped=False, tapped=False)
"""Where nothing stands in cuDNN's way."""
LONG = 1024


@pytest.mark.parametrize("there", [CAN, CAN | dict(capability=8.0, dtype=jnp.dtype("float16"), H=128), CAN | dict(H=8)])
def test_auto_takes_cudnn_where_it_can(there):
    assert attention.obstacle_to_cudnn(**there) is None
    assert attention.fused("auto", LONG, None) and attention.fused("cudnn", LONG, None)
    assert not attention.fused("plain", LONG, None)


def test_auto_leaves_short_sequences_to_one_product():
    assert not attention.fused("auto", 32, None)
    assert attention.fused("cudnn", 32, None), "who asks for it gets it"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (dict(capability=None), "NVIDIA"),
        (dict(capability=7.5), "8.0"),
        (dict(dtype=jnp.dtype("float32")), "not float32"),
        (dict(H=136), "not 136"),
        (dict(H=20), "not 20"),
        (dict(windowed=True), "window"),
        (dict(packed=True), "packed"),
        (dict(capped=True), "squashes"),
        (dict(tapped=True), "tap"),
    ],
    ids=str,
)
def test_an_obstacle_is_walked_around_by_auto_and_told_to_who_asks(change, why):
    obstacle = attention.obstacle_to_cudnn(**(CAN | change))
    assert why in obstacle
    assert not attention.fused("auto", LONG, obstacle) and not attention.fused("plain", LONG, obstacle)
    with pytest.raises(UserError, match=why):
        attention.fused("cudnn", LONG, obstacle)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about a machine without a GPU")
def test_cudnn_on_a_cpu_is_refused_in_one_line():
    c = small(attention="cudnn", dtype="bfloat16", head_width=8)
    with pytest.raises(UserError, match=r"model\.attention cudnn: it needs an NVIDIA GPU .*; use auto") as refusal:
        build(c).apply(lively(c), Inputs(some_tokens(c)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("shape", [dict(), dict(kv_heads=2, positions="learned", bias=True), dict(kv_heads=1)], ids=str)
def test_what_the_kernel_is_given_makes_the_plain_result(shape, monkeypatch):
    """Loss and gradients, with XLA in the kernel's place: heads, their groups, scale and order of axes."""
    called = []

    def stand_in(*qkv, implementation, **how):
        called.append(implementation)
        return dot_product_attention(*qkv, implementation="xla", **how)

    dot_product_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(attention, "obstacle_to_cudnn", lambda *_, **__: None)
    plain, kernel = small(attention="plain", **shape), small(attention="cudnn", **shape)
    params, tokens_BT = lively(plain), some_tokens(plain)
    expected = loss_and_gradient(plain)(params, tokens_BT)
    assert not called
    assert relative_error(loss_and_gradient.__wrapped__(kernel)(params, tokens_BT), expected) < 1e-5
    assert set(called) == {"cudnn"}


def test_the_cache_and_taps_never_meet_the_kernel(monkeypatch):
    """Where scores are read, auto is plain attention even where the kernel is there."""
    monkeypatch.setattr(attention, "cuda_capability", lambda: 9.0)
    c = small(dtype="bfloat16", head_width=8, context=128)
    params, tokens_BT = lively(c), some_tokens(c)
    taps = Taps(("attention.weights",))
    shape_of = functools.partial(jax.eval_shape, lambda p, t: (build(c).apply(p, Inputs(t), taps=taps)[0], taps.values))
    assert shape_of(params, tokens_BT)[1]["attention.weights"].shape == (2, 2, 4, 128, 128)
