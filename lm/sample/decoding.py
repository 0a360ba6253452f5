"""The two compiled programs of generation: read the prompts into a state, and go on token by token.

A model's state has read all of a row's tokens but the last, which the next step reads. So a prompt's last token is
handled like any other, and a row of one token starts from an empty state.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.model.api import Inputs, LanguageModel
from lm.sample.filters import sample
from lm.sample.samplers import Settings

CHUNK = 64
"""Most tokens made by one call of `decode`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """Rows being continued: all that is carried from token to token.

    memory: the model's state. seen_BV: tokens the row contains. token_B: each row's last token, which the memory has
    not read. place_B: tokens in the row so far, counting what a full memory dropped. done_B: rows that go no further.
    """

    memory: Any
    seen_BV: jax.Array
    token_B: jax.Array
    place_B: jax.Array
    done_B: jax.Array


class Made(NamedTuple):
    """What a call of `decode` made: T is CHUNK, of which `steps` are filled."""

    steps: jax.Array
    tokens_TB: jax.Array
    logprobs_TB: jax.Array
    count_B: jax.Array
    """A row's first count_B tokens are its own, the one that ends it included; the rest is noise of done rows."""


class Request(NamedTuple):
    """What is asked of a call of `decode`, all of it traced: nothing here compiles anything anew."""

    count: jax.Array
    """Tokens to make for each row, at most CHUNK."""
    settings: Settings
    seed: jax.Array
    end: jax.Array
    """The tokens [E] any of which makes a row done."""


@functools.partial(jax.jit, static_argnames=("model", "capacity"))
def prefill(model: LanguageModel, params: dict, inputs: Inputs, *, capacity: int) -> Any:
    """A state with room for `capacity` places a row that has read the inputs, the first.

    params: laid out by `LanguageModel.lay_out`, or not.
    """
    return model.hidden(params, inputs, state=model.state(len(inputs.tokens_BT), capacity))[1]


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("rows",))
def decode(model: LanguageModel, params: dict, rows: Decoding, request: Request) -> tuple[Decoding, Made]:
    """Up to `request.count` more tokens for every row that is not done; it ends early when all are.

    The next token is drawn by the key fold_in(fold_in(seed, row), place), so it depends on neither the calls nor the
    other rows.
    """
    B = len(rows.token_B)
    rows_B = jnp.arange(B)
    row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(request.seed), rows_B)

    def step(carry: tuple[Decoding, Made]) -> tuple[Decoding, Made]:
        now, made = carry
        inputs = Inputs(now.token_B[:, None], count_B=~now.done_B)  # a done row computes on, but remembers nothing new
        h_BTD, memory = model.hidden(params, inputs, state=now.memory)
        keys_B = jax.vmap(jax.random.fold_in)(row_keys_B, now.place_B)
        token_B, logprob_B = sample(keys_B, model.logits(params, h_BTD[:, 0]), request.settings, now.seen_BV)
        after = Decoding(
            memory=memory,
            seen_BV=now.seen_BV.at[rows_B, token_B].set(True),
            token_B=token_B,
            place_B=now.place_B + 1,
            done_B=now.done_B | jnp.isin(token_B, request.end),
        )
        return after, Made(
            steps=made.steps + 1,
            tokens_TB=made.tokens_TB.at[made.steps].set(token_B),
            logprobs_TB=made.logprobs_TB.at[made.steps].set(logprob_B),
            count_B=made.count_B + ~now.done_B,
        )

    def unfinished(carry: tuple[Decoding, Made]) -> jax.Array:
        now, made = carry
        return (made.steps < request.count) & ~jnp.all(now.done_B)

    nothing = Made(
        steps=jnp.int32(0),
        tokens_TB=jnp.zeros((CHUNK, B), jnp.int32),
        logprobs_TB=jnp.zeros((CHUNK, B)),
        count_B=jnp.zeros(B, jnp.int32),
    )
    return jax.lax.while_loop(unfinished, step, (rows, nothing))


@functools.partial(jax.jit, static_argnames=("model",))
def full_logits(model: LanguageModel, params: dict, tokens_BT: jax.Array) -> jax.Array:
    """Logits [B, T, V] of whole sequences, without a state: what every other way must equal."""
    return model.apply(params, Inputs(tokens_BT))[0]
