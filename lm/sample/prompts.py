"""What a model reads before it answers: prompts, and beside or before them sources.

As lm/data/layout.py lays out examples: a decoder-only model reads EOT source EOT prompt, one with an encoder has that
read source EOT and itself reads EOT prompt; EOT is the end-of-text token. Without sources a prompt is read alone, and
an empty one starts a document.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm import tokenizer as tokenizers
from lm.errors import require
from lm.model.api import Inputs
from lm.model.trained import Trained

STEP = 16
"""Lengths are rounded up to multiples of this, so that few compiled programs serve all."""


class Reading(NamedTuple):
    """A prompt as tokens, none of them padding, and what the encoder reads, None where there is none."""

    tokens: list[int]
    source: list[int] | None = None


def readings(m: Trained, prompts: Sequence[str], sources: Sequence[str] | None = None) -> list[Reading]:
    """What is read for each prompt. Raises UserError where the two or the model and the sources do not go together."""
    vocab, n_vocab = m.model.config.vocab, m.tokenizer.n_vocab
    require(n_vocab == vocab, f"the tokenizer has {n_vocab} tokens, the model {vocab}: use the one it was trained with")
    for what, texts in (("prompts", prompts), ("sources", sources)):
        require(not isinstance(texts, str), f"{what} {texts!r}: one text where a list is due; write [{texts!r}]")
    encoder, end = m.model.config.encoder, m.tokenizer.eot_token
    require(encoder is None or sources is not None, "this model answers a source: give sources, one for each prompt")
    begun = [tokenizers.encode(m.tokenizer, prompt).tolist() for prompt in prompts]
    if sources is None:
        return [Reading(tokens or [end]) for tokens in begun]
    require(len(sources) == len(prompts), f"{len(sources)} sources and {len(prompts)} prompts: give one for each")
    shown = [tokenizers.encode(m.tokenizer, source).tolist() for source in sources]
    if encoder is None:
        return [Reading([end, *source, end, *tokens]) for source, tokens in zip(shown, begun, strict=True)]
    longest = max(map(len, shown), default=0) + 1
    require(
        longest <= encoder.context,
        f"the longest source is {longest} tokens with its end, the encoder's context {encoder.context}: shorten it",
    )
    return [Reading([end, *tokens], [*source, end]) for source, tokens in zip(shown, begun, strict=True)]


def inputs_of(m: Trained, read: Sequence[Reading], opened: Sequence[int]) -> Inputs:
    """The readings as what a model reads at once, padded on the right.

    opened: under the mask "prefix", how many tokens of each all places may see.
    """
    c = m.model.config
    tokens_BT, count_B = _padded([reading.tokens for reading in read], c.context)
    source = None
    if c.encoder is not None:
        source_BT, source_count_B = _padded([reading.source for reading in read], c.encoder.context)
        source = Inputs(source_BT, count_B=source_count_B)
    open_B = np.array(opened, np.int32) if c.mask == "prefix" else None
    return Inputs(tokens_BT, count_B=count_B, source=source, open_B=open_B)


def _padded(rows: Sequence[Sequence[int]], context: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows side by side, [B, T], and how many tokens of each are its own, [B]."""
    tokens_BT = np.zeros((len(rows), min(rounded(max(map(len, rows))), context)), np.int32)
    for row_T, tokens in zip(tokens_BT, rows, strict=True):
        row_T[: len(tokens)] = tokens
    return tokens_BT, np.array([len(tokens) for tokens in rows], np.int32)


def rounded(n: int) -> int:
    """n, and at least 1, rounded up to a multiple of STEP."""
    return max(STEP, -(-n // STEP) * STEP)
