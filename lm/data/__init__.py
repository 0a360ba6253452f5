"""Text to batches: corpora (where text comes from), readers (files), tokens (text on disk), batches (step to batch).

A glossary of what is counted here:

piece       at most a million characters of a document, and whether they open it
document    a text that is held out, or trained on, whole; between documents stands the end-of-text token (EOT)
window      context + 1 tokens of a token file: what a row of a batch reads, and what it predicts
pass        every window of the file once; an epoch
scan        one reading of a corpus, which settles what it holds and which part is held out

Axes: B windows in a step, T tokens that a window reads, W validation windows, V entries of the vocabulary.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    ["kingdom"],
    {
        "batches": ["Batches", "validation_windows"],
        "corpora": ["CORPORA", "Corpus", "Text", "cache_folder", "fetch", "open_corpus", "open_text"],
        "tokens": ["Prepared", "TokenFile", "prepare"],
    },
)
