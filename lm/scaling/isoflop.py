"""The compute-optimal frontier without a formula for the loss: Hoffmann et al. 2022, approaches 1 and 2.

Both find N* of the lowest loss at each of several budgets C and fit ln N* = ln N0 + a ln C. Approach 2 takes the bottom of
a valley of equal budgets, by Akima interpolation (Porian et al. 2024) or a parabola; approach 1 the envelope of the loss
curves of the model sizes.
"""

import dataclasses
import warnings as python_warnings

import numpy as np

from lm.errors import UserError, require
from lm.scaling.law import Estimate, Law
from lm.scaling.points import Points

VALLEYS = ("akima", "quadratic", "quadratic-all")
WINDOW = 3
"""Points on either side of the lowest that a windowed parabola takes: over a wide range a valley is no parabola."""


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The bottom of one budget's valley: logarithms of C, N*, D*; the loss; how N* scatters (or None)."""

    flops: float
    params: float
    tokens: float
    loss: float
    sd: float | None = None


class Frontier(Law):
    """N* = N0 C^a and D* = D0 C^b; it says nothing of the loss elsewhere."""

    def predict(self, *_, **__):
        raise UserError(f"{self.name} fits where the loss is lowest, not the loss; fit --law chinchilla to predict")

    predict_interval = predict

    def optimum(self, flops) -> dict[str, np.ndarray]:
        c = np.log(np.atleast_1d(np.asarray(flops, np.float64)))
        p, tails = self.values(), [50 * (1 - self.level), 50 * (1 + self.level)]
        found = {}
        for name, scale, power in (("params", "N0", "a"), ("tokens", "D0", "b")):
            drawn_RF = np.log(self.draws[scale])[:, None] + self.draws[power][:, None] * c
            found[name] = np.exp(np.log(p[scale]) + p[power] * c)
            found[f"{name}_low"], found[f"{name}_high"] = np.exp(np.percentile(drawn_RF, tails, axis=0))
        return found


def budgets(points: Points, tolerance: float = 0.1) -> list[np.ndarray]:
    """Indices of points of about the same FLOPs, ordered by N: split where sorted ln C jumps by more than `tolerance`."""
    order = np.argsort(points.flops)
    groups = np.split(order, np.flatnonzero(np.diff(np.log(points.flops[order])) > tolerance) + 1)
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


def valleys(points: Points, valley: str, tolerance: float = 0.1) -> list[Optimum]:
    """The bottom of every budget that has one. valley: one of VALLEYS."""
    require(valley in VALLEYS, f"--valley {valley}: one of {', '.join(VALLEYS)}")
    found = []
    for group in budgets(points, tolerance):
        n, d = np.log(points.params[group]), np.log(points.tokens[group])
        centre = bottom(n, points.loss[group], valley)
        if centre is not None:
            c, loss = np.log(points.flops[group]), points.loss[group]
            found.append(Optimum(*(float(np.interp(centre, n, of)) for of in (c, n, d, loss))))
    return found


def envelope(points: Points, levels: int = 40) -> list[Optimum]:
    """Approach 1: at each of `levels` budgets the size whose loss curve, interpolated in ln C, is lowest.

    Only points trained to the end of their schedule make a curve; checkpoints on the way down a cosine do not.
    """
    curves = {}
    for n in np.unique(points.params):
        rows = np.flatnonzero(points.params == n)
        if len(rows) > 1:
            curves[float(n)] = rows[np.argsort(points.flops[rows])]
    require(len(curves) > 2, f"approach 1 needs at least 3 sizes trained to several budgets each; there are {len(curves)}")
    c_all = np.log(np.concatenate([points.flops[rows] for rows in curves.values()]))
    found = []
    for c in np.linspace(c_all.min(), c_all.max(), levels + 2)[1:-1]:
        reach = {}
        for n, rows in curves.items():
            of = np.log(points.flops[rows])
            if of[0] <= c <= of[-1]:
                loss, d = (np.interp(c, of, np.log(column[rows])) for column in (points.loss, points.tokens))
                reach[n] = (np.exp(loss), d)
        if len(reach) > 2:
            best = min(reach, key=lambda n: reach[n][0])
            if min(reach) < best < max(reach):
                found.append(Optimum(c, np.log(best), reach[best][1], reach[best][0]))
    return found


def regress(optima: list[Optimum], sd: np.ndarray | None = None) -> dict[str, float]:
    """a, N0, b, D0 by least squares on logarithms, weighted by 1/sd^2 of ln N* where that is known."""
    c, n, d = (np.array([getattr(o, name) for o in optima]) for name in ("flops", "params", "tokens"))
    weight = None if sd is None else 1 / np.asarray(sd)  # polyfit squares its weights
    a, log_n0 = np.polyfit(c, n, 1, w=weight)
    b, log_d0 = np.polyfit(c, d, 1, w=weight)
    return {"a": float(a), "b": float(b), "N0": float(np.exp(log_n0)), "D0": float(np.exp(log_d0))}


