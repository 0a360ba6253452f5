"""The compute-optimal frontier without a formula for the loss: Hoffmann et al. 2022, approaches 1 and 2.

Both find N* of the lowest loss at each of several budgets C and fit ln N* = ln N0 + a ln C. Approach 2 takes the bottom
of a valley of equal budgets, by Akima interpolation (Porian et al. 2024) or a parabola; approach 1 the envelope of the
loss curves of the model sizes.
"""

import dataclasses
import warnings as python_warnings

import numpy as np

from lm.errors import UserError, require
from lm.scaling.law import Estimate, Law
from lm.scaling.points import Points

APPROACHES = {"isoflop": "approach 2", "frontier": "approach 1"}
CLUSTERS = ("point", "run", "noise")
VALLEYS = ("akima", "quadratic", "quadratic-all")
WINDOW = 3
"""Points on either side of the lowest that a windowed parabola takes: over a wide range a valley is no parabola."""


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The bottom of one budget's valley: logarithms of C, N*, D*, and the loss there."""

    flops: float
    params: float
    tokens: float
    loss: float


class Frontier(Law):
    """N* = N0 C^a and D* = D0 C^b; it says nothing of the loss elsewhere."""

    def predict(self, *_, **__):
        raise UserError(f"{self.name} fits where the loss is lowest, not the loss; fit --law chinchilla to predict")

    predict_interval = predict

    def exponents(self) -> dict[str, Estimate]:
        return {name: self.parameters[name] for name in "ab"}

    def optimum(self, flops) -> dict[str, np.ndarray]:
        c = np.log(np.atleast_1d(np.asarray(flops, np.float64)))
        p, tails = self.values(), [50 * (1 - self.level), 50 * (1 + self.level)]
        found = {}
        for name, scale, power in (("params", "N0", "a"), ("tokens", "D0", "b")):
            found[name] = np.exp(np.log(p[scale]) + p[power] * c)
            if not len(self.draws[power]):
                continue
            drawn_RF = np.log(self.draws[scale])[:, None] + self.draws[power][:, None] * c
            found[f"{name}_low"], found[f"{name}_high"] = np.exp(np.percentile(drawn_RF, tails, axis=0))
        return found


def budgets(points: Points, tolerance: float = 0.1) -> list[np.ndarray]:
    """Indices of points of about equal FLOPs, ordered by N: every ln C within `tolerance` of its group's median.

    Groups end where ln C jumps by more than that, and, where budgets lie so close that they would chain, from the
    smallest on as soon as the next would be too far from the middle of its group.
    """
    order = np.argsort(points.flops)
    log_c = np.log(points.flops[order])
    starts = [0]
    for i in range(1, len(order)):
        group = log_c[starts[-1] : i + 1]
        far = np.abs(group - np.median(group)).max() > tolerance
        if far or log_c[i] - log_c[i - 1] > tolerance:
            starts.append(i)
    groups = np.split(order, starts[1:])
    return [group[np.argsort(points.params[group])] for group in groups]


def bottom(n: np.ndarray, loss: np.ndarray, valley: str) -> float | None:
    """ln N of the lowest loss of one budget, or None where the points do not bracket it. n = ln N, ascending.

    akima: of ln L on a grid of 25 values a gap; quadratic: a parabola of L through at most WINDOW neighbours on either
    side of the lowest; quadratic-all: through all.
    """
    n, first = np.unique(n, return_index=True)
    loss = loss[first]
    lowest = int(np.argmin(loss))
    if len(n) < (4 if valley == "akima" else 3):
        return None
    if valley == "akima":
        from scipy.interpolate import Akima1DInterpolator  # slow to import, and seldom needed

        fine = np.linspace(n[0], n[-1], 25 * (len(n) - 1))
        at = int(np.argmin(Akima1DInterpolator(n, np.log(loss))(fine)))
        return float(fine[at]) if 0 < at < len(fine) - 1 else None
    if lowest in (0, len(n) - 1):
        return None
    near = slice(None) if valley == "quadratic-all" else slice(max(lowest - WINDOW, 0), lowest + WINDOW + 1)
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore", np.exceptions.RankWarning)
        bend, slope, _ = np.polyfit(n[near] - n[lowest], loss[near], 2)
    centre = n[lowest] - slope / (2 * bend) if bend > 0 else np.inf
    return float(centre) if n[0] <= centre <= n[-1] else None


def valley_of(points: Points, group: np.ndarray, valley: str) -> Optimum | None:
    """The bottom of the valley of one budget's points, where they bracket it."""
    n, loss = np.log(points.params[group]), points.loss[group]
    centre = bottom(n, loss, valley)
    if centre is None:
        return None
    others = np.log(points.flops[group]), n, np.log(points.tokens[group]), loss
    return Optimum(*(float(np.interp(centre, n, of)) for of in others))


