"""similarity FILE: cosines against people's scores (lines: word word score)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from scipy import stats

from lm.errors import require
from lm.model.trained import Trained
from lm.probe.drawing import canvas
from lm.probe.index import ABSENT, Index
from lm.probe.options import BootstrapOptions, Report, require_bootstrap
from lm.probe.questions import read_ratings
from lm.probe.scorers import cosine
from lm.probe.spaces import spaces_of
from lm.probe.words import Space
from lm.tables import records_table


@dataclasses.dataclass(frozen=True)
class Options(BootstrapOptions):
    """Spearman's correlation of cosines with people's scores, for files like WordSim-353."""

    file: Annotated[Path, tyro.conf.Positional]
    """Lines of two words and a score, separated by tabs, commas or spaces."""

    def check(self) -> None:
        read_ratings(self.file)


@dataclasses.dataclass(frozen=True)
class Similarity:
    """Rank correlation of cosines with people's scores in one space."""

    space: str
    rho: float
    """Spearman's correlation."""
    interval: tuple[float, float]
    """By bootstrap over word pairs."""
    pearson: float
    kept: int
    dropped: int
    words: int
    """Words of the space."""
    about: str
    titles: str
    """The file's first line where it was read as titles, and so not as a pair."""
    cosines: list[float] = dataclasses.field(repr=False)
    scores: list[float] = dataclasses.field(repr=False)
    """Cosines and scores of the pairs kept, in order."""


def similarity(
    m: Trained | Space | Sequence[Space],
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
        keys_J2 = np.array([[index.key(one.first), index.key(one.second)] for one in rated])
        known_J = (keys_J2 != ABSENT).all(1)
        scores_J = np.array([one.score for one in rated])[known_J]
        cosines_J = cosine(*(index.vectors(keys) for keys in keys_J2[known_J].T)).astype(np.float64)
        if len(scores_J) >= 3 and np.ptp(scores_J) > 0 and np.ptp(cosines_J) > 0:  # else there is nothing to rank
            made.append(
                Similarity(
                    space=space.name,
                    rho=float(stats.spearmanr(cosines_J, scores_J)[0]),
                    interval=_interval(cosines_J, scores_J, level, samples, seed),
                    pearson=float(stats.pearsonr(cosines_J, scores_J)[0]),
                    kept=len(scores_J),
                    dropped=len(rated) - len(scores_J),
                    words=len(index.words),
                    about=space.about,
                    titles=titles,
                    cosines=cosines_J.tolist(),
                    scores=scores_J.tolist(),
                )
            )
    require(
        bool(made),
        f"{file}: of its {len(rated)} pairs fewer than three have both words in the vocabulary, or all score the same"
        " (words of several tokens: --pieces mean)",
    )
    return made


def _interval(x_J: np.ndarray, y_J: np.ndarray, level: float, samples: int, seed: int) -> tuple[float, float]:
    """The interval of the rank correlation of x and y, by drawing pairs anew."""
    drawn_ZJ = np.random.default_rng(seed).integers(len(x_J), size=(samples, len(x_J)))
    ranks = (stats.rankdata(values[drawn_ZJ], axis=1) for values in (x_J, y_J))
    x_ZJ, y_ZJ = (some - some.mean(1, keepdims=True) for some in ranks)
    spread_Z = np.sqrt((x_ZJ**2).sum(1) * (y_ZJ**2).sum(1))
    rho_Z = (x_ZJ * y_ZJ).sum(1) / np.where(spread_Z > 0, spread_Z, 1)  # a draw of equals alone ranks nothing: 0
    low, high = np.quantile(rho_Z, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# --- for the command, and the figure ---------------------------------------------------------------------------------
def run(m: Trained | Space, o: Options) -> Report:
    """Correlate in the model's spaces."""
    rated, _ = read_ratings(o.file)
    spaces = o.spaces(m, o.space, [word for one in rated for word in (one.first, one.second)])
    found = similarity(spaces, o.file, case=o.case, restrict=o.restrict, level=o.level, samples=o.samples, seed=o.seed)
    value = {"spaces": [dataclasses.asdict(one) for one in found]}
    return Report(value, tables(found), lambda out: draw_similarity(found, out))


def tables(found: Sequence[Similarity]) -> list:
    """A row for each space, and what must be known to judge it."""
    columns = {
        "space": "space", "kept": "kept", "dropped": "dropped", "rho": "Spearman", "interval": "interval",
        "pearson": "Pearson", "words": "words",
    }  # fmt: skip
    notes = {s.space: s.about for s in found} | {"read as titles, not as a pair": found[0].titles}
    return [records_table(columns, found), *(f"{name}: {about}" for name, about in notes.items() if about)]


def draw_similarity(found: Sequence[Similarity], out: Path) -> None:
    """Draw cosines against people's scores."""
    size = (1.2 + 3.4 * len(found), 3.8)
    with canvas(out, 1, len(found), figsize=size, sharex=True, squeeze=False) as axes:
        for axis, one in zip(axes[0], found, strict=True):
            axis.scatter(one.scores, one.cosines, s=14, alpha=0.6, edgecolors="none")
            axis.set_title(f"{one.space}: rho {one.rho:.2f} ({one.kept} pairs)", fontsize=11)
            axis.set_xlabel("similarity, as people rate it")
        axes[0, 0].set_ylabel("cosine")
