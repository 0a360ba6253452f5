"""llama.cpp decoding a GPT-2 of random float32 weights greedily, through a GGUF file and llama-cpp-python."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lm.config import ModelConfig
from lm.exchange.gguf import write
from lm.exchange.llama_cpp import Decoder, Entry
from lm.exchange.published import Published


def generator(c: ModelConfig, batch: int, tokens: int, prompt: Sequence[int]) -> Callable[[int], np.ndarray]:
    """run(n): n times `tokens` tokens for each of `batch` sequences. Returns the last [tokens, B]."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        write(_random(c), path)
        decoder = Decoder(path, batch, len(prompt) + tokens, exact=False)

    def run(n: int) -> np.ndarray:
        for _ in range(n):
            made_CB = _generate(decoder, batch, prompt, tokens)
        return made_CB

    return run


def _generate(decoder: Decoder, batch: int, prompt: Sequence[int], tokens: int) -> np.ndarray:
    """Greedy continuations [tokens, B]."""
    decoder.forget()
    P, made_CB = len(prompt), np.zeros((tokens, batch), np.int32)
    entries = [Entry(row, p, prompt[p], p == P - 1) for row in range(batch) for p in range(P)]
    for i in range(tokens):
        made_CB[i] = decoder.read(entries).argmax(axis=1)
        entries = [Entry(row, P + i, int(made_CB[i, row]), True) for row in range(batch)]
    return made_CB


def _random(c: ModelConfig) -> Published:
    """A GPT-2 of this shape, and no vocabulary but its size."""
    rng, D = np.random.default_rng(0), c.width
    sizes = dict(n_layer=c.layers, n_embd=D, n_inner=4 * D, n_head=c.heads, n_positions=c.context, vocab_size=c.V)
    tensors = {}

    def matrix(name: str, *shape: int) -> None:
        tensors[f"transformer.{name}.weight"] = 0.02 * rng.standard_normal(shape, dtype=np.float32)

    def norm(name: str) -> None:
        tensors[f"transformer.{name}.weight"] = np.ones(D, np.float32)
        tensors[f"transformer.{name}.bias"] = np.zeros(D, np.float32)

    def linear(name: str, inputs: int, outputs: int) -> None:
        matrix(name, inputs, outputs)
        tensors[f"transformer.{name}.bias"] = np.zeros(outputs, np.float32)

    matrix("wte", c.V, D)
    matrix("wpe", c.context, D)
    for block in (f"h.{layer}" for layer in range(c.layers)):
        norm(f"{block}.ln_1")
        linear(f"{block}.attn.c_attn", D, 3 * D)
        linear(f"{block}.attn.c_proj", D, D)
        norm(f"{block}.ln_2")
        linear(f"{block}.mlp.c_fc", D, 4 * D)
        linear(f"{block}.mlp.c_proj", 4 * D, D)
    norm("ln_f")
    return Published({"model_type": "gpt2", **sizes, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}, tensors)
