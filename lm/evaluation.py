"""Evaluation: nats per token, perplexity and bits per byte, each token scored exactly once."""

import dataclasses
import functools
import lzma
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lm import tokenizer as tokenizers
from lm.config import ModelConfig
from lm.data.tokens import prepare
from lm.errors import UserError, require
from lm.model import transformer
from lm.model.loss import window_nats
from lm.run import Model


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


@functools.partial(jax.jit, static_argnames=("c", "eot", "chunk"))
def _nats(params, tokens_BT1, weights_BT, c: ModelConfig, eot: int | None, chunk: int | None):
    nats_BT, _ = window_nats(transformer.bind(c, params), tokens_BT1, eot=eot, chunk=chunk)
    return jnp.sum(nats_BT * weights_BT)


def score_windows(
    c: ModelConfig,
    params: dict,
    tokens_WT1: np.ndarray,
    weights_WT: np.ndarray,
    bytes_V: np.ndarray,
    *,
    eot: int | None = None,
    batch: int = 32,
    chunk: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Score:
    """Score windows of T+1 tokens where the weights are one.

    bytes_V: bytes of text each token stands for. eot: the end-of-text token of a model trained on packed documents.
    report(done, windows) is called after each batch.
    """
    nats = 0.0
    for start in range(0, len(tokens_WT1), batch):
        tokens, weights = tokens_WT1[start : start + batch], weights_WT[start : start + batch]
        missing = ((0, batch - len(tokens)), (0, 0))  # the last batch has the shape of the others: one program
        nats += float(_nats(params, np.pad(tokens, missing), np.pad(weights, missing), c, eot, chunk))
        if report:
            report(min(start + batch, len(tokens_WT1)), len(tokens_WT1))
    scored = tokens_WT1[:, 1:][weights_WT > 0]
    return Score(nats, len(scored), int(bytes_V[scored].sum()))


def strided_windows(tokens: np.ndarray, context: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping windows [W, T+1] and weights [W, T]: every token after the first is scored once.

    The first window scores all its targets; each later one is `stride` further on and scores its last `stride`, with
    at least context - stride tokens before each.
    """
    require(1 <= stride <= context, f"stride {stride}: must be between 1 and the model's context of {context}")
    targets = len(tokens) - 1
    require(targets >= 1, f"a text of {len(tokens)} tokens has nothing to predict; give at least two")
    count = 1 + max(0, math.ceil((targets - context) / stride))
    windows = np.zeros((count, context + 1), np.int32)
    weights = np.zeros((count, context), np.float32)
    for w in range(count):
        piece = tokens[w * stride : w * stride + context + 1]
        windows[w, : len(piece)] = piece
        weights[w, 0 if w == 0 else context - stride : len(piece) - 1] = 1
    return windows, weights


def evaluate(
    m: Model,
    text: str,
    *,
    stride: int | None = None,
    batch: int = 32,
    report: Callable[[int, int], None] | None = None,
) -> Score:
    """Score a text with a trained model.

    The text starts as documents do in training: from end-of-text where there were several, so that its first token is
    scored too; a model of one unbroken text never saw that token, and its first token is not scored. stride: tokens
    scored per window, the context by default; smaller gives each token more context and costs context / stride more.
    """
    require(bool(text), "the text is empty: there is nothing to score")
    tokens = tokenizers.encode(m.tokenizer, text).astype(np.int32)
    if m.run is None or m.run.record["documents"] > 1:
        tokens = np.concatenate([np.array([m.tokenizer.eot_token], np.int32), tokens])
    return _score_tokens(m, tokens, stride, batch, report)


def evaluate_validation(m: Model, *, stride: int | None = None, batch: int = 32, report=None) -> Score:
    """Score the whole validation split of the run's own corpus, read again from where it came from."""
    data = prepare(m.experiment.data)
    require(
        data.hashes == m.run.record["hashes"],
        f"the corpus {m.experiment.data.corpus} has changed since {m.run.path} was trained on it; give --text FILE",
    )
    return _score_tokens(m, np.asarray(data.validation.tokens), stride, batch, report)


def _score_tokens(m: Model, tokens: np.ndarray, stride: int | None, batch: int, report) -> Score:
    """Every token after the first, once."""
    c = m.experiment.model
    windows = strided_windows(tokens, c.context, c.context if stride is None else stride)
    eot = m.tokenizer.eot_token if m.experiment.data.packing else None
    bytes_V = tokenizers.token_bytes(m.tokenizer)
    return score_windows(c, m.params, *windows, bytes_V, eot=eot, batch=batch, report=report)


def read_text(path: Path) -> str:
    """A UTF-8 text file, or a UserError that says what is wrong with it."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); give a text file") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def baselines(text: bytes, vocab: int, tokens: int) -> dict[str, float]:
    """Bits per byte of two things a model should beat on this text: guessing uniformly, and the compressor xz."""
    return {
        "uniform": tokens * math.log2(vocab) / max(len(text), 1),
        "xz": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / max(len(text), 1),
    }
