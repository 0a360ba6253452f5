"""The compute-optimal frontier without a formula for the loss: Hoffmann et al. 2022, approaches 1 and 2.

Both find N* of the lowest loss at each of several budgets C and fit ln N* = ln N0 + a ln C, every budget with the same
weight. Approach 2 takes the bottom of a valley of equal budgets, by a parabola or Akima interpolation (Porian et al.
2024); approach 1 the envelope of the loss curves of the model sizes.
"""

import dataclasses
import warnings as python_warnings
from collections.abc import Callable

import numpy as np
from scipy.special import stdtrit

from lm.errors import UserError, require
from lm.scaling.law import Estimate, Fitted, percentiles
from lm.scaling.points import Points
from lm.scaling.resampling import check_choice, check_resampling, redrawn_losses, resampled_counts
from lm.scaling.verdicts import bounded, consistent, verdict

APPROACHES = {"isoflop": "approach 2", "frontier": "approach 1"}
VALLEYS = ("quadratic", "akima", "quadratic-all")
"""The first is the default: on simulated tables it errs less than Akima at every noise, and less than the parabola
through everything where valleys are wide and lopsided (experiments/valleys.py)."""
SCALES = ("N0", "D0")
FEWEST, DRAWS = 10, 1000
"""Resamples below which there is no interval; draws of bands where no number was asked for."""
WINDOW = 3
"""Points on either side of the lowest that a windowed parabola takes: over a wide range a valley is no parabola."""
SAME_BUDGET = 0.1
"""Difference in ln C up to which points are of one budget."""
LEVELS = 40
"""Budgets, evenly spread in ln C, at which approach 1 looks at the envelope."""


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The bottom of one budget's valley: logarithms of C, N*, D*, and the loss there."""

    flops: float
    params: float
    tokens: float
    loss: float


class Frontier(Fitted):
    """N* = N0 C^a and D* = D0 C^b; it says nothing of the loss elsewhere."""

    def predict(self, *_, **__):
        """Refuse, as only a `Law` predicts losses."""
        raise UserError(f"{self.name} fits where the loss is lowest, not the loss; fit --law chinchilla to predict")

    def exponents(self) -> dict[str, Estimate]:
        """a and b of N* ~ C^a and D* ~ C^b."""
        return {name: self.parameters[name] for name in "ab"}

    def optimum(self, flops) -> dict[str, np.ndarray]:
        """params and tokens of the lowest loss at each budget, with `*_low` and `*_high` where there are draws."""
        c_X = np.log(np.atleast_1d(np.asarray(flops, np.float64)))
        p, found = self.values(), {}
        for name, scale, power in (("params", "N0", "a"), ("tokens", "D0", "b")):
            found[name] = np.exp(np.log(p[scale]) + p[power] * c_X)
            if len(self.draws[power]):
                drawn_RX = np.log(self.draws[scale])[:, None] + self.draws[power][:, None] * c_X
                found[f"{name}_low"], found[f"{name}_high"] = np.exp(percentiles(drawn_RX, self.level))
        return found


