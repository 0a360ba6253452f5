"""Text to batches: corpora (where text comes from), readers (files), tokens (text on disk), batches (step to batch).

Examples take a way of their own to the same batches: example_files (reading), examples (tokens on disk), layout (rows).

A glossary of what is counted here:

piece       at most a million characters of a document, and whether they open it
document    a text that is held out, or trained on, whole; between documents stands the end-of-text token (EOT)
window      context + 1 tokens of a token file: what a row of a batch reads, and what it predicts
pass        every window of the file once; an epoch
scan        one reading of a corpus, which settles what it holds and which part is held out
example     what is shown to a model (a source) and what it is to answer (a target)

Axes: B windows or rows in a step, T tokens that one of them reads, U = T + 1, W validation windows, V entries of the
vocabulary; of examples: N of them, S tokens of a source, I vectors in place of tokens, E numbers in a vector.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    ["kingdom"],
    {
        "batches": ["Batches", "ExampleBatches", "validation_windows"],
        "corpora": ["CORPORA", "Corpus", "Text", "cache_folder", "fetch", "open_corpus", "open_text"],
        "example_files": ["Examples", "read_examples"],
        "examples": ["ExampleFile", "PreparedExamples", "Ragged", "patches", "prepare_examples"],
        "layout": ["lay_out_examples", "validation_rows"],
        "supply": ["held_out", "open_batches", "prepare"],
        "tokens": ["Prepared", "TokenFile"],
    },
)
