"""generate: prompts in, continuations out, many rows at once, with a key/value cache.

The device makes tokens by the chunk; between chunks the host turns them into text, looks for stop strings and, where a
row has filled the context, lets it forget its oldest half. How long a chunk is changes nothing but the waiting.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from lm import tokenizer as tokenizers
from lm.errors import require
from lm.limits import Count, Seed
from lm.model.trained import Trained
from lm.sample.decoding import CHUNK, Decoding, Made, Request, decode, full_logits, prefill
from lm.sample.prompts import Reading, inputs_of, readings
from lm.sample.samplers import Sampler
from lm.sample.text import Continuation
from lm.typed import coerce

WATCHED = 8
"""Tokens in a chunk when somebody watches the text or a stop string may cut it short."""


@dataclass(frozen=True)
class Sample:
    """One continuation of one prompt."""

    prompt: str
    text: str
    """The continuation alone."""
    tokens: list[int]
    """The fewest tokens whose text covers `text`; without the one that ends it."""
    logprobs: list[float]
    """Nats, log of the probability the model itself gave each token, before temperature and filters."""
    token_texts: list[str]
    """Each token as a string; bytes that are not whole characters as \\xNN."""
    ended: Literal["stop", "end of text", "length"]
    """Why: a stop string, a token that ends a text, or max_tokens."""
    end: int | None
    """The token that ended it, if one did."""


class Generator:
    """A trained model whose parameters are laid out for generating, once for as many calls as one likes.

    Laying them out takes as long as ten tokens or so, and a second copy of their memory.
    """

    def __init__(self, m: Trained):
        self.trained = m
        self._laid_out: dict[bool, dict] = {}

    def read(self, rows: list["Row"], capacity: int, seen_BV: jax.Array) -> Decoding:
        """Each row read but for its last token; one that outgrew the context has been cut."""
        m, read = self.trained, [row.reading for row in rows]
        longest = max(len(reading.tokens) for reading in read) - 1
        inputs = inputs_of(m, read, min(_power_of_two(longest), capacity - max(reading.before for reading in read)))
        return Decoding(
            memory=prefill(m.model, self.parameters(len(rows)), inputs, capacity=capacity),
            seen_BV=seen_BV,
            token_B=jax.device_put(np.array([reading.tokens[-1] for reading in read], np.int32)),
            place_B=jax.device_put(np.array([row.place for row in rows], np.int32)),
            done_B=np.zeros(len(rows), bool),
        )

    def decode(self, rows: Decoding, request: Request) -> tuple[Decoding, Made]:
        """More tokens of every row that is not done."""
        return decode(self.trained.model, self.parameters(len(rows.token_B)), rows, request)

    def parameters(self, rows: int) -> dict:
        """The parameters as so many rows read them fastest; the layout for one row is another than that for several."""
        alone = rows == 1
        if alone not in self._laid_out:
            self._laid_out = {alone: self.trained.model.lay_out(self.trained.params, rows)}
        return self._laid_out[alone]


def generate(
    m: Trained | Generator,
    prompts: Sequence[str | list[int]],
    sampler: Sampler = Sampler(),  # noqa: B008  (frozen)
    *,
    sources: Sequence[str] | None = None,
    vectors: Sequence[np.ndarray] | None = None,
    max_tokens: int = 64,
    seed: int = 0,
    samples: int = 1,
    stop: str | Sequence[str] = (),
    ends: Collection[int] = (),
    past_context: Literal["error", "slide"] = "error",
    on_text: Callable[[int, str], None] | None = None,
) -> list[Sample]:
    """Continue each prompt, `samples` times, by at most `max_tokens` tokens.

    m: what `lm.load` returns, or a Generator of that, for many calls. An empty prompt starts a document.
    prompts: texts, or lists of tokens, which are read as they stand.
    sources: a text for each prompt, of which the continuation is the translation, class or other answer; vectors: such
    arrays [I, E], of which it is the caption. For models that were trained on such examples.
    seed: everything random is a function of it, the row and the place in the row; a row's sample does not depend on the
    other rows (but for rounding), and a prompt lengthened by its own sample goes on as that sample did. Row r is sample
    r % samples of prompt r // samples, and is entry r of the result.
    stop: strings that end a row; the text is cut before the first to appear. ends: tokens that end one, beside the end
    of text and those that a model from elsewhere ends its answers by.
    past_context: "error" refuses a row that would outgrow the model's context; "slide" drops the oldest half of a row's
    tokens whenever it is full and reads the rest again from position 0, so no position is ever untrained.
    on_text: called as on_text(row, piece) as text becomes certain; the pieces of a row joined are its text.
    Raises UserError for settings that make no sense and a tokenizer that is not the model's.
    """
    generator = m if isinstance(m, Generator) else Generator(m)
    m = generator.trained
    context = m.model.config.context
    ends = sorted({m.tokenizer.eot_token, *getattr(m.tokenizer, "ends", ()), *ends})
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    max_tokens, seed, samples = _numbers(max_tokens, seed, samples)
    read = readings(m, prompts, sources, vectors)
    _check(prompts, samples, stop, past_context)
    require(past_context == "error" or vectors is None, "past_context slide: vectors cannot slide; leave it out")
    pairs = zip(prompts, read, strict=True)
    rows = [Row(m.tokenizer, prompt, reading, stop) for prompt, reading in pairs for _ in range(samples)]
    if past_context == "error":
        _check_fits(rows, max_tokens, context)
    if not rows:
        return []

    capacity = min(_room(max(row.held for row in rows) + max_tokens), context)
    decoding, seen_BV, made = None, jax.device_put(_seen(rows, m.model.config.V)), 0
    chunk = WATCHED if on_text or stop else CHUNK
    while made < max_tokens and not all(row.ended for row in rows):
        if decoding is None or any(row.full(capacity) for row in rows):
            seen_BV = seen_BV if decoding is None else decoding.seen_BV
            _cut(rows, context)
            decoding = generator.read(rows, capacity, seen_BV)
        room = min(capacity - row.held for row in rows if not row.ended)
        steps = min(chunk, room, max_tokens - made)
        request = Request(np.int32(steps), sampler.settings(), seed=np.uint32(seed), end=np.array(ends, np.int32))
        done_B = np.array([row.ended is not None for row in rows])  # a stop string may have ended a row
        decoding, new = generator.decode(dataclasses.replace(decoding, done_B=done_B), request)
        _take(rows, new, ends)
        made += steps
        _finish(rows, made == max_tokens, on_text)
    return [row.sample() for row in rows]


def generate_naive(m: Trained, tokens: list[int], n: int) -> tuple[list[int], list[float]]:
    """The plain path: greedy, no cache, everything computed again for each token. For tests and readers.

    Returns up to n new tokens (the end-of-text token is the last, if it comes) and their log-probabilities in nats.
    Past the context it slides as `generate` does.
    """
    context, window = m.model.config.context, list(tokens)
    made, logprobs = [], []
    while len(made) < n and made[-1:] != [m.tokenizer.eot_token]:
        if len(window) > context:
            window = window[-_kept(context) :]
        # Padded on the right, which no earlier token sees, so that all lengths are one program.
        padded_1T = np.pad(np.array([window], np.int32), ((0, 0), (0, context - len(window))))
        logits_V = full_logits(m.model, m.params, padded_1T)[0, len(window) - 1]
        logprob_V = np.asarray(jax.nn.log_softmax(logits_V))
        token = int(logprob_V.argmax())
        made.append(token)
        logprobs.append(float(logprob_V[token]))
        window.append(token)
    return made, logprobs


# --- one row ---------------------------------------------------------------------------------------------------------
class Row:
    """The host's side of one row."""

    def __init__(self, tokenizer, prompt: str | list[int], reading: Reading, stop: tuple[str, ...]):
        self.prompt = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        self.tokens = reading.tokens
        self.reading = reading  # what the model reads: the last token is not in the cache yet
        self.place = len(self.tokens)  # tokens so far, those dropped from the reading included
        self.continuation = Continuation(tokenizer, stop)
        self.ended: str | None = None
        self.end: int | None = None

    @property
    def held(self) -> int:
        return self.reading.held

    def full(self, capacity: int) -> bool:
        return self.ended is None and self.held >= capacity

    def take(self, tokens: list[int], logprobs: list[float], ends: Collection[int]) -> None:
        """Add what the device made, up to what ends the row."""
        self.reading = self.reading._replace(tokens=self.reading.tokens + tokens)
        self.place += len(tokens)
        for token, logprob in zip(tokens, logprobs, strict=True):
            if token in ends:
                self.ended, self.end = "end of text", token
            else:
                self.continuation.push(token, logprob)
                self.ended = "stop" if self.continuation.stopped else None
            if self.ended:
                return

    def sample(self) -> Sample:
        made = self.continuation
        return Sample(
            prompt=self.prompt,
            text=made.text,
            tokens=made.tokens,
            logprobs=made.logprobs,
            token_texts=tokenizers.spell(made.tokenizer, made.tokens),
            ended=self.ended,
            end=self.end,
        )


