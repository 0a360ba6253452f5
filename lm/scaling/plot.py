"""Figures of a table of trained models and of the law fitted to it.

Each figure is a function (points, law) -> Figure that raises UserError, with the reason, where the table or the law
cannot carry it; law is None where none could be fitted. Labels name the convention that points were counted by.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lm.errors import UserError, require
from lm.figures import STYLE, save
from lm.scaling.drawing import (
    ABOVE,
    COLOURS,
    LOSS,
    QUANTITIES,
    colourbar,
    counted_by,
    finish,
    label,
    norm_of,
    reach,
    window,
)
from lm.scaling.fitting import fit_by_name
from lm.scaling.isoflop import VALLEYS, Optimum, budgets, valleys
from lm.scaling.law import Estimate, Fitted, Law, cost_of
from lm.scaling.points import Points
from lm.scaling.predictions import intervals_at
from lm.scaling.table import KNOWN

PUBLISHED = {"Hoffmann et al.": 0.50, "Kaplan et al.": 0.73}
"""Exponents a of N* = G C^a that the switch of conventions explains (Pearce & Song 2024)."""


def isoflop(points: Points, law: Fitted | None) -> plt.Figure:
    """Loss against N at each budget, with the law along it (or straight lines) and the bottoms of the valleys."""
    groups = [group for group in budgets(points) if len(np.unique(points.params[group])) >= 3]
    require(len(groups) >= 2, f"no equal budgets: {len(groups)} with three or more sizes at about the same FLOPs")
    norm, cost = norm_of(points.flops), cost_of(points)
    figure, axes = plt.subplots(layout="constrained")
    for group in groups:
        c = float(np.exp(np.log(points.flops[group]).mean()))
        colour, n = COLOURS(norm(c)), points.params[group]
        axes.plot(n, points.loss[group], "o", color=colour, markersize=4.5)
        if _shares_budgets(law):
            fine = np.geomspace(n.min() / 1.2, n.max() * 1.2, 80)
            axes.plot(fine, law.predict(fine, c / (cost[0] * fine ** (1 + cost[1]))), color=colour, linewidth=1.4)
        else:
            axes.plot(n, points.loss[group], color=colour, linewidth=1.2)
    found, valley = _valleys(points, law)
    if found:
        n, loss = np.exp([o.params for o in found]), [o.loss for o in found]
        axes.plot(n, loss, "*", color="black", markersize=11, zorder=3, label=f"lowest ({valley})")
    finish(axes, label(points, "params"), LOSS, logs="x")
    window(axes, points.loss[np.concatenate(groups)])
    colourbar(figure, axes, norm, label(points, "flops"))
    if _shares_budgets(law):
        axes.plot([], [], color="0.4", label=f"{law.name} fit")
    axes.legend(**ABOVE)
    return figure


def frontier(points: Points, law: Fitted | None) -> plt.Figure:
    """N* and D* against C, with the law's band and the bottoms of the valleys."""
    flops = reach(points.flops, beyond=10)
    best = _fitted(law).optimum(flops)
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    powers = law.exponents()
    for axes, name, power in zip(panels, ("params", "tokens"), "ab", strict=True):
        if f"{name}_low" in best:
            _fill(axes, flops, best[f"{name}_low"], best[f"{name}_high"], law)
        axes.plot(flops, best[name], color="C0", label=f"{law.name}: exponent {powers[power].value:.3f}")
        _bottoms(axes, points, law, operator.attrgetter(name))
        _beyond(axes, points)
        finish(axes, label(points, "flops"), f"compute-optimal\n{label(points, name)}", logs="xy", near=best[name])
        axes.legend()
    return figure


