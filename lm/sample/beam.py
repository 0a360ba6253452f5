"""Beam search: the likeliest continuations of each prompt, and how often the search misses a likelier one.

At each token the W likeliest hypotheses of a prompt live on, among all that lengthen one of the last W by a token. One
that ends, by the end-of-text token or at the greatest length, takes its place among the W best finished ones. So a beam
of 1 is greedy, and a beam as wide as there are sequences is exact (Stahlberg and Byrne 2019 count what lies between).

Any architecture is searched: its state is held once a hypothesis, as that of one row, and the model is mapped over
them; a hypothesis takes its parent's state along by its place on the two leading axes.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import tokenizer as tokenizers
from lm.errors import require
from lm.limits import Count, Range
from lm.model.api import Inputs, LanguageModel
from lm.model.trained import Trained
from lm.sample.filters import PADDING
from lm.sample.generate import Generator, Sample
from lm.sample.prompts import inputs_of, readings, rounded
from lm.typed import coerce

WU = 0.6
"""The exponent of the length penalty; Wu et al. (2016, table 2) translate best with 0.6 to 0.7."""
Exponent = Annotated[float, Range(least=0, most=5, why="0 adds up log-probabilities alone, 0.6 is usual")]
MOST_HYPOTHESES = 1 << 16
"""Hypotheses of all prompts together; each holds a state."""


@dataclasses.dataclass(frozen=True)
class Hypothesis(Sample):
    """A continuation that was found, or scored. `ended` is "end of text" or "length"; logprobs are of `tokens`."""

    logprob: float
    """Nats, the sum over the continuation, the end-of-text token included where it ended by one."""
    score: float
    """What is searched for: logprob / penalty(tokens), the end-of-text token counted among them."""


def penalty(tokens: Any, exponent: Any) -> Any:
    """((5 + tokens) / 6) ** exponent, by which a log-probability is divided (Wu et al. 2016, eq. 14)."""
    return ((5.0 + tokens) / 6.0) ** exponent


def beam_search(
    m: Trained | Generator,
    prompts: Sequence[str],
    *,
    sources: Sequence[str] | None = None,
    vectors: Sequence[np.ndarray] | None = None,
    beam: int = 4,
    length_penalty: float = WU,
    max_tokens: int = 64,
) -> list[list[Hypothesis]]:
    """Search for each prompt's continuations of the highest score, of at most `max_tokens` tokens.

    sources, vectors: what each prompt's answer is to; see `generate`.
    beam: W, hypotheses kept. Returns at most W of them a prompt, best first; of equals the one that ended first. An
    empty prompt starts a document. A prompt's result does not depend on the others, but for rounding.
    length_penalty: see `penalty`; above 0 a longer continuation needs less probability.
    Raises UserError for settings that make no sense and prompts that leave too little of the model's context.
    """
    generator = m if isinstance(m, Generator) else Generator(m)
    m = generator.trained
    beam, max_tokens = coerce(beam, Count, "beam"), coerce(max_tokens, Count, "max_tokens")
    length_penalty = coerce(length_penalty, Exponent, "length_penalty")
    read = readings(m, prompts, sources, vectors)
    kept = len(read) * beam
    require(
        kept <= MOST_HYPOTHESES, f"{kept:,} hypotheses (prompts x beam): at most {MOST_HYPOTHESES:,}; ask for fewer"
    )
    if not read:
        return []
    held = max(reading.held for reading in read)  # the last token is read by the search
    context = m.model.config.context
    room = context - held  # the last token made is not read again
    require(
        max_tokens <= room,
        f"the longest prompt is {held + 1} tokens, the model's context {context}: max_tokens {max_tokens} must be at "
        f"most {max(room, 0)}; shorten the prompt or lower it",
    )
    params = generator.parameters(kept)
    longest = max(len(reading.tokens) for reading in read) - 1
    inputs = inputs_of(m, read, min(rounded(longest), context - max(reading.before for reading in read)))
    memories = prefill(m.model, params, inputs, capacity=min(rounded(held + max_tokens), context))
    request = Request(np.int32(max_tokens), np.float32(length_penalty), np.int32(m.tokenizer.eot_token))
    last_B = np.array([reading.tokens[-1] for reading in read], np.int32)
    found, _ = search(m.model, params, memories, last_B, request, beam=beam, length=rounded(max_tokens))
    return _hypotheses(m, prompts, jax.device_get(found))


# --- on the device ---------------------------------------------------------------------------------------------------
class Request(NamedTuple):
    """What is asked of a search, all of it traced: nothing here compiles anything anew."""

    max_tokens: jax.Array
    length_penalty: jax.Array
    end: jax.Array
    """The end-of-text token."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hypotheses:
    """W hypotheses of each of B prompts, alive or finished; T is the room for tokens, of which count_BW are filled.

    total_BW: nats, log-probabilities added up. score_BW: what ranks them. Both are -inf where there is no hypothesis.
    """

    tokens_BWT: jax.Array
    logprobs_BWT: jax.Array
    count_BW: jax.Array
    total_BW: jax.Array
    score_BW: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "capacity"))
