"""Text to batches: corpora (where text comes from), readers (files), tokens (text on disk), batches (step to batch)."""