def _take(rows: list[Row], new: Made, ends: Collection[int]) -> None:
    """Hand each row what the device made for it."""
    _, tokens_TB, logprobs_TB, count_B = jax.device_get(new)
    for r, row in enumerate(rows):
        row.take(tokens_TB[: count_B[r], r].tolist(), logprobs_TB[: count_B[r], r].tolist(), ends)


def _finish(rows: list[Row], last: bool, on_text) -> None:
    """End the rows whose time is up, and show what is new in each."""
    for r, row in enumerate(rows):
        if last and row.ended is None:
            row.ended = "length"
        if row.ended:
            row.continuation.finish()
            row.ended = "stop" if row.continuation.stopped else row.ended
        piece = row.continuation.piece()
        if on_text and piece:
            on_text(r, piece)


# --- the context -----------------------------------------------------------------------------------------------------
def _cut(rows: list[Row], context: int) -> None:
    """Drops the oldest of what a row reads that has outgrown the context."""
    for row in rows:
        tokens = row.reading.tokens
        if row.held >= context:
            dropped = len(tokens) - _kept(context)
            row.reading = row.reading._replace(tokens=tokens[dropped:], opened=max(row.reading.opened - dropped, 0))


def _kept(context: int) -> int:
    """Tokens that remain when a row has outgrown the context: the newest half."""
    return (context + 1) // 2