def prefill(model: LanguageModel, params: dict, inputs: Inputs, *, capacity: int) -> Any:
    """A state for each row of the inputs, stacked along a leading axis B: what a model of one row makes of it."""

    def read(row: Inputs) -> Any:
        alone = dataclasses.replace(jax.tree.map(lambda x: x[None], row), first=True)
        return model.hidden(params, alone, state=model.state(1, capacity))[1]

    return jax.vmap(read)(inputs)


@functools.partial(jax.jit, static_argnames=("model", "beam", "length"))
def search(
    model: LanguageModel, params: dict, memories: Any, token_B: jax.Array, request: Request, *, beam: int, length: int
) -> tuple[Hypotheses, jax.Array]:
    """The best finished hypotheses of each row, best first, and how many tokens the longest search took.

    memories: states of single rows along a leading axis, which have read all but token_B, however they were made.
    It stops when no living hypothesis can outdo a kept one: log-probabilities only fall, so none can score more than
    its present one divided by the penalty of the greatest length.
    """
    B, W, V = len(token_B), beam, model.config.V
    longest = penalty(request.max_tokens, request.length_penalty)

    def read(token, memory):
        h_BTD, memory = model.hidden(params, Inputs(token[None, None]), state=memory)
        return h_BTD[0, 0], memory

    def step(carry):
        made, token_BW, memories, alive, finished = carry
        h_BWD, memories = jax.vmap(jax.vmap(read))(token_BW, memories)
        logits_BWV = model.logits(params, h_BWD)
        logprobs_BWV = jnp.where(logits_BWV > PADDING, jax.nn.log_softmax(logits_BWV), -jnp.inf)
        total_BC = (alive.total_BW[..., None] + logprobs_BWV).reshape(B, W * V)
        total_BW, place_BW = jax.lax.top_k(total_BC, W)  # of equals the first
        logprob_BW = _take(logprobs_BWV.reshape(B, W * V), place_BW)
        parent_BW, token_BW = jnp.divmod(place_BW, V)
        memories, parents = _take((memories, alive), parent_BW)
        made += 1
        grown = Hypotheses(
            tokens_BWT=parents.tokens_BWT.at[..., made - 1].set(token_BW),
            logprobs_BWT=parents.logprobs_BWT.at[..., made - 1].set(logprob_BW),
            count_BW=parents.count_BW + 1,
            total_BW=total_BW,
            score_BW=total_BW / penalty(made, request.length_penalty),
        )
        ends_BW = (token_BW == request.end) | (made == request.max_tokens)
        finished = _best(finished, _only(grown, ends_BW))
        return made, token_BW, memories, _only(grown, ~ends_BW), finished

    def unfinished(carry):
        *_, alive, finished = carry
        return jnp.any(alive.total_BW.max(axis=1) / longest > finished.score_BW.min(axis=1))

    nothing = Hypotheses(
        tokens_BWT=jnp.zeros((B, W, length), jnp.int32),
        logprobs_BWT=jnp.zeros((B, W, length)),
        count_BW=jnp.zeros((B, W), jnp.int32),
        total_BW=jnp.full((B, W), -jnp.inf),
        score_BW=jnp.full((B, W), -jnp.inf),
    )
    prompt = dataclasses.replace(nothing, total_BW=nothing.total_BW.at[:, 0].set(0.0))  # W copies would all go one way
    token_BW, memories = jax.tree.map(lambda x: jnp.repeat(x[:, None], W, axis=1), (token_B, memories))
    start = jnp.int32(0), token_BW, memories, prompt, nothing
    made, *_, finished = jax.lax.while_loop(unfinished, step, start)
    return finished, made


def _take(tree: Any, place_BW: jax.Array) -> Any:
    """The entries at these places of the second axis of every leaf."""
    return jax.tree.map(lambda x: jax.vmap(lambda entries, place_W: entries[place_W])(x, place_BW), tree)


