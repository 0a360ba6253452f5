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
    "apply": "passes", "attention_patterns": "attention", "head_scores": "attention", "induction": "attention",
    "logit_lens": "lens", "lens_logits": "lens", "token_losses": "lens", "attribute_logits": "attribution",
    "ablate": "interventions", "Ablation": "interventions", "Part": "interventions", "every_part": "interventions",
    "trace": "interventions", "Trace": "interventions", "patch": "interventions", "clean_states": "interventions",
    "every_state": "interventions", "average_effects": "interventions", "PLACES": "interventions",
    "Fact": "facts", "read_facts": "facts", "complete": "facts", "fact_rows": "facts", "summary": "facts",
    "edit_fact": "edit", "rank_one": "edit", "key_covariance": "edit", "corpus_rows": "edit",
    "attention_grid": "figures_inside", "lens_map": "figures_inside", "trace_maps": "figures_inside",
    "traced": "figures_inside", "ablation_bars": "figures_inside", "facts_bars": "figures_inside",
    "loss_text": "figures_inside",
}  # fmt: skip
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'lm.probe' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lm.probe.{_HOMES[name]}"), name)
