"""Sampling: prompts in, continuations out.

samplers.py says how to choose, filters.py chooses, decoding.py runs the model through its state, text.py turns tokens
into text, and generate.py tells the story.

Axes, beside those of the README's glossary: C candidates for the next token.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "filters": ["choose"],
        "generate": ["Generator", "Sample", "generate_naive"],
        "samplers": ["Sampler"],
    },
)
