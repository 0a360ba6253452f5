"""Figures of what probes of embeddings found; .png, .svg or .pdf by the file's name."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lm.errors import printable
from lm.figures import STYLE, VERBATIM, check_format, plt, save
from lm.probe.geometry import Direction, Isotropy, Map
from lm.probe.similarities import Similarity
from lm.probe.suites import Suite


@contextlib.contextmanager
def canvas(out: Path, rows: int = 1, columns: int = 1, **options) -> Iterator:
    """Axes to draw on, in the house's style; saved to `out` at the end. `options` go to plt.subplots."""
    check_format(out, "--figure")
    with plt.rc_context(STYLE | VERBATIM):
        figure, axes = plt.subplots(rows, columns, layout="constrained", **options)
        yield axes
        save(figure, out)


def draw_map(
    found: Map, out: Path, *, pairs: Sequence[tuple[str, str]] = (), groups: dict[str, Sequence[str]] | None = None
) -> None:
    """Words in the plane; an arrow for each pair, a colour for each group."""
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
        _label(axes, place, colour)


def _label(axes, place: dict[str, tuple[float, float]], colour: dict[str, str]) -> None:
    """Each word as near its point as it can stand clear of the points and of the words before it."""
    axes.figure.draw_without_rendering()  # settles where the axes are
    pixels = axes.figure.dpi / 72
    size = 11 if len(place) <= 40 else 8
    points_W2 = axes.transData.transform(np.array([*place.values()]))
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in points_W2]
    for (word, at), (x, y) in zip(place.items(), points_W2, strict=True):
        width, height = 0.62 * size * len(word) * pixels, 1.15 * size * pixels
        boxes = []
        for step, angle in itertools.product(range(1, 9), np.linspace(0, 2 * np.pi, 17)[:-1]):
            away = 5 * pixels * step
            middle = x + (away + width / 2) * np.cos(angle), y + (away + height / 2) * np.sin(angle)
            boxes.append((middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2))
        free = [box for box in boxes if not any(_meet(box, other) for other in taken)]
        x0, y0, x1, y1 = (free or boxes)[0]
        taken.append((x0, y0, x1, y1))
        shift = ((x0 + x1) / 2 - x) / pixels, ((y0 + y1) / 2 - y) / pixels
        far = dict(arrowstyle="-", color="0.7", linewidth=0.6) if np.hypot(*shift) > width / 2 / pixels + 12 else None
        axes.annotate(
            printable(word), at, xytext=shift, textcoords="offset points", fontsize=size, ha="center", va="center",
            color=colour.get(word, "0.15"), arrowprops=far,
        )  # fmt: skip


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two boxes (left, bottom, right, top) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def draw_suite(found: Suite, out: Path) -> None:
    """Accuracy of each section, a panel a space: words excluded (with interval) or not, and what c alone would give."""
    names = list(dict.fromkeys(row.space for row in found.sections))
    sections = list(dict.fromkeys(row.name for row in found.sections))
    columns = 3 if len(names) > 1 else 1  # of the legend, which is wider than one panel
    size = (1.8 + 3.1 * len(names), 1.6 + 0.44 * len(sections) + 0.3 * (3 // columns - 1))
    with canvas(out, 1, len(names), figsize=size, sharey=True, squeeze=False) as axes:
        for axis, name in zip(axes[0], names, strict=True):
            rows = {row.name: row for row in found.sections if row.space == name and row.kept}
            draw_scores(axis, [rows.get(section) for section in sections])
            axis.set_title(name, fontsize=12)
            axis.set_yticks(range(len(sections)), map(printable, sections))
            axis.set_xlabel("share of questions right")
        axes[0, 0].invert_yaxis()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        axes[0, 0].figure.legend(
            handles[1:] + handles[:1], labels[1:] + labels[:1], loc="outside lower center", ncols=columns
        )


def draw_scores(axis, rows: Sequence) -> None:
    """Two bars a row, and a mark for the nearest neighbour of c; None leaves a gap."""
    shown = [(y, row) for y, row in enumerate(rows) if row is not None]
    y = np.array([y for y, _ in shown], float)
    axis.grid(False, axis="y")
    axis.set_xlim(0, 1.02)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])  # panels stand side by side
    bars = (("accuracy", "query words excluded", "C0", -0.19), ("accuracy_unexcluded", "not excluded", "C1", 0.19))
    for key, label, colour, shift in bars:
        axis.barh(y + shift, [getattr(row, key) for _, row in shown], 0.36, color=colour, label=label)
    for place, row in shown:
        if row.interval:
            axis.plot(row.interval, [place - 0.19] * 2, color="0.1", linewidth=1.6, solid_capstyle="butt")
    only = [row.only_c for _, row in shown]
    axis.plot(
        only, y, "D", color="0.1", markersize=5, markerfacecolor="white", label="nearest to c alone", clip_on=False
    )


