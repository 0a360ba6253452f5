"""llama.cpp decoding a GPT-2 of random float32 weights greedily, through llama-cpp-python's low-level interface."""

import ctypes
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import llama_cpp as api
import numpy as np

from lm.config import ModelConfig

SILENT = api.llama_log_callback(lambda level, text, data: None)
"""Held here: the library calls it as long as it lives."""


def generator(c: ModelConfig, batch: int, tokens: int, prompt: Sequence[int]) -> Callable[[int], np.ndarray]:
    """run(n): n times `tokens` tokens for each of `batch` sequences. Returns the last [tokens, B]."""
    api.llama_log_set(SILENT, ctypes.c_void_p(0))
    api.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        model = _load(_write(c, Path(folder) / "random.gguf"))
    decoder = Decoder(model, c, batch, len(prompt) + tokens)

    def run(n: int) -> np.ndarray:
        for _ in range(n):
            made = decoder.generate(prompt, tokens)
        return made

    return run


class Decoder:
    """A context of the model with room for `batch` sequences."""

    def __init__(self, model, c: ModelConfig, batch: int, room: int):
        self.B, self.V = batch, c.V
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = _multiple(room) * batch, batch
        settings.n_batch = settings.n_ubatch = max(512, _multiple(room) * batch)
        settings.n_threads = settings.n_threads_batch = os.cpu_count() or 1
        self.context = api.llama_init_from_model(model, settings)
        if not self.context:
            raise RuntimeError("llama.cpp made no context")
        self.memory = api.llama_get_memory(self.context)
        self.batch = api.llama_batch_init(settings.n_batch, 0, 1)
        weakref.finalize(self, _free, self.batch, self.context, model)

    def generate(self, prompt: Sequence[int], tokens: int) -> np.ndarray:
        """Greedy continuations [tokens, B]."""
        api.llama_memory_clear(self.memory, False)
        P, made_CB = len(prompt), np.zeros((tokens, self.B), np.int32)
        places = [(row, p) for row in range(self.B) for p in range(P)]
        self._read([(row, p, prompt[p], p == P - 1) for row, p in places])
        last = [row * P + P - 1 for row in range(self.B)]
        for i in range(tokens):
            made_CB[i] = [self._likeliest(place) for place in last]
            if i + 1 < tokens:
                self._read([(row, P + i, int(made_CB[i, row]), True) for row in range(self.B)])
            last = range(self.B)
        return made_CB

    def _read(self, entries) -> None:
        """Decode entries (row, position, token, whether logits are wanted)."""
        b = self.batch
        b.n_tokens = len(entries)
        for i, (row, position, token, wanted) in enumerate(entries):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = token, position, 1, row, wanted
        if status := api.llama_decode(self.context, b):
            raise RuntimeError(f"llama_decode returned {status}")

    def _likeliest(self, place: int) -> int:
        return int(np.ctypeslib.as_array(api.llama_get_logits_ith(self.context, place), (self.V,)).argmax())


def _load(path: Path):
    """The model, in memory: its file may go."""
    settings = api.llama_model_default_params()
    settings.use_mmap = False
    model = api.llama_model_load_from_file(str(path).encode(), settings)
    if not model:
        raise RuntimeError("llama.cpp does not load the model")
    return model


def _free(batch, context, model) -> None:
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)


def _multiple(n: int, of: int = 256) -> int:
    """n rounded up as llama.cpp rounds a context."""
    return -(-n // of) * of


def _write(c: ModelConfig, path: Path) -> Path:
    """A GGUF file of random weights of this shape, and no vocabulary but its size."""
    writer, rng, D = gguf.GGUFWriter(path, "gpt2"), np.random.default_rng(0), c.width
    writer.add_context_length(c.context)
    writer.add_embedding_length(D)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(4 * D)
    writer.add_head_count(c.heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(c.V)

    def matrix(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", 0.02 * rng.standard_normal(shape, dtype=np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(D, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(D, np.float32))

    def linear(name: str, inputs: int, outputs: int) -> None:
        matrix(name, outputs, inputs)
        writer.add_tensor(f"{name}.bias", np.zeros(outputs, np.float32))

    matrix("token_embd", c.V, D)
    matrix("position_embd", c.context, D)
    for block in (f"blk.{layer}" for layer in range(c.layers)):
        norm(f"{block}.attn_norm")
        linear(f"{block}.attn_qkv", D, 3 * D)
        linear(f"{block}.attn_output", D, D)
        norm(f"{block}.ffn_norm")
        linear(f"{block}.ffn_up", D, 4 * D)
        linear(f"{block}.ffn_down", 4 * D, D)
    norm("output_norm")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
