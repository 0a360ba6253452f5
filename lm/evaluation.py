"""Evaluation: nats per token, perplexity and bits per byte, each token scored exactly once."""

import dataclasses
import functools
import itertools
import lzma
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm import parallel
from lm import tokenizer as tokenizers
from lm.data.batches import Columns
from lm.data.corpora import Corpus, Text
from lm.data.examples import ExampleFile
from lm.data.supply import held_out, prepare, prepare_again
from lm.data.tokens import Prepared, lay_out
from lm.errors import require
from lm.limits import Count
from lm.model.api import Inputs, LanguageModel
from lm.model.loss import OBJECTIVES, Batch
from lm.model.trained import Trained
from lm.typed import coerce

MOST_PLACES, MOST_LOGITS = 1 << 14, 1 << 27
"""Places read at once, however many windows a batch has; logits that exist at once, half a gigabyte."""
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


@functools.partial(jax.jit, static_argnames=("model", "objective", "eot", "chunk"))
def _learnt(model: LanguageModel, params: dict, batch: Batch, draw, objective: str, eot: int | None, chunk: int | None):
    """Summed nats, the targets and their weights."""
    key = jax.random.fold_in(jax.random.key(0), draw) if objective == "masked" else None
    learnt = OBJECTIVES[objective](model, params, batch, eot=eot, chunk=chunk, key=key)
    nats = jnp.sum(learnt.nats.target * learnt.weights_BT)
    return parallel.everywhere((nats, learnt.targets_BT, learnt.weights_BT))


def score_columns(model: LanguageModel, params: dict, columns: Columns, bytes_V: np.ndarray, **options) -> Score:
    """Score columns with a leading axis B, as `score_rows` does each of their rows."""
    return score_rows(model, params, _rows(columns), bytes_V, **options)


def _rows(columns: Columns) -> Iterator[Columns]:
    for number in range(len(columns["tokens_BU"])):
        yield {name: column[number] for name, column in columns.items()}


def score_rows(
    model: LanguageModel,
    params: dict,
    rows: Iterable[Columns],
    bytes_V: np.ndarray,
    *,
    objective: str = "next_token",
    eot: int | None = None,
    batch: int = 32,
    chunk: int | None = None,
    report: Callable[[int], None] | None = None,
) -> Score:
    """Score rows as they come, a batch in memory at once, where their weights are one.

    rows: each with tokens_BU and weights_BT, and what else a Batch of them has, but for the axis B. bytes_V: bytes of
    text each token stands for. objective: of train.objective; what the masked one hides is always the same. eot: the
    end-of-text token of a model trained on packed documents. report(bytes of text scored so far) is called after each
    batch.
    """
    nats, tokens, size, mesh = 0.0, 0, 0, parallel.mesh_under(params)
    rows = iter(rows)
    for number in itertools.count():
        if not (some := list(itertools.islice(rows, batch))):
            return Score(nats, tokens, size)
        if number == 0 and mesh is None:  # all there is may be less than a batch
            batch = min(batch, _power_of_two(len(some), least=1))
        columns = {name: _stacked([row[name] for row in some], batch) for name in some[0]}
        with parallel.using(mesh):
            placed = Batch(**parallel.place(mesh, columns, axis=0))
            sum_, targets_BT, weights_BT = _learnt(model, params, placed, number, objective, eot, chunk)
        nats += float(sum_)
        scored = np.asarray(targets_BT)[np.asarray(weights_BT) > 0]
        tokens += len(scored)
        size += int(bytes_V[scored].sum())
        if report:
            report(size)


