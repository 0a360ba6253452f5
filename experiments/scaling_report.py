"""What scaling_cpu.py and scaling_gpu.py report of their runs: fits, tables and a figure."""

import dataclasses
import math
from pathlib import Path

import numpy as np

import lm
from lm.errors import UserError
from lm.figures import STYLE, plt, save
from lm.scaling import (
    Estimate,
    Points,
    cost_of,
    describe,
    describe_scores,
    fit_frontier,
    make_points,
    plot,
    read_points,
    score_prediction,
    valleys,
)
from lm.sweep import NOISE

COUNTS = {
    "N total, C exact": (), "N total, C = 6ND": ("total", "6nd"), "N non-embedding, C = 6ND": ("nonembedding", "6nd"),
}  # fmt: skip
"""How parameters and FLOPs are counted: operation by operation; as Hoffmann et al. do; as Kaplan et al. do."""
EXACT, CHINCHILLA, KAPLAN = COUNTS
APPROACHES = ("1 envelope", "2 isoFLOP", "3 law")
"""Hoffmann et al. 2022."""
SEALED = {EXACT: "prediction-total.json", KAPLAN: "prediction-nonembedding.json"}
"""A law of N and D does not depend on how C is counted."""
FEWEST = 15
"""Tokens a parameter of what the law is fitted to. With less text a model's loss still falls faster than by any power
of D, and seeds differ by percents; approaches 1 and 2 need such runs for the right sides of their valleys."""
LEVEL, BOOTSTRAPS = 0.9, 1000


# --- fits ------------------------------------------------------------------------------------------------------------
def fitted(file: Path, count: str) -> dict[str, lm.scaling.Law | None]:
    """The three approaches to the points of a file, counted one way; None where they do not determine an exponent."""
    mean = mean_of_seeds(read_points(file, conventions=COUNTS[count]))
    common = dict(bootstraps=BOOTSTRAPS, level=LEVEL)
    return {
        "1 envelope": _or_none(lambda: fit_frontier(mean, "frontier", cluster="noise", **common)),
        "2 isoFLOP": _or_none(lambda: fit_frontier(sliced(mean), "isoflop", cluster="noise", **common)),
        "3 law": _or_none(lambda: law_of(file, count)),
    }


def law_of(file: Path, count: str) -> lm.scaling.Law:
    """Approach 3, every seed a point of its own, without runs on little text; whole trunks are resampled."""
    points = read_points(file, conventions=COUNTS[count])
    short = points.tokens < FEWEST * points.column("params_total")
    if short.any():
        points = points.drop(short, f"runs of less than {FEWEST} tokens a parameter")
    return lm.scaling.fit(points, "chinchilla", cluster="run", bootstraps=BOOTSTRAPS, level=LEVEL)


def _or_none(fit):
    try:
        return fit()
    except UserError as reason:
        print(f"not determined: {reason}")
        return None


def mean_of_seeds(points: Points) -> Points:
    """One row a size and token count, with the standard deviation of its mean."""
    _, first, which = np.unique(
        np.stack([points.params, points.tokens]), axis=1, return_index=True, return_inverse=True
    )
    which = which.ravel()
    seeds = np.bincount(which)
    loss = np.bincount(which, points.loss) / seeds
    sd = (points.replicate_sd() or NOISE) * loss / np.sqrt(seeds)
    return dataclasses.replace(points.where(first), loss=loss, sd=sd)


def sliced(points: Points) -> Points:
    """Lines of equal compute, root 2 apart, across each size's losses interpolated in ln C.

    The design's own lines are equal in exact FLOPs; where those are counted, these are its points. Counted otherwise,
    the sizes end apart: the highest line is where the first of those that end near the largest compute does.
    """
    ends = np.array([points.flops[points.params == n].max() for n in np.unique(points.params)])
    levels = np.log(ends[ends > ends.max() / 1.4].min()) - math.log(2) / 2 * np.arange(40)
    found = []
    for n in np.unique(points.params):
        of = points.where(points.params == n)
        of = of.where(np.argsort(of.flops))
        c = np.log(of.flops)
        for level in levels[(levels >= c[0] - 0.01) & (levels <= c[-1] + 0.01)]:
            at = [np.interp(level, c, np.log(values)) for values in (of.tokens, of.loss, of.sd)]
            found.append([n, *np.exp(at), math.exp(level)])
    n, tokens, loss, sd, flops = np.array(found).T
    return make_points(n, tokens, loss, flops, sd=sd, conventions=points.conventions)


