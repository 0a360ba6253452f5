"""Texts as rows of tokens: padded on the right, where nothing looks, so that texts of like length share a program."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm import tokenizer as tokenizers
from lm.errors import printable, require
from lm.model.trained import Trained

STEP = 16
"""Rows are padded to a multiple of this."""
CHUNK = 64
"""Rows that go through the model at once."""


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """Texts and which of their tokens count."""

    tokens_BT: np.ndarray
    scored_BT: np.ndarray
    """Whether a token counts; each is predicted from those before it, so a row's first never does."""
    length_B: np.ndarray

    @property
    def held_BT(self) -> np.ndarray:
        """Which entries are tokens, not padding."""
        return np.arange(self.tokens_BT.shape[1]) < self.length_B[:, None]

    def chunks(self, size: int) -> Iterator["TokenRows"]:
        """The rows, `size` at a time; the last are made up by empty rows, so that all are one program."""
        size = min(size, len(self.length_B))
        for start in range(0, len(self.length_B), size):
            some = slice(start, start + size)
            missing = (0, size - len(self.length_B[some]))
            yield TokenRows(
                np.pad(self.tokens_BT[some], (missing, (0, 0))), np.pad(self.scored_BT[some], (missing, (0, 0))),
                np.pad(self.length_B[some], missing),
            )  # fmt: skip


def rows(m: Trained, sequences: Sequence[Sequence[int]], scored_from: Sequence[int] | None = None) -> TokenRows:
    """Lay token sequences out as rows; tokens from scored_from[row] on count, by default all but the first.

    Raises UserError for nothing to score and for more tokens than the model's context.
    """
    context = m.model.config.context
    lengths = np.array([len(sequence) for sequence in sequences])
    require(len(lengths) > 0 and lengths.min() >= 2, "a text of fewer than two tokens has nothing to predict")
    longest = int(lengths.max())
    require(longest <= context, f"the text has {longest} tokens, the model's context holds {context}: shorten it")
    T = min(-(-longest // STEP) * STEP, context)
    tokens_BT = np.zeros((len(lengths), T), np.int32)
    for row, sequence in zip(tokens_BT, sequences, strict=True):
        row[: len(sequence)] = sequence
    starts_B = np.ones(len(lengths), int) if scored_from is None else np.maximum(scored_from, 1)
    index_T = np.arange(T)
    scored_BT = (index_T >= starts_B[:, None]) & (index_T < lengths[:, None])
    return TokenRows(tokens_BT, scored_BT, lengths)


def beginning(m: Trained) -> list[int]:
    """The token that opens a document where the model's documents began with it, as `lm.evaluate` has it, or nothing.

    It is the end of text, or what the makers of a model from elsewhere put there.
    """
    return [tokenizers.opening(m.tokenizer)] if m.run is None or m.run.record["documents"] > 1 else []


def encode(m: Trained, text: str) -> list[int]:
    """Encode a text, after its `beginning`. Raises UserError for an empty one."""
    require(bool(text), "the text is empty: there is nothing to look at")
    return beginning(m) + tokenizers.encode(m.tokenizer, text).astype(int).tolist()


def byte_counts(m: Trained, tokens: Sequence[int]) -> np.ndarray:
    """How many bytes of UTF-8 each token writes, [T]; none for special ones."""
    bytes_V = tokenizers.token_bytes(m.tokenizer)
    return np.array([bytes_V[token] if token < len(bytes_V) else 0 for token in tokens])


def continuation(m: Trained, text: str) -> list[int]:
    """Encode an answer that follows a prompt: a space, then its words. Raises UserError for a blank one."""
    require(bool(text.strip()), f"the answer {text!r} is blank: give a word")
    return tokenizers.encode_within(m.tokenizer, " " + text.strip()).astype(int).tolist()


def labels(m: Trained, tokens: Sequence[int]) -> list[str]:
    """Label each token: a space shows as a dot, the end of text as <eot>; what cannot be printed is escaped."""

    def label(token: int) -> str:
        if token == m.tokenizer.eot_token:
            return "<eot>"
        if token >= m.tokenizer.n_vocab:
            return f"<{token}>"
        text = m.tokenizer.decode_bytes([token]).decode("utf-8", errors="replace")
        return printable(text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥"))

    return [label(int(token)) for token in tokens]


def places(m: Trained, text: str, words: str) -> np.ndarray:
    """Find which of encode(m, text)'s tokens touch `words` where they stand as whole words; [T] booleans."""
    spans = [match.span() for match in whole_words(words).finditer(text)] if words.strip() else []
    require(bool(spans), f"{words!r} is not in {text!r}: name words of the text, spelled as they are there")
    tokens = encode(m, text)
    sizes_T = byte_counts(m, tokens)
    before = sizes_T.sum() - len(text.encode())  # the space that some tokenizers put before a text's first word
    ends_T = np.cumsum(sizes_T) - before
    starts_T = ends_T - sizes_T
    touched_T = np.zeros(len(tokens), bool)
    for start, end in spans:
        first, last = len(text[:start].encode()), len(text[:end].encode())
        touched_T |= (starts_T < last) & (ends_T > first)
    return touched_T


def whole_words(words: str) -> re.Pattern:
    """Make a pattern that finds these words where they are not part of others."""
    return re.compile(rf"(?<!\w){re.escape(words.strip())}(?!\w)")


def score(logits_BTV: jax.Array, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute -log p of every token in nats, and its rank (1 is first, ties count against it), both [B, T].

    Each is predicted from those before it in its row; a row's first token, which nothing predicts, gets 0 and 0.
    """
    targets_BT1 = tokens_BT[:, 1:, None]
    true_BT1 = jnp.take_along_axis(logits_BTV[:, :-1], targets_BT1, axis=-1)
    nats_BT = jax.nn.logsumexp(logits_BTV[:, :-1], axis=-1) - true_BT1[..., 0]
    rank_BT = jnp.sum(logits_BTV[:, :-1] >= true_BT1, axis=-1)
    return jnp.pad(nats_BT, ((0, 0), (1, 0))), jnp.pad(rank_BT, ((0, 0), (1, 0)))
