"""Consoles of rich that print names, paths and prompts as they are: no `[/x]` is markup here, and no `:x:` an emoji."""

import io
import os
from typing import Any

from rich.console import Console, RenderableType


def console(**options: Any) -> Console:
    """Returns a console that prints text literally. options: rich's. Where there is no terminal its lines are long."""
    made = Console(markup=False, emoji=False, highlight=False, **options)
    if not (made.is_terminal or "width" in options or "COLUMNS" in os.environ):
        made.width = 150
    return made


def as_text(*shown: RenderableType, width: int) -> str:
    """Returns tables and lines below each other as plain text, without spaces at the ends of its lines."""
    text = io.StringIO()
    plain = console(file=text, width=width)
    for one in shown:
        plain.print(one)
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().removesuffix("\n").split("\n"))