def exponent(law: lm.scaling.Law) -> Estimate:
    """a of N* = G C^a with C = k N^(1+g) D: beta / (alpha + (1+g) beta), g = 0 where C = 6ND."""
    if "a" in law.parameters:
        a = law.parameters["a"]
        return a if a.low is not None else dataclasses.replace(a, low=math.nan, high=math.nan)
    g = cost_of(law.data)[1]
    of = lambda p: p["beta"] / (p["alpha"] + (1 + g) * p["beta"])  # noqa: E731
    drawn = of(law.draws)
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Estimate(float(of(law.values())), float(np.std(drawn)), float(low), float(high))


# --- the pilot ------------------------------------------------------------------------------------------------------
def rule(pilot: Points) -> tuple[float, float]:
    """(k, p) of rate = k width^-p through each width's best rate; p is kept between 0 and muP's 1."""
    widths = np.unique(pilot.column("width"))
    best = [best_rate(pilot.where(pilot.column("width") == width)) for width in widths]
    p = -np.polyfit(np.log(widths), np.log(best), 1)[0] if len(widths) > 1 else 0.0
    p = float(np.clip(p, 0, 1))
    return float(np.exp(np.mean(np.log(best) + p * np.log(widths)))), p


def best_rate(pilot: Points) -> float:
    """Where a parabola in ln rate through the lowest loss and its neighbours is lowest; an end is taken as it is."""
    rates, at = pilot.column("learning_rate"), np.argsort(pilot.column("learning_rate"))
    x, loss = np.log(rates[at]), pilot.loss[at]
    i = int(np.argmin(loss))
    if i in (0, len(x) - 1):
        return float(np.exp(x[i]))
    bend, slope, _ = np.polyfit(x[i - 1 : i + 2], loss[i - 1 : i + 2], 2)
    return float(np.exp(-slope / (2 * bend)))


# --- what is shown ---------------------------------------------------------------------------------------------------
def show(folder: Path, figure: Path) -> None:
    """Tables and the figure of what a folder holds."""
    swept = folder / "sweep" / "points.csv"
    if (folder / "pilot" / "points.csv").is_file():
        print(pilot_table(read_points(folder / "pilot" / "points.csv")))
    if not swept.is_file():
        raise SystemExit(f"no points in {folder} yet")
    fits = {count: fitted(swept, count) for count in COUNTS}
    points = read_points(swept)
    print(points_table(points))
    if fits[EXACT]["3 law"]:
        print(describe(fits[EXACT]["3 law"]))
    print(exponents_table(fits))
    file = folder / "held-out" / "points.csv"
    scores = {}
    for count, name in SEALED.items():
        if (folder / name).is_file() and file.is_file():
            unseen = read_points(file, conventions=COUNTS[count])
            scores[count] = score_prediction(folder / name, unseen)
            print(f"Held out, {unseen.flops.max() / fits[count]['3 law'].data.flops.max():.2f} times the largest "
                  f"fitted compute, {count}; the mean of {len(unseen)} seeds:\n{describe_scores(scores[count])}"
                  "seed by seed: " + ", ".join(f"{x:+.2%}" for x in scores[count][0]["predicted"] / unseen.loss - 1)
                  + "\n")  # fmt: skip
    unseen = read_points(file) if scores else None
    print(draw(points, fits, unseen, scores.get(EXACT, [None])[0], figure))


def pilot_table(pilot: Points) -> str:
    rates, (k, p) = np.unique(pilot.column("learning_rate")), rule(pilot)
    lines = ["Pilot: loss by width and learning rate", f"{'width':>6}" + "".join(f"{rate:>9g}" for rate in rates)]
    for width in np.unique(pilot.column("width")):
        of = pilot.where(pilot.column("width") == width)
        losses = dict(zip(of.column("learning_rate"), of.loss, strict=True))
        row = "".join(f"{losses[rate]:>9.4f}" if rate in losses else f"{'':>9}" for rate in rates)
        lines.append(f"{width:>6.0f}{row}   best at {best_rate(of):.4f}, the rule gives {k * width**-p:.4f}")
    return "\n".join([*lines, f"rule: rate = {k:.4g} width^-{p:.3f}", ""])


