"""Sweeps: decide what to train, train it side by side, and leave one table of points for the scaling laws.

A plan chooses a design, whose rows (or a grid, or a list) are experiments; these become jobs; jobs that share their
steps are a trunk with branches, and trunks of one shape train as packs. Names are imported when they are first used.
Axes of arrays: points, the planned or trained models; 5, the parameters of Chinchilla's law.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "board": ["Board", "clock"],
        "design": ["Design", "Row", "shape"],
        "grids": ["grid", "from_design"],
        "jobs": ["Job", "jobs_of", "parts", "trunks"],
        "planning": [
            "BYTES",
            "NOISE",
            "Rates",
            "Rules",
            "Size",
            "pilot_law",
            "plan",
            "size",
            "trunk_rows",
            "unplannable",
        ],
        "precision": ["obstacle"],
        "running": ["COLUMNS", "Result", "sweep"],
        "status": ["Status", "status"],
    },
)
