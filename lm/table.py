"""Runs as a table: those that compare stand together, and columns that do not fit a narrow terminal are named."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.cells import cell_len

from lm.console import as_text
from lm.errors import printable
from lm.listing import COLUMNS, Listed, grouped, measured
from lm.tables import table

MOST_WANTED = (
    "run", "state", "best", "seed", "date", "rate", "optimizer", "step", "bits/byte", "validation", "loss",
    "harness", "parameters", "minutes",
)  # fmt: skip
"""Columns in the order in which a narrow terminal has room for them."""
SHOWN = tuple(title for title in COLUMNS if title not in ("corpus", "tokenizer"))
"""Columns of the table; what a group has in common stands above it."""
TEXTS = ("run", "state", "optimizer", "date", "harness")
LEAST_NAME = 15
"""Characters that a run's path has before columns give way to it; what is longer goes on below."""


def runs_table(runs: Sequence[Listed], width: int | None = None) -> str:
    """The table as text: a block for each set of runs whose losses compare, then those that are damaged.

    width: in characters, the terminal's by default.
    """
    width = width or terminal_width()
    whole = [one for one in runs if one.run]
    cells = {one.row["run"]: _cells(one) for one in whole}
    shown = [title for title in SHOWN if title != "harness" or any(c[title] for c in cells.values())]
    wanted = {title: max(map(cell_len, [title, *(c[title] for c in cells.values())])) for title in shown}
    widths = _fitting(wanted, width)
    blocks, before = [], None
    for text in grouped(whole, lambda one: one.row["validation_text"]):
        for group in grouped(text, lambda one: one.row["comparable"]):
            blocks.append(_heading(group[0], before) + "\n" + _block([cells[one.row["run"]] for one in group], widths))
            before = group[0]
    damaged = [one for one in runs if not one.run]
    if damaged:
        lines = [f"damaged  {printable(one.row['run'])}: {printable(one.row['reason'])[:200]}" for one in damaged]
        blocks.append("\n".join(lines) + "\n")
    missing = [title for title in shown if title not in widths]
    if missing and whole:
        blocks.append(f"not shown at {width} columns: {', '.join(missing)}; --json has everything\n")
    return "\n".join(blocks)


def terminal_width() -> int:
    """Characters in a line; 150 where there is no terminal, and never so few that nothing can be read."""
    return max(40, shutil.get_terminal_size((150, 24)).columns)


def _heading(first: Listed, before: Listed | None) -> str:
    """What a group's runs have in common, and whether bits per byte compare with the group above."""
    row = first.row
    corpus = first.experiment.data.validation_corpus or row["corpus"]
    names = printable(Path(corpus).name or corpus), printable(Path(row["tokenizer"]).name or row["tokenizer"])
    text, tokens = row["validation_text"], row["comparable"].split()[-1]
    said = f"{names[0]} (validation text {text}), tokenizer {names[1]} ({tokens})"
    if before is None:
        return said
    same = before.row["validation_text"] == text
    return said + (": the same text, bits/byte compare" if same else ": another text, losses do not compare")


def _cells(one: Listed) -> dict[str, str]:
    """The cells of a run's row, as text."""
    r = one.row
    rates = [r["learning_rate"], r["matrix_learning_rate"]]
    step = r["step"]
    return {
        "run": printable(r["run"]), "state": r["state"],
        "step": str(step) if step == r["steps"] else f"{step}/{r['steps']}",
        "loss": number(r["loss"]), "validation": number(r["val_loss"]), "best": number(r["best_val_loss"]),
        "bits/byte": number(r["val_bits_per_byte"]), "optimizer": r["optimizer"],
        "rate": "/".join(f"{rate:g}" for rate in rates if rate is not None), "seed": str(r["seed"]),
        "parameters": f"{r['params_total']:,}", "minutes": number(r["seconds"] and r["seconds"] / 60, ".1f"),
        "date": r["date"][:16], "harness": _first_task(one),
    }  # fmt: skip


def _first_task(one: Listed) -> str:
    """The first metric of the evaluation harness, and how many more there are."""
    found = measured(one)
    if not found:
        return ""
    name, value = next(iter(found.items()))
    more = f", {len(found) - 1} more" if len(found) > 1 else ""
    return f"{printable(name)} {number(value, '.3f')}{more}"


def _fitting(wanted: dict[str, int], width: int) -> dict[str, int]:
    """Columns that fit side by side, two spaces apart, and their widths."""
    kept = {"run": min(wanted["run"], LEAST_NAME)}
    for title in (title for title in MOST_WANTED[1:] if title in wanted):
        if sum(kept.values()) + wanted[title] + 2 * len(kept) <= width:
            kept[title] = wanted[title]
    room = width - sum(kept.values()) + kept["run"] - 2 * (len(kept) - 1)
    kept["run"] = max(min(wanted["run"], room), 1)
    return {title: kept[title] for title in wanted if title in kept}


def _block(rows: Sequence[dict[str, str]], widths: dict[str, int]) -> str:
    cells, room = [[row[title] for title in widths] for row in rows], sum(widths.values()) + 2 * len(widths)
    return as_text(table(list(widths), cells, left=TEXTS, widths=list(widths.values())), width=room)


def number(value: float | None, form: str = ".4f") -> str:
    """The number in this format; nothing for None."""
    return "" if value is None else format(value, form)
