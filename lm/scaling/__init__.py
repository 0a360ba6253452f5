"""Scaling laws: points -> law -> plot. How the loss of trained models depends on their size, tokens and compute.

Names are imported when they are first used. Axes, in suffixes of arrays of this room, where none of a model's occur:
n points (trained models), m errors of hold-outs, g groups of points that differ in their seed, R resamples or starts
side by side, S starts of one problem, P parameters as search coordinates (see solve.py), U those that are not held,
K linear coefficients, M subsets of them, G nodes of a grid, Z places along a profile, Q cuts in compute, I columns that
a law reads, X budgets at which it is asked.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["plot"],
    submod_attrs={
        "chinchilla": ["Chinchilla"],
        "fitting": ["ALIASES", "fit", "fit_by_name", "Unidentifiable", "against_law"],
        "isoflop": ["APPROACHES", "fit_frontier", "Frontier", "regress", "valleys"],
        "law": ["Estimate", "Law", "cost_of"],
        "laws": ["LAWS", "evaluate", "form_of"],
        "points": ["Points", "make_points", "read_points"],
        "predictions": ["matching", "predict_at", "rolled", "score_prediction", "write_prediction"],
        "problem": ["make_problem", "objective_at"],
        "resampling": ["check_resampling"],
        "report": ["describe", "describe_scores"],
    },
)
