"""Evaluation: nats per token, perplexity and bits per byte, each token scored exactly once."""

import dataclasses
import functools
import itertools
import lzma
import math
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lm import tokenizer as tokenizers
from lm.data.corpora import Corpus, Text
from lm.data.tokens import lay_out, prepare
from lm.errors import require
from lm.limits import Count
from lm.model.api import LanguageModel
from lm.model.loss import window_nats
from lm.model.trained import Trained
from lm.typed import coerce

Window = tuple[np.ndarray, np.ndarray]
"""T+1 tokens, and for each of the last T whether it is scored: 1 or 0."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Total nats over `tokens` scored tokens, which stand for `bytes` bytes of UTF-8 text."""

    nats: float
    tokens: int
    bytes: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700))

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers, and with a compressor."""
        return self.nats / math.log(2) / max(self.bytes, 1)


@functools.partial(jax.jit, static_argnames=("model", "eot", "chunk"))
def _nats(model: LanguageModel, params: dict, tokens_BU, weights_BT, eot: int | None, chunk: int | None):
    nats_BT, _ = window_nats(model, params, tokens_BU, eot=eot, chunk=chunk)
    return jnp.sum(nats_BT * weights_BT)


def score_windows(
    model: LanguageModel,
    params: dict,
    tokens_BU: np.ndarray,
    weights_BT: np.ndarray,
    bytes_V: np.ndarray,
    *,
    eot: int | None = None,
    batch: int = 32,
    chunk: int | None = None,
    report: Callable[[int], None] | None = None,
) -> Score:
    """Score windows of T+1 tokens where the weights are one, as `score_stream` does."""
    windows = zip(tokens_BU, weights_BT, strict=True)
    return score_stream(model, params, windows, bytes_V, eot=eot, batch=batch, chunk=chunk, report=report)


def score_stream(
    model: LanguageModel,
    params: dict,
    windows: Iterable[Window],
    bytes_V: np.ndarray,
    *,
    eot: int | None = None,
    batch: int = 32,
    chunk: int | None = None,
    report: Callable[[int], None] | None = None,
) -> Score:
    """Score windows as they come, a batch in memory at once.

    bytes_V: bytes of text each token stands for. eot: the end-of-text token of a model trained on packed documents.
    report(bytes of text scored so far) is called after each batch.
    """
    nats, tokens, size = 0.0, 0, 0
    windows = iter(windows)
    while some := list(itertools.islice(windows, batch)):
        tokens_BU, weights_BT = (np.stack(rows) for rows in zip(*some, strict=True))
        missing = ((0, batch - len(some)), (0, 0))  # the last batch has the shape of the others: one program
        nats += float(_nats(model, params, np.pad(tokens_BU, missing), np.pad(weights_BT, missing), eot, chunk))
        scored = tokens_BU[:, 1:][weights_BT > 0]
        tokens += len(scored)
        size += int(bytes_V[scored].sum())
        if report:
            report(size)
    return Score(nats, tokens, size)


def strided_windows(pieces: Iterable[np.ndarray], context: int, stride: int) -> Iterator[Window]:
    """Overlapping windows of a stream of tokens: every token after the first is scored once.

    pieces: arrays that are the stream when joined. The first window scores all its targets; each later one is `stride`
    further on and scores its last `stride`, with at least context - stride tokens before each. A stream of fewer than
    two tokens has no window.
    """
    held, scored = np.empty(0, np.int32), 0  # the window to come and what follows it; its places scored already
    for piece in pieces:
        held = np.concatenate([held, piece.astype(np.int32)])
        start = 0
        while len(held) - start > context:
            weights = np.zeros(context, np.float32)
            weights[scored:] = 1
            yield held[start : start + context + 1], weights
            start, scored = start + stride, context - stride
        held = held[start:]
    if len(held) - 1 > scored:
        weights = np.zeros(context, np.float32)
        weights[scored : len(held) - 1] = 1
        yield np.pad(held, (0, context + 1 - len(held))), weights


def evaluate(
    m: Trained,
    text: str | Corpus | Text,
    *,
    stride: int | None = None,
    batch: int = 32,
    report: Callable[[int, int | None], None] | None = None,
) -> Score:
    """Score a text with a trained model, in memory that does not grow with the text.

    text: a string, read as training reads a file of it, or what `lm.data.corpora.open_text` opened. Its documents are
    divided by the run's data.separator and laid out as in training: each begins after an end-of-text token, from which
    its first token is predicted. Scored are the tokens of the text alone: not its ends, nor the first token of each
    document where the model was trained on one unbroken text and never saw that token.
    stride: tokens scored per window, the context by default; smaller gives each token more context and costs context /
    stride more. batch: windows at once. report(bytes scored, bytes in all or None) is called after each batch.
    Raises UserError for settings that make no sense and for texts with nothing to score.
    """
    context, eot = m.model.config.context, m.tokenizer.eot_token
    stride, batch = _checked(context, stride, batch)
    if isinstance(text, str):
        require(bool(text), "the text is empty: there is nothing to score")
        text = Text("the text", text, m.experiment.data.separator)
    begins = m.run is None or m.run.record["documents"] > 1
    streams = lay_out(m.tokenizer, text.pieces(), end_of_text=begins)
    windows = itertools.chain.from_iterable(strided_windows(pieces, context, stride) for pieces in streams)
    ends_aside = ((window, weights * (window[1:] != eot)) for window, weights in windows)
    score = _score(m, ends_aside, batch, _towards(report, text.size))
    require(
        score.tokens > 0,
        f"{text.name}: nothing to score, only blank" + ("" if begins else " or a single token, which nothing precedes"),
    )
    return score


def evaluate_validation(m: Trained, *, stride: int | None = None, batch: int = 32, report=None) -> Score:
    """Score the whole validation split of the run's own corpus, read again from where it came from.

    As in training the ends of documents are scored with it, and count as tokens of no bytes. Otherwise as `evaluate`.
    """
    context = m.model.config.context
    stride, batch = _checked(context, stride, batch)
    data = prepare(m.experiment.data)
    require(
        data.hashes == m.run.record["hashes"],
        f"the corpus {m.experiment.data.corpus} has changed since {m.run.path} was trained on it; give --text FILE",
    )
    tokens, piece = data.validation.tokens, 1 << 20
    pieces = (np.asarray(tokens[start : start + piece]) for start in range(0, len(tokens), piece))
    return _score(m, strided_windows(pieces, context, stride), batch, _towards(report, data.validation.bytes))


def _score(m: Trained, windows: Iterable[Window], batch: int, report: Callable[[int], None] | None) -> Score:
    eot = m.tokenizer.eot_token if m.experiment.data.packing else None
    bytes_V = tokenizers.token_bytes(m.tokenizer)
    return score_stream(m.model, m.params, windows, bytes_V, eot=eot, batch=batch, report=report)


def _towards(report: Callable[[int, int | None], None] | None, total: int | None) -> Callable[[int], None] | None:
    return None if report is None else lambda done: report(done, total)


def _checked(context: int, stride: int | None, batch: int) -> tuple[int, int]:
    """Both as whole numbers within their bounds."""
    stride = coerce(context if stride is None else stride, int, "stride")
    require(1 <= stride <= context, f"stride {stride}: must be between 1 and the model's context of {context}")
    return stride, coerce(batch, Count, "batch")


def baselines(text: bytes, vocab: int, tokens: int) -> dict[str, float]:
    """Bits per byte of two things a model should beat on this text: guessing uniformly, and the compressor xz."""
    return {
        "uniform": tokens * math.log2(vocab) / max(len(text), 1),
        "xz": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / max(len(text), 1),
    }
