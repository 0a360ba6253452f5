"""Sampling: prompts in, continuations out. samplers.py says how to choose, filters.py chooses, decoding.py runs the
model through its cache, text.py turns tokens into text, and generate.py tells the story."""
