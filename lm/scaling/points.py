"""Points: one row a trained model, with what was counted how."""

import csv
import dataclasses
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
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
        arrays = {name: pick(getattr(self, name)) for name in QUANTITIES}
        return dataclasses.replace(self, **arrays, columns={name: pick(a) for name, a in self.columns.items()})

    def drop(self, mask: np.ndarray, why: str) -> "Points":
        """Without the rows of the mask, which are remembered with the reason."""
        return dataclasses.replace(self.where(~mask), dropped=self.where(mask), dropped_why=why)

    def with_dropped(self) -> "Points":
        """All rows again, those that were dropped first."""
        if self.dropped is None:
            return self
        both = lambda a, b: None if a is None else np.concatenate([a, b])  # noqa: E731
        arrays = {name: both(getattr(self.dropped, name), getattr(self, name)) for name in QUANTITIES}
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
        table = {name: getattr(self, name) for name in QUANTITIES if getattr(self, name) is not None}
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
        """Seed noise: the pooled relative standard deviation of runs that differ in nothing but the seed, or None.

        Runs agree in N, D, C and in every column that is a setting: none that is called seed, names a run, measures
        one, or has another value in every row.
        """
        settings = [
            column for name, column in self.columns.items()
            if not (_SEED.search(name) or _NO_SETTING.search(name) or len(np.unique(column)) == len(self))
        ]  # fmt: skip
        group_n = _groups([self.params, self.tokens, self.flops, *settings])
        count_G = np.bincount(group_n)
        freedom = len(self) - len(count_G)
        if not freedom:
            return None
        log_n = np.log(self.loss)
        mean_G = np.bincount(group_n, log_n) / count_G
        return float(np.sqrt(np.sum((log_n - mean_G[group_n]) ** 2) / freedom))

    def doubts(self) -> list[str]:
        """What may make the points count for more than they are, in words."""
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
    params, tokens, loss, flops=None, *, sd=None, run=None, columns=None, conventions: dict[str, str] | None = None
) -> Points:
    """Points from arrays [n]; FLOPs default to 6ND. Checks what read_points checks, and leaves out copies of a row."""
    return _checked("points", params, tokens, loss, flops, sd=sd, run=run, columns=columns, conventions=conventions)


def _checked(where: str, params, tokens, loss, flops, *, sd, run, columns, conventions) -> Points:
    loss = _vector(f"{where}: loss", loss)
    params, tokens = (_vector(f"{where}: {name}", a, len(loss)) for name, a in (("params", params), ("tokens", tokens)))
    said = {"params": "as given", "flops": "as given" if flops is not None else "6ND", "loss": "nats per token"}
    flops = 6 * params * tokens if flops is None else _vector(f"{where}: flops", flops, len(loss))
    sd = np.full(len(loss), sd, np.float64) if np.ndim(sd) == 0 and sd is not None else sd
    columns = {str(name): np.asarray(column) for name, column in (columns or {}).items()}
    run = None if run is None else np.asarray(run)
    for name, column in (columns | ({} if run is None else {"run": run})).items():
        require(column.shape == loss.shape, f"{where}: column {_shown(name)} has not one value for each loss")
    points = Points(
        params, tokens, flops, loss, None if sd is None else _vector(f"{where}: sd", sd, len(loss)), run, columns,
        said | (conventions or {}),
    )  # fmt: skip
    check(points, where)
    return _without_copies(points)


def _vector(what: str, values, length: int | None = None) -> np.ndarray:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{what}: numbers are needed, not {_shown(values)}") from None
    require(array.ndim == 1, f"{what}: one row of numbers is needed, not an array of shape {array.shape}")
    require(length in (None, len(array)), f"{what} has {len(array)} values, loss {length}")
    return array


def _without_copies(points: Points) -> Points:
    every = [getattr(points, name) for name in QUANTITIES if getattr(points, name) is not None]
    _, first = np.unique(_groups([*every, *points.columns.values()]), return_index=True)
    if len(first) == len(points):
        return points
    return dataclasses.replace(points.where(np.sort(first)), copies=len(points) - len(first))


def check(points: Points, where: str = "points") -> None:
    """Every quantity finite and positive, or an error that names the row and the value."""
    for name in ("params", "tokens", "flops", "loss", "sd"):
        if getattr(points, name) is not None:
            _check_positive(f"{where}: ", name, getattr(points, name))


