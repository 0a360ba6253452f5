"""The model: a decoder-only transformer, its cache and its taps. Knows nothing of training, files or sampling."""
