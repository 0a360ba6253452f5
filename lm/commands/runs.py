"""lm runs: a table of the runs."""

import dataclasses
from pathlib import Path

from lm.arguments import parse
from lm.commands.common import Json, print_json


@dataclasses.dataclass(frozen=True)
class Options:
    """A table of the runs."""

    folder: Path = Path("runs")
    """Where to look."""
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm runs")
    from lm.table import runs_table

    rows, table = runs_table(o.folder)
    if o.json:
        print_json({"runs": rows})
    else:
        print(table, end="")
