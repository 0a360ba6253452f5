"""What models cost and how loss depends on it."""

from lm.scaling.fit import Unidentifiable, fit
from lm.scaling.isoflop import fit_frontier
from lm.scaling.law import Estimate, Law
from lm.scaling.laws import LAWS
from lm.scaling.points import Points, make_points, read_points
from lm.scaling.predictions import score_prediction, write_prediction

__all__ = [
    "LAWS", "Estimate", "Law", "Points", "Unidentifiable", "fit", "fit_frontier", "make_points", "read_points",
    "score_prediction", "write_prediction",
]  # fmt: skip
