"""What models cost and how loss depends on it.

Names are imported when they are first used: training asks for FLOPs alone, and should not wait for the fits.
"""

import importlib

_HOMES = {
    "fit": "lm.scaling.fitting.fit", "Unidentifiable": "lm.scaling.fitting.Unidentifiable",
    "fit_frontier": "lm.scaling.isoflop.fit_frontier", "Estimate": "lm.scaling.law.Estimate",
    "Law": "lm.scaling.law.Law", "LAWS": "lm.scaling.laws.LAWS", "Points": "lm.scaling.points.Points",
    "make_points": "lm.scaling.points.make_points", "read_points": "lm.scaling.points.read_points",
    "write_prediction": "lm.scaling.predictions.write_prediction",
    "score_prediction": "lm.scaling.predictions.score_prediction",
}  # fmt: skip
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'lm.scaling' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)
