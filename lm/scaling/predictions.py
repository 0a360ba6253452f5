"""Predictions of losses that the fit did not see: of held-out points, or written down before a run is made.

Each has two intervals: `low` and `high`, where a new run would be if the law holds, and `calibrated_low` and
`calibrated_high`, as far as rolling hold-outs of the fitted points say (`lm.scaling.holdouts`), or None without any.
"""

import dataclasses
import hashlib
import json
import operator
import re
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import UserError, require
from lm.files import whole
from lm.scaling.holdouts import roll
from lm.scaling.law import Fitted, Law, cost_of
from lm.scaling.laws import form_of
from lm.scaling.points import Points

COMPARISONS = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt
}  # fmt: skip
_CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*\Z")


def matching(points: Points, expression: str) -> np.ndarray:
    """The mask of `column > number [and column < number ...]`; params, tokens, flops, loss and all other columns."""
    mask = np.ones(len(points), bool)
    for part in re.split(r"\band\b", expression):
        found = _CONDITION.match(part)
        require(found is not None, f'{expression!r}: write a column, a comparison and a number, such as "flops > 1e18"')
        column, comparison, number = found.groups()
        values = points.column(column)
        try:
            number = float(number) if values.dtype.kind == "f" else number.strip("'\"")
        except ValueError:
            raise UserError(f"{expression!r}: {number} is not a number") from None
        mask &= COMPARISONS[comparison](values, number)
    return mask


FAR = 10.0
"""Times the largest fitted compute from which an extrapolation is warned of."""


def beyond(law: Law, flops: float, what: str) -> list[str]:
    """A warning where so many FLOPs are far beyond what the law was fitted to."""
    factor, largest = flops / law.data.flops.max(), law.data.flops.max()
    if factor <= FAR:
        return []
    return [
        f"{what} has {factor:.3g} times the largest fitted compute ({largest:.3g} FLOPs): the "
        "interval if the law holds says how the points scatter, not whether the law still holds so far out; train "
        "something in between and hold it out"
    ]


def rolled(law: Fitted) -> Law:
    """The law with rolling hold-outs of its points, and warnings of what they show."""
    if law.hold_outs is not None:
        return law
    require(isinstance(law, Law), f"{law.name} fits the optimum and predicts no losses; use --law chinchilla")
    found, said = roll(law), []
    if not found.cuts:
        said.append(f"no rolling hold-outs, so that only the interval that supposes the law exists: {found.why}")
    if bias := found.bias():
        side, other = ("high", "below") if bias > 0 else ("low", "above")
        said.append(
            f"hold-outs of these points all predict too {side}, by {abs(np.expm1(bias * np.log(10))):.2g} a tenfold "
            f"compute: expect losses {other} the predictions"
        )
    return dataclasses.replace(law.warned(*said), hold_outs=found)


