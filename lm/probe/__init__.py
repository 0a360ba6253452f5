"""What a trained model knows, measured beside controls.

Names are imported when they are first used. Word vectors and the words they belong to, a `Space`, are the currency
between spaces and scorers; where a function takes a model, a Space (or several) will do.
"""

import importlib

_HOMES = {
    "Space": "spaces", "spaces_of": "spaces", "vocabulary": "spaces", "centred": "spaces", "whitened": "spaces",
    "contextual": "contexts", "Index": "index", "analogy": "analogies", "neighbours": "analogies",
    "METHODS": "analogies", "Section": "questions", "read_suite": "questions", "read_similarities": "questions",
    "read_groups": "questions", "suite": "suites", "similarity": "similarities", "clusters": "geometry",
    "directions": "geometry", "principal_map": "geometry", "isotropy": "geometry",
}  # fmt: skip
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'lm.probe' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lm.probe.{_HOMES[name]}"), name)
