"""lm plot RUN...: loss curves; lm plot POINTS.csv: scaling figures."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lm.arguments import InputFile, parse
from lm.commands.common import Json, prepare_jax, print_json
from lm.commands.table import Table
from lm.errors import UserError, nearest, require, tell
from lm.limits import Level, Seed, Whole


@dataclasses.dataclass(frozen=True)
class Options:
    """Loss curves of one or several runs. `lm plot POINTS.csv --help`: scaling figures of a table of runs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Directories, or names under runs/."""
    out: Path = Path("loss.png")
    """Figure to write: .png, .svg or .pdf."""
    x: Literal["step", "tokens", "seconds"] = "step"
    """What runs along the horizontal axis."""
    bits_per_byte: bool = False
    """Validation alone, in the unit that compares tokenizers."""
    json: Json = False


@dataclasses.dataclass(frozen=True)
class ScalingOptions:
    """Scaling figures of a table of trained models, each as PNG and SVG, and why the table cannot carry others."""

    points: Annotated[InputFile, tyro.conf.Positional]
    """A CSV file, one row a trained model: parameters, tokens, training FLOPs and loss (nats per token)."""
    out: Path = Path("scaling")
    """Folder to write to."""
    law: str = "chinchilla"
    """What is fitted and drawn, as in `lm fit`: chinchilla, overtraining, kaplan_nd, power, isoflop, frontier ..."""
    method: Literal["huber", "l1", "squares", "log-squares"] = "huber"
    """What is minimised, as in `lm fit`."""
    figures: tuple[str, ...] = ()
    """Only these: isoflop, frontier, losses, isoloss, ratio, exponents, learning_rates."""
    bootstraps: Whole = 200
    """Refits for bands; 0 takes asymptotic ones."""
    level: Level = 0.9
    """Coverage of the bands."""
    seed: Seed = 42
    table: Annotated[Table, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Table)
    json: Json = False


def run(arguments: list[str]) -> None:
    if _names_a_table(arguments):
        _scaling(parse(ScalingOptions, arguments, "lm plot"))
    else:
        _runs(parse(Options, arguments, "lm plot"))


def _names_a_table(arguments: list[str]) -> bool:
    """Whether a .csv is to be drawn (not written to)."""
    before = ["", *arguments]
    return any(a.lower().endswith(".csv") and b != "--out" for b, a in zip(before, arguments, strict=False))


def _runs(o: Options) -> None:
    require(bool(o.runs), "which runs? `lm runs` lists them")
    from lm.training.display import patience

    with patience(f"drawing {o.out}"):
        from lm.plot import incomparable, loss_curves
        from lm.run import Run

        runs = [Run(name) for name in o.runs]
        panels = len(incomparable(runs, o.bits_per_byte))
        loss_curves(runs, o.out, x=o.x, bits_per_byte=o.bits_per_byte)
    if panels > 1:
        unit = "validation text" if o.bits_per_byte else "validation text or tokenizer"
        hint = "" if o.bits_per_byte else "; --bits-per-byte compares tokenizers over one text"
        tell(f"these runs differ in {unit}: {panels} panels, which do not compare{hint}")
    if o.json:
        print_json({"figure": str(o.out), "runs": [run.name for run in runs]})
    else:
        print(o.out)


def _scaling(o: ScalingOptions) -> None:
    from lm.training.display import patience

    with patience(f"fitting and drawing {o.points}"):
        prepare_jax()
        from lm.scaling.plot import FIGURES, draw

        for name in o.figures:
            require(name in FIGURES, f"--figures {name}: no such figure{nearest(name, FIGURES)} ({', '.join(FIGURES)})")
        points = o.table.read(o.points)
        law, why = _law(o, points)
        written, skipped = draw(points, law, o.out, only=o.figures)
    skipped = {name: why if law is None and reason == "there is no fitted law" else reason
               for name, reason in skipped.items()}  # fmt: skip
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
    require(bool(written), f"{o.points} carries none of the figures: {reasons}")
    if o.json:
        figures = [str(path) for path in written]
        print_json({"law": o.law, "figures": figures, "skipped": skipped, "warnings": points.doubts()})
        return
    for path in written:
        print(path)
    for name, reason in skipped.items():
        print(f"no {name}: {reason}")
    for doubt in points.doubts():
        print(f"warning: {doubt}")


def _law(o: ScalingOptions, points):
    """The fitted law, or None and why the points do not allow it: figures that need none are drawn all the same."""
    from lm import scaling

    common = dict(bootstraps=o.bootstraps, level=o.level, seed=o.seed)
    scaling.check_resampling(points, cluster="point", **common)
    name = scaling.ALIASES.get(o.law, o.law)
    if name not in scaling.APPROACHES:
        form = scaling.form_of(name)
        require(form.target == "loss", f"--law {o.law} predicts {form.target}, which no scaling figure shows")
    try:
        return scaling.fit_by_name(points, o.law, method=o.method, **common), ""
    except UserError as reason:
        return None, f"{o.law} was not fitted: {reason}"
