"""llama.cpp reading a GGUF file: logits and tokens, and how far from ours they are.

Through llama-cpp-python's low-level interface, which need not be there for this module to be imported.
"""

import ctypes
import functools
import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.errors import UserError, require


@functools.cache
def library():
    """The package llama_cpp, silenced; raises UserError where it is not installed."""
    try:
        import llama_cpp
    except ImportError as error:
        raise UserError("llama.cpp needs the package llama-cpp-python: pip install -e '.[llama]'") from error
    library.silent = llama_cpp.llama_log_callback(
        lambda level, text, data: None
    )  # held: it is called as long as it lives
    llama_cpp.llama_log_set(library.silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


class Entry(NamedTuple):
    """A token that a row reads, and whether the logits behind it are wanted."""

    row: int
    position: int
    token: int
    wanted: bool


class Decoder:
    """A GGUF file loaded, with room for `rows` sequences of so many tokens each.

    exact: keys and values in float32 and attention step by step, as near to the formula as llama.cpp comes; otherwise
    in half precision and fused, which are its defaults.
    """

    def __init__(self, path: str | Path, rows: int, room: int, *, exact: bool = True, threads: int | None = None):
        api = library()
        loading = api.llama_model_default_params()
        loading.use_extra_bufts = False  # for AMX, which some machines claim and deny: an illegal instruction
        model = api.llama_model_load_from_file(str(path).encode(), loading)
        require(bool(model), f"{path}: llama.cpp does not load it")
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = _multiple(room) * rows, rows
        settings.n_batch = settings.n_ubatch = min(settings.n_ctx, max(512, rows))
        settings.n_threads = settings.n_threads_batch = threads or cores()
        if exact:
            settings.type_k = settings.type_v = 0  # float32
            settings.flash_attn_type = 0
        self.context = api.llama_init_from_model(model, settings)
        require(bool(self.context), f"{path}: llama.cpp has no memory for {rows} sequences of {room} tokens")
        self.memory = api.llama_get_memory(self.context)
        self.room = settings.n_batch
        self.batch = api.llama_batch_init(self.room, 0, 1)
        weakref.finalize(self, _free, api, self.batch, self.context, model)

    def forget(self) -> None:
        """Empty all rows."""
        library().llama_memory_clear(self.memory, False)

    def read(self, entries: Sequence[Entry]) -> np.ndarray:
        """Read the entries, in any number; the logits [wanted, V] behind those that are wanted, in their order."""
        parts = [self._read(entries[i : i + self.room]) for i in range(0, len(entries), self.room)]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _read(self, entries: Sequence[Entry]) -> np.ndarray:
        api, b = library(), self.batch
        b.n_tokens = len(entries)
        for i, (row, position, token, wanted) in enumerate(entries):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = token, position, 1, row, wanted
        if status := api.llama_decode(self.context, b):
            raise UserError(f"llama.cpp could not go on (llama_decode returned {status})")
        places = [i for i, entry in enumerate(entries) if entry.wanted]
        logits_CV = np.empty((len(places), self.vocab), np.float32)
        for row, place in enumerate(places):
            logits_CV[row] = np.ctypeslib.as_array(api.llama_get_logits_ith(self.context, place), (self.vocab,))
        return logits_CV


def cores() -> int:
    """Cores that this process may use: llama.cpp's threads wait for each other, and one too many holds all up."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free(api, batch, context, model) -> None:
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)


def _multiple(n: int, block: int = 256) -> int:
    """n rounded up as llama.cpp rounds a context."""
    return -(-n // block) * block


def logits(path: str | Path, tokens: Sequence[int]) -> np.ndarray:
    """Logits [T, V] of a file behind each of the tokens, in float32 as far as llama.cpp goes."""
    decoder = Decoder(path, 1, len(tokens), threads=1)  # several wait for each other on a machine that is busy
    return decoder.read([Entry(0, position, token, True) for position, token in enumerate(tokens)])


def encode(path: str | Path, texts: Iterable[str]) -> list[list[int]]:
    """The tokens of texts, in which nothing is special, as llama.cpp cuts them by a file's vocabulary."""
    api = library()
    loading = api.llama_model_default_params()
    loading.vocab_only = True
    model = api.llama_model_load_from_file(str(path).encode(), loading)
    require(bool(model), f"{path}: llama.cpp does not load its vocabulary")
    found, vocab = [], api.llama_model_get_vocab(model)
    for data in (text.encode() for text in texts):
        tokens = (api.llama_token * (len(data) + 8))()
        count = api.llama_tokenize(vocab, data, len(data), tokens, len(tokens), False, False)
        found.append(tokens[:count])
    api.llama_model_free(model)
    return found


def check(path: str | Path, tokens: Sequence[int], expected_TV: np.ndarray) -> float | None:
    """The largest difference between a file's logits and those expected; None where llama.cpp is not installed.

    expected_TV may have fewer columns than the file, whose rows can be padded.
    """
    try:
        library()
    except UserError:
        return None
    found_TV = logits(path, tokens)
    return float(np.abs(found_TV[:, : expected_TV.shape[1]] - expected_TV).max())
