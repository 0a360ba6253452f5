"""How often does a 90% prediction interval hold the runs beyond the fitted compute, in published sweeps?

python experiments/prediction_coverage.py --data FOLDER     6 minutes on two idle CPU cores (or LM_DATA=FOLDER)
FOLDER holds scaling/ with chinchilla_epoch_svg.csv, porian_refinedweb_isoflop.csv, gadre_c4.csv, gemstones_cool_end.csv
and muennighoff_182.csv (of which the runs that saw their data once). The lowest 40, 50, 60, 70 and 80% of each table by
compute are fitted (chinchilla, Huber), and the other runs predicted: is a run inside the interval that supposes the
law, and inside the one that rolling hold-outs of the fitted runs give? Then the same for tables made here, from a law
that holds, and from one whose sizes differ by what no law of N and D says.
Gemstones' table was opened for this only after the method was chosen. Prints a table, draws
experiments/figures/prediction_coverage.svg. Expected: experiments/RESULTS.md.
"""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import lm
from lm.errors import UserError
from lm.figures import STYLE, save
from lm.scaling import Points

SHARES = (0.4, 0.5, 0.6, 0.7, 0.8)
"""Of a table's runs, by compute, that are fitted."""
LEVEL, BOOTSTRAPS = 0.9, 200
LEFT_OUT = "Gemstones"
MADE = ("made: the law holds", "made: sizes differ by 1%")


@dataclasses.dataclass(frozen=True)
class Split:
    """What the two intervals of a fit to a table's lowest share held of the rest; widths are half an interval over L.

    hold_outs: whether there were any; without, calibrated and calibrated_width are those of the first interval.
    """

    table: str
    share: float
    fitted: int
    predicted: int
    farther: float
    inside: float
    width: float
    calibrated: float
    calibrated_width: float
    error: float
    hold_outs: bool


def tables(folder: Path) -> dict[str, Points]:
    """The published tables by name."""
    read = lm.scaling.read_points
    found = {"Chinchilla": read(folder / "chinchilla_epoch_svg.csv", tokens_from="6nd")}
    porian, configs = (
        read(folder / "porian_refinedweb_isoflop.csv"),
        ("Kaplan", "+ head", "+ warm-up", "+ cosine", "tuned"),
    )
    column = porian.columns["config"]
    for name, config in zip(configs, dict.fromkeys(column), strict=True):
        found[f"Porian: {name}"] = porian.where(column == config)
    found["Gadre"] = read(folder / "gadre_c4.csv", loss_column="loss_c4_val")
    repeated = read(folder / "muennighoff_182.csv")
    found["Muennighoff, once"] = repeated.where(repeated.tokens <= 1.001 * repeated.column("unique_tokens"))
    return found | {LEFT_OUT: read(folder / "gemstones_cool_end.csv")}


