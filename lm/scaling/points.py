"""Points: one row a trained model, with what was counted how."""

import csv
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from lm.errors import UserError, nearest, require
from lm.files import whole
from lm.scaling.table import CONVENTIONS, read_table, shown

QUANTITIES = ("params", "tokens", "flops", "loss", "sd", "run")
_SEED = re.compile(r"(^|[._ -])seed$", re.IGNORECASE)
_NO_SETTING = re.compile(
    r"^(name|run|id|index|date)$|[_ ](name|id)$|loss|bits_per_byte|perplexity|accuracy|error|seconds|minutes|time",
    re.IGNORECASE,
)
"""Columns that name a run or say what came of it."""


@dataclasses.dataclass(frozen=True)
class Points:
    """Trained models. Arrays are float64 [n].

    params N, tokens D, flops C (training, whole run), loss in nats per token; sd: standard deviation of the loss from
    one seed to another, or None; run: the trunk each was branched from, or None; columns: everything else in the table.
    conventions: how params, flops and loss were counted. dropped: rows left out before the fit, or None. copies: rows
    that repeated another in every column and were left out, as they are no runs of their own.
    """

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray
    sd: np.ndarray | None = None
    run: np.ndarray | None = None
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    conventions: dict[str, str] = dataclasses.field(default_factory=dict)
    dropped: "Points | None" = None
    dropped_why: str = ""
    copies: int = 0

    def __len__(self) -> int:
        return len(self.loss)

    def quantities(self) -> dict[str, np.ndarray]:
        """The arrays of QUANTITIES that these points have, by name."""
        arrays = {name: getattr(self, name) for name in QUANTITIES}
        return {name: array for name, array in arrays.items() if array is not None}

    def column(self, name: str) -> np.ndarray:
        """One of the quantities, or another column of the table, by name."""
        if name in ("params", "tokens", "flops", "loss"):
            return getattr(self, name)
        if name not in self.columns:
            known = ["params", "tokens", "flops", "loss", *self.columns]
            raise UserError(f"the points have no column {name!r}{nearest(name, known)} (there are {', '.join(known)})")
        return self.columns[name]

    def where(self, mask: np.ndarray) -> "Points":
        """The rows of a boolean mask or of a list of indices."""
        arrays = {name: array[mask] for name, array in self.quantities().items()}
        return dataclasses.replace(self, **arrays, columns={name: a[mask] for name, a in self.columns.items()})

    def drop(self, mask: np.ndarray, why: str) -> "Points":
        """The points without the rows of the mask, which are remembered with the reason."""
        return dataclasses.replace(self.where(~mask), dropped=self.where(mask), dropped_why=why)

    def with_dropped(self) -> "Points":
        """All rows again, those that were dropped first."""
        if self.dropped is None:
            return self
        before = self.dropped.quantities()
        arrays = {name: np.concatenate([before[name], array]) for name, array in self.quantities().items()}
        columns = {name: np.concatenate([self.dropped.columns[name], a]) for name, a in self.columns.items()}
        return dataclasses.replace(self, **arrays, columns=columns, dropped=None, dropped_why="")

    def write(self, path: str | Path) -> Path:
        """Write a CSV file that read_points understands without options; return its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        table = self.quantities() | {name: a for name, a in self.columns.items() if name not in QUANTITIES}
        with whole(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table)
            writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
        return path

    def sha256(self) -> str:
        """Hash of N, D, C and loss to the last bit: a prediction records which points it was made from."""
        columns = [np.ascontiguousarray(getattr(self, name), "<f8") for name in ("params", "tokens", "flops", "loss")]
        return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()

    def replicate_sd(self) -> float | None:
        """Seed noise: the pooled relative standard deviation of runs that differ in nothing but the seed, or None.

        Runs agree in N, D, C and in every column that is a setting: none that is called seed, names a run, measures
        one, or has another value in every row.
        """
        settings = [
            column for name, column in self.columns.items()
            if not (_SEED.search(name) or _NO_SETTING.search(name) or len(np.unique(column)) == len(self))
        ]  # fmt: skip
        group_n = _groups([self.params, self.tokens, self.flops, *settings])
        count_g = np.bincount(group_n)
        freedom = len(self) - len(count_g)
        if not freedom:
            return None
        log_n = np.log(self.loss)
        mean_g = np.bincount(group_n, log_n) / count_g
        return float(np.sqrt(np.sum((log_n - mean_g[group_n]) ** 2) / freedom))

    def doubts(self) -> list[str]:
        """Warnings about rows that may make the points count for more than they are."""
        said = []
        if self.copies:
            said.append(f"{self.copies} rows repeat another in every column; each is counted once")
        seeds = [column for name, column in self.columns.items() if _SEED.search(name)]
        alike = len(self) - len(np.unique(_groups([self.params, self.tokens, self.flops, self.loss, *seeds])))
        if alike and len(np.unique(self.loss)) > 1:
            said.append(
                f"{alike} rows repeat another's N, D, C and loss, and no seed tells them apart; if they are copies of "
                "one run, intervals come out too narrow"
            )
        return said


def _groups(columns: Iterable[np.ndarray]) -> np.ndarray:
    """[n] numbers, equal for rows that agree in all columns; missing values agree with each other."""
    codes = [np.unique(column, return_inverse=True)[1].ravel() for column in columns]
    return np.unique(np.stack(codes), axis=1, return_inverse=True)[1].ravel()


def make_points(
    params, tokens, loss, flops=None, *, sd=None, run=None, columns=None, conventions: dict[str, str] | None = None,
    where: str = "points",
) -> Points:  # fmt: skip
    """Points from arrays [n]; FLOPs default to 6ND, and copies of a row are left out.

    where: the source that errors name. Raises UserError where a quantity is not finite and positive, with its row.
    """
    loss = _vector(f"{where}: loss", loss)
    params, tokens = (_vector(f"{where}: {name}", a, len(loss)) for name, a in (("params", params), ("tokens", tokens)))
    said = {"params": "as given", "flops": "6ND" if flops is None else "as given", "loss": "nats per token"}
    flops = 6 * params * tokens if flops is None else _vector(f"{where}: flops", flops, len(loss))
    if sd is not None:
        sd = _vector(f"{where}: sd", np.full(len(loss), sd, np.float64) if np.ndim(sd) == 0 else sd, len(loss))
    columns = {str(name): np.asarray(column) for name, column in (columns or {}).items()}
    run = None if run is None else np.asarray(run)
    for name, column in (columns | ({} if run is None else {"run": run})).items():
        require(column.shape == loss.shape, f"{where}: column {shown(name)} has not one value for each loss")
    points = Points(
        params=params, tokens=tokens, flops=flops, loss=loss, sd=sd, run=run, columns=columns,
        conventions=said | (conventions or {}),
    )  # fmt: skip
    for name, values in points.quantities().items():
        if name != "run":
            _check_positive(f"{where}: ", name, values)
    _, first = np.unique(_groups([*points.quantities().values(), *columns.values()]), return_index=True)
    if len(first) == len(points):
        return points
    return dataclasses.replace(points.where(np.sort(first)), copies=len(points) - len(first))


def _vector(what: str, values, length: int | None = None) -> np.ndarray:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{what}: numbers are needed, not {shown(values)}") from None
    require(array.ndim == 1, f"{what}: one row of numbers is needed, not an array of shape {array.shape}")
    require(length in (None, len(array)), f"{what} has {len(array)} values, loss {length}")
    return array


def check_column(points: Points, name: str) -> None:
    """Refuse a column that a law reads or predicts unless all its values have logarithms."""
    values = points.column(name)
    require(values.dtype.kind in "fiu", f"column {shown(name)}: {shown(str(values[0]))} is not a number")
    _check_positive("", name, values)


def _check_positive(where: str, name: str, values: np.ndarray) -> None:
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(wrong):
        row = int(wrong[0])
        raise UserError(f"{where}row {row + 1}: {name} is {values[row]:g}; it must be positive and finite")


def read_points(
    path: str | Path, *, params_column: str | None = None, tokens_column: str | None = None,
    flops_column: str | None = None, loss_column: str | None = None, sd_column: str | None = None,
    run_column: str | None = None, tokens_from: str | None = None, conventions: Sequence[str] = (),
    drop_largest_losses: int = 0, seed_noise: float | None = None, needs_loss: bool = True,
) -> Points:  # fmt: skip
    """Points from a CSV file with a header.

    *_column: the columns' names where they are not the known ones. tokens_from="6nd": D = C/(6N) even where tokens
    are given. conventions: of "total", "nonembedding" (params) and "exact", "6nd" (FLOPs; 6 N D of the chosen N).
    drop_largest_losses: rows to set aside. seed_noise: one standard deviation for all. needs_loss=False: a table of
    settings, whose loss may be missing (it reads 1 then). Raises UserError on what is missing or cannot be.
    """
    table = read_table(Path(path))
    for word in conventions:
        known = f"{nearest(word, CONVENTIONS)} ({', '.join(CONVENTIONS)})"
        require(word in CONVENTIONS, f"{word}: no such convention{known}")
    chosen = {CONVENTIONS[word]: word for word in conventions}
    require(tokens_from in (None, "6nd"), f"--tokens-from {tokens_from}: only 6nd is known, D = C / (6 N)")
    params, params_said = table.find("params", params_column, chosen.get("params"))
    require(params is not None, table.missing("params"))
    loss, _ = table.find("loss", loss_column)
    require(loss is not None or not needs_loss, table.missing("loss"))
    tokens, tokens_said = table.find("tokens", tokens_column)[0], "as given"
    flops, flops_said = table.find("flops", flops_column, chosen.get("flops"))
    if tokens is None or tokens_from:
        why = f"neither tokens nor FLOPs (columns: {shown(*table.columns)})"
        require(flops is not None, f"{path}: {why}; name one with --tokens-column or --flops-column")
        tokens, tokens_said = flops / (6 * params), "from FLOPs, D = C/(6N)"
    if flops is None or chosen.get("flops") == "6nd":
        flops, flops_said = 6 * params * tokens, "6ND"
    require(seed_noise is None or 0 < seed_noise < np.inf, f"--seed-noise {seed_noise}: nats, above 0")
    points = make_points(
        params, tokens, np.ones(len(params)) if loss is None else loss, flops, where=str(path),
        columns={name: a for name, a in table.columns.items() if name not in ("params", "tokens", "flops", "loss")},
        sd=seed_noise if seed_noise is not None else table.optional("sd", sd_column, numbers=True),
        run=table.optional("run", run_column),
        conventions={"params": params_said, "tokens": tokens_said, "flops": flops_said, "loss": "nats per token"},
    )  # fmt: skip
    if drop_largest_losses:
        require(0 < drop_largest_losses < len(points), f"--drop-largest-losses {drop_largest_losses}: of {len(points)}")
        largest = np.zeros(len(points), bool)
        largest[np.argsort(points.loss)[-drop_largest_losses:]] = True
        points = points.drop(largest, f"the {drop_largest_losses} largest losses")
    return points
