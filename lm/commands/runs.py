"""lm runs: a table of the runs; lm runs A B: compared."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from lm.arguments import parse
from lm.commands.common import Json, print_json
from lm.errors import UserError, require


@dataclasses.dataclass(frozen=True)
class Options:
    """A table of the runs, those side by side whose losses compare; `lm runs A B` compares two or more."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Directories, or names under runs/, to compare: settings that differ, losses, cost and curves."""
    folder: Path = Path("runs")
    """Where to look."""
    sort: str | None = None
    """Column or setting to sort by: best, date, train.seed."""
    reverse: bool = False
    """Largest or latest first."""
    where: tuple[str, ...] = ()
    """Only runs that fulfil all of these: "train.seed=0" "optimizer.learning_rate>=0.01" "state!=finished"."""
    figure: Path | None = None
    """With runs to compare: draw their curves to this .png, .svg or .pdf."""
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm runs")
    if o.runs:
        _compare(o)
        return
    require(o.figure is None, "--figure: which runs? Give those to compare, or see lm plot")
    from lm.listing import listed, ordered, where
    from lm.table import runs_table

    there = listed(o.folder)
    found = ordered(where(there, o.where), o.sort, o.reverse)
    if o.json:
        print_json({"runs": [one.row for one in found]})
    elif found:
        print(runs_table(found), end="")
    elif there:
        print(f"none of the {len(there)} runs in {o.folder} is such: --where {' '.join(o.where)}")
    else:
        print(f"no runs in {o.folder} yet; start with: lm train quickstart")


def _compare(o: Options) -> None:
    require(not (o.sort or o.where or o.reverse), "--sort, --reverse and --where are of the table: leave the runs out")
    from lm.comparison import as_json, comparison_text
    from lm.listing import read
    from lm.table import terminal_width

    found = [read(o.folder / name if (o.folder / name / "experiment.json").is_file() else name) for name in o.runs]
    for one in found:
        if not one.run:
            raise UserError(one.row["reason"])
    if o.figure:
        from lm.plot import loss_curves

        loss_curves([one.run for one in found], o.figure)
    if o.json:
        print_json(as_json(found) | ({"figure": str(o.figure)} if o.figure else {}))
    else:
        print(comparison_text(found, terminal_width()), end="")
        print(o.figure or "", end="\n" if o.figure else "")