def _stacked(rows: list[np.ndarray], batch: int) -> np.ndarray:
    """Rows one above the other; the last batch has the shape of the others, with zeros below: one program."""
    x = np.stack(rows)
    return np.pad(x, ((0, batch - len(x)), *((0, 0) for _ in x.shape[1:])))


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
    context, opening = m.model.config.context, tokenizers.opening(m.tokenizer)
    require(m.model.config.encoder is None, "this model answers sources: score it on a file of examples")
    stride, batch = _checked(context, stride, batch)
    if isinstance(text, str):
        require(bool(text), "the text is empty: there is nothing to score")
        text = Text("the text", text, m.experiment.data.separator)
    begins = m.run is None or m.run.record["documents"] > 1
    streams = lay_out(m.tokenizer, text.pieces(), end_of_text=begins)
    windows = itertools.chain.from_iterable(strided_windows(pieces, context, stride) for pieces in streams)
    ends_aside = ((window, weights * (window[1:] != opening)) for window, weights in windows)
    score = _score(m, _as_columns(ends_aside), batch, _towards(report, text.size), opening)
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
    data = _validation(m)
    if isinstance(data.validation, ExampleFile):
        return evaluate_examples(m, data.validation, batch=batch, report=report)
    tokens, piece = data.validation.tokens, 1 << 20
    pieces = (np.asarray(tokens[start : start + piece]) for start in range(0, len(tokens), piece))
    windows = strided_windows(pieces, context, stride)
    return _score(m, _as_columns(windows), batch, _towards(report, data.validation.bytes))


def evaluate_examples(m: Trained, file: ExampleFile, *, batch: int = 32, report=None) -> Score:
    """Score the answers of a file of examples, each with its end of text: nats per token of what is to be answered.

    Examples that do not fit the model's contexts are left out. Otherwise as `evaluate`.
    """
    columns = held_out(file, m.experiment.data, m.experiment.model, file.count)
    return _score(m, _rows(columns), batch, _towards(report, file.bytes))


# --- continuations ---------------------------------------------------------------------------------------------------
POSITIONS = 512
"""Positions whose logits exist at once."""


@dataclasses.dataclass(frozen=True)
class Continued:
    """What the tokens of a continuation cost together, and whether each is the likeliest where it stands."""

    nats: float
    greedy: bool


def score_continuations(
    m: Trained,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch: int = 32,
    report: Callable[[int, int], None] | None = None,
) -> list[Continued]:
    """Score each (context, continuation), two lists of tokens, neither empty; the context is read, and costs nothing.

    Where both together are longer than what the model can read, the context loses its beginning. batch: requests at
    once. report(requests scored, requests in all) is called after each batch.
    Raises UserError for a continuation longer than the model's context, and for models that continue nothing.
    """
    c, mesh = m.model.config, parallel.mesh_under(m.params)
    require(c.encoder is None and c.mask != "full", "this model continues no text: it translates, or reads both ways")
    batch = coerce(batch, Count, "batch")
    rows = [[*context, *continuation][-(c.context + 1) :] for context, continuation in requests]
    for number, (context, continuation) in enumerate(requests):
        require(bool(len(context) and len(continuation)), f"request {number}: a context or a continuation is empty")
        longest = f"request {number}: a continuation of {len(continuation)} tokens; the context is {c.context}"
        require(len(continuation) <= c.context, longest)
    # Rows of similar length lie together, the longest first, padded to a power of two: few programs serve all.
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    widths = itertools.groupby(order, key=lambda number: min(_power_of_two(len(rows[number]) - 1), c.context))
    scores: dict[int, Continued] = {}
    for width, numbers in widths:
        numbers = list(numbers)
        for some in (numbers[start : start + batch] for start in range(0, len(numbers), batch)):
            lengths = [len(requests[number][1]) for number in some]
            with parallel.using(mesh):
                made = _score_batch(m, [rows[number] for number in some], lengths, width, batch)
            scores |= dict(zip(some, made, strict=True))
            if report:
                report(len(scores), len(rows))
    return [scores[number] for number in range(len(rows))]


