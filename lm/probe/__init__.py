"""What a trained model knows, measured beside controls.

Names are imported when they are first used. Word vectors and the words they belong to, a `Space`, are the currency
between spaces and scorers; where a function takes a model, a Space (or several) will do. Each probe that the command
offers is one module of lm/probe/actions.

Axes here, beside the house's (V is also the words of a space):
A  parts switched off, states put back     Q  questions
E  entries of a lens: embedding, layers    R  right answers to a question
J  pairs of words                          U  words, forms that differ in case alone being one
M  forms of one word                       W  words asked about
X  a few words of each row                 Z  bootstrap samples, draws of noise
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "words": ["Space", "space_in", "vocabulary"],
    "spaces": ["spaces_of", "centred", "whitened"],
    "contexts": ["contextual"],
    "index": ["Index"],
    "scorers": ["METHODS"],
    "questions": ["Section", "read_suite", "read_similarities", "read_groups"],
    "maps": ["principal_map", "draw_map"],
    "drawing": ["canvas"],
    "passes": ["apply"],
    "attribution": ["attribute_logits"],
    "edit": ["edit_fact", "rank_one", "key_covariance", "corpus_rows"],
    "actions.analogy": ["analogy"],
    "actions.neighbours": ["neighbours"],
    "actions.suite": ["suite", "draw_suite", "draw_scores"],
    "actions.similarity": ["similarity"],
    "actions.geometry": ["clusters", "directions", "isotropy", "draw_directions"],
    "actions.attention": ["attention_patterns", "attention_grid", "head_scores", "induction", "uniform_weights"],
    "actions.lens": ["logit_lens", "lens_logits", "lens_map"],
    "actions.loss": ["token_losses", "loss_text"],
    "actions.facts": ["Fact", "read_facts", "complete", "fact_rows", "summary", "facts_bars"],
    "actions.ablate": ["ablate", "Ablation", "Part", "every_part", "ablation_bars"],
    "actions.trace": [
        "trace", "Trace", "patch", "clean_states", "every_state", "average_effects", "PLACES", "trace_maps", "traced",
    ],
})  # fmt: skip
