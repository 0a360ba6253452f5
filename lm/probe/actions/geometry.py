"""geometry WHAT [FILE | WORD ...]: clusters, directions, a map of words or isotropy, each beside chance."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from lm.errors import printable, require
from lm.limits import Seed
from lm.model.trained import Trained
from lm.probe.drawing import canvas
from lm.probe.index import ABSENT, Index
from lm.probe.maps import Map, draw_map, principal_map
from lm.probe.options import Report, SpacesOptions
from lm.probe.questions import Section, read_groups, read_suite
from lm.probe.words import Space
from lm.tables import records_table, table

SAMPLE = 2048
"""Words whose cosines with each other are measured, at most."""


@dataclasses.dataclass(frozen=True)
class Options(SpacesOptions):
    """clusters FILE: k-means against the groups in a file (": group", then words). directions FILE: each relation's
    direction from a file of analogies, asked of held-out pairs. map WORD... | FILE: principal components of words.
    isotropy: cosines of words beside random directions and 1/sqrt(D)."""

    what: Annotated[Literal["clusters", "directions", "map", "isotropy"], tyro.conf.Positional]
    words: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """A file, or words."""
    seed: Seed = 0

    def check(self) -> None:
        self.read()

    def read(self) -> tuple[dict[str, list[str]], list[Section]]:
        """Groups and sections of words: from a file, or the words themselves as one group."""
        if self.what == "isotropy":
            require(not self.words, f"geometry isotropy takes no words, not {' '.join(self.words)}")
            return {}, []
        if self.what == "map" and len(self.words) > 1:
            return {"": list(self.words)}, []
        others = " Or words, three at least" if self.what == "map" else ""
        require(len(self.words) == 1, f"geometry {self.what}: which FILE?{others}")
        return (read_groups(self.words[0]), []) if self.what == "clusters" else ({}, read_suite(self.words[0]))


# --- clusters --------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Clusters:
    """Words by k-means on unit vectors, beside the groups they are from."""

    space: str
    clusters: list[list[str]]
    purity: float
    """Share of words whose cluster's commonest group is theirs (Manning et al. 2008, section 16.3)."""
    purity_by_chance: float
    """The same with the groups dealt out anew, on average over 200 deals."""
    silhouette: float
    """The silhouette of the clusters found, by cosine distance (Rousseeuw 1987)."""
    silhouette_of_groups: float
    kept: int
    dropped: int


def clusters(
    space: Space, groups: Mapping[str, Sequence[str]], *, case: str = "fold", seed: int = 0, restarts: int = 10
) -> Clusters:
    """Find as many clusters as groups; the best of several k-means++ starts. UserError with fewer than two groups."""
    from sklearn.cluster import KMeans  # a second to import
    from sklearn.metrics import silhouette_score

    index = Index(space, case=case)
    known = {name: index.known(words) for name, words in groups.items()}
    known = {name: (words, x_WD) for name, (words, x_WD) in known.items() if words}
    words = [word for some, _ in known.values() for word in some]
    require(
        len(known) >= 2 and len(words) > len(known),
        f"{len(known)} groups with {len(words)} words in space {space.name}: give at least two groups, and more words",
    )
    x_WD = np.concatenate([x_WD for _, x_WD in known.values()]).astype(np.float64)
    truth_W = np.repeat(np.arange(len(known)), [len(some) for some, _ in known.values()])
    with warnings.catch_warnings(action="ignore"):  # it warns of fewer different words than clusters
        label_W = KMeans(len(known), n_init=restarts, random_state=seed).fit_predict(x_WD)
    random = np.random.default_rng(seed)
    chance = np.mean([purity(label_W, random.permutation(truth_W)) for _ in range(200)])
    silhouette, silhouette_of_groups = (
        float(silhouette_score(x_WD, some_W, metric="cosine")) if len(set(some_W)) > 1 else 0.0
        for some_W in (label_W, truth_W)
    )
    return Clusters(
        space=space.name,
        clusters=[[words[i] for i in np.flatnonzero(label_W == label)] for label in range(len(known))],
        purity=purity(label_W, truth_W), purity_by_chance=float(chance), silhouette=silhouette,
        silhouette_of_groups=silhouette_of_groups, kept=len(words), dropped=sum(map(len, groups.values())) - len(words),
    )  # fmt: skip


def purity(label_W: np.ndarray, truth_W: np.ndarray) -> float:
    """The share of words whose cluster's commonest group is theirs."""
    most = [np.bincount(truth_W[label_W == label]).max() for label in np.unique(label_W)]
    return float(sum(most) / len(label_W))


