"""Words as a tokenizer has them, and a vector for each: a Space."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from lm import tokenizer as tokenizers
from lm.data.vectors import read_vectors
from lm.errors import require
from lm.tokenizer import Tokenizer

CASES: dict[str, Callable[[str], str]] = {"fold": str.upper, "exact": str}
"""Case rules: forms of a word that differ in case alone are one word (gensim's default), or are not."""
PIECES = ("single", "mean")


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """A vector for each word; `about` is what a reader should know of them."""

    name: str
    words: tuple[str, ...]
    vectors_VD: np.ndarray
    about: str = ""

    def __post_init__(self):
        shape = self.vectors_VD.shape
        require(len(shape) == 2 and shape[0] == len(self.words), f"{len(self.words)} words with vectors {shape}")
        require(bool(np.isfinite(self.vectors_VD).all()), f"space {self.name}: some vectors are not finite")


def space_in(file: str | Path, *, restrict: int | None = None) -> Space:
    """Read a file of word vectors as a space that has the file's name; see lm.data.vectors for the formats.

    restrict: read so many words at most, the first.
    """
    path = Path(file).expanduser()
    read = read_vectors(path, limit=restrict)
    return Space(path.name, read.words, read.vectors_VD)


Vocabulary = dict[str, tuple[int, ...]]
"""Each word's tokens, as they stand inside a sentence, the space before the word included."""


def vocabulary(
    tokenizer: Tokenizer, words: Iterable[str] = (), *, pieces: str = "single", case: str = "fold"
) -> Vocabulary:
    """Find every word that is one token with its leading space, in the tokenizer's order (frequent first).

    pieces: "mean" adds those of `words` that take several tokens, to be averaged, unless under the case rule another
    form of the word is there already. Raises UserError when no word is left.
    """
    require(pieces in PIECES, f"pieces {pieces!r}: single (words of one token) or mean (average over several)")
    require(case in CASES, f"case {case!r}: one of {', '.join(CASES)}")
    words = list(words)
    require(all(word.strip() for word in words), "a word is blank: give words of letters")
    known: Vocabulary = {}
    texts = tokenizers.token_texts(tokenizer)
    for token, text in sorted(texts.items()):
        if match := re.fullmatch(r" (\w+)", text.decode("utf-8", "replace")):
            known[match[1]] = (token,)
    fold = CASES[case]
    forms = {fold(word) for word in known}
    whole = set(texts.values())  # one that does not look like a word, such as `o'clock`, may be a token all the same
    for word in words:
        if fold(word) in forms or (pieces == "single" and word not in known and f" {word}".encode() not in whole):
            continue
        known[word] = tuple(tokenizers.encode_within(tokenizer, f" {word}").tolist())
        forms.add(fold(word))
    require(
        bool(known),
        f"no word is a single token of tokenizer {tokenizer.name}: average over pieces (--pieces mean, with words)",
    )
    return known
