"""How every figure looks, and how it is written: equal figures are equal files."""

import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lm.errors import UserError, require
from lm.files import whole

UNDATED = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""Formats, and what keeps the time out of each."""
STYLE = {
    "figure.figsize": (7.2, 4.4), "figure.dpi": 160, "font.size": 12, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.25, "legend.frameon": False,
}  # fmt: skip
VERBATIM = {"text.parse_math": False}
"""For figures that show people's texts, where dollars are no formulas."""


def check_format(out: Path, option: str = "--out") -> None:
    """Raise UserError unless the file's name says a format that can be written."""
    require(out.suffix in UNDATED, f"{option} {out}: write a {', '.join(UNDATED)}")


def save(figure: plt.Figure, *paths: Path) -> None:
    """Write a figure to each path, in the format of its suffix, and close it. UserError where it cannot be written."""
    try:
        for out in paths:
            out.parent.mkdir(parents=True, exist_ok=True)
            with (
                plt.rc_context({"svg.hashsalt": "lm"}),  # names of parts, otherwise random
                warnings.catch_warnings(),
                whole(out, "wb") as file,
            ):
                warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")  # of a text's characters: drawn as boxes
                figure.savefig(file, format=out.suffix[1:], metadata=UNDATED[out.suffix])
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
    finally:
        plt.close(figure)
