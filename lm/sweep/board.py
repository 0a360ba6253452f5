"""What a person sees of a sweep: a live table of its runs, on a terminal; a line for each that ends, anywhere."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.live import Live
from rich.table import Table

from lm.console import console
from lm.errors import tell_notices
from lm.tables import table

ROWS = 24
"""Most runs shown at once: those in training, then the next and the last ended."""


@dataclasses.dataclass
class Entry:
    """What is shown of one run."""

    total: int
    status: str = "waiting"
    step: int = 0
    loss: float = math.nan


class Board:
    """The display of a whole sweep, in place of a training's Display for all its packs. quiet=True shows nothing."""

    def __init__(self, quiet: bool = False):
        self.console = console(stderr=True, quiet=quiet)
        self.entries: dict[str, Entry] = {}
        self.live: Live | None = None
        self.current: Sequence[str] = ()
        self.left = 0.0
        self.flops_until: Callable[[int], float] = float
        self.first_step = self.made_before = 0
        self.preparing = ""
        self.began, self.made = time.perf_counter(), 0.0

    # --- what a sweep tells ---
    @contextlib.contextmanager
    def watching(self, totals: Mapping[str, int]) -> Iterator[None]:
        """Show runs, given by name with their steps, until the end of the block."""
        self.entries = {name: Entry(total) for name, total in totals.items()}
        self.began, self.made = time.perf_counter(), 0.0
        if self.console.is_terminal and not self.console.quiet:
            self.live = Live(console=self.console, get_renderable=self.table, refresh_per_second=4)
        try:
            with self.live or contextlib.nullcontext():
                yield
        finally:
            self.live = None

    def start(self, names: Sequence[str], left: float, flops_until: Callable[[int], float], step: int) -> None:
        """These runs are trained next, from `step` on; left: FLOPs in all, flops_until: of these runs before a step."""
        self.current, self.left, self.flops_until = names, left, flops_until
        self.first_step, self.made_before = step, self.made
        for name in names:
            self.entries[name].status = "training"

    def mark(self, name: str, status: str, step: int, loss: float = math.nan) -> None:
        """A run has come to a status: waiting, done, diverged or failed."""
        entry = self.entries[name]
        entry.status, entry.step, entry.loss = status, step, loss

    def ended(self) -> int:
        """How many runs are over, whatever became of them."""
        return sum(entry.status not in ("waiting", "training") for entry in self.entries.values())

    def tell_end(self, name: str, told: str) -> None:
        """Print a line for a run that has ended."""
        ended, eta = self.ended(), self.eta()
        when = "" if eta is None or ended == len(self.entries) else f"  ETA {clock(eta)}"
        self.tell(f"{ended}/{len(self.entries)}  {name}  {self.entries[name].status}  {told}{when}")

    def tell(self, text: str) -> None:
        """Print a line of text that stays."""
        tell_notices()
        self.console.print(text, soft_wrap=True)

    def eta(self) -> float | None:
        """Seconds to the end at the speed so far; None before anything is known of that."""
        seconds = time.perf_counter() - self.began
        return (self.left - (self.made - self.made_before)) * seconds / self.made if self.made else None

    def table(self) -> Table:
        """The runs that there is room for, with what is going on below them."""
        eta = self.eta()
        caption = f"{self.ended()} of {len(self.entries)} runs  {self.preparing}"
        entries = {name: self.entries[name] for name in self._shown(max(3, min(ROWS, self.console.height - 4)))}
        made = table(
            ("run", "status", "step", "loss"),
            [
                (name, e.status, f"{e.step:,}/{e.total:,}", "" if math.isnan(e.loss) else f"{e.loss:.4f}")
                for name, e in entries.items()
            ],
            left=2,
        )
        made.caption, made.caption_justify = caption if eta is None else f"{caption}ETA {clock(eta)}", "left"
        return made

    def _shown(self, rows: int) -> list[str]:
        """Names in the order of the sweep: all in training, then as many of the last ended and the next as fit."""
        names = list(self.entries)
        training = [name for name in names if self.entries[name].status == "training"][:rows]
        waiting = [name for name in names if self.entries[name].status == "waiting"]
        ended = [name for name in names if self.entries[name].status not in ("waiting", "training")]
        rest = rows - len(training)
        last = ended[::-1][: rest - min(len(waiting), rest // 2)]
        chosen = {*training, *last, *waiting[: rest - len(last)]}
        return [name for name in names if name in chosen]

    # --- what a training tells: see lm.training.display ---
    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_) -> None:
        self.preparing = ""

    def stage(self, name: str, done: int, total: int | None) -> None:
        """Show what is being prepared."""
        share = f" {done / total:.0%}" if total else ""
        self.preparing = f"{name}{share}  "

    def training(self, step: int, total: int, report: dict[str, Any], tokens_per_second: float) -> None:
        """Show the step of the runs in training, with the mean loss of their pack."""
        self.preparing = ""
        self.made = self.made_before + self.flops_until(step) - self.flops_until(self.first_step)
        for name in self.current:
            if self.entries[name].status == "training":
                self.entries[name].step, self.entries[name].loss = step, report["loss"]

    def clear(self) -> None:
        """Show nothing as being prepared."""
        self.preparing = ""

    def evaluated(self, record: dict[str, Any], total: int) -> None:
        """Show nothing of it; what counts is the loss at the end."""

    def say(self, text: str) -> None:
        """Show nothing: of dozens of runs it is too much. The sweep itself tells what became of each."""


def clock(seconds: float) -> str:
    """A time as 1:02:03 or 2:03."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
