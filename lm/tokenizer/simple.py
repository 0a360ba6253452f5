"""What a tokenizer is to everyone, and the two that need no vocabulary: bytes and characters."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from lm.errors import UserError
from lm.tokenizer.text import well_formed

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """tiktoken's face."""

    name: str
    n_vocab: int
    eot_token: int

    def encode_ordinary(self, text: str) -> list[int]:
        """The tokens of a text, in which nothing is special."""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD."""

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes of tokens."""


class ByteTokenizer:
    """Token i is byte i of the UTF-8 text, token 256 ends a text."""

    name, n_vocab, eot_token = "bytes", 257, 256

    def encode_ordinary(self, text: str) -> list[int]:
        return list(well_formed(text).encode())

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        return (np.frombuffer(piece.encode(), np.uint8).astype(np.uint32) for piece in pieces)

    def decode(self, tokens: Iterable[int]) -> str:
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        end = END_OF_TEXT.encode()
        return b"".join(end if token == self.eot_token else bytes((token,)) for token in tokens)


class CharTokenizer:
    """Token i is the i-th character of the alphabet, in order of code points; the last token ends a text."""

    name = "chars"

    def __init__(self, alphabet: Iterable[str]):
        self.alphabet = "".join(sorted(set(alphabet)))
        self.eot_token, self.n_vocab = len(self.alphabet), len(self.alphabet) + 1
        points = np.frombuffer(self.alphabet.encode("utf-32-le"), np.uint32)
        # Code point -> token; the last entry stands for every code point beyond the alphabet's largest.
        self.table = np.full(int(points.max(initial=0)) + 2, self.eot_token, np.uint32)
        self.table[points] = np.arange(len(points), dtype=np.uint32)

    def encode_ordinary(self, text: str) -> list[int]:
        return self._encode(well_formed(text)).tolist()

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        return map(self._encode, pieces)

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(END_OF_TEXT if token == self.eot_token else self.alphabet[token] for token in tokens)

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return self.decode(tokens).encode()

    def _encode(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        tokens = self.table[np.minimum(points, len(self.table) - 1)]
        outside = np.flatnonzero(tokens == self.eot_token)
        if len(outside):
            character = text[outside[0]]
            raise UserError(
                f"character {character!r} (U+{ord(character):04X}) is not among the {len(self.alphabet)} characters"
                " this tokenizer was built from; remove it from the text, or use data.tokenizer bytes"
            )
        return tokens
