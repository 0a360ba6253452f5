"""CSV tables of trained models: how they are read, and how the columns of each quantity are found."""

import csv
import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lm.errors import UserError, nearest, require

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
CONVENTIONS = {word: quantity for quantity, conventions in KNOWN.items() for word in conventions if word}


@dataclasses.dataclass(frozen=True)
class Table:
    """The columns of a CSV file by name: float64 where every cell is a number, otherwise text."""

    path: Path
    columns: dict[str, np.ndarray]

    def find(
        self, quantity: str, name: str | None, convention: str | None = None
    ) -> tuple[np.ndarray | None, str]:  # fmt: skip
        """A quantity's column, by its name or a known one, and how its convention is called; (None, "") without any."""
        if name is not None:
            return self.numbers(name), f"column {name!r}"
        known = KNOWN[quantity]
        for word in known if convention is None else [convention]:
            for column in known[word]:
                if column in self.columns:
                    return self.numbers(column), f"{word} (column {column!r})".strip()
        if convention == "6nd":
            return self.find(quantity, None)
        require(
            convention is None,
            f"{self.path}: no column for convention {convention} ({', '.join(known.get(convention, ()))}); there are "
            f"{shown(*self.columns)}",
        )
        return None, ""

    def named(self, name: str) -> np.ndarray:
        """A column that must be there."""
        near = nearest(name, self.columns)
        require(name in self.columns, f"{self.path}: no column {shown(name)}{near} (there are {shown(*self.columns)})")
        return self.columns[name]

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers that must be there; the error names the first cell that is none."""
        column = self.named(name)
        if column.dtype.kind != "f":
            row = next(i for i, cell in enumerate(column) if _numbers([cell]).dtype.kind != "f")
            cell = str(column[row])
            grouped = re.fullmatch(r"\d{1,3}([,' _]\d{3})+(\.\d*)?", cell)
            plain = re.sub(r"[,' _]", "", cell)
            hint = f"; write {plain}" if grouped else ""
            raise UserError(f"{self.path}: column {name!r}, row {row + 1}: {shown(cell)} is not a number{hint}")
        return column

    def optional(self, known: str, name: str | None, *, numbers: bool = False) -> np.ndarray | None:
        """The column that was named, or the known one where there is one."""
        if name is None and known not in self.columns:
            return None
        return (self.numbers if numbers else self.named)(name or known)

    def missing(self, quantity: str) -> str:
        """The sentence for a quantity without a column."""
        known = ", ".join(name for names in KNOWN[quantity].values() for name in names)
        there = shown(*self.columns)
        return f"{self.path}: no column for {quantity} ({known}); there are {there}; say --{quantity}-column"


def read_table(path: Path) -> Table:
    """Read a CSV file with a header; columns without a name are left out. Raises UserError on a malformed file."""
    header, *rows = _rows(path) or [[]]
    require(bool(rows), f"{path}: a header and at least one row are needed")
    for i, row in enumerate(rows):
        require(len(row) == len(header), f"{path}: row {i + 1} has {len(row)} cells, the header {len(header)}")
    twice = [name for i, name in enumerate(header) if name and name in header[:i]]
    require(not twice, f"{path}: two columns are named {shown(*twice[:1])}; give each a name of its own")
    columns = zip(header, zip(*rows, strict=True), strict=True)
    return Table(path, {name: _numbers(cells) for name, cells in columns if name})


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


def shown(*values) -> str:
    """Values in a message: on one line, and not more than some 150 letters of them."""
    text = ", ".join(map(repr, values))
    return text if len(text) <= 150 else f"{text[:150]} ..."
