"""Two or more runs side by side: settings that differ, losses, cost, and each loss curve as a line of bars."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.cells import cell_len

from lm.console import as_text
from lm.errors import printable
from lm.listing import Listed, measured
from lm.settings import differences
from lm.table import number
from lm.tables import table

FIGURES = {
    "state": "state", "step": "step", "steps in all": "steps", "parameters": "params_total",
    "tokens": "tokens", "training FLOPs": "flops", "seconds": "seconds",
    "loss": "loss", "loss, best": "best_loss", "validation": "val_loss", "validation, best": "best_val_loss",
    "bits/byte": "val_bits_per_byte", "bits/byte, best": "best_val_bits_per_byte",
}  # fmt: skip
"""Rows of the comparison and their keys in a run's row; losses in nats per token."""
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "0123456789"
CURVE = 48
"""Characters of a curve."""


def comparable(runs: Sequence[Listed]) -> str | None:
    """The unit in which the runs' validation losses compare: "nats", "bits_per_byte", or None."""
    if len({one.row["comparable"] for one in runs}) == 1:
        return "nats"
    return "bits_per_byte" if len({one.row["validation_text"] for one in runs}) == 1 else None


def curves(runs: Sequence[Listed], key: str) -> list[list[tuple[int, float]]]:
    """Each run's (step, loss) points that are finite."""
    return [[(r["step"], r[key]) for r in one.records if np.isfinite(r.get(key, np.nan))] for one in runs]


def as_json(runs: Sequence[Listed]) -> dict[str, Any]:
    """The rows, the settings that differ, the unit that compares, and the curves, as plain JSON values."""
    names = [one.row["run"] for one in runs]
    return {
        "runs": [one.row for one in runs], "differences": differences([one.experiment for one in runs]),
        "comparable": comparable(runs),
        "curves": {key: dict(zip(names, curves(runs, key), strict=True)) for key in ("loss", "val_loss")},
    }  # fmt: skip


def comparison_text(runs: Sequence[Listed], width: int) -> str:
    """A table and the curves: a column for each run, or lines for each below a title where they do not fit."""
    names = [printable(one.row["run"]) for one in runs]
    changed = differences([one.experiment for one in runs], absent="")
    rows = [[key, *(printable(str(value)) for value in values)] for key, values in changed.items()]
    rows += [[title, *(printable(_figure(one.row[key])) for one in runs)] for title, key in FIGURES.items()]
    tasks = [measured(one) for one in runs]
    for name in dict.fromkeys(name for found in tasks for name in found):
        rows.append([printable(name), *(_figure(found.get(name)) for found in tasks)])
    label = max(len(title) for title, *_ in rows)
    room = (width - label) // len(runs) - 2
    if room >= 12:
        columns = zip(names, *(values for _, *values in rows), strict=True)
        widths = [label, *(min(room, max(map(cell_len, column))) for column in columns)]
        shown = as_text(table(["", *names], rows, widths=widths), width=width)
    else:
        cells = [["" if number else title, name, value] for title, *values in rows
                 for number, (name, value) in enumerate(zip(names, values, strict=True))]  # fmt: skip
        shown = as_text(table(["", "run", ""], cells, left=["", "run"]), width=width)
    said = {"nats": "", "bits_per_byte": "other tokens of one text: bits/byte compare, nats per token do not\n",
            None: "other validation texts: their losses do not compare\n"}[comparable(runs)]  # fmt: skip
    return f"{shown}{said}\n{_drawn(runs, names, width)}"


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3e}" if value >= 1e6 else number(value)
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _drawn(runs: Sequence[Listed], names: Sequence[str], width: int) -> str:
    """Each curve as a line of bars, on common axes of steps and loss: low bars for low losses."""
    bars = BARS if (sys.stdout.encoding or "").lower().startswith("utf") else PLAIN_BARS
    lines = []
    for title, key in (("training loss", "loss"), ("validation loss", "val_loss")):
        found = curves(runs, key)
        points = [point for curve in found for point in curve]
        if not points:
            continue
        last, low = max(step for step, _ in points), min(loss for _, loss in points)
        high = max(np.percentile([loss for _, loss in points], 95), low + 1e-9)
        lines.append(f"{title} {low:.4f} to {high:.4f} over {last:,} steps")
        room = max(8, min(CURVE, width - 24))
        for name, curve in zip(names, found, strict=True):
            lines.append(f"  {_bars(curve, last, low, high, room, bars)}  {name[-(width - room - 4) :]}")
    return "\n".join(lines) + ("\n" if lines else "no losses logged yet\n")


def _bars(curve: Sequence[tuple[int, float]], last: int, low: float, high: float, room: int, bars: str) -> str:
    """The loss at evenly spread steps, interpolated linearly between points; blank outside the curve."""
    if not curve:
        return " " * room
    steps, losses = np.array(curve, float).T
    places = np.linspace(0, last, room)
    heights = (np.interp(places, steps, losses) - low) / (high - low)
    inside = (places >= steps[0] - last / room) & (places <= steps[-1] + last / room)
    levels = np.clip(heights * len(bars), 0, len(bars) - 1).astype(int)
    return "".join(bars[level] if there else " " for level, there in zip(levels, inside, strict=True))