def valleys(points: Points, valley: str, tolerance: float = 0.1) -> list[Optimum]:
    """Approach 2: the bottom of every budget that has one. valley: one of VALLEYS."""
    require(valley in VALLEYS, f"--valley {valley}: one of {', '.join(VALLEYS)}")
    found = [valley_of(points, group, valley) for group in budgets(points, tolerance)]
    return [optimum for optimum in found if optimum is not None]


def envelope(points: Points, levels: np.ndarray) -> list[Optimum | None]:
    """Approach 1: at each ln C of `levels` the size whose loss curve, interpolated in ln C, is lowest.

    Only points trained to the end of their schedule make a curve; checkpoints on the way down a cosine do not. None
    where the lowest is the smallest or the largest size: what lies beyond is not known.
    """
    curves = []
    for n in np.unique(points.params):
        rows = np.flatnonzero(points.params == n)
        rows = rows[np.argsort(points.flops[rows])]
        if len(rows) > 1:
            curves.append((np.log(n), *(np.log(of[rows]) for of in (points.flops, points.loss, points.tokens))))

    def lowest(level: float) -> Optimum | None:
        reach = [
            (float(np.interp(level, c, loss)), n, float(np.interp(level, c, d)))
            for n, c, loss, d in curves
            if c[0] <= level <= c[-1]
        ]
        if len(reach) < 3 or min(reach)[1] in (reach[0][1], reach[-1][1]):
            return None
        loss, n, d = min(reach)
        return Optimum(float(level), float(n), d, float(np.exp(loss)))

    return [lowest(level) for level in levels]


def regress(optima: list[Optimum], sd: np.ndarray | None = None) -> dict[str, float]:
    """a, b, N0, D0 by least squares on logarithms, weighted by 1/sd^2 of ln N* where that is known."""
    c, n, d = (np.array([getattr(o, name) for o in optima]) for name in ("flops", "params", "tokens"))
    weight = None if sd is None else 1 / np.asarray(sd)  # polyfit squares its weights
    a, log_n0 = np.polyfit(c, n, 1, w=weight)
    b, log_d0 = np.polyfit(c, d, 1, w=weight)
    return {"a": float(a), "b": float(b), "N0": float(np.exp(log_n0)), "D0": float(np.exp(log_d0))}


def fit_frontier(
    points: Points, law: str = "isoflop", *, valley: str = "akima", bootstraps: int = 1000, cluster: str = "point",
    level: float = 0.9, seed: int = 42,
) -> Frontier:  # fmt: skip
    """Approach 2 ("isoflop") or 1 ("frontier"), with intervals by the percentiles of resamples.

    cluster "noise" draws each loss anew by its sd (Porian et al. 2024); "point" resamples the points of each budget;
    "run" whole runs. Budgets weigh by 1/variance of their ln N* among the resamples.
    """
    require(law in APPROACHES, f"--law {law}: one of {', '.join(APPROACHES)}")
    require(valley in VALLEYS, f"--valley {valley}: one of {', '.join(VALLEYS)}")
    groups, find = _approach(points, law, valley)
    found = find(points, groups)
    at = [i for i, optimum in enumerate(found) if optimum is not None]
    require(
        len(at) >= 3,
        f"{law}: only {len(at)} of {len(found)} budgets have a lowest loss that points on both sides bracket; it takes "
        "3 for an exponent, and more sizes at each budget",
    )
    require(
        _several_sizes([found[i] for i in at], law),
        "frontier: fewer than 3 sizes make the envelope, too few for an exponent: train more sizes, or a wider range "
        "of budgets",
    )
    random = np.random.RandomState(seed)
    drawn = [find(*_resample(points, groups, cluster, random)) for _ in range(bootstraps)]
    n_RG = np.array([[np.nan if optimum is None else optimum.params for optimum in of] for of in drawn])
    sd_G = _scatter(n_RG, len(found))
    weigh = lambda which: None if sd_G is None else sd_G[which]  # noqa: E731
    values = regress([found[i] for i in at], weigh(at))
    draws = []
    for of in drawn:
        which = [i for i in at if of[i] is not None]
        if len(which) >= 3 and _several_sizes([of[i] for i in which], law):
            draws.append(regress([of[i] for i in which], weigh(which)))
    draws = {name: np.array([draw[name] for draw in draws]) for name in values}
    estimates = {name: _estimate(values[name], draws[name], level) for name in values}
    optima = [found[i] for i in at]
    rest = [o.params - np.log(values["N0"]) - values["a"] * o.flops for o in optima]
    return Frontier(
        name=law, formula="N* = N0 C^a, D* = D0 C^b", source=f"Hoffmann et al. 2022, {APPROACHES[law]}",
        method=valley if law == "isoflop" else "envelope", level=level, parameters=estimates, derived={},
        objective=float(np.sum(np.square(rest))), points=len(points),
        dropped=0 if points.dropped is None else len(points.dropped), conventions=points.conventions,
        identifiable={name: _verdict(e) for name, e in estimates.items()},
        warnings=_warnings(points, law, valley, len(at), len(found)), condition=_condition(optima), starts={},
        scatter=float(np.std(rest)), data=points, draws=draws, alternatives=_alternatives(points, optima),
    )  # fmt: skip


