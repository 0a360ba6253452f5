"""Word vectors of a model: what stands for a word before the first block, at the head, or inside, on average.

input         rows of the embedding
unembedding   columns of the head as they are (the last norm's scale is not multiplied in); with a tied model the same
              matrix as the input, which is said
contextual.l  the residual stream after block l at the word, averaged over its places in a text (contexts.py)
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lm.errors import nearest, require
from lm.run import Model
from lm.tokenizer import Tokenizer

CASES: dict[str, Callable[[str], str]] = {"fold": str.upper, "exact": str}
"""Case rules: forms of a word that differ in case alone are one word (gensim's default), or are not."""
PIECES = ("single", "mean")
TOKENS = 131_072
"""Tokens of text that contextual spaces average over, unless told otherwise."""


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


Vocabulary = dict[str, tuple[int, ...]]
"""Each word's tokens, as they stand inside a sentence, the space before the word included."""


def spaces_of(
    m: Model | Space | Sequence[Space],
    names: Sequence[str] = (),
    *,
    words: Iterable[str] = (),
    pieces: str = "single",
    case: str = "fold",
    text: str | None = None,
    tokens: int = TOKENS,
    center: bool = False,
    whiten: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> list[Space]:
    """The spaces of a model by name: input, unembedding, contextual (all layers) or contextual.l; all by default.

    A tied model has one matrix for the first two: by default it is given once. Spaces given instead of a model stay.
    words, pieces, case: see `vocabulary`. text, tokens, report: see `contexts.contextual`. center, whiten: see
    `centred`, `whitened`; never done unless asked for. Raises UserError for unknown names and empty vocabularies.
    """
    if isinstance(m, Space):
        made = [m]
    elif not isinstance(m, Model):
        made = list(m)
        require(bool(made), "no spaces were given: a model, a Space, or several")
    else:
        made = _of_model(m, names, vocabulary(m.tokenizer, words, pieces=pieces, case=case), text, tokens, report)
    if center or whiten:
        made = [(whitened if whiten else centred)(space) for space in made]
    return made


def _of_model(m: Model, names: Sequence[str], known: Vocabulary, text, tokens, report) -> list[Space]:
    c = m.experiment.model
    everywhere = [f"contextual.{layer}" for layer in range(1, c.layers + 1)]
    names = names or ("input", *(() if c.tied else ("unembedding",)), "contextual")
    names = [one for name in names for one in (everywhere if name == "contextual" else [name])]
    possible = ["input", "unembedding", *everywhere]
    for name in names:
        require(name in possible, f"space {name}: no such space{nearest(name, possible)} It has {', '.join(possible)}")
    inside = {}
    if set(names) & set(everywhere):
        from lm.probe.contexts import contextual

        inside = {space.name: space for space in contextual(m, known, text=text, tokens=tokens, report=report)}
    return [inside[name] if name in inside else _matrix(m, name, known) for name in names]


def _matrix(m: Model, name: str, known: Vocabulary) -> Space:
    """The input embedding or the unembedding; a word of several tokens is the mean of theirs."""
    tied = m.experiment.model.tied
    rows_VD = m.params["embedding"] if name == "input" or tied else m.params["head"].T
    about = "tied: input and unembedding are one matrix" if tied else ""
    lengths = np.array([len(tokens) for tokens in known.values()])
    taken = np.asarray(rows_VD, np.float32)[np.concatenate([*known.values()])]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return Space(name, tuple(known), np.add.reduceat(taken, starts) / lengths[:, None].astype(np.float32), about)


# --- words -----------------------------------------------------------------------------------------------------------
def vocabulary(
    tokenizer: Tokenizer, words: Iterable[str] = (), *, pieces: str = "single", case: str = "fold"
) -> Vocabulary:
    """Every word that is one token with its leading space, in the tokenizer's order (frequent first).

    pieces: "mean" adds those of `words` that take several tokens, to be averaged, unless under the case rule another
    form of the word is there already. Raises UserError when no word is left.
    """
    require(pieces in PIECES, f"pieces {pieces!r}: single (words of one token) or mean (average over several)")
    require(case in CASES, f"case {case!r}: one of {', '.join(CASES)}")
    words = list(words)
    require(all(word.strip() for word in words), "a word is blank: give words of letters")
    known: Vocabulary = {}
    for token, text in sorted(token_texts(tokenizer).items()):
        if match := re.fullmatch(r" (\w+)", text.decode("utf-8", "replace")):
            known[match[1]] = (token,)
    fold = CASES[case]
    forms = {fold(word) for word in known}
    for word in words:
        if fold(word) in forms or (pieces == "single" and word not in known and not _encodes_whole(tokenizer, word)):
            continue
        known[word] = tuple(tokenizer.encode_ordinary(f" {word}"))
        forms.add(fold(word))
    require(
        bool(known),
        f"no word is a single token of tokenizer {tokenizer.name}: average over pieces (--pieces mean, with words)",
    )
    return known


def _encodes_whole(tokenizer: Tokenizer, word: str) -> bool:
    """Whether a word that does not look like one, such as `o'clock`, is a single token all the same."""
    return f" {word}".encode() in getattr(tokenizer, "_mergeable_ranks", {})


def token_texts(tokenizer: Tokenizer) -> dict[int, bytes]:
    """What each token writes, end of text left out."""
    if ranks := getattr(tokenizer, "_mergeable_ranks", None):
        return {token: text for text, token in ranks.items()}
    return {t: tokenizer.decode_bytes([t]) for t in range(tokenizer.n_vocab) if t != tokenizer.eot_token}


# --- options, never defaults -----------------------------------------------------------------------------------------
def centred(space: Space) -> Space:
    """The space with the mean of its words taken away."""
    moved_VD = space.vectors_VD - space.vectors_VD.mean(0)
    return Space(f"{space.name}, centred", space.words, moved_VD, space.about)


def whitened(space: Space) -> Space:
    """Centred, turned to its principal axes and scaled to variance one along each; empty axes are left out."""
    moved_VD = space.vectors_VD - space.vectors_VD.mean(0, dtype=np.float64)
    u_VD, spread_D, _ = np.linalg.svd(moved_VD, full_matrices=False)
    kept = spread_D > 1e-6 * spread_D.max(initial=0)
    require(bool(kept.any()), f"space {space.name}: all vectors are the same; there is nothing to whiten")
    scaled_VD = u_VD[:, kept] * np.sqrt(len(space.words))
    return Space(f"{space.name}, whitened", space.words, scaled_VD.astype(np.float32), space.about)
