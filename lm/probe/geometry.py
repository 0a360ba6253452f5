"""The shape of a space: do groups cluster, is a relation one direction, is the room used evenly? Each beside chance."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.cluster.vq import kmeans2

from lm.errors import require
from lm.probe.index import ABSENT, Index
from lm.probe.questions import Section
from lm.probe.spaces import Space

SAMPLE = 2048
"""Words whose cosines with each other are measured, at most."""


def found(space: Space, words: Sequence[str], case: str = "fold") -> tuple[list[str], np.ndarray]:
    """Those of the words that the space has, and their unit vectors [W, D]."""
    index = Index(space, case=case)
    words = [word for word in words if index.key(word) != ABSENT]
    return words, index.vectors(np.array([index.key(word) for word in words], np.int64))


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
    """Of the clusters found, by cosine distance (Rousseeuw 1987)."""
    silhouette_of_groups: float
    kept: int
    dropped: int


def clusters(
    space: Space, groups: Mapping[str, Sequence[str]], *, case: str = "fold", seed: int = 0, restarts: int = 10
) -> Clusters:
    """As many clusters as groups; the best of several k-means++ starts. Raises UserError with fewer than two groups."""
    asked = sum(map(len, groups.values()))
    some = {name: found(space, words, case) for name, words in groups.items()}
    some = {name: (words, x_WD) for name, (words, x_WD) in some.items() if words}
    words = [word for one, _ in some.values() for word in one]
    require(
        len(some) >= 2 and len(words) > len(some),
        f"{len(some)} groups with {len(words)} words in space {space.name}: give at least two groups, and more words",
    )
    x_WD = np.concatenate([x for _, x in some.values()]).astype(np.float64)
    truth_W = np.repeat(np.arange(len(some)), [len(one) for one, _ in some.values()])
    label_W = _kmeans(x_WD, len(some), seed, restarts)
    random = np.random.default_rng(seed)
    chance = np.mean([purity(label_W, random.permutation(truth_W)) for _ in range(200)])
    distance_WW = 1 - x_WD @ x_WD.T
    return Clusters(
        space.name, [[words[i] for i in np.flatnonzero(label_W == label)] for label in range(len(some))],
        purity(label_W, truth_W), float(chance), silhouette(distance_WW, label_W), silhouette(distance_WW, truth_W),
        len(words), asked - len(words),
    )  # fmt: skip


def _kmeans(x_WD: np.ndarray, k: int, seed: int, restarts: int) -> np.ndarray:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # a start that loses a cluster does not win
        runs = [kmeans2(x_WD, k, minit="++", seed=seed + i) for i in range(restarts)]
    return min(runs, key=lambda run: ((x_WD - run[0][run[1]]) ** 2).sum())[1]


def purity(label_W: np.ndarray, truth_W: np.ndarray) -> float:
    table = np.zeros((label_W.max() + 1, truth_W.max() + 1), int)
    np.add.at(table, (label_W, truth_W), 1)
    return float(table.max(1).sum() / len(label_W))


def silhouette(distance_WW: np.ndarray, label_W: np.ndarray) -> float:
    """Mean of (b - a) / max(a, b): a, mean distance to one's own cluster, b to the next; 0 for a cluster of one."""
    member_WC = (label_W[:, None] == np.unique(label_W)).astype(float)
    size_C = member_WC.sum(0)
    own = member_WC.argmax(1), np.arange(len(label_W))
    mean_CW = (distance_WW @ member_WC / size_C).T
    a_W = mean_CW[own] * size_C[own[0]] / np.maximum(size_C[own[0]] - 1, 1)  # one's distance to oneself is zero
    mean_CW[own] = np.inf
    b_W = mean_CW.min(0)
    most_W = np.maximum(a_W, b_W)
    return float(np.where((size_C[own[0]] > 1) & (most_W > 0), (b_W - a_W) / np.where(most_W > 0, most_W, 1), 0).mean())


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
    """Of each pair's words on the direction that the others taught, from the middle."""


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
            keys_P2 = np.array([[index.key(word) for word in pair] for pair in known])
            learned.append(_direction(index, section.name, known, keys_P2, len(pairs) - len(known)))
    require(bool(learned), f"no section has three pairs in space {space.name} (words of several tokens: --pieces mean)")
    return learned