def draw_similarity(found: Sequence[Similarity], out: Path) -> None:
    """Cosines against people's scores."""
    size = (1.2 + 3.4 * len(found), 3.8)
    with canvas(out, 1, len(found), figsize=size, sharex=True, squeeze=False) as axes:
        for axis, one in zip(axes[0], found, strict=True):
            axis.scatter(one.scores, one.cosines, s=14, alpha=0.6, edgecolors="none")
            axis.set_title(f"{one.space}: rho {one.rho:.2f} ({one.kept} pairs)", fontsize=11)
            axis.set_xlabel("similarity, as people rate it")
        axes[0, 0].set_ylabel("cosine")


def draw_directions(found: Sequence[Direction], out: Path) -> None:
    """Where both words of each held-out pair lie along the direction that the others taught."""
    size = (1.4 + 3.4 * len(found), 1.5 + 0.22 * max(one.kept for one in found))
    with canvas(out, 1, len(found), figsize=size, squeeze=False) as axes:
        for axis, one in zip(axes[0], found, strict=True):
            places = np.array(one.projections)
            y = np.arange(len(places))
            axis.hlines(y, places[:, 0], places[:, 1], color="0.7", linewidth=1.5)
            axis.scatter(places[:, 0], y, s=22, label="first word", zorder=3)
            axis.scatter(places[:, 1], y, s=22, label="second word", zorder=3)
            axis.axvline(0, color="0.4", linewidth=1, linestyle="--")
            axis.set_yticks(y, [printable(f"{a}, {b}") for a, b in one.pairs], fontsize=9 if len(y) <= 40 else 6)
            axis.set_title(f"{printable(one.name)}: {one.ordered:.0%} in order", fontsize=12)
            axis.set_xlabel("place along the direction")
            axis.grid(False, axis="y")
            axis.invert_yaxis()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        axes[0, 0].figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=10)


def draw_isotropy(found: Sequence[Isotropy], out: Path) -> None:
    """How cosines of two words are distributed, and how random directions' are."""
    size = (1.2 + 3.4 * len(found), 3.8)
    with canvas(out, 1, len(found), figsize=size, sharex=True, squeeze=False) as axes:
        for axis, one in zip(axes[0], found, strict=True):
            edges = np.linspace(-1, 1, 81)
            axis.hist(one.cosines, edges, density=True, alpha=0.7, label="two words")
            x = np.linspace(-1, 1, 401)[1:-1]
            density = (1 - x**2) ** ((one.width - 3) / 2)  # of the cosine of random directions, exactly
            axis.plot(
                x, density / (density.sum() * (x[1] - x[0])), color="0.1", linestyle="--", label="random directions"
            )
            axis.set_title(f"{one.space}: sd {one.sd_cosine:.3f}, 1/√D {one.sd_by_law:.3f}", fontsize=11)
            axis.set_xlabel("cosine")
        axes[0, 0].set_ylabel("density")
        axes[0, 0].figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
