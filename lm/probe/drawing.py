"""What figures of probes share: the canvas, and tokens as labels."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.errors import printable

HEAT = {"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True, "font.size": 10}
BARS = {"font.size": 11}
FAMILY = {"family": "monospace"}


@contextlib.contextmanager
def canvas(out: Path, rows: int = 1, columns: int = 1, *, style: Mapping[str, Any] = {}, **options: Any) -> Iterator:
    """Axes to draw on, saved to `out` (.png, .svg or .pdf) at the end.

    style: what differs from the house's. options: of plt.subplots.
    """
    from lm.figures import STYLE, VERBATIM, check_format, plt, save  # a second to import, for those that draw

    check_format(out, "--figure")
    with plt.rc_context({**STYLE, **VERBATIM, **style}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")  # of a word's characters: drawn as boxes
        figure, axes = plt.subplots(rows, columns, **({"layout": "constrained"} | options))
        yield axes
        save(figure, out)


def token_ticks(axis, labels: Sequence[str], size: float, rotation: float = 0) -> None:
    """Write tokens beside an axis, one a place."""
    words = [short(label, 18) for label in labels]
    axis.set_ticks(range(len(labels)), words, fontsize=size, rotation=rotation, **FAMILY)
    axis.set_tick_params(length=0)


def short(word: str, most: int) -> str:
    """Shorten to at most so many characters."""
    word = printable(word)
    return word if len(word) <= most else word[: most - 1] + "…"