def _score_batch(m: Trained, rows: list[list[int]], lengths: list[int], width: int, batch: int) -> Iterator[Continued]:
    """Score the last `lengths[row]` tokens of each row, at most `width` + 1 tokens."""
    tokens_BT = np.zeros((min(batch, _power_of_two(len(rows))), width), np.int32)
    for row_T, row in zip(tokens_BT, rows, strict=False):
        row_T[: len(row) - 1] = row[:-1]
    # Places of the flattened batch that predict something, and what they should.
    starts = [i * width + len(row) - 1 - length for i, (row, length) in enumerate(zip(rows, lengths, strict=True))]
    places = np.concatenate([start + np.arange(length) for start, length in zip(starts, lengths, strict=True)])
    targets = np.concatenate([row[-length:] for row, length in zip(rows, lengths, strict=True)])
    missing = (0, _power_of_two(len(places)) - len(places))
    columns = parallel.place(parallel.mesh_under(m.params), {"tokens_BT": tokens_BT}, axis=0)
    place_M, target_M = (np.pad(numbers, missing).astype(np.int32) for numbers in (places, targets))
    nats_M, greedy_M = map(np.asarray, _predict(m.model, m.params, columns["tokens_BT"], place_M, target_M))
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        yield Continued(float(nats_M[start:end].sum(dtype=np.float64)), bool(greedy_M[start:end].all()))


@functools.partial(jax.jit, static_argnames=("model",))
def _predict(model: LanguageModel, params: dict, tokens_BT: jax.Array, place_M: jax.Array, target_M: jax.Array):
    """-log p of the targets in nats at places of the flattened rows, and whether none is likelier, both [M]."""
    h_BTD, _ = model.hidden(params, Inputs(tokens_BT))
    h_MD = h_BTD.reshape(-1, h_BTD.shape[-1])[place_M]

    def of_some(some):
        h_MD, target_M = some
        logits_MV = model.logits(params, h_MD)
        true_M = jnp.take_along_axis(logits_MV, target_M[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits_MV, axis=-1) - true_M, jnp.argmax(logits_MV, axis=-1) == target_M

    size = min(len(target_M), POSITIONS)
    nats_CM, greedy_CM = jax.lax.map(of_some, (h_MD.reshape(-1, size, h_MD.shape[-1]), target_M.reshape(-1, size)))
    return parallel.everywhere((nats_CM.reshape(-1), greedy_CM.reshape(-1)))


def _power_of_two(n: int, least: int = 16) -> int:
    return max(least, 1 << (n - 1).bit_length())


# --- examples --------------------------------------------------------------------------------------------------------
def open_examples(m: Trained, path: str | None = None) -> ExampleFile:
    """The examples of a file in a trained model's tokens; without a path, those that its run holds out."""
    if path is None:
        return _validation(m).validation
    tokenizer = str(m.run.path / "tokenizer.json")
    data = dataclasses.replace(m.experiment.data, examples=path, validation_corpus=path, tokenizer=tokenizer)
    return prepare(data).validation


def _validation(m: Trained) -> Prepared:
    """The corpus or the examples of a model's run, read again from where they came from."""
    return prepare_again(m.experiment.data, m.run.path, m.run.record["hashes"])


def _as_columns(windows: Iterable[Window]) -> Iterator[Columns]:
    for tokens, weights in windows:
        yield {"tokens_BU": tokens, "weights_BT": weights}


def _score(
    m: Trained,
    rows: Iterable[Columns],
    batch: int,
    report: Callable[[int], None] | None,
    opening: int | None = None,
) -> Score:
    """opening: the token that documents begin with, where that is not the end of text."""
    eot = (m.tokenizer.eot_token if opening is None else opening) if m.experiment.data.packing else None
    bytes_V, objective = tokenizers.token_bytes(m.tokenizer), m.experiment.train.objective
    objective = objective if objective in OBJECTIVES else "next_token"  # of feedback: how likely it finds the text
    c = m.model.config
    if parallel.mesh_under(m.params) is None:
        batch = min(batch, max(1, MOST_PLACES // c.context))
    chunk = None if batch * c.context * c.V <= MOST_LOGITS else max(1, MOST_LOGITS // c.V)
    return score_rows(
        m.model, m.params, rows, bytes_V, objective=objective, eot=eot, batch=batch, chunk=chunk, report=report
    )


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