def losses(points: Points, law: Fitted | None) -> plt.Figure:
    """Loss against C, N and D with the law, and below each what the law leaves over.

    Curves: at the compute-optimal share against C, with both intervals of a new run as far as 10 times the largest
    compute, and against N or D at five values of the other.
    """
    predicts = isinstance(_fitted(law), Law) and law.form.target == "loss"
    require(predicts, f"{law.name} does not predict losses; fit --law chinchilla")
    rest = 100 * (points.loss / law.predict(**{name: points.column(name) for name in law.form.inputs}) - 1)
    lowest = points.loss.min()
    figure, panels = plt.subplots(
        2, 3, figsize=(13, 7.2), layout="constrained", sharex="col", sharey="row", height_ratios=(2, 1)
    )
    for (above, below), name in zip(panels.T, QUANTITIES, strict=True):
        by = {"flops": "params", "params": "tokens", "tokens": "params"}[name]
        norm = norm_of(points.column(by))
        colour = COLOURS(norm(points.column(by)))
        above.scatter(points.column(name), points.loss, c=colour, s=16)
        if name == "flops" and law.shares_budgets:
            lowest = draw_intervals(above, law, reach(points.flops, beyond=10))
        for x, loss, line, said in _curves(points, law, name, by):
            above.plot(x, loss, color=line, linewidth=1.3, label=said)
        below.scatter(points.column(name), rest, c=colour, s=12)
        below.axhline(0, color="black", linewidth=0.8)
        finish(above, "", LOSS if name == "flops" else "", logs="x")
        finish(below, label(points, name), "residual, %" if name == "flops" else "", logs="x")
        if above.get_legend_handles_labels()[1]:
            above.legend(loc="upper right", fontsize=11)
        colourbar(figure, above, norm, f"colour: {label(points, by)}", side="top")
    window(panels[0, 0], np.append(points.loss, lowest))
    return figure


def draw_intervals(axes, law: Law, flops: np.ndarray) -> float:
    """Both intervals of a new compute-optimal run along C; returns the lowest end of the one if the law holds."""
    best = law.optimum(flops)
    ends = intervals_at(law, flops=flops, params=best["params"], tokens=best["tokens"])
    if ends["calibrated_low"] is not None:
        wide, said = (ends["calibrated_low"], ends["calibrated_high"]), f"{law.level:.0%} of new runs, by hold-outs"
        axes.fill_between(flops, *wide, color="C1", alpha=0.2, linewidth=0, label=said)
    said = f"{law.level:.0%} of new runs, if the law holds"
    axes.fill_between(flops, ends["low"], ends["high"], color="C0", alpha=0.3, linewidth=0, label=said)
    return float(ends["low"].min())


def isoloss(points: Points, law: Fitted | None) -> plt.Figure:
    """Contours of the law's loss over N and D, the points it was fitted to, and the compute-optimal frontier."""
    require(_shares_budgets(_fitted(law)), f"{law.name} is no law of N and D alone; fit --law chinchilla")
    n, d = reach(points.params, beyond=3), reach(points.tokens, beyond=3)
    loss_DN = law.predict(n[None, :], d[:, None])
    figure, axes = plt.subplots(figsize=(7.6, 5.2), layout="constrained")
    low, high, floor = loss_DN.min(), min(loss_DN.max(), 1.2 * points.loss.max()), law.values().get("E", 0.0)
    # Evenly spaced in the logarithm of what can still be gained, as the contours then are on the page.
    gained = np.geomspace(max(high - floor, 1e-3), max(low - floor, 1e-3), 12)
    lines = axes.contour(n, d, loss_DN, levels=np.sort(gained + floor), cmap=COLOURS.reversed())
    for text in axes.clabel(lines, fmt="%.2f", fontsize=11, inline=False, colors="black"):
        text.set_bbox(dict(facecolor="white", edgecolor="none", pad=0.5, alpha=0.85))
    axes.plot(points.params, points.tokens, "o", color="0.35", markersize=3.5, alpha=0.7, label="trained models")
    best = law.optimum(reach(points.flops, beyond=100))
    axes.plot(best["params"], best["tokens"], color="C3", linewidth=2, label="compute-optimal")
    finish(axes, label(points, "params"), label(points, "tokens"), logs="xy")
    axes.set(xlim=(n[0], n[-1]), ylim=(d[0], d[-1]))
    axes.legend(title=f"contours: {LOSS}, by {law.name}", **ABOVE)
    return figure


