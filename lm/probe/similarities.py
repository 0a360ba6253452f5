"""Word similarity: does the cosine of two words rank them as people do?"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from lm.errors import require
from lm.probe.analogies import cosine
from lm.probe.index import ABSENT, Index
from lm.probe.questions import read_ratings
from lm.probe.spaces import Space, spaces_of
from lm.probe.suites import require_bootstrap
from lm.run import Model


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Rank correlation of cosines with people's scores in one space."""

    space: str
    rho: float
    """Spearman's."""
    interval: tuple[float, float]
    """By bootstrap over word pairs."""
    pearson: float
    kept: int
    dropped: int
    words: int
    """Of the space."""
    about: str
    titles: str
    """The file's first line where it was read as titles, and so not as a pair."""
    cosines: list[float] = dataclasses.field(repr=False)
    scores: list[float] = dataclasses.field(repr=False)
    """Of the pairs kept, in order."""


def similarity(
    m: Model | Space | Sequence[Space],
    file: str | Path,
    names: Sequence[str] = (),
    *,
    case: str = "fold",
    restrict: int | None = None,
    level: float = 0.9,
    samples: int = 1000,
    seed: int = 0,
    **options,
) -> list[Similarity]:
    """Score a file like WordSim-353 in the named spaces, all by default; arguments as for `suite`.

    Raises UserError for malformed files and where no space keeps three pairs.
    """
    require_bootstrap(level, samples, seed)
    rated, titles = read_ratings(file)
    words = dict.fromkeys(word for one in rated for word in (one.first, one.second))
    made = []
    for space in spaces_of(m, names, words=words, case=case, **options):
        index = Index(space, case=case, restrict=restrict)
        keys_R2 = np.array([[index.key(one.first), index.key(one.second)] for one in rated])
        known_R = (keys_R2 != ABSENT).all(1)
        scores_R = np.array([one.score for one in rated])[known_R]
        cosines_R = cosine(*(index.vectors(keys) for keys in keys_R2[known_R].T)).astype(np.float64)
        if len(scores_R) >= 3 and np.ptp(scores_R) > 0 and np.ptp(cosines_R) > 0:  # else there is nothing to rank
            made.append(
                Similarity(
                    space=space.name,
                    rho=float(stats.spearmanr(cosines_R, scores_R)[0]),
                    interval=_interval(cosines_R, scores_R, level, samples, seed),
                    pearson=float(stats.pearsonr(cosines_R, scores_R)[0]),
                    kept=len(scores_R),
                    dropped=len(rated) - len(scores_R),
                    words=len(index.words),
                    about=space.about,
                    titles=titles,
                    cosines=cosines_R.tolist(),
                    scores=scores_R.tolist(),
                )
            )
    require(
        bool(made),
        f"{file}: of its {len(rated)} pairs fewer than three have both words in the vocabulary, or all score the same"
        " (words of several tokens: --pieces mean)",
    )
    return made


def _interval(x_R: np.ndarray, y_R: np.ndarray, level: float, samples: int, seed: int) -> tuple[float, float]:
    drawn_SR = np.random.default_rng(seed).integers(len(x_R), size=(samples, len(x_R)))
    ranks = (stats.rankdata(values[drawn_SR], axis=1) for values in (x_R, y_R))
    x_SR, y_SR = (some - some.mean(1, keepdims=True) for some in ranks)
    spread_S = np.sqrt((x_SR**2).sum(1) * (y_SR**2).sum(1))
    rho_S = (x_SR * y_SR).sum(1) / np.where(spread_S > 0, spread_S, 1)  # a draw of equals alone ranks nothing: 0
    low, high = np.quantile(rho_S, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
