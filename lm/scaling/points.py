"""Points: one row a trained model, with what was counted how."""

import csv
import dataclasses
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lm.errors import UserError, nearest, require
from lm.files import whole

KNOWN = {
    "params": {
        "total": ("params_total", "params", "Model Size"),
        "nonembedding": ("params_nonembedding", "params_no_embed"),
    },
    "flops": {"exact": ("flops_exact", "flops", "Training FLOP"), "6nd": ()},
    "tokens": {"": ("tokens",)},
    "loss": {"": ("loss",)},
}
"""Columns found without being named, by quantity and convention; the first convention of each is the default."""
CONVENTIONS = {convention: quantity for quantity, of in KNOWN.items() for convention in of if convention}


@dataclasses.dataclass(frozen=True)
class Points:
    """Trained models. Arrays are float64 [n].

    params N, tokens D, flops C (training, whole run), loss in nats per token; sd: standard deviation of the loss from
    one seed to another, or None; run: the trunk each was branched from, or None; columns: everything else in the table.
    conventions: how params, flops and loss were counted. dropped: rows left out before the fit, or None.
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

    def __len__(self) -> int:
        return len(self.loss)

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
        pick = lambda a: None if a is None else np.asarray(a)[mask]  # noqa: E731
        arrays = {name: pick(getattr(self, name)) for name in ("params", "tokens", "flops", "loss", "sd", "run")}
        return dataclasses.replace(self, **arrays, columns={name: pick(a) for name, a in self.columns.items()})

    def drop(self, mask: np.ndarray, why: str) -> "Points":
        """Without the rows of the mask, which are remembered with the reason."""
        return dataclasses.replace(self.where(~mask), dropped=self.where(mask), dropped_why=why)

    def with_dropped(self) -> "Points":
        """All rows again, those that were dropped first."""
        if self.dropped is None:
            return self
        both = lambda a, b: None if a is None else np.concatenate([a, b])  # noqa: E731
        names = ("params", "tokens", "flops", "loss", "sd", "run")
        arrays = {name: both(getattr(self.dropped, name), getattr(self, name)) for name in names}
        columns = {name: both(self.dropped.columns[name], column) for name, column in self.columns.items()}
        return dataclasses.replace(self, **arrays, columns=columns, dropped=None, dropped_why="")

    def write(self, path: str | Path) -> Path:
        """As a CSV file that read_points knows without flags."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as file:
            file.write(self.csv())
        return path

    def csv(self) -> str:
        names = {"params": "params", "tokens": "tokens", "flops": "flops", "loss": "loss", "sd": "sd", "run": "run"}
        table = {to: getattr(self, name) for name, to in names.items() if getattr(self, name) is not None}
        table = table | {name: column for name, column in self.columns.items() if name not in table}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table)
        writer.writerows(zip(*(column.tolist() for column in table.values()), strict=True))
        return text.getvalue()

    def sha256(self) -> str:
        """Of N, D, C and loss to the last bit: what a prediction says it was made from."""
        columns = [np.ascontiguousarray(getattr(self, name), "<f8") for name in ("params", "tokens", "flops", "loss")]
        return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()

    def replicate_sd(self) -> float | None:
        """Seed noise: the pooled relative standard deviation of runs that differ in nothing but the seed, or None."""
        groups: dict[tuple, list[float]] = {}
        for n, d, loss in zip(self.params, self.tokens, np.log(self.loss), strict=True):
            groups.setdefault((n, d), []).append(loss)
        several = [np.array(group) for group in groups.values() if len(group) > 1]
        freedom = sum(len(group) - 1 for group in several)
        return float(np.sqrt(sum(np.sum((g - g.mean()) ** 2) for g in several) / freedom)) if freedom else None


def make_points(
    params, tokens, loss, flops=None, *, sd=None, run=None, columns=None, conventions: dict[str, str] | None = None
) -> Points:
    """Points from arrays; FLOPs default to 6ND. Checks what read_points checks."""
    params, tokens, loss = (np.asarray(a, np.float64) for a in (params, tokens, loss))
    said = {"params": "as given", "flops": "as given" if flops is not None else "6ND", "loss": "nats per token"}
    flops = 6 * params * tokens if flops is None else np.asarray(flops, np.float64)
    points = Points(
        params, tokens, flops, loss, None if sd is None else np.broadcast_to(np.asarray(sd, np.float64), loss.shape),
        None if run is None else np.asarray(run), dict(columns or {}), said | (conventions or {}),
    )  # fmt: skip
    check(points)
    return points