def ratio(points: Points, law: Fitted | None) -> plt.Figure:
    """Compute-optimal tokens per parameter against C, with its band."""
    flops = reach(points.flops, beyond=10)
    best = _fitted(law).optimum(flops)
    figure, axes = plt.subplots(layout="constrained")
    if "params_low" in best:
        _fill(axes, flops, best["tokens_low"] / best["params_high"], best["tokens_high"] / best["params_low"], law)
    axes.plot(flops, best["tokens"] / best["params"], color="C0", label=law.name)
    _bottoms(axes, points, law, lambda o: o.tokens - o.params)
    axes.axhline(20, color="0.4", linestyle=":", label="20 tokens per parameter")
    _beyond(axes, points)
    shown = best["tokens"] / best["params"]
    finish(axes, label(points, "flops"), f"tokens per parameter D/N\n(N: {counted_by(points, 'params')})", "xy", shown)
    axes.legend()
    return figure


def exponents(points: Points, law: Fitted | None, *, bootstraps: int = 100) -> plt.Figure:
    """The exponent a of N* ~ C^a by every method, in every way to count N and C that the table has."""
    counted, level = recounts(points), 0.9 if law is None else law.level
    found = {(method, how): _exponent(method, counted[how], level, bootstraps) for method in METHODS for how in counted}
    require(any(found.values()), "no method finds an exponent in this table: vary N and D at several budgets")
    figure, axes = plt.subplots(figsize=(8.6, 1.7 + len(METHODS) * (0.26 + 0.13 * len(counted))), layout="constrained")
    for name, a in PUBLISHED.items():
        axes.axvline(a, color="0.4", linestyle=":", linewidth=1.2)
        axes.text(a, -0.62, name, ha="center", va="bottom", fontsize=10, color="0.3")
    for row, method in enumerate(METHODS):
        if not any(found[method, how] for how in counted):
            beside = axes.get_yaxis_transform()
            axes.text(0.02, row, "not determined", color="0.5", fontsize=10, va="center", transform=beside)
        for i, how in enumerate(counted):
            if e := found[method, how]:
                y = row + 0.8 * ((i + 0.5) / len(counted) - 0.5)
                if e.low is not None:
                    axes.plot([e.low, e.high], [y, y], color=f"C{i}", linewidth=2.5, alpha=0.5)
                axes.plot(e.value, y, "o", color=f"C{i}", markersize=5)
    axes.set_yticks(range(len(METHODS)), list(METHODS))
    axes.set_ylim(len(METHODS) - 0.4, -0.6)
    for i, how in enumerate(counted):
        axes.plot([], [], "o-", color=f"C{i}", markersize=5, linewidth=2.5, label=how)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.04), ncols=2, fontsize=11)
    finish(axes, rf"exponent $a$ of compute-optimal $N^* \propto C^a$, {level:.0%} interval", "")
    return figure


def _exponent(method: str, points: Points, level: float, bootstraps: int) -> Estimate | None:
    """The exponent a by one method, or None where these points do not determine it."""
    try:
        return METHODS[method](points, level, bootstraps).exponents()["a"]
    except UserError:
        return None


