"""Small models and plain ways to run them, shared by the tests of the model."""

import dataclasses
import functools

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params
from libraries import library  # noqa: F401 - for tests of parity
from lively import lively  # noqa: F401 - for tests of models

from lm import settings
from lm.config import ModelBase, ModelConfig, RecurrentConfig
from lm.model.api import Inputs, build

VARIANTS = {
    "multi-head rotary": dict(),
    "grouped learned": dict(kv_heads=2, positions="learned", norm="layernorm", bias=True, activation="gelu"),
    "multi-query sinusoidal": dict(kv_heads=1, positions="sinusoidal", qk_norm=False, embedding_norm=True),
    "no positions": dict(positions="none", logit_softcap=20.0),
    "grouped window": dict(kv_heads=2, window=3, activation="swiglu", tied=True),
    "norms after the halves": dict(norm_place="post", norm="layernorm", bias=True, activation="relu"),
    "window with a global layer, remat": dict(window=2, global_every=2, layers=3, remat="full"),
    "multi-query learned window of one, unrolled": dict(kv_heads=1, window=1, positions="learned", unroll=2),
    "value residuals, grouped window, a base shape": dict(
        value_residual=True, kv_heads=2, window=3, layers=3, base_width=8, base_head_width=2, base_layers=1
    ),
    "norms of what halves add, together, windows by layer": dict(
        norm_place="output", qk_norm="width", layers=3, layer_windows=(0, 3, 2), attention_softcap=2.0, kv_heads=2
    ),
    "norms on both sides, two rotary bases, geglu": dict(
        norm_place="both",
        activation="geglu",
        window=3,
        global_every=2,
        rotary_base_windowed=10.0,
        rotary_base=100.0,
        rotary_scaling="linear",
        rotary_factor=8.0,
        kv_heads=2,
        tied=True,
    ),
    "parallel, one norm, rotated in part, biases": dict(
        parallel="one_norm", rotary_fraction=0.5, bias=True, head_bias=True, norm="layernorm", qk_norm=False
    ),
    "parallel, two norms, some layers not rotated, a bias on queries, keys and values": dict(
        parallel="two_norms",
        rotary_skips=2,
        bias="qkv",
        kv_heads=2,
        activation="geglu",
        rotary_scaling="llama3",
        rotary_factor=4.0,
        rotary_context=8,
    ),
    "grouped sinusoidal, two of three unrolled": dict(kv_heads=2, window=2, positions="sinusoidal", layers=3, unroll=2),
}
"""Every kind of attention, of positions and of running the layers."""


def small(**changes) -> ModelConfig:
    """A model that compiles in no time: L=2, D=16, N=4, H=4, T=8, a vocabulary of 29 padded to 32."""
    shape = dict(
        layers=2, width=16, heads=4, context=8, vocab=29, feedforward=24, dtype="float32", zero_init=False, unroll=1
    )
    return ModelConfig(**(shape | changes))


def models(**changes) -> dict[str, ModelBase]:
    """Every variant of the transformer, both recurrent cells, and the architecture that a file of configs/ defines."""
    recurrent = dict(layers=2, width=16, context=8, vocab=29, dtype="float32")
    own = settings.load_experiment("gated_recurrence").model
    return {name: small(**variant, **changes) for name, variant in VARIANTS.items()} | {
        "lstm": RecurrentConfig(**recurrent | changes),
        "tanh rnn, tied": RecurrentConfig(**recurrent | changes, cell="rnn", tied=True),
        "one's own": dataclasses.replace(own, **{"layers": 2, "width": 16, "context": 8, "vocab": 29} | changes),
    }


def some_tokens(c: ModelBase, batch: int = 2, length: int | None = None, seed: int = 0) -> np.ndarray:
    """[B, T] tokens, int32."""
    return np.random.default_rng(seed).integers(0, c.vocab, (batch, length or c.context)).astype(np.int32)


@functools.cache
def forward(c: ModelBase):
    """Compiled (params, tokens_BT, segments_BT=None, key=None) -> logits [B, T, vocab], without the padding."""

    def run(params, tokens_BT, segments_BT=None, key=None):
        logits_BTV, _ = build(c).apply(params, Inputs(tokens_BT, segments_BT), key=key)
        return logits_BTV[..., : c.vocab]

    return jax.jit(run)


@functools.cache
def reader(c: ModelBase):
    """Compiled (params, tokens_BT, state, count_B) -> logits, and the state after count_B tokens of each row."""

    def read(params, tokens_BT, state, count_B):
        logits_BTV, state = build(c).apply(params, Inputs(tokens_BT, count_B=count_B), state=state)
        return logits_BTV[..., : c.vocab], state

    return jax.jit(read)


def in_chunks(c: ModelBase, params, tokens_BT, counts, width: int, state):
    """Logits [B, T, vocab] of reading counts[i][b] tokens of row b in the i-th chunk, and the state after that.

    All chunks are `width` wide; what a row lacks is filled with a wrong token.
    """
    B, T = tokens_BT.shape
    logits_BTV, start_B = np.full((B, T, c.vocab), np.nan, np.float32), np.zeros(B, int)
    for count_B in np.array(counts):
        at_BT = start_B[:, None] + np.arange(width)
        held_BT = np.arange(width) < count_B[:, None]
        chunk_BT = np.where(held_BT, np.take_along_axis(tokens_BT, np.minimum(at_BT, T - 1), axis=1), c.vocab - 1)
        chunk_BTV, state = reader(c)(params, chunk_BT, state, count_B.astype(np.int32))
        for b, count in enumerate(count_B):
            logits_BTV[b, start_B[b] : start_B[b] + count] = chunk_BTV[b, :count]
        start_B = start_B + count_B
    return logits_BTV, state


@functools.cache
def loss_and_gradient(c: ModelBase):
    """Compiled (params, tokens_BT, key=None) -> (mean next-token loss in nats, its gradient)."""

    def loss(params, tokens_BT, key=None):
        logits_BTV, _ = build(c).apply(params, Inputs(tokens_BT), key=key)
        picked = jax.numpy.take_along_axis(jax.nn.log_softmax(logits_BTV[:, :-1]), tokens_BT[:, 1:, None], -1)
        return -picked.mean()

    return jax.jit(jax.value_and_grad(loss))


def products(jaxpr) -> float:
    """FLOPs of every dot_general of a program, however deep; the body of a scan counts each time it runs."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted])
        inner = sum(products(getattr(sub, "jaxpr", sub)) for sub in jaxprs_in_params(eqn.params))
        total += inner * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
    return total