# --- directions ------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Direction:
    """What a relation's pairs have in common, learned from all but one pair and asked of that one."""

    space: str
    name: str
    kept: int
    dropped: int
    ordered: float
    """Share of held-out pairs whose second word lies further along; by chance one half."""
    separated: float
    """Share of held-out words on their side of the middle between the others' first and second words."""
    explained: float
    """Share of the held-out offsets' squared length along the direction."""
    explained_by_chance: float
    """1 / D, of a random direction."""
    pairs: list[tuple[str, str]]
    projections: list[tuple[float, float]] = dataclasses.field(repr=False)
    """Where each pair's words lie on the direction that the others taught, from the middle."""


def directions(space: Space, sections: Sequence[Section], *, case: str = "fold") -> list[Direction]:
    """Learn each section's direction: the first principal component of its pairs' offsets (Bolukbasi et al. 2016).

    A pair and its reverse count once, as they first came. Raises UserError where no section has three pairs.
    """
    index = Index(space, case=case)
    learned = []
    for section in sections:
        pairs = section.one_way
        known = [pair for pair in pairs if all(index.key(word) != ABSENT for word in pair)]
        if len(known) >= 3:
            keys_J2 = np.array([[index.key(word) for word in pair] for pair in known])
            learned.append(_direction(index, section.name, known, keys_J2, len(pairs) - len(known)))
    require(bool(learned), f"no section has three pairs in space {space.name} (words of several tokens: --pieces mean)")
    return learned


def _direction(index: Index, name: str, pairs, keys_J2: np.ndarray, dropped: int) -> Direction:
    """Ask each pair of the direction that the others teach."""
    a_JD, b_JD = (index.vectors(keys).astype(np.float64) for keys in keys_J2.T)
    offset_JD = b_JD - a_JD
    place_J2, explained = np.empty(keys_J2.shape), 0.0
    for j in range(len(pairs)):
        others = np.arange(len(pairs)) != j
        axis_D = np.linalg.svd(offset_JD[others], full_matrices=False)[2][0]
        axis_D *= 1 if (offset_JD[others] @ axis_D).sum() >= 0 else -1
        middle = ((a_JD[others] + b_JD[others]) @ axis_D).mean() / 2
        place_J2[j] = a_JD[j] @ axis_D - middle, b_JD[j] @ axis_D - middle
        explained += (offset_JD[j] @ axis_D) ** 2
    ordered, sides_J2 = place_J2[:, 1] > place_J2[:, 0], place_J2 * [-1, 1] > 0
    return Direction(
        space=index.space.name, name=name, kept=len(pairs), dropped=dropped, ordered=float(ordered.mean()),
        separated=float(sides_J2.mean()), explained=float(explained / max((offset_JD**2).sum(), 1e-30)),
        explained_by_chance=1 / a_JD.shape[1], pairs=pairs, projections=[tuple(row) for row in place_J2.tolist()],
    )  # fmt: skip