def learning_rates(points: Points, law: Fitted | None) -> plt.Figure:
    """Loss against learning rate, a line a width (and a number of tokens, where there are several), and the best rate.

    Where runs differ in their base width there is a panel for each: with a base the widths' best rates should agree.
    """
    require("learning_rate" in points.columns, "no learning_rate column")
    by = "width" if "width" in points.columns else "params"
    base = np.nan_to_num(points.columns.get("base_width", np.zeros(len(points))))
    panels = {b: _rate_lines(points, by, base == b) for b in np.unique(base)}
    panels = {b: lines for b, lines in panels.items() if lines}
    require(bool(panels), f"no {by} was trained at two learning rates on the same number of tokens")
    size = (7.2 if len(panels) == 1 else 5.6 * len(panels), 4.4)
    figure, row = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axes, (b, lines) in zip(row[0], panels.items(), strict=True):
        _draw_rates(axes, lines)
        finish(axes, "peak learning rate", f"{LOSS}\n(mean over seeds)" if axes is row[0, 0] else "", logs="x")
        if len(panels) > 1:
            axes.set_title(f"base width {b:g}" if b else "standard", fontsize=12)
        axes.legend(title=f"best rate by {by}", fontsize=10, alignment="left")
    window(row[0, 0], np.concatenate([loss for lines in panels.values() for _, _, loss in lines]))
    return figure