def law(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Hoffmann et al. 2022, as printed."""
    return 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28


def made(replicates: int) -> Iterator[tuple[str, Points]]:
    """Tables of nine sizes at eight token counts each: of a law that holds, and with 1% of its own for each size."""
    params = np.repeat(np.geomspace(2e7, 2e9, 9), 8)
    tokens = params * np.tile(np.geomspace(4, 300, 8), 9)
    loss = law(params, tokens)
    for seed in range(replicates):
        random = np.random.default_rng(seed)
        run, size = random.standard_normal(len(loss)), np.repeat(random.standard_normal(9), 8)
        for name, off in zip(MADE, (0.004 * run, 0.003 * run + 0.01 * size), strict=True):
            yield name, lm.scaling.make_points(params, tokens, loss * np.exp(off))


def measured(name: str, points: Points, share: float) -> Split:
    """Fit a share, predict the rest."""
    above = points.flops > np.quantile(points.flops, share, method="inverted_cdf")
    fitted = lm.scaling.fit(points, hold_out=above, level=LEVEL, bootstraps=BOOTSTRAPS)
    rows, holds = fitted.held_out, bool(fitted.hold_outs.cuts)
    mean = lambda value: float(np.mean([value(row) for row in rows]))  # noqa: E731
    kind = "calibrated_" if holds else ""
    return Split(
        table=name, share=share, fitted=fitted.points, predicted=len(rows),
        farther=float(points.flops.max() / fitted.data.flops.max()),
        inside=mean(lambda row: row["inside"]),
        width=mean(lambda row: (row["high"] - row["low"]) / 2 / row["actual"]),
        calibrated=mean(lambda row: row["inside_calibrated" if holds else "inside"]),
        calibrated_width=mean(lambda row: (row[f"{kind}high"] - row[f"{kind}low"]) / 2 / row["actual"]),
        error=mean(lambda row: abs(row["error"])), hold_outs=holds,
    )  # fmt: skip


# --- what is shown ---------------------------------------------------------------------------------------------------
def summary(splits: list[Split]) -> list[float]:
    """Over runs: coverage before and after; over splits: the same, half widths before and after, and the error."""
    weight = [split.predicted for split in splits]
    columns = ("inside", "calibrated"), ("inside", "calibrated", "width", "calibrated_width", "error")
    by_run = [float(np.average([getattr(split, name) for split in splits], weights=weight)) for name in columns[0]]
    return by_run + [float(np.mean([getattr(split, name) for split in splits])) for name in columns[1]]


def report(splits: list[Split]) -> str:
    """A line a table, and the total of the published ones."""
    lines = [f"{'':<26}{'runs':>6}{'if the law holds':>18}{'by hold-outs':>14}{'half widths':>18}{'mean error':>12}"]
    groups = {name: [s for s in splits if s.table == name] for name in dict.fromkeys(s.table for s in splits)}
    published = [s for s in splits if s.table not in MADE]
    groups |= {"published, all": published, "the same, by splits": published} if published else {}
    for name, of_table in groups.items():
        runs, wide, before, after, width, calibrated_width, error = summary(of_table)
        shown = (before, after) if name == "the same, by splits" else (runs, wide)
        lines.append(
            f"{name:<26}{sum(s.predicted for s in of_table):>6}{shown[0]:>18.1%}{shown[1]:>14.1%}"
            f"{width:>9.1%}{calibrated_width:>9.1%}{error:>12.1%}"
        )
    lines.append(f"without hold-outs: {sum(not s.hold_outs for s in splits)} of {len(splits)} splits")
    return "\n".join(lines)


def figure(splits: list[Split], out: Path) -> Path:
    """Coverage of each table's splits before and after; and half widths beside the error that was made."""
    names = list(dict.fromkeys(s.table for s in splits))[::-1]
    with plt.rc_context(STYLE | {"font.size": 12}):
        drawn, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.6), layout="constrained", width_ratios=(1.25, 1))
        for row, name in enumerate(names):
            of_table = [s for s in splits if s.table == name]
            for i, what in enumerate(("inside", "calibrated")):
                y, values = row + 0.16 * (1 - 2 * i), [getattr(s, what) for s in of_table]
                left.plot(values, [y] * len(values), "o", color=f"C{i}", alpha=0.35, markersize=5)
                left.plot(summary(of_table)[i], y, "D", color=f"C{i}", markersize=8, markeredgecolor="black")
        left.axvline(LEVEL, color="0.3", linestyle=":")
        left.set_yticks(range(len(names)), names)
        left.set(xlim=(-0.02, 1.02), xlabel="share of predicted runs inside a 90% interval")
        left.set_title("Dots: fits to 40 to 80% of a table; diamonds: all of its runs", loc="left", fontsize=11)
        for i, (what, said) in enumerate({"width": "if the law holds", "calibrated_width": "by hold-outs"}.items()):
            x, y = ([100 * getattr(s, field) for s in splits] for field in ("error", what))
            right.plot(x, y, "o", color=f"C{i}", alpha=0.6, markersize=5, label=said)
        ends = np.array([0.1, 60])
        right.plot(ends, ends, color="0.3", linestyle=":", label="equal")
        right.set(xscale="log", yscale="log", xlabel="mean error of a fit's predictions, %", ylabel="half width, %")
        right.legend(loc="upper left")
        save(drawn, out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("LM_DATA"), help="the folder that holds scaling/")
    parser.add_argument("--made", type=int, default=10, help="replicates of the tables made here")
    parser.add_argument("--only", default="", help="tables whose names begin so")
    parser.add_argument("--keep", type=Path, help="a file of JSON lines to go on from when stopped")
    parser.add_argument("--figure", default=Path(__file__).parent / "figures" / "prediction_coverage.svg", type=Path)
    options = parser.parse_args()
    if not options.data or not (Path(options.data) / "scaling").is_dir():
        parser.error(f"--data {options.data}: give the folder that holds scaling/")
    began, splits = time.perf_counter(), []
    named = [*tables(Path(options.data) / "scaling").items(), *made(options.made)]
    kept = options.keep.read_text().splitlines() if options.keep and options.keep.is_file() else []
    for i, (name, points) in enumerate(named):
        for share in SHARES if name.startswith(options.only) else ():
            if len(splits) < len(kept):
                splits.append(Split(**json.loads(kept[len(splits)])))
                continue
            try:
                splits.append(measured(name, points, share))
            except UserError as reason:
                print(f"{name}, {share:.0%}: {reason}", flush=True)
                continue
            print(f"{i + 1} of {len(named)}: {splits[-1]}", flush=True)
            if options.keep:
                with options.keep.open("a") as file:
                    file.write(json.dumps(dataclasses.asdict(splits[-1])) + "\n")
    print(report(splits))
    print(figure(splits, options.figure))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