def check_column(points: Points, name: str) -> None:
    """One column that a law reads or predicts: numbers, finite and positive as their logarithms are taken."""
    values = points.column(name)
    require(values.dtype.kind in "fiu", f"column {_shown(name)}: {_shown(str(values[0]))} is not a number")
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
            f"{path}: neither tokens nor FLOPs (columns: {_shown(*table)}); name one with --tokens-column or "
            "--flops-column",
        )
        tokens, tokens_said = flops / (6 * params), "from FLOPs, D = C/(6N)"
    else:
        tokens_said = "as given"
    if flops is None or chosen.get("flops") == "6nd":
        flops, flops_said = 6 * params * tokens, "6ND"
    rest = {name: column for name, column in table.items() if name not in ("params", "tokens", "flops", "loss")}
    require(seed_noise is None or 0 < seed_noise < np.inf, f"--seed-noise {seed_noise}: nats, above 0")
    points = _checked(
        str(path), params, tokens, loss, flops, columns=rest,
        sd=seed_noise if seed_noise is not None else _optional(table, sd_column, "sd", path, numbers=True),
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
    """Columns by name: float64 where every cell is a number, otherwise text. Columns without a name are left out."""
    header, *rows = _rows(path) or [[]]
    require(bool(rows), f"{path}: a header and at least one row are needed")
    for i, row in enumerate(rows):
        require(len(row) == len(header), f"{path}: row {i + 1} has {len(row)} cells, the header {len(header)}")
    twice = [name for i, name in enumerate(header) if name and name in header[:i]]
    require(not twice, f"{path}: two columns are named {_shown(*twice[:1])}; give each a name of its own")
    return {name: _numbers(cells) for name, cells in zip(header, zip(*rows, strict=True), strict=True) if name}


def _rows(path: Path) -> list[list[str]]:
    """The cells of a CSV file in UTF-8, with or without a byte-order mark, without spaces around them or empty rows."""
    require(path.is_file(), f"no file {path}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    nul = text.find("\0")
    require(nul < 0, f"{path}: line {text.count(chr(10), 0, nul) + 1} has a NUL byte; a CSV file is text")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    found, begun = [], 1
    try:
        for cells in reader:
            found.append([cell.strip() for cell in cells])
            begun = reader.line_num + 1
    except csv.Error as error:
        why = "a quote that is not closed" if "unexpected end of data" in str(error) else str(error)
        raise UserError(f"{path}: the row that begins at line {begun} cannot be read: {why}") from error
    return [cells for cells in found if any(cells)]


def _numbers(cells: Sequence[str]) -> np.ndarray:
    try:
        return np.array([float(cell or "nan") for cell in cells])
    except ValueError:
        return np.array(cells)


def _shown(*values) -> str:
    """Values in a message: on one line, and not more than some 150 letters of them."""
    text = ", ".join(map(repr, values))
    return text if len(text) <= 150 else f"{text[:150]} ..."


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
        f"{_shown(*table)}",
    )
    return (_find(table, quantity, None, None, path)) if convention == "6nd" else (None, "")


def _column(table: dict, name: str, path) -> np.ndarray:
    column = _named_column(table, name, path)
    if column.dtype.kind != "f":
        row = next(i for i, cell in enumerate(column) if _numbers([cell]).dtype.kind != "f")
        plain = re.sub(r"[,' _]", "", str(column[row]))
        hint = f"; write {plain}" if re.fullmatch(r"\d{1,3}([,' _]\d{3})+(\.\d*)?", str(column[row])) else ""
        raise UserError(f"{path}: column {name!r}, row {row + 1}: {_shown(str(column[row]))} is not a number{hint}")
    return column


def _named_column(table: dict, name: str, path) -> np.ndarray:
    require(name in table, f"{path}: no column {_shown(name)}{nearest(name, table)} (there are {_shown(*table)})")
    return table[name]


def _missing(quantity: str, table: dict, path) -> str:
    known = [name for of in KNOWN[quantity].values() for name in of]
    return f"{path}: no column for {quantity} ({', '.join(known)}); there are {_shown(*table)}; say --{quantity}-column"


def _optional(table: dict, named: str | None, known: str, path, *, numbers: bool = False) -> np.ndarray | None:
    if named is None and known not in table:
        return None
    return (_column if numbers else _named_column)(table, named or known, path)
