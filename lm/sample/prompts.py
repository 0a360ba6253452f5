"""What a model reads before it answers: prompts, and beside or before them sources and vectors.

As lm/data/layout.py lays out examples: a decoder-only model reads EOT source EOT prompt, or its vectors and then EOT
prompt; one with an encoder has that read source EOT, or vectors EOT, and itself reads EOT prompt. EOT is the
end-of-text token. Otherwise a prompt is read alone, behind EOT by a model that was trained on examples, and an empty
one starts a document. A model from elsewhere has its prompts opened as its makers did (Llama's <s>, for one).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm import tokenizer as tokenizers
from lm.errors import require
from lm.model.api import Inputs
from lm.model.trained import Trained


class Reading(NamedTuple):
    """What is read for a prompt, none of it padding."""

    tokens: list[int]
    opened: int
    """Places that all may see under the mask "prefix": what is shown, but for its last token."""
    source: list[int] | None = None
    """What an encoder reads."""
    vectors_IE: np.ndarray | None = None
    """Vectors before the tokens, or where there is an encoder, before its own."""

    @property
    def before(self) -> int:
        """Places before the tokens."""
        return 0 if self.vectors_IE is None or self.source is not None else len(self.vectors_IE)

    @property
    def held(self) -> int:
        """Places that a state has read when the last token comes to be read."""
        return self.before + len(self.tokens) - 1


def readings(
    m: Trained,
    prompts: Sequence[str | list[int]],
    sources: Sequence[str] | None = None,
    vectors: Sequence[np.ndarray] | None = None,
) -> list[Reading]:
    """What is read for each prompt.

    prompts: texts, or lists of tokens, which are read as they stand. sources: texts that the answers are to; vectors:
    arrays [I, E] likewise. Raises UserError where these and the model do not go together.
    """
    c, end = m.model.config, m.tokenizer.eot_token
    n_vocab = m.tokenizer.n_vocab
    require(
        n_vocab <= c.vocab, f"the tokenizer has {n_vocab} tokens, the model {c.vocab}: use the one it was trained with"
    )
    _check_texts(prompts, sources)
    require(sources is None or vectors is None, "sources and vectors: give one of the two")
    shown = sources if sources is not None else vectors
    require(c.encoder is None or shown is not None, "this model answers a source: give sources, one for each prompt")
    begun = [_tokens(m.tokenizer, prompt) for prompt in prompts]
    if shown is None:
        begin = tokenizers.prefix(m.tokenizer) if m.experiment.data.examples is None else [end]
        begins = [begin if isinstance(prompt, str) else [] for prompt in prompts]
        rows = [(begin + tokens) or [end] for begin, tokens in zip(begins, begun, strict=True)]
        return [Reading(row, len(row) - 1) for row in rows]
    require(len(shown) == len(prompts), f"{len(shown)} sources and {len(prompts)} prompts: give one for each")
    if vectors is not None:
        return [_after_vectors(c, end, x_IE, tokens) for x_IE, tokens in zip(vectors, begun, strict=True)]
    texts = [tokenizers.encode(m.tokenizer, source).tolist() for source in sources]
    if c.encoder is None:
        pairs = zip(texts, begun, strict=True)
        return [Reading([end, *source, end, *tokens], 1 + len(source)) for source, tokens in pairs]
    longest, room = max(map(len, texts), default=0) + 1, c.encoder.context
    fits = f"the longest source is {longest} tokens with its end, the encoder's context {room}: shorten it"
    require(longest <= room, fits)
    return [Reading([end, *tokens], 0, [*source, end]) for source, tokens in zip(texts, begun, strict=True)]


def _tokens(tokenizer: tokenizers.Tokenizer, prompt: str | list[int]) -> list[int]:
    """The tokens of a prompt, be it a text or tokens. UserError for what is no token of the tokenizer's."""
    if isinstance(prompt, str):
        return tokenizers.encode(tokenizer, prompt).tolist()
    for token in prompt:
        known = isinstance(token, int) and (0 <= token < tokenizer.n_vocab or token == tokenizer.eot_token)
        require(known, f"prompt: {token!r} is no token: whole numbers below {tokenizer.n_vocab}, or texts")
    return list(prompt)


def inputs_of(m: Trained, read: Sequence[Reading], length: int) -> Inputs:
    """What a state reads first: the readings but for the last token of each, padded on the right to so many tokens."""
    c = m.model.config
    tokens_BT, count_B = _padded([reading.tokens[:-1] for reading in read], length)
    vectors = {}
    if read[0].vectors_IE is not None:
        longest = max(len(reading.vectors_IE) for reading in read)
        vectors_BIE = np.zeros((len(read), longest, read[0].vectors_IE.shape[1]), np.float32)
        for row_IE, reading in zip(vectors_BIE, read, strict=True):
            row_IE[: len(reading.vectors_IE)] = reading.vectors_IE
        counts = [len(reading.vectors_IE) for reading in read]
        vectors = dict(vectors_BIE=vectors_BIE, vectors_count_B=np.array(counts, np.int32))
    if c.encoder is not None:
        longest = max(len(reading.source) for reading in read)
        room = c.encoder.context - (vectors["vectors_BIE"].shape[1] if vectors else 0)
        source_BS, source_count_B = _padded([reading.source for reading in read], min(rounded(longest), room))
        source = Inputs(source_BS, count_B=source_count_B, **vectors)
        return Inputs(tokens_BT, count_B=count_B, source=source, first=True)
    open_B = np.array([reading.opened for reading in read], np.int32) if c.mask == "prefix" else None
    return Inputs(tokens_BT, count_B=count_B, open_B=open_B, first=True, **vectors)


STEP = 16


def rounded(n: int) -> int:
    """n, and at least 1, rounded up to a multiple of STEP, so that few compiled programs serve all lengths."""
    return max(STEP, -(-n // STEP) * STEP)


def _padded(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows side by side, [B, T], and how many tokens of each are its own, [B]."""
    tokens_BT = np.zeros((len(rows), length), np.int32)
    for row_T, tokens in zip(tokens_BT, rows, strict=True):
        row_T[: len(tokens)] = tokens
    return tokens_BT, np.array([len(tokens) for tokens in rows], np.int32)


def _after_vectors(c, end: int, x_IE: np.ndarray, tokens: list[int]) -> Reading:
    x_IE = np.asarray(x_IE, np.float32)
    reader, name = (c, "model.vectors") if c.encoder is None else (c.encoder, "model.encoder.vectors")
    fits = x_IE.ndim == 2 and len(x_IE) > 0 and x_IE.shape[1] == reader.vectors
    require(fits, f"vectors of shape {x_IE.shape}: {name} is {reader.vectors}; must be [I, {reader.vectors}]")
    require(bool(np.isfinite(x_IE).all()), "vectors: some number is NaN or infinite")
    room = f"{len(x_IE)} vectors: the context has {reader.context} places, one of them for a token; give fewer"
    require(len(x_IE) < reader.context, room)
    if c.encoder is not None:
        return Reading([end, *tokens], 0, [end], x_IE)
    return Reading([end, *tokens], len(x_IE), None, x_IE)


def _check_texts(prompts: Sequence[str | list[int]], sources: Sequence[str] | None) -> None:
    for what, texts in (("prompt", prompts), ("source", sources or ())):
        require(not isinstance(texts, str), f"{what}s {texts!r}: one text where a list is due; write [{texts!r}]")
        kinds = str | list if what == "prompt" else str
        wrong = next((text for text in texts if not isinstance(text, kinds)), "")
        require(wrong == "", f"{what} {wrong!r}: expected a string")
