"""Word vectors of a model: what stands for a word before the first block, at the head, or inside, on average.

input         rows of the embedding
unembedding   columns of the head as they are (the last norm's scale is not multiplied in); with a tied model the same
              matrix as the input, which `about` says
contextual.l  the residual stream after block l at the word, averaged over its places in a text (contexts.py)
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lm.errors import nearest, require
from lm.model.trained import Trained
from lm.probe import anatomy
from lm.probe.contexts import TOKENS, contextual
from lm.probe.words import Space, Vocabulary, vocabulary


def spaces_of(
    m: Trained | Space | Sequence[Space],
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
    """Make the spaces of a model by name: input, unembedding, contextual (all layers) or contextual.l; all by default.

    A tied model has one matrix for the first two: by default it comes once. Spaces in place of a model stay.
    words, pieces, case: see `vocabulary`. text, tokens, report: see `contexts.contextual`. center, whiten: see
    `centred`, `whitened`; never done unless asked for. Raises UserError for unknown names and empty vocabularies.
    """
    if isinstance(m, Space):
        made = [m]
    elif not isinstance(m, Trained):
        made = list(m)
        require(bool(made), "no spaces were given: a model, a Space, or several")
    else:
        made = _spaces(m, names, vocabulary(m.tokenizer, words, pieces=pieces, case=case), text, tokens, report)
    if center or whiten:
        made = [(whitened if whiten else centred)(space) for space in made]
    return made


def _spaces(m: Trained, names: Sequence[str], known: Vocabulary, text, tokens, report) -> list[Space]:
    """Make the named spaces; the text is read once for all contextual ones."""
    model = m.model
    everywhere = [f"contextual.{layer}" for layer in range(1, model.config.layers + 1)]
    names = names or ("input", *(() if model.tied else ("unembedding",)), "contextual")
    names = [one for name in names for one in (everywhere if name == "contextual" else [name])]
    possible = ["input", "unembedding", *everywhere]
    for name in names:
        there = f"it has {', '.join(possible)}"
        require(name in possible, f"space {name}: no such space{nearest(name, possible)} ({there})")
    inside = {}
    if set(names) & set(everywhere):
        inside = {space.name: space for space in contextual(m, known, text=text, tokens=tokens, report=report)}
    return [inside[name] if name in inside else _matrix(m, name, known) for name in names]


def _matrix(m: Trained, name: str, known: Vocabulary) -> Space:
    """Make the space of the input embedding or the unembedding; a word of several tokens is the mean of theirs."""
    model, params = m.model, m.params
    rows_VD = anatomy.embedding(model, params) if name == "input" else anatomy.unembedding(model, params)
    about = "tied: input and unembedding are one matrix" if model.tied else ""
    lengths = np.array([len(tokens) for tokens in known.values()])
    taken = np.asarray(rows_VD, np.float32)[np.concatenate([*known.values()])]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return Space(name, tuple(known), np.add.reduceat(taken, starts) / lengths[:, None].astype(np.float32), about)


# --- options, never defaults ------------------------------------------------------------------------------------------
def centred(space: Space) -> Space:
    """Take the mean of a space's words away."""
    moved_VD = space.vectors_VD - space.vectors_VD.mean(0)
    return Space(f"{space.name}, centred", space.words, moved_VD, space.about)


def whitened(space: Space) -> Space:
    """Centre a space, turn it to its principal axes and scale each to variance one; empty axes are left out."""
    moved_VD = space.vectors_VD - space.vectors_VD.mean(0, dtype=np.float64)
    u_VD, spread_D, _ = np.linalg.svd(moved_VD, full_matrices=False)
    kept = spread_D > 1e-6 * spread_D.max(initial=0)
    require(bool(kept.any()), f"space {space.name}: all vectors are the same; there is nothing to whiten")
    scaled_VD = u_VD[:, kept] * np.sqrt(len(space.words))
    return Space(f"{space.name}, whitened", space.words, scaled_VD.astype(np.float32), space.about)
