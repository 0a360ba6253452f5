"""lm fit POINTS.csv: scaling laws with intervals."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lm.arguments import parse
from lm.commands.common import Json, prepare_jax, print_json
from lm.commands.table import Table
from lm.errors import UserError, require


@dataclasses.dataclass(frozen=True)
class Options:
    """Fit a scaling law to a table of trained models, with intervals and a verdict on each parameter."""

    points: Annotated[Path, tyro.conf.Positional]
    """A CSV file, one row a trained model: parameters, tokens, training FLOPs and loss (nats per token)."""
    law: str = "chinchilla"
    """chinchilla, overtraining, repeated, kaplan_n, kaplan_d, kaplan_c, kaplan_nd, power, learning_rate, batch; isoflop
    (approach 2: valleys of equal budgets) or frontier (approach 1: envelope), which fit the optimum alone.
    Also approach1, approach2 and approach3 (chinchilla)."""
    method: Literal["huber", "l1", "squares", "log-squares"] = "huber"
    """What is minimised: Huber or absolute value of ln(predicted/actual), squares of the loss or of its logarithm."""
    delta: float = 1e-3
    """Where Huber's function turns from square to linear."""
    valley: Literal["quadratic", "akima", "quadratic-all"] = "quadratic"
    """With --law isoflop, how the bottom of a valley is found; the others are reported beside it."""
    fix: tuple[str, ...] = ()
    """Parameters to hold, such as E=1.69."""
    bootstraps: int = 1000
    """Refits for standard errors, 2 to 100,000; 0 takes asymptotic ones. No value depends on their number."""
    cluster: Literal["point", "run", "noise"] = "point"
    """What is resampled: points, whole runs, or each loss by its seed noise."""
    level: float = 0.9
    """Coverage of the intervals."""
    seed: int = 42
    table: Annotated[Table, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Table)
    hold_out: str | None = None
    """Predict these rows instead of fitting them: "flops > 1e18"."""
    write_prediction: Path | None = None
    """Write predictions at --at (or of the held-out rows), sealed with SHA-256, before the runs are made."""
    at: tuple[str, ...] = ()
    """Where to predict: N,D pairs, such as 1e6,2e7. Far beyond the fitted compute a warning says how far."""
    score: Path | None = None
    """Score a prediction written earlier against these points, instead of fitting."""
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm fit")
    prepare_jax()
    from lm import scaling
    from lm.training.display import patience

    points = o.table.read(o.points, needs_loss=o.law not in ("learning_rate", "batch"))
    if o.score is not None:
        rows = scaling.score_prediction(o.score, points)
        print_json({"scores": rows}) if o.json else print(scaling.describe_scores(rows), end="")
        return
    mask = None if o.hold_out is None else scaling.matching(points, o.hold_out)
    places, rows = [_place(pair) for pair in o.at], []
    with patience(f"fitting {o.points}"):
        law = scaling.fit_by_name(
            points, o.law, method=o.method, delta=o.delta, valley=o.valley, fixed=_assignments(o.fix),
            hold_out=mask, bootstraps=o.bootstraps, cluster=o.cluster, level=o.level, seed=o.seed,
        )  # fmt: skip
    if isinstance(law, scaling.Frontier):
        law = law.warned(*scaling.against_law(law))
    if places:
        law = scaling.rolled(law)
        rows, far = scaling.predict_at(law, places)
        law = law.warned(*far)
    if o.write_prediction is not None:
        scaling.write_prediction(law, o.write_prediction, places)
    if o.json:
        print_json(law.to_json() | ({"predictions": rows} if rows else {}))
    else:
        print(scaling.describe(law) + (f"\n{scaling.describe_scores(rows)}" if rows else ""), end="")


def _assignments(words: Sequence[str]) -> dict[str, float]:
    """The parameters to hold, from words NAME=NUMBER; each name once."""
    held: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        require(name not in held, f"--fix {word[:60]}: {name[:60]} is fixed twice")
        try:
            held[name] = float(value)
        except ValueError:
            raise UserError(f"--fix {word[:60]}: write NAME=NUMBER, such as E=1.69") from None
    return held


def _place(pair: str) -> dict[str, float]:
    """The place that a word N,D names."""
    try:
        params, tokens = (float(number) for number in pair.split(","))
    except ValueError:
        raise UserError(f"--at {pair[:60]}: write N,D, such as 1e6,2e7") from None
    require(0 < params < math.inf and 0 < tokens < math.inf, f"--at {pair[:60]}: both must be positive and finite")
    return {"params": params, "tokens": tokens}
