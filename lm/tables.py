"""How tables are drawn everywhere: plain columns under bold titles, words to the left, numbers to the right.

Names, texts and paths are shown as they are: nothing in them is markup, and what a terminal would obey is escaped.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from lm.console import console
from lm.errors import printable


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str = "",
    left: int | Collection[str] = 1,
    widths: Sequence[int] | None = None,
) -> Table:
    """Build a table from its columns' titles and its rows; see `cell` for how values are written.

    left: the columns that hold words, which fold where there is no room, by title, or how many of the first; the others
    hold numbers. widths: of the columns in characters, by default what they need.
    """
    made = Table(
        title=_literal(title) if title else None, title_justify="left", title_style="", box=None, pad_edge=False,
        header_style="bold",
    )  # fmt: skip
    for place, column in enumerate(columns):
        is_words = place < left if isinstance(left, int) else column in left
        width = None if widths is None else widths[place]
        made.add_column(_literal(column), justify="left" if is_words else "right", overflow="fold", width=width)
    for row in rows:
        made.add_row(*(_literal(cell(value)) for value in row))
    return made


def facts(pairs: Iterable[tuple[str, Any]]) -> Table:
    """Build a table without titles: what a fact is called, and the fact."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column()
    made.add_column()
    for name, value in pairs:
        made.add_row(_literal(name), _literal(cell(value)))
    return made


def records_table(columns: Mapping[str, str], records: Iterable[Any], *, title: str = "", left: int = 1) -> Table:
    """Build a table with a row for each object; columns: {attribute: the column's title}."""
    rows = ([getattr(record, name) for name in columns] for record in records)
    return table([*columns.values()], rows, title=title, left=left)


def cell(value: Any) -> str:
    """Write floats with three decimals, whole numbers with commas, None as a dash, a tuple as its parts."""
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " to ".join(map(cell, value))
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(*parts: Table | str) -> None:
    """Print tables and lines below each other on standard output; lines are never wrapped.

    Tables fold at a terminal's width, and are as wide as they need anywhere else.
    """
    out = console(soft_wrap=True)
    for part in parts:
        if isinstance(part, str):
            out.print(_literal(part))
        else:
            if not out.is_terminal:
                out.width = max(out.width, out.measure(part, options=out.options.update(max_width=10_000)).maximum)
            out.print(part)


def _literal(text: str) -> Text:
    """Text without markup, what cannot be printed escaped."""
    return Text(printable(text))
