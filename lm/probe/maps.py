"""Words in the plane: principal components of their vectors, and the figure of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lm.errors import printable, require
from lm.probe.drawing import canvas
from lm.probe.index import Index
from lm.probe.words import Space


@dataclasses.dataclass(frozen=True)
class Map:
    """Words in the plane that shows most of their variance."""

    space: str
    words: list[str]
    places: list[tuple[float, float]]
    shares: tuple[float, float]
    """Shares of the variance along each axis."""
    dropped: list[str]


def principal_map(space: Space, words: Sequence[str], *, case: str = "fold") -> Map:
    """Place words by the principal components of their unit vectors. UserError with fewer than three known words."""
    words = list(dict.fromkeys(words))
    known, x_WD = Index(space, case=case).known(words)
    require(
        len(known) >= 3, f"{len(known)} of {len(words)} words are in space {space.name}: a map needs at least three"
    )
    u_WD, spread_D, _ = np.linalg.svd(x_WD - x_WD.mean(0), full_matrices=False)
    places_W2 = u_WD[:, :2] * spread_D[:2]
    farthest_2 = places_W2[np.abs(places_W2).argmax(0), [0, 1]]
    places_W2 *= np.where(farthest_2 < 0, -1, 1)  # a sign that does not depend on LAPACK
    shares = spread_D[:2] ** 2 / max((spread_D**2).sum(), 1e-30)
    return Map(
        space=space.name, words=known, places=[tuple(place) for place in places_W2.tolist()],
        shares=tuple(shares.tolist()), dropped=[word for word in words if word not in known],
    )  # fmt: skip


def draw_map(
    found: Map, out: Path, *, pairs: Sequence[tuple[str, str]] = (), groups: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """Draw words in the plane; an arrow for each pair, a colour for each group."""
    from adjustText import adjust_text  # with SciPy's parts a second to import

    place = dict(zip(found.words, found.places, strict=True))
    colour = {word: f"C{i}" for i, words in enumerate((groups or {}).values()) for word in words}
    with canvas(out, figsize=(7.2, 5.6)) as axes:
        for i, (name, words) in enumerate((groups or {"": found.words}).items()):
            x_W2 = np.array([place[word] for word in words if word in place]).reshape(-1, 2)
            axes.scatter(*x_W2.T, s=28, color=f"C{i % 10}", label=printable(name) or None, zorder=3)
        for a, b in pairs:
            if a in place and b in place:
                arrow = dict(arrowstyle="->", color="0.6", shrinkA=6, shrinkB=6, linewidth=1)
                axes.annotate("", place[b], place[a], arrowprops=arrow)
        axes.set_xlabel(f"first principal component ({found.shares[0]:.0%} of the variance)")
        axes.set_ylabel(f"second ({found.shares[1]:.0%})")
        axes.set_title(found.space, fontsize=12)
        axes.margins(0.14)
        if groups and any(groups):
            axes.figure.legend(loc="outside lower center", ncols=min(4, len(groups)), fontsize=10)
        size = 11 if len(place) <= 40 else 8
        texts = [axes.text(*at, printable(word), fontsize=size, color=colour.get(word, "0.15"))
                 for word, at in place.items()]  # fmt: skip
        axes.figure.draw_without_rendering()  # settles where the axes are
        axes.figure.set_layout_engine("none")
        line = dict(arrowstyle="-", color="0.7", linewidth=0.6)
        adjust_text(texts, ax=axes, iter_lim=300, expand=(1.1, 1.5), arrowprops=line)
    return out
