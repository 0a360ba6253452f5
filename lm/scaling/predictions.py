"""Predictions of losses that the fit did not see: of held-out points, or written down before a run is made."""

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
from lm.scaling.law import Law, cost_of
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
        f"{what} has {factor:.3g} times the largest fitted compute ({largest:.3g} FLOPs): so far out the interval says "
        "how the points scatter, not whether the law still holds; train something in between and hold it out"
    ]


def predict_at(law: Law, at: list[dict[str, float]]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the law predicts at each place, with intervals, and a warning where the furthest is far out."""
    rows = [_row({name: [value] for name, value in place.items()}, 0, law) for place in at]
    k, g = cost_of(law.data)
    cost = [k * row["params"] ** (1 + g) * row["tokens"] for row in rows]
    most = int(np.argmax(cost))
    where = ", ".join(f"{name} {value:g}" for name, value in at[most].items())
    return rows, beyond(law, cost[most], f"the prediction at {where}")


def score(law: Law, unseen: Points) -> Law:
    """The law with its predictions of unseen points beside what they turned out to be."""
    columns = {name: unseen.column(name) for name in form_of(law.name).inputs}
    actual = unseen.column(form_of(law.name).target)
    rows = [_row(columns, i, law) | _outcome(law, columns, i, actual[i]) for i in range(len(unseen))]
    most = unseen.flops.max()
    factor = most / law.data.flops.max()
    said = [f"the furthest held-out point has {factor:.3g} times the compute of the largest fitted one"]
    said = beyond(law, most, "the furthest held-out point") or (said if factor > 1 else [])
    return dataclasses.replace(law, held_out=rows, warnings=[*law.warnings, *said])


def _row(columns: dict, i: int, law: Law) -> dict[str, Any]:
    at = {name: float(column[i]) for name, column in columns.items()}
    low, high = law.predict_interval(**at)
    return at | {"predicted": float(law.predict(**at)), "low": float(low), "high": float(high)}


def _outcome(law: Law, columns: dict, i: int, actual: float) -> dict[str, Any]:
    row = _row(columns, i, law)
    return {
        "actual": float(actual), "error": row["predicted"] / float(actual) - 1,
        "inside": bool(row["low"] <= actual <= row["high"]),
    }  # fmt: skip


def write_prediction(law: Law, path: str | Path, at: list[dict[str, float]]) -> Path:
    """Write what the law predicts at each place before anything is trained there, sealed with SHA-256.

    The seal covers the fit, the predictions and the hash of the points, so a later change of any of them shows.
    """
    rows = [_row({name: [value] for name, value in place.items()}, 0, law) for place in at]
    body = {
        "law": law.name, "formula": law.formula, "method": law.method, "level": law.level, "points": law.points,
        "points_sha256": law.data.sha256(), "conventions": law.conventions, "parameters": law.values(),
        "predictions": rows,
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
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a prediction that `lm fit --write-prediction` wrote") from error
    require(
        seal == _seal(body), f"{path}: its SHA-256 is not that of its contents; it was changed after it was written"
    )
    form, rows = form_of(body["law"]), []
    actual_n = points.column(form.target)
    for row in body["predictions"]:
        near = np.all([np.abs(points.column(c) / row[c] - 1) < 0.01 for c in form.inputs], axis=0)
        if near.any():
            actual = float(actual_n[near].mean())
            inside = bool(row["low"] <= actual <= row["high"])
            row = row | {"actual": actual, "error": row["predicted"] / actual - 1, "inside": inside}
        rows.append(row)
    require(any("actual" in row for row in rows), f"{path} predicts nothing that these points have (within 1%)")
    return rows
