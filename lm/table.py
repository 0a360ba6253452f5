"""A table of the runs in a folder."""

from pathlib import Path
from typing import Any

from rich.table import Table

from lm.console import as_text
from lm.errors import require
from lm.run import Run, find


def row(run: Run) -> dict[str, Any]:
    """What a run is and how far it came; None where nothing was measured yet."""
    newest: dict[str, Any] = {}
    for record in run.metrics():
        newest |= record
    e = run.experiment
    losses = [record["val_loss"] for record in run.metrics() if "val_loss" in record]
    return {
        "run": str(run.path), "corpus": e.data.corpus, "tokenizer": run.tokenizer.name,
        "params_total": run.record["params_total"], "step": newest.get("step"),
        "steps": run.record["steps"]["total"], "tokens": newest.get("tokens"), "loss": newest.get("loss"),
        "val_loss": newest.get("val_loss"), "best_val_loss": min(losses, default=None),
        "val_bits_per_byte": newest.get("val_bits_per_byte"), "seconds": newest.get("seconds"),
        "checkpoints": run.steps(),
    }  # fmt: skip


def runs_table(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Every run's row, and the table as text."""
    require(folder.is_dir(), f"no folder {folder}: nothing was trained here yet; start with: lm train quickstart")
    rows = [row(run) for run in find(folder)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("run", "corpus", "tokenizer"):
        table.add_column(title, overflow="fold")
    for title in ("parameters", "step", "loss", "validation", "best", "bits/byte", "minutes"):
        table.add_column(title, justify="right")
    number = lambda value, form: "" if value is None else format(value, form)  # noqa: E731
    for r in rows:
        minutes, steps = None if r["seconds"] is None else r["seconds"] / 60, f"{r['step'] or 0}/{r['steps']}"
        table.add_row(
            r["run"], Path(r["corpus"]).name, r["tokenizer"], f"{r['params_total']:,}", steps,
            number(r["loss"], ".4f"), number(r["val_loss"], ".4f"), number(r["best_val_loss"], ".4f"),
            number(r["val_bits_per_byte"], ".4f"), number(minutes, ".1f"),
        )  # fmt: skip
    return rows, as_text(table, width=150)