def _approach(points: Points, law: str, valley: str):
    """The groups of rows to look at, and find(points, groups) -> one Optimum or None for each budget."""
    if law == "isoflop":
        return budgets(points), lambda some, groups: [valley_of(some, group, valley) for group in groups]
    counts = np.unique(points.params, return_counts=True)[1]
    require(
        (counts > 1).sum() > 2,
        f"approach 1 needs at least 3 sizes trained to several budgets each; there are {(counts > 1).sum()}",
    )
    levels = np.linspace(*np.log([points.flops.min(), points.flops.max()]), 42)[1:-1]
    return [np.arange(len(points))], lambda some, groups: envelope(some.where(groups[0]), levels)


def _several_sizes(optima: list[Optimum], law: str) -> bool:
    """An envelope knows no sizes but those trained, however many budgets it is looked at."""
    return law != "frontier" or len({round(o.params, 9) for o in optima}) >= 3


def _resample(points: Points, groups: list[np.ndarray], cluster: str, random: np.random.RandomState):
    require(cluster in CLUSTERS, f"--cluster {cluster}: one of {', '.join(CLUSTERS)}")
    if cluster == "noise":
        require(
            points.sd is not None, "--cluster noise needs the seed noise of each point: --sd-column or --seed-noise"
        )
        noisy = points.loss * np.exp(points.sd / points.loss * random.standard_normal(len(points)))
        return dataclasses.replace(points, loss=noisy), groups
    if cluster == "run":
        require(points.run is not None, "--cluster run needs to know each point's run: --run-column")
        names = np.unique(points.run)
        chosen = np.isin(points.run, random.choice(names, len(names)))
        return points, [group[chosen[group]] for group in groups]
    drawn = [np.isin(group, random.choice(group, len(group))) for group in groups]
    return points, [group[kept] for group, kept in zip(groups, drawn, strict=True)]


def _scatter(n_RG: np.ndarray, budgets: int) -> np.ndarray | None:
    """Standard deviation of each budget's ln N*, at least a tenth of the median: a grid's step is no certainty."""
    if len(n_RG) < 10:
        return None
    often = np.isfinite(n_RG).sum(0) > len(n_RG) / 4
    sd_G = np.array([np.nanstd(n_RG[:, i]) if often[i] else np.nan for i in range(budgets)])
    if not (np.nan_to_num(sd_G) > 0).any():
        return None
    typical = np.nanmedian(sd_G[sd_G > 0])
    return np.maximum(np.where(np.isfinite(sd_G), sd_G, np.nanmax(sd_G)), 0.1 * typical)


def _estimate(value: float, drawn: np.ndarray, level: float) -> Estimate:
    if len(drawn) < 10:
        return Estimate(value, None, None, None)
    low, high = np.percentile(drawn, [50 * (1 - level), 50 * (1 + level)])
    return Estimate(value, float(np.std(drawn)), float(low), float(high))


def _condition(optima: list[Optimum]) -> float:
    c = np.array([o.flops for o in optima])
    return float(np.linalg.cond(np.stack([np.ones_like(c), (c - c.mean()) / len(c)], 1)))


def _alternatives(points: Points, optima: list[Optimum]) -> dict[str, float]:
    """The exponent a by each way to find the bottoms, unweighted: how much the choice of window decides."""
    found = {"as reported, unweighted": regress(optima)["a"]}
    for valley in VALLEYS:
        bottoms = valleys(points, valley)
        if len(bottoms) >= 3:
            found[valley] = regress(bottoms)["a"]
    return found


def _verdict(e: Estimate) -> str:
    if e.se is None:
        return "unknown: no resamples"
    return "yes" if e.high / e.low < 20 else f"weakly: the interval spans a factor of {e.high / e.low:.0f}"


def _warnings(points: Points, law: str, valley: str, found: int, budgets: int) -> list[str]:
    said = []
    if law == "isoflop" and found < budgets:
        said.append(f"{budgets - found} of {budgets} budgets were left out: their lowest loss is at an end")
    if found < 5:
        said.append(f"few budgets: {found}")
    if valley == "quadratic-all" and law == "isoflop":
        said.append("a parabola through the whole range is biased where a valley is lopsided; compare with the others")
    if points.dropped is not None:
        said.append(f"{len(points.dropped)} points were dropped ({points.dropped_why})")
    return said
