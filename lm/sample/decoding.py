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
    tokens_TB, logprobs_TB: what the last call made, of which `steps` are filled; made_B: how many of them are a row's
    own, the end-of-text token included (the rest is noise of done rows).
    """

    memory: Any
    seen_BV: jax.Array
    token_B: jax.Array
    place_B: jax.Array
    done_B: jax.Array
    tokens_TB: jax.Array | None = None
    logprobs_TB: jax.Array | None = None
    made_B: jax.Array | None = None
    steps: jax.Array | None = None

    def cleared(self) -> "Decoding":
        """The same rows before anything is made."""
        B = len(self.token_B)
        return dataclasses.replace(
            self,
            tokens_TB=jnp.zeros((CHUNK, B), jnp.int32),
            logprobs_TB=jnp.zeros((CHUNK, B)),
            made_B=jnp.zeros(B, jnp.int32),
            steps=jnp.int32(0),
        )


class Request(NamedTuple):
    """What is asked of a call of `decode`, all of it traced: nothing here compiles anything anew."""

    count: jax.Array
    """Tokens to make for each row, at most CHUNK."""
    settings: Settings
    seed: jax.Array
    end: jax.Array
    """The end-of-text token, which makes a row done."""


@functools.partial(jax.jit, static_argnames=("model", "capacity"))
def prefill(model: LanguageModel, params: dict, tokens_BT: jax.Array, count_B: jax.Array, *, capacity: int) -> Any:
    """A state with room for `capacity` tokens a row that has read the first `count_B` of each row of tokens_BT.

    params: laid out by `LanguageModel.lay_out`, or not. The rest of a row is padding, on the right.
    """
    memory = model.state(tokens_BT.shape[0], capacity)
    return model.hidden(params, Inputs(tokens_BT, count_B=count_B, first=True), state=memory)[1]


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("rows",))
def decode(model: LanguageModel, params: dict, rows: Decoding, request: Request) -> Decoding:
    """Up to `request.count` more tokens for every row that is not done; it ends early when all are.

    The next token is drawn by the key fold_in(fold_in(seed, row), place), so it depends on neither the calls nor the
    other rows.
    """
    rows_B = jnp.arange(len(rows.token_B))
    row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(request.seed), rows_B)

    def step(s: Decoding) -> Decoding:
        inputs = Inputs(s.token_B[:, None], count_B=~s.done_B)  # a done row computes on, but remembers nothing new
        h_BTD, memory = model.hidden(params, inputs, state=s.memory)
        keys_B = jax.vmap(jax.random.fold_in)(row_keys_B, s.place_B)
        token_B, logprob_B = sample(keys_B, model.logits(params, h_BTD[:, 0]), request.settings, s.seen_BV)
        return Decoding(
            memory=memory,
            seen_BV=s.seen_BV.at[rows_B, token_B].set(True),
            token_B=token_B,
            place_B=s.place_B + 1,
            done_B=s.done_B | (token_B == request.end),
            tokens_TB=s.tokens_TB.at[s.steps].set(token_B),
            logprobs_TB=s.logprobs_TB.at[s.steps].set(logprob_B),
            made_B=s.made_B + ~s.done_B,
            steps=s.steps + 1,
        )

    def unfinished(s: Decoding) -> jax.Array:
        return (s.steps < request.count) & ~jnp.all(s.done_B)

    return jax.lax.while_loop(unfinished, step, rows.cleared())


@functools.partial(jax.jit, static_argnames=("model",))
def full_logits(model: LanguageModel, params: dict, tokens_BT: jax.Array) -> jax.Array:
    """Logits [B, T, V] of whole sequences, without a state: what every other way must equal."""
    return model.apply(params, Inputs(tokens_BT))[0]