# --- isotropy --------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Isotropy:
    """How evenly words fill the room, beside random vectors of the same shape."""

    space: str
    words: int
    width: int
    mean_cosine: float
    """The mean of two words' cosine; 0 for random directions."""
    sd_cosine: float
    sd_by_law: float
    """1/sqrt(D), exactly so for random directions (the cosine's mean square is 1/D)."""
    sd_of_random: float
    """Measured for as many Gaussian vectors."""
    nearly_orthogonal: float
    """Share of pairs whose cosine is within 2/sqrt(D) of 0."""
    nearly_orthogonal_of_random: float
    partition: float
    """min Z / max Z over principal axes u of Z(u) = sum exp(u . v), of unit vectors; 1 when isotropic (Mu and Viswanath
    2018, eq. 2)."""
    first_component: float
    """Share of the variance along the first principal axis."""
    effective_dimensions: float
    """(sum l)^2 / sum l^2 of the covariance's eigenvalues: D when they are equal."""
    cosines: np.ndarray = dataclasses.field(repr=False)

    def to_json(self) -> dict:
        """All but the cosines."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "cosines"}


def isotropy(space: Space, *, restrict: int | None = None, seed: int = 0) -> Isotropy:
    """Measure all words, or the first `restrict`; cosines between at most SAMPLE of them, drawn at random."""
    index, random = Index(space, restrict=restrict), np.random.default_rng(seed)
    V, D = index.unit_VD.shape
    require(V >= 3, f"{V} words in space {space.name}: isotropy needs at least three")
    chosen = random.choice(V, min(V, SAMPLE), replace=False)
    cos_J = _between(index.unit_VD[chosen])
    gauss_WD = random.standard_normal((len(chosen), D)).astype(np.float32)
    random_J = _between(gauss_WD / np.linalg.norm(gauss_WD, axis=1, keepdims=True))
    moment_DD = index.unit_VD.astype(np.float64).T @ index.unit_VD / V
    axes_DD = np.linalg.eigh(moment_DD)[1]
    z_X = np.concatenate([np.exp(s * (index.unit_VD @ axes_DD)).sum(0) for s in (1, -1)])
    mean_D = index.unit_VD.mean(0, dtype=np.float64)
    variance_D = np.maximum(np.linalg.eigvalsh(moment_DD - np.outer(mean_D, mean_D)), 1e-30)
    near = 2 / np.sqrt(D)
    return Isotropy(
        space=space.name, words=V, width=D, mean_cosine=float(cos_J.mean()), sd_cosine=float(cos_J.std()),
        sd_by_law=D**-0.5, sd_of_random=float(random_J.std()),
        nearly_orthogonal=float((np.abs(cos_J) < near).mean()),
        nearly_orthogonal_of_random=float((np.abs(random_J) < near).mean()),
        partition=float(z_X.min() / z_X.max()), first_component=float(variance_D[-1] / variance_D.sum()),
        effective_dimensions=float(variance_D.sum() ** 2 / (variance_D**2).sum()), cosines=cos_J,
    )  # fmt: skip


def _between(unit_WD: np.ndarray) -> np.ndarray:
    """The cosine of each two different vectors, [J]."""
    return (unit_WD @ unit_WD.T)[np.triu_indices(len(unit_WD), 1)]


# --- for the command, and figures ------------------------------------------------------------------------------------
def run(m: Trained | Space, o: Options) -> Report:
    """Measure every space, and draw what the first shows (isotropy: all of them)."""
    groups, sections = o.read()
    words = [word for section in sections for word in section.words]
    words += [word for some in groups.values() for word in some]
    spaces = o.spaces(m, o.space, words)
    match o.what:
        case "clusters":
            found = [clusters(space, groups, case=o.case, seed=o.seed) for space in spaces]
            return _report(o, found, clusters_tables, lambda out: draw_map(
                principal_map(spaces[0], words), out, groups=groups))  # fmt: skip
        case "directions":
            each = [directions(space, sections, case=o.case) for space in spaces]
            found = [one for some in each for one in some]
            return _report(o, found, directions_tables, lambda out: draw_directions(each[0], out))
        case "map":
            found = [principal_map(space, words, case=o.case) for space in spaces]
            pairs = [pair for section in sections for pair in section.one_way]
            return _report(o, found, map_tables, lambda out: draw_map(found[0], out, pairs=pairs))
        case _:
            found = [isotropy(space, restrict=o.restrict, seed=o.seed) for space in spaces]
            return _report(o, found, isotropy_tables, lambda out: draw_isotropy(found, out))


def _report(o: Options, found: Sequence, tables, draw) -> Report:
    """Put together what was found in each space."""
    rows = [one.to_json() if o.what == "isotropy" else dataclasses.asdict(one) for one in found]
    return Report({o.what: rows}, tables(found), draw)


def clusters_tables(found: Sequence[Clusters]) -> list:
    """A row for each space, then the words of each cluster."""
    columns = {
        "space": "space", "kept": "words", "dropped": "dropped", "purity": "purity", "purity_by_chance": "by chance",
        "silhouette": "silhouette", "silhouette_of_groups": "of the groups",
    }  # fmt: skip
    lists = [f"{c.space} {i + 1}: {' '.join(words)}" for c in found for i, words in enumerate(c.clusters)]
    return [records_table(columns, found), "", *lists]


def directions_tables(found: Sequence[Direction]) -> list:
    """A row for each direction in each space."""
    columns = {
        "space": "space", "name": "direction", "kept": "pairs", "dropped": "dropped", "ordered": "in order",
        "separated": "on their side", "explained": "explained", "explained_by_chance": "by chance",
    }  # fmt: skip
    return [records_table(columns, found, left=2), "each pair held out in turn; in order by chance: 0.500"]


def map_tables(found: Sequence[Map]) -> list:
    """A row for each word in each space."""
    rows = [(m.space, word, *place) for m in found for word, place in zip(m.words, m.places, strict=True)]
    return [table(("space", "word", "first", "second"), rows, left=2)]


def isotropy_tables(found: Sequence[Isotropy]) -> list:
    """A row for each space."""
    columns = {
        "space": "space", "words": "words", "width": "D", "mean_cosine": "mean cosine", "sd_cosine": "sd",
        "sd_by_law": "1/√D", "sd_of_random": "sd of random", "nearly_orthogonal": "within 2/√D",
        "nearly_orthogonal_of_random": "of random", "partition": "min Z/max Z", "first_component": "first component",
        "effective_dimensions": "effective D",
    }  # fmt: skip
    return [records_table(columns, found)]


def draw_directions(found: Sequence[Direction], out: Path) -> Path:
    """Draw where both words of each held-out pair lie along the direction that the others taught."""
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
    return out


def draw_isotropy(found: Sequence[Isotropy], out: Path) -> Path:
    """Draw how cosines of two words are distributed, and how random directions' are."""
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
    return out