def _power_of_two(n: int, least: int = 16) -> int:
    """n rounded up, so that few compiled programs serve all lengths."""
    return max(least, 1 << (n - 1).bit_length())


def _room(n: int) -> int:
    """n rounded up by less than a quarter: each token made reads all of the cache, each size compiles a program."""
    step = _power_of_two(n) // 8
    return -(-n // step) * step


def _seen(rows: list[Row], V: int) -> np.ndarray:
    seen_BV = np.zeros((len(rows), V), bool)
    for r, row in enumerate(rows):
        seen_BV[r, row.tokens] = True
    return seen_BV


# --- the user's mistakes ---------------------------------------------------------------------------------------------
MOST_ROWS = 1 << 16


def _numbers(max_tokens: int, seed: int, samples: int) -> tuple[int, int, int]:
    """Each as a whole number within its bounds."""
    return coerce(max_tokens, Count, "max_tokens"), coerce(seed, Seed, "seed"), coerce(samples, Count, "samples")


def _check(prompts, samples, stop, past_context) -> None:
    wrong = next((text for text in stop if not isinstance(text, str)), "")
    require(wrong == "", f"stop {wrong!r}: expected a string")
    rows = len(prompts) * samples
    require(rows <= MOST_ROWS, f"{rows:,} rows (prompts x samples): at most {MOST_ROWS:,} at once; ask for fewer")
    require("" not in stop, "stop: an empty string is everywhere and would end each row at once; leave it out")
    require(past_context in ("error", "slide"), f"past_context {past_context!r}: 'error' or 'slide'")


def _check_fits(rows: list[Row], max_tokens: int, context: int) -> None:
    row = max(rows, key=lambda row: row.held, default=None)
    if row is None:
        return
    shown = row.prompt if len(row.prompt) <= 40 else row.prompt[:37] + "..."
    has = f"prompt {shown!r} is {row.place} tokens, the model's context {context}"
    slide = "choose past_context slide, which forgets the oldest tokens as it goes"
    require(row.place <= context, f"{has}: shorten it, or {slide}")
    room = context - row.held  # the last token made is not read again
    require(max_tokens <= room, f"{has}: max_tokens {max_tokens} must be at most {room}, or {slide}")
