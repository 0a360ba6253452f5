"""Models from elsewhere in, ours out: Hugging Face folders, GGUF files, word vectors, evaluation harnesses."""