def points_table(points: Points) -> str:
    mean, noise = mean_of_seeds(points), points.replicate_sd()
    head = f"{'layers x width':<15}{'N total':>10}{'non-emb.':>10}{'tokens':>12}{'D/N':>7}{'steps':>7}{'C exact':>10}"
    lines = [head + f"{'rate':>9}{'loss':>9}"]
    for i in np.lexsort((mean.tokens, mean.params)):
        c = {name: column[i] for name, column in mean.columns.items()}
        lines.append(
            f"{c['layers']:.0f} x {c['width']:<11.0f}{mean.params[i]:>10,.0f}{c['params_nonembedding']:>10,.0f}"
            f"{mean.tokens[i]:>12,.0f}{mean.tokens[i] / mean.params[i]:>7.1f}{c['steps']:>7,.0f}{mean.flops[i]:>10.2e}"
            f"{c['learning_rate']:>9.4f}{mean.loss[i]:>9.4f}"
        )
    spread = "" if noise is None else f", seeds differ by {noise:.2%} (standard deviation)"
    return "\n".join([*lines, f"loss: nats per token, mean of {len(points) // len(mean)} seeds{spread}", ""])


def exponents_table(fits: dict) -> str:
    lines = [f"Exponent a of compute-optimal N* = G C^a, {LEVEL:.0%} interval"]
    lines += [f"{'':<28}" + "".join(f"{name:<24}" for name in APPROACHES)]
    for count, laws in fits.items():
        found = [exponent(law) if law else None for law in laws.values()]
        cells = [f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" if e else "not determined" for e in found]
        lines.append(f"{count:<28}" + "".join(f"{cell:<24}" for cell in cells))
    switch = [fits[count]["3 law"] for count in (CHINCHILLA, KAPLAN)]
    if all(switch):
        a, b = (exponent(law).value for law in switch)
        lines.append(f"the same runs: {a:.3f} as Hoffmann et al. count (theirs .50), {b:.3f} as Kaplan et al. do (.73)")
    return "\n".join([*lines, ""])


# --- the figure ------------------------------------------------------------------------------------------------------
def draw(points: Points, fits: dict, unseen: Points | None, score: dict | None, path: Path) -> Path:
    """Valleys, frontier, residuals and exponents on one page."""
    law = fits[EXACT]["3 law"]
    with plt.rc_context(STYLE | {"font.size": 13}):
        figure, axes = plt.subplots(2, 2, figsize=(13.5, 9), layout="constrained")
        if law:
            draw_valleys(axes[0, 0], mean_of_seeds(points), law)
            draw_frontier(axes[0, 1], points, law, unseen, score)
            draw_residuals(axes[1, 0], points, law, unseen)
        draw_exponents(axes[1, 1], fits)
        save(figure, path)
    return path


def colours(values: np.ndarray) -> np.ndarray:
    x = np.log(values)
    return plt.get_cmap("viridis")(0.88 * (x - x.min()) / max(np.ptp(x), 1e-9))


def draw_valleys(axes, mean: Points, law) -> None:
    """Loss against N on lines of equal compute, with the law along each and the bottoms."""
    lines, (k, g) = sliced(mean), cost_of(mean)
    levels = np.unique(np.round(np.log(lines.flops), 6))
    for level, colour in zip(levels, colours(np.exp(levels)), strict=True):
        of = lines.where(np.abs(np.log(lines.flops) - level) < 1e-3)
        if len(of) < 3:
            continue
        fine = np.geomspace(of.params.min() / 1.15, of.params.max() * 1.15, 60)
        axes.plot(fine, law.predict(fine, np.exp(level) / (k * fine ** (1 + g))), color=colour, linewidth=1.4)
        axes.plot(of.params, of.loss, "o", color=colour, markersize=5)
        end = law.predict(fine[-1], np.exp(level) / (k * fine[-1] ** (1 + g)))
        axes.annotate(f" {np.exp(level):.1e}", (fine[-1], end), fontsize=9, va="center", color=colour)
    bottoms = valleys(lines, "quadratic")
    axes.plot(np.exp([o.params for o in bottoms]), [o.loss for o in bottoms], "k*", markersize=12, label="lowest")
    axes.plot([], [], color="0.4", label="law")
    axes.set(xscale="log", xlabel="parameters N (total)", ylabel="loss, nats per byte")
    axes.set_title("Valleys of equal compute (exact FLOPs)", loc="left")
    axes.legend()


def draw_frontier(axes, points: Points, law, unseen: Points | None, score: dict | None) -> None:
    """Loss against C: runs, the law's optimum with its band, and the run that was predicted."""
    flops = np.geomspace(points.flops.min() / 1.3, 6 * points.flops.max(), 80)
    best = law.optimum(flops)
    plot.draw_intervals(axes, law, flops)
    axes.plot(flops, best["loss"], color="C0", label="law, compute-optimal")
    mean = mean_of_seeds(points)
    for n, colour in zip(np.unique(mean.params), colours(np.unique(mean.params)), strict=True):
        of = mean.where(mean.params == n)
        axes.plot(of.flops, of.loss, "o-", color=colour, markersize=4, linewidth=0.9)
    if score is not None:
        at = unseen.flops.mean()
        for kind, width in (("calibrated_", 0.9), ("", 2.2)):  # predictions sealed long ago have the second alone
            if score.get(f"{kind}low") is not None:
                ends = [[score["predicted"] - score[f"{kind}low"]], [score[f"{kind}high"] - score["predicted"]]]
                axes.errorbar([at], [score["predicted"]], ends, color="C3", linewidth=width, capsize=4)
        axes.plot(
            at, score["predicted"], "D", color="C3", markersize=8, markerfacecolor="none", label="predicted, sealed"
        )
        axes.plot(unseen.flops, unseen.loss, "kx", markersize=9, label=f"then trained ({len(unseen)} seeds)")
        axes.annotate(f"error {score['error']:+.2%}", (at, score["high"]), (0, 10), textcoords="offset points",
                      ha="center", color="C3")  # fmt: skip
    axes.axvspan(points.flops.max() * 1.03, flops[-1], color="0.5", alpha=0.08, linewidth=0)
    axes.set(xscale="log", xlim=(flops[0], flops[-1]), xlabel="training FLOPs C (exact)", ylabel="loss, nats per byte")
    axes.set_title("Frontier, and the run it foretold", loc="left")
    axes.legend()


def draw_residuals(axes, points: Points, law, unseen: Points | None) -> None:
    """What the law leaves over, by C; colour is N."""
    rest = lambda of: 100 * (of.loss / law.predict(of.params, of.tokens) - 1)  # noqa: E731
    axes.axhline(0, color="black", linewidth=0.8)
    for n, colour in zip(np.unique(points.params), colours(np.unique(points.params)), strict=True):
        of = points.where(points.params == n)
        axes.plot(of.flops, rest(of), "o", color=colour, markersize=5, label=f"{n / 1e3:,.0f}k")
    if unseen is not None:
        axes.plot(unseen.flops, rest(unseen), "kx", markersize=9, label=f"held out, {unseen.params[0] / 1e3:,.0f}k")
    axes.set(xscale="log", xlabel="training FLOPs C (exact)", ylabel="loss above the law, %")
    axes.set_title("Residuals, by parameters", loc="left")
    axes.legend(fontsize=10, ncols=2, columnspacing=1, handletextpad=0.2)


def draw_exponents(axes, fits: dict) -> None:
    """A forest of a by approach and count, beside what was published."""
    for group, name in enumerate(APPROACHES):
        for i, (count, laws) in enumerate(fits.items()):
            row, e = group + 0.22 * (i - 1), exponent(laws[name]) if laws[name] else None
            if e is None:
                axes.text(0.02, row, "not determined", transform=axes.get_yaxis_transform(), color=f"C{i}", va="center")
                continue
            axes.plot([e.low, e.high], [row, row], color=f"C{i}", linewidth=4, alpha=0.35)
            axes.plot(e.value, row, "o", color=f"C{i}", markersize=8, label=count if group == 2 else None)
            axes.text(np.fmax(e.high, e.value), row, f"  {e.value:.2f}", va="center", fontsize=10.5, color=f"C{i}")
    for name, a in {"Hoffmann et al.": 0.50, "Kaplan et al.": 0.73}.items():
        axes.axvline(a, color="0.4", linestyle=":", zorder=0)
        axes.text(a, -0.62, name, ha="center", fontsize=10.5, color="0.3")
    axes.set_yticks(range(3), [name.replace(" ", "\n", 1) for name in APPROACHES])
    axes.set_ylim(3.2, -0.75)
    axes.set_xlabel(f"exponent a of N* ∝ C^a, {LEVEL:.0%} interval")
    axes.set_title("Three approaches, three ways to count", loc="left")
    axes.legend(loc="lower center", ncols=3, fontsize=10, columnspacing=0.8, handletextpad=0.1)
