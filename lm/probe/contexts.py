"""Contextual word vectors: the residual stream at a word, averaged over the places where a text has it."""

import functools
import itertools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lm import tokenizer as tokenizers
from lm.data.corpora import Text
from lm.data.supply import prepare_again
from lm.data.tokens import lay_out
from lm.errors import UserError, require
from lm.model.loss import document_segments
from lm.model.trained import Trained
from lm.probe.passes import residuals
from lm.probe.rows import beginning
from lm.probe.words import Space, Vocabulary

TOKENS = 131_072
"""Tokens of text to average over, unless told otherwise."""
BATCH_TOKENS = 4096
NONE = -1
"""Number of no word."""


def contextual(
    m: Trained,
    known: Vocabulary,
    *,
    text: str | None = None,
    tokens: int = TOKENS,
    report: Callable[[int, int], None] | None = None,
) -> list[Space]:
    """Make a Space for each layer, `contextual.1` to `contextual.L`, of the words that the text has.

    text: where to look for words; without it, windows spread evenly over the run's training text. tokens: read at most
    so many. A word counts where its tokens stand alone (not at the front of a longer word, nor cut by the window's end)
    with something before them; over the tokens of one occurrence the states are averaged, then over occurrences.
    report(done, windows) is called as it goes on.
    """
    require(tokens >= 1, f"tokens {tokens}: how much text to read, at least 1")
    model = m.model
    windows_BT = _windows(_tokens(m, text), model.config.context, tokens)
    find = Finder(m.tokenizer, known)
    count_V = np.zeros(len(known), np.int64)
    sums_LVD = jnp.zeros((model.config.layers, len(known), model.config.width), jnp.float32)
    opening = m.tokenizer.eot_token if text is None else tokenizers.opening(m.tokenizer)
    eot = opening if m.experiment.data.packing else None
    batch = max(1, min(BATCH_TOKENS // windows_BT.shape[1], len(windows_BT)))
    for start in range(0, len(windows_BT), batch):
        rows_BT = windows_BT[start : start + batch]
        word_BT, weight_BT = map(np.stack, zip(*(find(row_T, count_V) for row_T in rows_BT), strict=True))
        missing = ((0, batch - len(rows_BT)), (0, 0))  # the last batch has the shape of the others: one program
        sums_LVD = _add_states(
            model, m.params, sums_LVD, np.pad(rows_BT, missing), np.pad(word_BT, missing, constant_values=NONE),
            np.pad(weight_BT, missing), eot,
        )  # fmt: skip
        if report:
            report(min(start + batch, len(windows_BT)), len(windows_BT))
    seen = np.flatnonzero(count_V)
    require(len(seen) > 0, f"none of the {len(known)} words stands in the text that was read; give --text FILE")
    words = tuple(np.array(list(known), object)[seen])
    names = [f"contextual.{layer + 1}" for layer in range(model.config.layers)]
    means_LVD = np.asarray(sums_LVD)[:, seen] / count_V[seen, None].astype(np.float32)
    about = f"mean over {int(np.median(count_V[seen])):,} places (median over words) in {windows_BT.size:,} tokens"
    return [Space(name, words, means_VD, about) for name, means_VD in zip(names, means_LVD, strict=True)]


@functools.partial(jax.jit, static_argnames=("model", "eot"), donate_argnames="sums_LVD")
def _add_states(model, params, sums_LVD, tokens_BT, word_BT, weight_BT, eot):
    """Add the state of every layer at every word's tokens, times its weight, to the word's sum."""
    segments_BT = None if eot is None else document_segments(tokens_BT, eot)
    states_LBTD = residuals(model, params, tokens_BT, segments_BT).astype(jnp.float32)
    word_BT = jnp.where(word_BT == NONE, sums_LVD.shape[1], word_BT)  # outside, and so dropped
    return sums_LVD.at[:, word_BT].add(states_LBTD * weight_BT[..., None], mode="drop")


def _tokens(m: Trained, text: str | None) -> np.ndarray:
    """Encode the text, or take the tokens that the run was trained on."""
    if text is not None:  # as training would lay out a file of it
        pieces = Text("the text", text, m.experiment.data.separator).pieces()
        begins = bool(beginning(m))
        streams = lay_out(m.tokenizer, pieces, end_of_text=begins)
        return np.concatenate([np.empty(0, np.uint32), *itertools.chain.from_iterable(streams)])
    if m.run is None:
        raise UserError("contextual spaces need a text: this model comes from no run")
    data = prepare_again(m.experiment.data, m.run.path, m.run.record["hashes"])
    return data.train.tokens


def _windows(tokens: np.ndarray, context: int, most: int) -> np.ndarray:
    """Cut windows [B, T] spread evenly over the tokens: about `most` tokens, or all of a shorter text."""
    require(len(tokens) >= 2, f"a text of {len(tokens)} tokens has no word with something before it")
    T = min(context, len(tokens))
    count = max(1, min(-(-most // T), -(-len(tokens) // T)))
    starts = np.linspace(0, len(tokens) - T, count).astype(np.int64)
    return np.stack([tokens[start : start + T] for start in starts]).astype(np.int32)


class Finder:
    """Finds words in tokens. A word runs from a token that cannot continue one to just before the next such."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, known: Vocabulary):
        self.number = {tokens: number for number, tokens in enumerate(known.values())}
        self.continues_V = np.zeros(tokenizer.n_vocab, bool)
        for token, text in tokenizers.token_texts(tokenizer).items():  # a byte above 127 is, or is part of, a letter
            self.continues_V[token] = re.match(rb"[\w\x80-\xff]", text) is not None

    def __call__(self, tokens_T: np.ndarray, count_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number each word at its tokens (else NONE), weigh them by one over its length, and count it in count_V.

        The first word of a window has no context and the last may go on: neither counts.
        """
        word_T, weight_T = np.full(len(tokens_T), NONE, np.int32), np.zeros(len(tokens_T), np.float32)
        starts, row = np.flatnonzero(~self.continues_V[tokens_T]).tolist(), tokens_T.tolist()
        for start, end in itertools.pairwise(starts):
            number = self.number.get(tuple(row[start:end]), NONE) if start else NONE
            if number != NONE:
                word_T[start:end], weight_T[start:end] = number, 1 / (end - start)
                count_V[number] += 1
        return word_T, weight_T