def check(points: Points, where: str = "points") -> None:
    """Every quantity finite and positive, or an error that names the row and the value."""
    for name in ("params", "tokens", "flops", "loss", "sd"):
        values = getattr(points, name)
        wrong = [] if values is None else np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(wrong):
            row = int(wrong[0])
            raise UserError(f"{where}: row {row + 1}: {name} is {values[row]:g}; it must be positive and finite")


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
    table = _read_table(Path(path))
    chosen = {CONVENTIONS[word]: word for word in _known_conventions(conventions)}
    find = lambda quantity, given: _find(table, quantity, given, chosen.get(quantity), path)  # noqa: E731
    require(tokens_from in (None, "6nd"), f"--tokens-from {tokens_from}: only 6nd is known, D = C / (6 N)")
    params, said = find("params", params_column)
    require(params is not None, _missing("params", table, path))
    loss, _ = find("loss", loss_column)
    require(loss is not None or not needs_loss, _missing("loss", table, path))
    loss = np.ones(len(params)) if loss is None else loss
    tokens, _ = find("tokens", tokens_column)
    flops, flops_said = find("flops", flops_column)
    if tokens is None or tokens_from:
        require(
            flops is not None,
            f"{path}: neither tokens nor FLOPs (columns: {', '.join(table)}); name one with --tokens-column or "
            "--flops-column",
        )
        tokens, tokens_said = flops / (6 * params), "from FLOPs, D = C/(6N)"
    else:
        tokens_said = "as given"
    if flops is None or chosen.get("flops") == "6nd":
        flops, flops_said = 6 * params * tokens, "6ND"
    rest = {name: column for name, column in table.items() if name not in ("params", "tokens", "flops", "loss")}
    points = make_points(
        params, tokens, loss, flops, columns=rest,
        sd=seed_noise if seed_noise is not None else _optional(table, sd_column, "sd", path),
        run=_optional(table, run_column, "run", path),
        conventions={"params": said, "tokens": tokens_said, "flops": flops_said, "loss": "nats per token"},
    )  # fmt: skip
    if drop_largest_losses:
        require(0 < drop_largest_losses < len(points), f"--drop-largest-losses {drop_largest_losses}: of {len(points)}")
        largest = np.zeros(len(points), bool)
        largest[np.argsort(points.loss)[-drop_largest_losses:]] = True
        points = points.drop(largest, f"the {drop_largest_losses} largest losses")
    return points


def _read_table(path: Path) -> dict[str, np.ndarray]:
    """Columns by name: float64 where every cell is a number, otherwise text."""
    require(path.is_file(), f"no file {path}")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}") from error
    rows = [row for row in rows if row]
    require(bool(rows), f"{path}: a header and at least one row are needed")
    for i, row in enumerate(rows):
        require(len(row) == len(header), f"{path}: row {i + 1} has {len(row)} cells, the header {len(header)}")
    return {name: _numbers(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True)}


def _numbers(cells: Sequence[str]) -> np.ndarray:
    try:
        return np.array([float(cell or "nan") for cell in cells])
    except ValueError:
        return np.array(cells)


def _known_conventions(words: Sequence[str]) -> Sequence[str]:
    for word in words:
        require(
            word in CONVENTIONS, f"{word}: no such convention{nearest(word, CONVENTIONS)} ({', '.join(CONVENTIONS)})"
        )
    return words


def _find(table: dict, quantity: str, given: str | None, convention: str | None, path) -> tuple:
    """A quantity's column and what to call its convention; (None, "") where the table has none."""
    if given is not None:
        return _column(table, given, path), f"column {given!r}"
    of = KNOWN[quantity]
    for words in [convention] if convention is not None else of:
        for name in of[words]:
            if name in table:
                return _column(table, name, path), f"{words} (column {name!r})".strip()
    require(
        convention in (None, "6nd"),
        f"{path}: no column for convention {convention} ({', '.join(of.get(convention, ()))}); there are "
        f"{', '.join(table)}",
    )
    return (_find(table, quantity, None, None, path)) if convention == "6nd" else (None, "")


def _column(table: dict, name: str, path) -> np.ndarray:
    require(
        name in table, f"{path}: no column {name!r}{nearest(name, table)} (there are {', '.join(map(repr, table))})"
    )
    column = table[name]
    if column.dtype.kind != "f":
        row = next(i for i, cell in enumerate(column) if _numbers([cell]).dtype.kind != "f")
        raise UserError(f"{path}: column {name!r}, row {row + 1}: {str(column[row])!r} is not a number")
    return column


def _missing(quantity: str, table: dict, path) -> str:
    known = [name for of in KNOWN[quantity].values() for name in of]
    return (
        f"{path}: no column for {quantity} ({', '.join(known)}); there are {', '.join(table)}; say --{quantity}-column"
    )


def _optional(table: dict, given: str | None, known: str, path) -> np.ndarray | None:
    if given is not None:
        require(given in table, f"{path}: no column {given!r}{nearest(given, table)} (there are {', '.join(table)})")
    return table.get(given or known)
