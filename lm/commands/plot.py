"""lm plot RUN...: loss curves."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lm.arguments import parse
from lm.commands.common import Json, print_json
from lm.errors import require


@dataclasses.dataclass(frozen=True)
class Options:
    """Loss curves of one or several runs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Directories, or names under runs/."""
    out: Path = Path("loss.png")
    """Figure to write: .png, .svg or .pdf."""
    x: Literal["step", "tokens", "seconds"] = "step"
    """What runs along the horizontal axis."""
    bits_per_byte: bool = False
    """Validation alone, in the unit that compares tokenizers."""
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm plot")
    require(bool(o.runs), "which runs? `lm runs` lists them")
    from lm.plot import loss_curves
    from lm.run import Run

    runs = [Run(name) for name in o.runs]
    loss_curves(runs, o.out, x=o.x, bits_per_byte=o.bits_per_byte)
    if o.json:
        print_json({"figure": str(o.out), "runs": [run.name for run in runs]})
    else:
        print(o.out)