def _only(some: Hypotheses, kept_BW: jax.Array) -> Hypotheses:
    """Those kept; the others are none from now on."""
    total_BW, score_BW = (jnp.where(kept_BW, x_BW, -jnp.inf) for x_BW in (some.total_BW, some.score_BW))
    return dataclasses.replace(some, total_BW=total_BW, score_BW=score_BW)


def _best(finished: Hypotheses, new: Hypotheses) -> Hypotheses:
    """The W best of both; of equals those that were there already."""
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), finished, new)
    return _take(both, jax.lax.top_k(both.score_BW, finished.score_BW.shape[1])[1])


# --- on the host -----------------------------------------------------------------------------------------------------
def score_texts(
    m: Trained | Generator,
    prompts: Sequence[str],
    texts: Sequence[str],
    *,
    sources: Sequence[str] | None = None,
    length_penalty: float = WU,
) -> list[Hypothesis]:
    """Each prompt's known continuation and the end of the text, as a search would have scored it; by full passes."""
    m = m.trained if isinstance(m, Generator) else m
    length_penalty = coerce(length_penalty, Exponent, "length_penalty")
    require(len(texts) == len(prompts), f"{len(texts)} texts for {len(prompts)} prompts: give one for each")
    end, context, scored = m.tokenizer.eot_token, m.model.config.context, []
    for prompt, reading, text in zip(prompts, readings(m, prompts, sources), texts, strict=True):
        answer = tokenizers.encode(m.tokenizer, text).tolist()
        whole, targets = [*reading.tokens, *answer], [*answer, end]
        require(len(whole) <= context, f"a prompt and its text are {len(whole)} tokens, the model's context {context}")
        held = len(reading.tokens) - 1
        inputs = inputs_of(m, [reading._replace(tokens=[*whole, end])], min(rounded(len(whole)), context))
        logprobs_TV = np.asarray(_logprobs(m.model, m.params, inputs)[0, held : len(whole)])
        logprobs = logprobs_TV[np.arange(len(targets)), targets].tolist()
        total = sum(logprobs)
        scored.append(_hypothesis(m, prompt, targets, logprobs, total, total / penalty(len(targets), length_penalty)))
    return scored


def search_errors(found: Sequence[Sequence[Hypothesis]], known: Sequence[Hypothesis]) -> int:
    """How many known continuations score higher than the best found for the same prompt: what the search missed.

    known: of `score_texts` under the same length penalty, or of another search. Each that scores higher shows that the
    search did not find the optimum; others may be errors too (Stahlberg and Byrne 2019, section 2, with penalty 0).
    """
    require(len(found) == len(known), f"{len(found)} results and {len(known)} known continuations: give one for each")
    errors = 0
    for hypotheses, other in zip(found, known, strict=True):
        best = hypotheses[0]
        same = (other.tokens, other.ended) == (best.tokens, best.ended)  # it may score otherwise by rounding
        errors += other.score > best.score and not same
    return errors


@functools.partial(jax.jit, static_argnames=("model",))
def _logprobs(model: LanguageModel, params: dict, inputs: Inputs) -> jax.Array:
    return jax.nn.log_softmax(model.apply(params, inputs)[0])


def _hypotheses(m: Trained, prompts: Sequence[str], found: Hypotheses) -> list[list[Hypothesis]]:
    """What was found, prompt by prompt; a small vocabulary has fewer short continuations than W."""
    everything: list[list[Hypothesis]] = []
    for b, prompt in enumerate(prompts):
        everything.append([])
        for w in np.flatnonzero(np.isfinite(found.score_BW[b])):
            made = slice(found.count_BW[b, w])
            tokens, logprobs = (x_BWT[b, w, made].tolist() for x_BWT in (found.tokens_BWT, found.logprobs_BWT))
            total, score = float(found.total_BW[b, w]), float(found.score_BW[b, w])
            everything[-1].append(_hypothesis(m, prompt, tokens, logprobs, total, score))
    return everything


def _hypothesis(
    m: Trained, prompt: str, tokens: list[int], logprobs: list[float], total: float, score: float
) -> Hypothesis:
    """tokens, logprobs: the end-of-text token included, where that is the last."""
    ended = tokens[-1] == m.tokenizer.eot_token
    made = tokens[:-1] if ended else tokens
    return Hypothesis(
        prompt=prompt,
        text=m.tokenizer.decode(made),
        tokens=made,
        logprobs=logprobs[: len(made)],
        token_texts=tokenizers.spell(m.tokenizer, made),
        ended="end of text" if ended else "length",
        end=m.tokenizer.eot_token if ended else None,
        logprob=total,
        score=score,
    )