def _direction(index: Index, name: str, pairs, keys_P2: np.ndarray, dropped: int) -> Direction:
    a_PD, b_PD = (index.vectors(keys).astype(np.float64) for keys in keys_P2.T)
    offset_PD = b_PD - a_PD
    place_P2, explained = np.empty(keys_P2.shape), 0.0
    for p in range(len(pairs)):
        others = np.arange(len(pairs)) != p
        axis_D = np.linalg.svd(offset_PD[others], full_matrices=False)[2][0]
        axis_D *= 1 if (offset_PD[others] @ axis_D).sum() >= 0 else -1
        middle = ((a_PD[others] + b_PD[others]) @ axis_D).mean() / 2
        place_P2[p] = a_PD[p] @ axis_D - middle, b_PD[p] @ axis_D - middle
        explained += (offset_PD[p] @ axis_D) ** 2
    ordered, sides_P2 = place_P2[:, 1] > place_P2[:, 0], place_P2 * [-1, 1] > 0
    return Direction(
        index.space.name, name, len(pairs), dropped, float(ordered.mean()), float(sides_P2.mean()),
        float(explained / max((offset_PD**2).sum(), 1e-30)), 1 / a_PD.shape[1], pairs,
        [tuple(row) for row in place_P2.tolist()],
    )  # fmt: skip


# --- maps ------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Map:
    """Words in the plane that shows most of their variance."""

    space: str
    words: list[str]
    places: list[tuple[float, float]]
    shares: tuple[float, float]
    """Of the variance, along each axis."""
    dropped: list[str]


def principal_map(space: Space, words: Sequence[str], *, case: str = "fold") -> Map:
    """Principal components of the words' unit vectors. Raises UserError with fewer than three known words."""
    words = list(dict.fromkeys(words))
    known, x_WD = found(space, words, case)
    require(
        len(known) >= 3, f"{len(known)} of {len(words)} words are in space {space.name}: a map needs at least three"
    )
    u_WD, spread_D, _ = np.linalg.svd(x_WD - x_WD.mean(0), full_matrices=False)
    places_W2 = u_WD[:, :2] * spread_D[:2]
    places_W2 *= np.where(
        places_W2[np.abs(places_W2).argmax(0), [0, 1]] < 0, -1, 1
    )  # a sign that does not depend on LAPACK
    shares = spread_D[:2] ** 2 / max((spread_D**2).sum(), 1e-30)
    dropped = [word for word in words if word not in known]
    return Map(space.name, known, [tuple(p) for p in places_W2.tolist()], tuple(shares.tolist()), dropped)


# --- isotropy --------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Isotropy:
    """How evenly words fill the room, beside random vectors of the same shape."""

    space: str
    words: int
    width: int
    mean_cosine: float
    """Of two words; 0 for random directions."""
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
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "cosines"}


def isotropy(space: Space, *, restrict: int | None = None, seed: int = 0) -> Isotropy:
    """Of all words (or the first `restrict`); cosines between at most SAMPLE of them, drawn at random."""
    index, random = Index(space, restrict=restrict), np.random.default_rng(seed)
    V, D = index.unit_VD.shape
    require(V >= 3, f"{V} words in space {space.name}: isotropy needs at least three")
    chosen = random.choice(V, min(V, SAMPLE), replace=False)
    cos_C = _between(index.unit_VD[chosen])
    gauss_CD = random.standard_normal((len(chosen), D)).astype(np.float32)
    random_C = _between(gauss_CD / np.linalg.norm(gauss_CD, axis=1, keepdims=True))
    moment_DD = index.unit_VD.astype(np.float64).T @ index.unit_VD / V
    axes_DD = np.linalg.eigh(moment_DD)[1]
    z_D = np.concatenate([np.exp(s * (index.unit_VD @ axes_DD)).sum(0) for s in (1, -1)])
    mean_D = index.unit_VD.mean(0, dtype=np.float64)
    variance_D = np.maximum(np.linalg.eigvalsh(moment_DD - np.outer(mean_D, mean_D)), 1e-30)
    near = 2 / np.sqrt(D)
    return Isotropy(
        space.name, V, D, float(cos_C.mean()), float(cos_C.std()), D**-0.5, float(random_C.std()),
        float((np.abs(cos_C) < near).mean()), float((np.abs(random_C) < near).mean()), float(z_D.min() / z_D.max()),
        float(variance_D[-1] / variance_D.sum()), float(variance_D.sum() ** 2 / (variance_D**2).sum()), cos_C,
    )  # fmt: skip


def _between(unit_WD: np.ndarray) -> np.ndarray:
    """The cosine of each two different vectors."""
    return (unit_WD @ unit_WD.T)[np.triu_indices(len(unit_WD), 1)]