# --- approach 2: valleys of equal budgets ---------------------------------------------------------------------------
def budgets(points: Points) -> list[np.ndarray]:
    """Indices of points of about equal FLOPs, ordered by N: every ln C within SAME_BUDGET of its group's median.

    Groups end where ln C jumps by more than that, and, where budgets lie so close that they would chain, from the
    smallest on as soon as the next would be too far from the middle of its group.
    """
    order = np.argsort(points.flops)
    log_c = np.log(points.flops[order])
    starts = [0]
    for i in range(1, len(order)):
        group = log_c[starts[-1] : i + 1]
        middle = (group[(len(group) - 1) // 2] + group[len(group) // 2]) / 2  # the median: they ascend
        if max(group[-1] - middle, middle - group[0], log_c[i] - log_c[i - 1]) > SAME_BUDGET:
            starts.append(i)
    groups = np.split(order, starts[1:])
    return [group[np.argsort(points.params[group])] for group in groups]


def bottom(n: np.ndarray, loss: np.ndarray, valley: str) -> float | None:
    """ln N of the lowest loss of one budget, or None where the points do not bracket it. n = ln N, ascending.

    akima: of ln L on a grid of 25 values a gap; quadratic: a parabola of L through at most WINDOW neighbours on either
    side of the lowest; quadratic-all: through all.
    """
    n, which = np.unique(n, return_inverse=True)
    if len(n) < (4 if valley == "akima" else 3):
        return None
    loss = np.bincount(which, loss) / np.bincount(which)  # the mean of runs that differ in their seed
    lowest = int(np.argmin(loss))
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


def _valley(points: Points, group: np.ndarray, valley: str) -> Optimum | None:
    """The bottom of the valley of one budget's points, where they bracket it."""
    n, loss = np.log(points.params[group]), points.loss[group]
    centre = bottom(n, loss, valley)
    if centre is None:
        return None
    return Optimum(
        flops=float(np.interp(centre, n, np.log(points.flops[group]))), params=float(np.interp(centre, n, n)),
        tokens=float(np.interp(centre, n, np.log(points.tokens[group]))), loss=float(np.interp(centre, n, loss)),
    )  # fmt: skip


def valleys(points: Points, valley: str) -> list[Optimum]:
    """Approach 2: the bottom of every budget that has one. valley: one of VALLEYS."""
    check_choice("--valley", valley, VALLEYS)
    return _there(_valley(points, group, valley) for group in budgets(points))


def _there(found) -> list[Optimum]:
    return [optimum for optimum in found if optimum is not None]


# --- approach 1: the envelope of the sizes' curves ------------------------------------------------------------------
def envelope(points: Points, levels: np.ndarray) -> list[Optimum | None]:
    """Approach 1: at each ln C of `levels` the size whose loss curve, interpolated in ln C, is lowest.

    Only points trained to the end of their schedule make a curve; checkpoints on the way down a cosine do not. None
    where the lowest is the smallest or the largest size: what lies beyond is not known.
    """
    curves = []
    for params in np.unique(points.params):
        rows = np.flatnonzero(points.params == params)
        rows = rows[np.argsort(points.flops[rows])]
        if len(rows) > 1:
            c, loss, d = (np.log(values[rows]) for values in (points.flops, points.loss, points.tokens))
            curves.append((np.log(params), c, loss, d))

    def lowest(level: float) -> Optimum | None:
        reach = [
            (float(np.interp(level, c, loss)), n, float(np.interp(level, c, d)))
            for n, c, loss, d in curves
            if c[0] <= level <= c[-1]
        ]
        if len(reach) < 3 or min(reach)[1] in (reach[0][1], reach[-1][1]):
            return None
        loss, n, d = min(reach)
        return Optimum(flops=float(level), params=float(n), tokens=d, loss=float(np.exp(loss)))

    return [lowest(level) for level in levels]


# --- the line through the optima ------------------------------------------------------------------------------------
def regress(optima: list[Optimum], sd: np.ndarray | None = None) -> dict[str, float]:
    """a, b, N0, D0 by least squares on logarithms, weighted by 1/sd^2 of ln N* where a study has measured that."""
    c, n, d = (np.array([getattr(o, name) for o in optima]) for name in ("flops", "params", "tokens"))
    weight = None if sd is None else 1 / np.asarray(sd)  # polyfit squares its weights
    a, log_n0 = np.polyfit(c, n, 1, w=weight)
    b, log_d0 = np.polyfit(c, d, 1, w=weight)
    return {"a": float(a), "b": float(b), "N0": float(np.exp(log_n0)), "D0": float(np.exp(log_d0))}


@dataclasses.dataclass(frozen=True)
class Scatter:
    """What the budgets' own scatter about a straight line says of its coefficients [intercept, slope].

    covariance_KK: of the two; freedom_K: degrees of freedom of each one's t.
    """

    covariance_KK: np.ndarray
    freedom_K: np.ndarray


def scatter_about(c: np.ndarray, y: np.ndarray) -> Scatter:
    """The scatter of y about its least-squares line in c, where noise may differ between budgets; n > 2 of them.

    Residuals are divided by what the line leaves free of each (HC2, MacKinnon & White 1985), and Student's t has the
    degrees of freedom of Bell & McCaffrey 2002, which Imbens & Kolesar 2016 recommend for few observations.
    """
    X_nK = np.stack([np.ones_like(c), c - c.mean()], 1)  # centred, so that the two are not nearly collinear
    effect_Kn = np.linalg.pinv(X_nK)
    rest_nn = np.eye(len(c)) - X_nK @ effect_Kn
    free_n = np.maximum(np.diag(rest_nn), 1e-9)
    scaled_n = (rest_nn @ y) ** 2 / free_n
    back_KK = np.array([[1, -c.mean()], [0, 1]])  # to the intercept at c = 0
    effect_Kn = back_KK @ effect_Kn
    form_Knn = effect_Kn[:, :, None] / np.sqrt(free_n)[:, None] * rest_nn
    inner_Knn = form_Knn @ form_Knn.transpose(0, 2, 1)
    freedom_K = np.trace(inner_Knn, axis1=1, axis2=2) ** 2 / np.sum(inner_Knn**2, axis=(1, 2))
    return Scatter((effect_Kn * scaled_n) @ effect_Kn.T, freedom_K)


# --- the fit --------------------------------------------------------------------------------------------------------
def fit_frontier(
    points: Points, law: str = "isoflop", *, valley: str = VALLEYS[0], bootstraps: int = 1000, cluster: str = "point",
    level: float = 0.9, seed: int = 42,
) -> Frontier:  # fmt: skip
    """Approach 2 ("isoflop") or 1 ("frontier"), with intervals at `level`.

    The values do not depend on resamples. cluster "point": approach 2 takes intervals from the scatter of the bottoms
    about the line (`scatter_about`), approach 1 from resampled points, as its levels share them. cluster "noise" draws
    each loss anew by its sd (Porian et al. 2024) and "run" resamples whole runs; both report percentiles. bootstraps: 0
    takes the bottoms' scatter throughout; approach 1 has no intervals then. Raises UserError where fewer than three
    budgets have a bottom, and on options out of range.
    """
    check_choice("--law", law, APPROACHES)
    check_choice("--valley", valley, VALLEYS)
    check_resampling(points, bootstraps=bootstraps, cluster=cluster, level=level, seed=seed)
    groups, find = _approach(points, law, valley)
    found = find(points, groups)
    optima = _there(found)
    require(
        len(optima) >= 3,
        f"{law}: only {len(optima)} of {len(found)} budgets have a lowest loss that points on both sides bracket; it "
        "takes 3 for an exponent, and more sizes at each budget",
    )
    require(
        _several_sizes(optima, law),
        "frontier: fewer than 3 sizes make the envelope, too few for an exponent: train more sizes, or a wider range "
        "of budgets",
    )
    c = np.array([o.flops for o in optima])
    require(np.ptp(c) > 1e-3, f"{law}: the bottoms lie at one budget; train several")
    values = regress(optima)
    if law == "isoflop" and (cluster == "point" or not bootstraps):
        estimates, draws = _from_scatter(optima, values, level, bootstraps or DRAWS, seed)
    else:
        again = (find(*one) for one in _resamples(points, groups, bootstraps, cluster, seed))
        draws = _regressions(found, again, law)
        estimates = {name: _estimate(name, values[name], draws[name], level) for name in values}
    rest = [o.params - np.log(values["N0"]) - values["a"] * o.flops for o in optima]
    return Frontier(
        name=law, formula="N* = N0 C^a, D* = D0 C^b", source=f"Hoffmann et al. 2022, {APPROACHES[law]}",
        method=valley if law == "isoflop" else "envelope", level=level, parameters=estimates, derived={},
        objective=float(np.sum(np.square(rest))), points=len(points),
        dropped=0 if points.dropped is None else len(points.dropped), conventions=points.conventions,
        identifiable={name: _verdict(name, e) for name, e in estimates.items()},
        warnings=_warnings(points, law, valley, len(optima), len(found)),
        condition=float(np.linalg.cond(np.stack([np.ones_like(c), (c - c.mean()) / len(c)], 1))), starts={},
        scatter=float(np.std(rest)), data=points, draws=draws, alternatives=_alternatives(points, values["a"]),
    )  # fmt: skip


def _approach(points: Points, law: str, valley: str) -> tuple[list[np.ndarray], Callable]:
    """The groups of rows to look at, and find(points, groups) -> one Optimum or None for each budget."""
    if law == "isoflop":
        return budgets(points), lambda some, groups: [_valley(some, group, valley) for group in groups]
    counts = np.unique(points.params, return_counts=True)[1]
    require(
        (counts > 1).sum() > 2,
        f"approach 1 needs at least 3 sizes trained to several budgets each; there are {(counts > 1).sum()}",
    )
    levels = np.linspace(*np.log([points.flops.min(), points.flops.max()]), LEVELS + 2)[1:-1]
    return [np.arange(len(points))], lambda some, groups: envelope(some.where(groups[0]), levels)


def _several_sizes(optima: list[Optimum], law: str) -> bool:
    """Whether an envelope has three sizes: it knows none but those trained, at however many budgets one looks."""
    return law != "frontier" or len({round(o.params, 9) for o in optima}) >= 3


def _from_scatter(optima: list[Optimum], values: dict, level: float, count: int, seed: int):
    """Estimates with Student's t about the line of the bottoms, and draws of the same for bands."""
    c = np.array([o.flops for o in optima])
    random = np.random.RandomState(seed)
    estimates, draws = {}, {}
    for slope, scale, axis in (("a", "N0", "params"), ("b", "D0", "tokens")):
        s = scatter_about(c, np.array([getattr(o, axis) for o in optima]))
        centre_K, se_K = np.array([np.log(values[scale]), values[slope]]), np.sqrt(np.diag(s.covariance_KK))
        half_K = stdtrit(s.freedom_K, (1 + level) / 2) * se_K
        with np.errstate(over="ignore"):  # infinite then
            low, high = np.exp(centre_K[0] - half_K[0]), np.exp(centre_K[0] + half_K[0])
        estimates[slope] = Estimate(values[slope], float(se_K[1]), *(centre_K[1] + [-half_K[1], half_K[1]]).tolist())
        estimates[scale] = Estimate(values[scale], float(values[scale] * se_K[0]), float(low), float(high))
        heavy_R = np.sqrt(s.freedom_K[1] / random.chisquare(s.freedom_K[1], count))  # a normal over this is Student's t
        drawn_RK = centre_K + heavy_R[:, None] * random.multivariate_normal(np.zeros(2), s.covariance_KK, count)
        draws[scale], draws[slope] = np.exp(np.clip(drawn_RK[:, 0], -700, 700)), drawn_RK[:, 1]  # what floats hold
    return {name: _plausible(name, estimates[name], level) for name in values}, draws


def _resamples(points: Points, groups: list[np.ndarray], count: int, cluster: str, seed: int):
    """Points with other losses, or groups with fewer rows: a row that is drawn twice is there once."""
    if cluster == "noise":
        for loss_n in redrawn_losses(points, points.loss, count, seed):
            yield dataclasses.replace(points, loss=loss_n), groups
    else:
        for count_n in resampled_counts(points, groups, count, cluster, seed):
            yield points, [group[count_n[group] > 0] for group in groups]


def _regressions(found: list, again, law: str) -> dict[str, np.ndarray]:
    """a, b, N0, D0 of resamples' optima, of the budgets that have a bottom in the points themselves."""
    drawn = []
    for resample in again:
        optima = _there(there for here, there in zip(found, resample, strict=True) if here is not None)
        if len(optima) >= 3 and _several_sizes(optima, law):
            drawn.append(regress(optima))
    return {name: np.array([one[name] for one in drawn]) for name in ("a", "b", "N0", "D0")}


def _estimate(name: str, value: float, drawn: np.ndarray, level: float) -> Estimate:
    """The resamples' percentiles, stretched to the value where it lies outside; none of too few."""
    if len(drawn) < FEWEST:
        return Estimate(value, None, None, None)
    low, high = percentiles(drawn, level)
    e = Estimate(value, float(np.std(drawn)), min(float(low), value), max(float(high), value))
    return _plausible(name, e, level)


def _plausible(name: str, e: Estimate, level: float) -> Estimate:
    return consistent(bounded(e, positive=name in SCALES), level)


def _alternatives(points: Points, reported: float) -> dict[str, float]:
    """The exponent a by each way to find the bottoms: how much the choice of window decides."""
    found = {valley: valleys(points, valley) for valley in VALLEYS}
    return {"as reported": reported} | {name: regress(o)["a"] for name, o in found.items() if len(o) >= 3}


def _verdict(name: str, e: Estimate) -> str:
    return "unknown: no resamples, or too few" if e.low is None else verdict(e, positive=name in SCALES)


def _warnings(points: Points, law: str, valley: str, found: int, budgets: int) -> list[str]:
    said = points.doubts()
    if law == "isoflop" and found < budgets:
        said.append(f"{budgets - found} of {budgets} budgets were left out: their lowest loss is at an end")
    if found < 5:
        said.append(f"few budgets: {found}")
    if valley == "quadratic-all" and law == "isoflop":
        said.append("a parabola through the whole range is biased where a valley is lopsided; compare with the others")
    if points.dropped is not None:
        said.append(f"{len(points.dropped)} points were dropped ({points.dropped_why})")
    return said