def fit_frontier(
    points: Points, law: str = "isoflop", *, valley: str = "akima", bootstraps: int = 1000, cluster: str = "point",
    level: float = 0.9, seed: int = 42, sd: np.ndarray | None = None,
) -> Frontier:  # fmt: skip
    """Approach 2 ("isoflop") or 1 ("frontier") with intervals by resampling.

    cluster "noise" draws each loss anew by its sd (Porian et al. 2024); "point" resamples the points of each budget;
    "run" whole runs. sd: standard deviations of ln N* to weight the budgets by; by default the resamples'.
    """
    find = (lambda some: valleys(some, valley)) if law == "isoflop" else envelope
    with_sd = law == "isoflop" and sd is None
    optima = find(points)
    groups = budgets(points)
    require(
        len(optima) >= 3,
        f"{law}: only {len(optima)} of {len(groups)} budgets have a valley whose bottom the points bracket; it takes 3 "
        "for an exponent. More sizes at each budget are needed",
    )
    random = np.random.RandomState(seed)
    resampled = [find(_resample(points, groups, cluster, random)) for _ in range(bootstraps)]
    at = {round(o.flops, 2): [] for o in optima}
    for drawn in resampled:
        for o in drawn:
            at.setdefault(round(o.flops, 2), []).append(o.params)
    spread_of = lambda o: float(np.std(at[round(o.flops, 2)])) if len(at[round(o.flops, 2)]) > 9 else np.nan  # noqa: E731
    if with_sd and bootstraps:
        floor = 1e-3
        sd = np.array([max(spread_of(o), floor) for o in optima])
        sd = np.where(np.isfinite(sd), sd, np.nanmax(sd)) if np.isfinite(sd).any() else None
    values = regress(optima, sd)
    by_budget = {} if sd is None else {round(o.flops, 2): s for o, s in zip(optima, sd, strict=True)}
    draws = []
    for drawn in resampled:
        kept = [o for o in drawn if not by_budget or round(o.flops, 2) in by_budget]
        if len(kept) >= 3:
            draws.append(regress(kept, np.array([by_budget[round(o.flops, 2)] for o in kept]) if by_budget else None))
    draws = {name: np.array([draw[name] for draw in draws]) for name in values}
    tails = [50 * (1 - level), 50 * (1 + level)]
    estimates = {
        name: Estimate(value, float(np.std(draws[name])), *map(float, np.percentile(draws[name], tails)))
        if len(draws[name]) > 9 else Estimate(value, None, None, None)
        for name, value in values.items()
    }  # fmt: skip
    c, n = (np.array([getattr(o, name) for o in optima]) for name in ("flops", "params"))
    rest = n - np.log(values["N0"]) - values["a"] * c
    return Frontier(
        name=law, formula="N* = N0 C^a, D* = D0 C^b", source=f"Hoffmann et al. 2022, approach {2 if law == 'isoflop' else 1}",
        method=valley if law == "isoflop" else "envelope", level=level, parameters=estimates, derived={},
        objective=float(np.sum(rest**2)), points=len(points), dropped=0 if points.dropped is None else len(points.dropped),
        conventions=points.conventions, identifiable={name: _verdict(e) for name, e in estimates.items()},
        warnings=_warnings(points, law, groups, optima), condition=float(np.linalg.cond(np.stack([np.ones_like(c), c - c.mean()], 1))),
        starts={}, scatter=float(np.std(rest)), data=points, draws=draws, alternatives=_alternatives(points, optima, law),
    )  # fmt: skip


def _resample(points: Points, groups: list[np.ndarray], cluster: str, random: np.random.RandomState) -> Points:
    if cluster == "noise":
        require(points.sd is not None, "--cluster noise needs the seed noise of each point: --sd-column or --seed-noise")
        noisy = points.loss * np.exp(points.sd / points.loss * random.standard_normal(len(points)))
        return dataclasses.replace(points, loss=noisy)
    if cluster == "run":
        require(points.run is not None, "--cluster run needs to know each point's run: --run-column")
        names = np.unique(points.run)
        return points.where(np.isin(points.run, random.choice(names, len(names))))
    return points.where(np.concatenate([np.unique(random.choice(group, len(group))) for group in groups]))


def _alternatives(points: Points, optima: list[Optimum], law: str) -> dict[str, float]:
    """The exponent a by every other way to find the bottoms, unweighted: what the choice of window decides."""
    found = {"as reported, unweighted": regress(optima)["a"]}
    for valley in VALLEYS:
        bottoms = valleys(points, valley)
        if len(bottoms) >= 3:
            found[valley] = regress(bottoms)["a"]
    return found


def _verdict(e: Estimate) -> str:
    if e.se is None:
        return "unknown: no resamples"
    wide = (e.high - e.low) > 0.5 * abs(e.value) and e.high / e.low > 20
    return f"weakly: from {e.low:.3g} to {e.high:.3g}" if wide else "yes"


def _warnings(points: Points, law: str, groups: list[np.ndarray], optima: list[Optimum]) -> list[str]:
    said = []
    if law == "isoflop" and len(optima) < len(groups):
        said.append(f"{len(groups) - len(optima)} of {len(groups)} budgets were left out: their lowest loss is at an end")
    if len(optima) < 5:
        said.append(f"few budgets: {len(optima)}")
    if points.dropped is not None:
        said.append(f"{len(points.dropped)} points were dropped ({points.dropped_why})")
    said.append("where alpha and beta differ, a parabola's N0 is biased though its a is not; chinchilla's is not biased")
    return said
