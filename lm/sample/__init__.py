"""Sampling: prompts in, continuations out.

samplers.py says how to choose, filters.py chooses, decoding.py runs the model through its state, text.py turns tokens
into text, and generate.py tells the story; chats.py has it go on with chats. beam.py searches for the likeliest
continuations instead of drawing one, of what prompts.py has the model read, and scores.py measures answers by what they
should have been.

Axes, beside those of the README's glossary: C candidates for the next token, W hypotheses of a beam.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "answers": ["Answers", "answer_examples"],
        "beam": ["Hypothesis", "beam_search", "score_texts", "search_errors"],
        "chats": ["Conversation", "format_of", "reply"],
        "filters": ["choose"],
        "generate": ["Generator", "Sample", "generate_naive"],
        "samplers": ["Sampler"],
        "scores": ["accuracy", "bleu", "chrf", "confusion", "draw_confusion", "references_by_source"],
    },
)
