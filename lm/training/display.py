"""The display of a run: one live line, and a line that stays at each evaluation. All on standard error."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from lm.console import console
from lm.errors import tell_notices

IN_BYTES = {"downloading", "reading", "tokenizer", "tokens", "scoring bytes"}
"""Stages whose progress is counted in bytes."""


@contextlib.contextmanager
def patience(what: str, seconds: float = 1.0) -> Iterator[None]:
    """Says in the terminal what is waited for, once that has taken a while and for as long as it lasts."""
    status = console(stderr=True).status(Text(what))  # which reads markup in a string even so
    timer = threading.Timer(seconds, status.start)
    if status.console.is_terminal:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if timer.ident:  # it was started, and may be speaking
            timer.join()
            status.stop()


class Display:
    """Shows preparation and training; quiet=True shows nothing."""

    def __init__(self, quiet: bool = False):
        self.console = console(stderr=True, quiet=quiet)
        columns = (
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
            MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"), TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
        )  # fmt: skip
        silent = quiet or not self.console.is_terminal  # into a file, only the lines that stay
        self.progress = Progress(*columns, console=self.console, disable=silent, transient=True)
        self.task = None

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *_) -> None:
        self.progress.stop()

    def stage(self, name: str, done: int, total: int | None) -> None:
        """Shows how far a stage before training is (bytes read, text tokenized); a new name starts a new line."""
        if self.task is None or self.progress.tasks[-1].description != name:
            self.clear()
            self.task = self.progress.add_task(name, numbers="")
        elapsed = self.progress.tasks[-1].elapsed or 0.0
        numbers = f"{done / elapsed / 1e6:.1f} MB/s" if name in IN_BYTES and elapsed > 1 else ""
        self.progress.update(self.task, completed=done, total=total, numbers=numbers)

    def training(self, step: int, total: int, report: dict[str, Any], tokens_per_second: float) -> None:
        """Renews the live line. report: its loss is shown."""
        numbers = f"loss {report['loss']:.3f}  {tokens_per_second:,.0f} tokens/s"
        if self.task is None or self.progress.tasks[-1].description != "training":
            self.clear()
            self.task = self.progress.add_task("training", numbers=numbers)
        self.progress.update(self.task, completed=step, total=total, numbers=numbers)

    def clear(self) -> None:
        """Takes the live line away."""
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None

    def evaluated(self, records: dict[str, dict[str, Any]], total: int) -> None:
        """Prints a line for an evaluation of one run, or of several. records: by the runs' names; total: steps."""
        best = min(records, key=lambda name: records[name]["val_loss"])
        record = records[best]
        line = f"step {record['step']:>{len(str(total))}}/{total}  "
        if len(records) == 1:
            line += f"loss {record['loss']:.4f}  " if "loss" in record else ""
            if "val_bits_per_byte" in record:
                line += f"validation {record['val_loss']:.4f} nats/token, {record['val_bits_per_byte']:.4f} bits/byte"
            else:
                line += feedback_text(record)
        else:
            worst = max(record["val_loss"] for record in records.values())
            line += f"{len(records)} runs  validation {record['val_loss']:.4f} ({best}) to {worst:.4f} nats/token"
        self.say(line)

    def say(self, text: str) -> None:
        """Prints a line of text, which stays."""
        tell_notices()
        self.console.print(text, soft_wrap=True)


def feedback_text(record: dict[str, Any]) -> str:
    """Writes what an evaluation found of an objective that is not of language; empty where there was none."""
    figures = {name.removeprefix("val_"): value for name, value in record.items() if name.startswith("val_")}
    told = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
    return f"validation {told}" if told else ""