def predict_at(law: Fitted, at: list[dict[str, float]]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the law predicts at each place, with both intervals, and a warning where the furthest is far out."""
    law = rolled(law)
    rows = [_row(law, place if "flops" in place else place | {"flops": _flops(law, **place)}) for place in at]
    cost = [row["flops"] for row in rows]
    most = int(np.argmax(cost))
    where = ", ".join(f"{name} {value:g}" for name, value in at[most].items())
    return rows, beyond(law, cost[most], f"the prediction at {where}")


def score(law: Law, unseen: Points) -> Law:
    """The law with its predictions of unseen points beside what they turned out to be."""
    law = rolled(law)
    columns = {name: unseen.column(name) for name in (*law.form.inputs, "flops")}
    actual = unseen.column(law.form.target)
    at = [{name: float(column[i]) for name, column in columns.items()} for i in range(len(unseen))]
    rows = [_row(law, place) for place in at]
    rows = [row | _outcome(row, float(loss)) for row, loss in zip(rows, actual, strict=True)]
    most = unseen.flops.max()
    factor = most / law.data.flops.max()
    said = [f"the furthest held-out point has {factor:.3g} times the compute of the largest fitted one"]
    said = beyond(law, most, "the furthest held-out point") or (said if factor > 1 else [])
    return dataclasses.replace(law.warned(*said), held_out=rows)


def intervals_at(law: Law, **at) -> dict[str, Any]:
    """What a law predicts, with both intervals; numbers, or arrays that go together.

    at: `flops`, and the columns that the law reads. Keys as in the rows of `predict_at`.
    """
    found = rolled(law).hold_outs
    predicted, (low, high) = law.predict(**at), law.predict_interval(**at)
    distance = np.log(at["flops"] / law.data.flops.max())
    wide = found.widened(predicted, low, high, distance, law.level) if found.cuts else (None, None)
    return dict(predicted=predicted, low=low, high=high, calibrated_low=wide[0], calibrated_high=wide[1])


def _row(law: Law, at: dict[str, float]) -> dict[str, Any]:
    numbers = intervals_at(law, **at)
    return at | {name: None if number is None else float(number) for name, number in numbers.items()}


def _flops(law: Law, *, params: float, tokens: float) -> float:
    """The training FLOPs of a place, as the fitted points count them."""
    k, g = cost_of(law.data)
    return k * params ** (1 + g) * tokens


def _outcome(row: dict[str, Any], actual: float) -> dict[str, Any]:
    """What came true, and whether the intervals hold it."""
    inside = bool(row["low"] <= actual <= row["high"])
    found = {"actual": actual, "error": row["predicted"] / actual - 1, "inside": inside}
    if row.get("calibrated_low") is not None:  # without hold-outs, or in a prediction sealed before there were any
        found["inside_calibrated"] = bool(row["calibrated_low"] <= actual <= row["calibrated_high"])
    return found


def write_prediction(law: Fitted, path: str | Path, at: list[dict[str, float]] | None = None) -> Path:
    """Write what the law predicts at each place before anything is trained there, sealed with SHA-256.

    at: places with the columns that the law reads; None for those of its held-out points. The seal covers the fit, the
    predictions and the hash of the points, so a later change of any of them shows.
    """
    law = rolled(law)
    held_out = [{name: row[name] for name in (*law.form.inputs, "flops")} for row in law.held_out]
    require(bool(at or held_out), "--write-prediction: of which models? --at N,D ... or --hold-out")
    rows, _ = predict_at(law, at or held_out)
    body = {
        "law": law.name, "formula": law.formula, "method": law.method, "level": law.level, "points": law.points,
        "points_sha256": law.data.sha256(), "conventions": law.conventions, "parameters": law.values(),
        "predictions": rows, "hold_outs": dataclasses.asdict(law.hold_outs),
    }  # fmt: skip
    path = Path(path)
    require(not path.exists(), f"{path} exists: a prediction is not written twice; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write(json.dumps(body | {"sha256": _seal(body)}, indent=1) + "\n")
    return path


def _seal(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def score_prediction(path: str | Path, points: Points) -> list[dict[str, Any]]:
    """A sealed prediction's rows with what points at the same place (within 1%) turned out to be."""
    path = Path(path)
    require(path.is_file(), f"no file {path}")
    try:
        body = json.loads(path.read_text())
        seal = body.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a prediction that `lm fit --write-prediction` wrote") from error
    require(
        seal == _seal(body), f"{path}: its SHA-256 is not that of its contents; it was changed after it was written"
    )
    form, rows = form_of(body["law"]), []
    actual_n = points.column(form.target)
    for row in body["predictions"]:
        near = np.all([np.abs(points.column(c) / row[c] - 1) < 0.01 for c in form.inputs], axis=0)
        if near.any():
            row = row | _outcome(row, float(actual_n[near].mean()))
        rows.append(row)
    require(any("actual" in row for row in rows), f"{path} predicts nothing that these points have (within 1%)")
    return rows