def _draw_rates(axes, lines: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
    for i, (said, rate, loss) in enumerate(lines):
        colour, low, best = COLOURS(i / max(len(lines) - 1, 1)), int(loss.argmin()), best_rate(rate, loss)
        at = f"{best:.2g}" if best else f"{'at least' if low else 'at most'} {rate[low]:.2g}"
        axes.plot(rate, loss, "o-", color=colour, markersize=4.5, label=f"{said}: {at}")
        axes.plot(rate[low], loss[low], "*", color=colour, markersize=13, markeredgecolor="black")
        if best:
            axes.axvline(best, color=colour, linestyle=":", linewidth=1.4)


def _rate_lines(points: Points, by: str, mask: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(label, rates, mean loss at each) for each size and number of tokens with several rates."""
    rate, tokens = points.column("learning_rate"), np.round(np.log(points.tokens), 2)
    keys = sorted(set(zip(points.column(by)[mask], tokens[mask], strict=True)))
    found = []
    for size, log_tokens in keys:
        rows = mask & (points.column(by) == size) & (tokens == log_tokens)
        rates = np.unique(rate[rows])
        if len(rates) > 1:
            several = sum(other == size for other, _ in keys) > 1
            said = f"{size:g}" + (f", {np.exp(log_tokens):.2g} tokens" if several else "")
            found.append((said, rates, np.array([points.loss[rows & (rate == r)].mean() for r in rates])))
    return found


def best_rate(rate: np.ndarray, loss: np.ndarray) -> float | None:
    """The bottom of a parabola in ln rate through the lowest loss and its neighbours; None where that is at an end."""
    low = int(loss.argmin())
    if low in (0, len(rate) - 1):
        return None
    bend, slope, _ = np.polyfit(np.log(rate[low - 1 : low + 2] / rate[low]), loss[low - 1 : low + 2], 2)
    return float(rate[low] * np.exp(-slope / (2 * bend)))


FIGURES: dict[str, Callable[[Points, Fitted | None], plt.Figure]] = {
    "isoflop": isoflop, "frontier": frontier, "losses": losses, "isoloss": isoloss, "ratio": ratio,
    "exponents": exponents, "learning_rates": learning_rates,
}  # fmt: skip


def draw(
    points: Points, law: Fitted | None, folder: Path, *, only: Sequence[str] = (),
    formats: Sequence[str] = (".png", ".svg"),
) -> tuple[list[Path], dict[str, str]]:  # fmt: skip
    """Write every figure that the table can carry; return the files, and why each other figure was skipped."""
    written, skipped = [], {}
    for name in only or FIGURES:
        with plt.rc_context(STYLE):
            try:
                figure = FIGURES[name](points, law)
            except UserError as reason:
                skipped[name] = str(reason)
                continue
            paths = [Path(folder) / f"{name}{suffix}" for suffix in formats]
            save(figure, *paths)
            written += paths
    return written, skipped


def recounts(points: Points) -> dict[str, Points]:
    """The same models counted in every way that the table has columns for: total or not, exact FLOPs or 6ND."""

    def counts_of(quantity: str) -> dict[str, np.ndarray]:
        there = ((said, name) for said, names in KNOWN[quantity].items() for name in names if name in points.columns)
        found = {said: points.columns[name] for said, name in there}
        return found or {counted_by(points, quantity): points.column(quantity)}

    found = {}
    for params_said, params in counts_of("params").items():
        six, counts = 6 * params * points.tokens, counts_of("flops")
        if not any(np.allclose(flops, six, rtol=1e-3) for flops in counts.values()):
            counts = counts | {"6ND": six}
        for flops_said, flops in counts.items():
            how = points.conventions | {"params": params_said, "flops": flops_said}
            values = dict(params=np.asarray(params), flops=np.asarray(flops), conventions=how)
            found[f"N {params_said}, C {flops_said}"] = dataclasses.replace(points, **values)
    return found


def _fit(points: Points, level: float, bootstraps: int, *, law: str, **how: str) -> Fitted:
    return fit_by_name(points, law, level=level, bootstraps=0 if law == "chinchilla" else bootstraps, **how)


METHODS = {
    "law, Huber": functools.partial(_fit, law="chinchilla", method="huber"),
    "law, absolute": functools.partial(_fit, law="chinchilla", method="l1"),
    "law, squares": functools.partial(_fit, law="chinchilla", method="squares"),
    "isoFLOP, parabola": functools.partial(_fit, law="isoflop", valley="quadratic"),
    "isoFLOP, Akima": functools.partial(_fit, law="isoflop", valley="akima"),
    "envelope": functools.partial(_fit, law="frontier"),
}
"""Hoffmann et al.'s approaches 3 (the parametric law), 2 and 1."""


def _fitted(law: Fitted | None) -> Fitted:
    require(law is not None, "there is no fitted law")
    return law


def _shares_budgets(law: Fitted | None) -> bool:
    return isinstance(law, Law) and law.shares_budgets


def _curves(points: Points, law: Law, name: str, by: str) -> Iterator[tuple[np.ndarray, np.ndarray, str, str | None]]:
    """x, the loss there, colour and legend of each curve of a law's loss against `name`."""
    x = reach(points.column(name), beyond=10 if name == "flops" else 1)
    if law.form.inputs == (name,):
        yield x, law.predict(**{name: x}), "black", f"{law.name} fit"
    elif law.shares_budgets and name == "flops":
        yield x, law.optimum(x)["loss"], "black", "compute-optimal"
    elif law.shares_budgets:
        other = points.column(by)
        for value in np.geomspace(other.min(), other.max(), 5):
            yield x, law.predict(**{name: x, by: np.full_like(x, value)}), COLOURS(norm_of(other)(value)), None


def _valleys(points: Points, law: Fitted | None) -> tuple[list[Optimum], str]:
    """The bottoms of the equal budgets' valleys, and how they were found: as the law says, or by parabolas."""
    valley = law.method if law is not None and law.method in VALLEYS else VALLEYS[0]
    return valleys(points, valley), valley


def _bottoms(axes, points: Points, law: Fitted, value: Callable) -> None:
    found, valley = _valleys(points, law)
    if found:
        at, bottoms = np.exp([o.flops for o in found]), np.exp([value(o) for o in found])
        axes.plot(at, bottoms, "*", color="black", markersize=9, label=f"valleys ({valley})")


def _fill(axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, law: Fitted) -> None:
    axes.fill_between(x, low, high, color="C0", alpha=0.2, linewidth=0, label=f"{law.level:.0%} band")


def _beyond(axes, points: Points) -> None:
    axes.axvspan(points.flops.max(), axes.get_xlim()[1], color="0.5", alpha=0.08, linewidth=0, label="extrapolated")
