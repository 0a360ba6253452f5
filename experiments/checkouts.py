"""Two checkouts of lm beside each other: this one, and one that --against names. It imports neither."""

import argparse
from pathlib import Path

OURS = Path(__file__).resolve().parents[1]


def require_checkout(parser: argparse.ArgumentParser, against: Path) -> Path:
    """Returns the folder that --against names, absolute. Ends the program with status 2 where it is no checkout."""
    if not (against / "lm" / "__init__.py").is_file():
        parser.error(f"--against {against}: no checkout of lm")
    return against.resolve()
