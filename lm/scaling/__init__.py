"""Scaling laws: points -> law -> plot. How the loss of trained models depends on their size, tokens and compute.

Names are imported when they are first used. Axes, in suffixes of arrays beside those that every room shares:
n points (trained models), m errors of hold-outs, R resamples or starts side by side, P parameters of a law as search
coordinates (here alone; elsewhere packed runs), F free parameters or FLOP budgets, K linear coefficients, cuts in
compute or places along a profile, G nodes of a grid, S starts, I columns that a law reads, M subsets of coefficients.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["conventions", "flops", "plot"],
    submod_attrs={
        "chinchilla": ["Chinchilla"],
        "fitting": ["fit", "Unidentifiable", "against_law"],
        "isoflop": ["fit_frontier", "Frontier", "regress", "valleys"],
        "law": ["Estimate", "Law", "cost_of"],
        "laws": ["LAWS", "evaluate", "form_of"],
        "points": ["Points", "make_points", "read_points"],
        "predictions": ["matching", "predict_at", "rolled", "score_prediction", "write_prediction"],
        "problem": ["make_problem", "objective_at"],
        "report": ["describe", "describe_scores"],
    },
)
