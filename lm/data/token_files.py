"""Tokens on disk: one memory-mapped file, or the shards of a large corpus, which read as one array."""

import functools
import hashlib
import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from lm import tokenizer as tokenizers
from lm.tokenizer import Tokenizer

MAPPED = 256
"""Shards of a file that are mapped at once: each takes one of the files that a process may have open."""
WAITING = 1 << 18
"""Tokens that are written at once: documents may be short."""


@dataclass(frozen=True)
class Shard:
    """A stretch of a corpus's tokens in a file of its own."""

    name: str
    count: int
    """Tokens."""
    sha256: str
    """Digest of the file."""


class Shards:
    """The tokens of several files as one array, uint16 or uint32 [count], of which only what is asked for is read.

    An integer, a slice or integers of any shape are answered as by the one array. Safe for many threads.
    """

    ndim = 1

    def __init__(self, paths: list[Path], counts: list[int], dtype: str):
        self.paths, self.dtype = paths, np.dtype(dtype)
        self.ends = np.cumsum(counts)
        self.shape = (int(self.ends[-1]),)
        self.mapped = functools.lru_cache(MAPPED)(self._map)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self._stretch(start, max(start, stop)) if step == 1 else self[np.arange(start, stop, step)]
        places = np.asarray(index)
        wrong = (places < -len(self)) | (places >= len(self))
        if wrong.any():
            raise IndexError(f"token {places[wrong].flat[0]} of {len(self)}")
        return self._gather(np.where(places < 0, places + len(self), places))[()]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype)

    def _map(self, number: int) -> np.ndarray:
        return np.memmap(self.paths[number], self.dtype, mode="r")

    def _stretch(self, start: int, stop: int) -> np.ndarray:
        """The tokens start <= i < stop: a view where they lie in one shard."""
        first, last = np.searchsorted(self.ends, (start, max(start, stop - 1)), side="right")
        parts = []
        for number in range(first, min(last + 1, len(self.paths))):
            tokens = self.mapped(number)
            begins = int(self.ends[number]) - len(tokens)
            parts.append(tokens[max(start - begins, 0) : max(stop - begins, 0)])
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts])

    def _gather(self, places: np.ndarray) -> np.ndarray:
        """The tokens at these places, none of them negative; every shard that holds some is read once."""
        flat = places.ravel()
        number = np.searchsorted(self.ends, flat, side="right")
        order = np.argsort(number, kind="stable")
        tokens = np.empty(flat.shape, self.dtype)
        for chosen in np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(flat) else ():
            shard = self.mapped(int(number[chosen[0]]))
            tokens[chosen] = shard[flat[chosen] - (int(self.ends[number[chosen[0]]]) - len(shard))]
        return tokens.reshape(places.shape)


@dataclass(frozen=True)
class TokenFile:
    """Tokens on disk."""

    path: Path
    """The file, or the folder of the shards."""
    dtype: str
    count: int
    """Tokens, end-of-text tokens included."""
    bytes: int
    """UTF-8 bytes of the text they stand for; end of text stands for none."""
    documents: int
    eot: int | None
    """The token before every document and at the end; None in a file of one document, which has none."""
    sha256: str
    """Digest of the tokens, however many files they are in."""
    shards: tuple[Shard, ...] = ()
    """The files in `path`, in order, where that is a folder."""

    @cached_property
    def tokens(self) -> np.ndarray | Shards:
        """The tokens, uint16 or uint32 [count], memory-mapped."""
        if self.shards:
            return Shards(self.paths, [shard.count for shard in self.shards], self.dtype)
        return np.memmap(self.path, self.dtype, mode="r")

    @property
    def paths(self) -> list[Path]:
        """The files that hold the tokens, in order."""
        return [self.path / shard.name for shard in self.shards] or [self.path]

    @property
    def whole(self) -> bool:
        """Whether every file is there in its full length."""
        counts = [shard.count for shard in self.shards] or [self.count]
        sizes = [path.stat().st_size if path.is_file() else -1 for path in self.paths]
        return sum(counts) == self.count and sizes == [count * np.dtype(self.dtype).itemsize for count in counts]


class Writer:
    """Writes tokens to a file, document by document or part by part."""

    def __init__(self, file: IO[bytes], tokenizer: Tokenizer, end_of_text: bool):
        self.file, self.tokenizer = file, tokenizer
        self.eot = [np.array([tokenizer.eot_token], np.uint32)] if end_of_text else []
        self.dtype = token_dtype(tokenizer)
        self.hash, self.count, self.bytes, self.documents = hashlib.sha256(), 0, 0, 0
        self.waiting, self.held = [], 0

    def document(self, texts: Iterable[str]) -> None:
        """Write one document, which arrives in pieces."""
        self.documents += 1
        self._write(itertools.chain(self.eot, tokenizers.encode_pieces(self.tokenizer, texts)))

    def part(self, text: str, opens: bool) -> None:
        """Write part of a document that encodes independently, after an end of text where it opens one."""
        self._write(itertools.chain(self.eot * opens, tokenizers.encode_pieces(self.tokenizer, [text])))

    def finish(self) -> dict[str, Any]:
        """The fields of the TokenFile but its path, after a last end of text; see `close`."""
        self._write(self.eot)
        self.close()
        eot = self.tokenizer.eot_token if self.eot else None
        fields = dict(count=self.count, bytes=self.bytes, documents=self.documents, eot=eot)
        return fields | {"dtype": self.dtype.name, "sha256": self.hash.hexdigest()}

    def close(self) -> None:
        """Write what waits; the bytes are then on the disk, not only on their way."""
        self._write_waiting()
        self.file.flush()
        os.fsync(self.file.fileno())

    def _write(self, arrays: Iterable[np.ndarray]) -> None:
        for tokens in arrays:
            self.waiting.append(tokens)
            self.held += len(tokens)
            if self.held >= WAITING:
                self._write_waiting()

    def _write_waiting(self) -> None:
        tokens = np.concatenate([np.empty(0, np.uint32), *self.waiting])
        packed = tokens.astype(self.dtype).data
        self.file.write(packed)
        self.hash.update(packed)
        self.count += len(tokens)
        self.bytes += int(tokenizers.token_bytes(self.tokenizer)[tokens].sum())
        self.waiting, self.held = [], 0


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The smaller of uint16 and uint32 that holds every token."""
    return np.dtype(np.uint16 if tokenizer.n_vocab <= 1 << 16 else np.uint32)


def digest_files(paths: list[Path]) -> str:
    """sha256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
