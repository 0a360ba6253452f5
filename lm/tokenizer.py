"""Tokenizers: build one, encode with it, save it so that it comes back exactly.

A Tokenizer is whatever has tiktoken's face. Published encodings, trained byte-pair encodings and word vocabularies are
real `tiktoken.Encoding`s; bytes and characters are the two small classes below. Every one ends in an end-of-text token.
"""

import base64
import contextlib
import functools
import hashlib
import heapq
import json
import os
import re
import string
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lm import ranks
from lm.config import DataConfig
from lm.errors import UserError, nearest, require
from lm.files import whole
from lm.ranks import END_OF_TEXT

KINDS = ("bytes", "chars", "words", "bpe")

BPE_PATTERN = (  # GPT-4's: words with one leading non-letter, numbers of up to three digits, punctuation, whitespace
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
WORD_PATTERN = r" ?\w+| ?[^\w\s]+|\s+"
SAMPLE = 8_000_000
"""Characters that words and bpe are trained on at most, spread over the whole text."""
SLICE = 1 << 17
"""Characters given to tiktoken at once: its regular expressions overflow on runs of about a million spaces."""


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
        return encode(self, text).tolist()

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
        return encode(self, text).tolist()

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(END_OF_TEXT if token == self.eot_token else self.alphabet[token] for token in tokens)

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return self.decode(tokens).encode()


# --- encode ----------------------------------------------------------------------------------------------------------
def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a text, uint32 [tokens]; text that spells a special token is ordinary text.

    Lone surrogates, which UTF-8 cannot write, become U+FFFD. Raises UserError for a character outside an alphabet, and
    where a pattern leaves out part of the text.
    """
    arrays = list(encode_pieces(tokenizer, [well_formed(text)]))
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty(0, np.uint32), *arrays])


def encode_pieces(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[np.ndarray]:
    """The tokens of one text that arrives in pieces, as uint32 arrays, in bounded memory.

    Where the text was cut into pieces does not show: the concatenation equals encode(tokenizer, "".join(pieces)).
    """
    if isinstance(tokenizer, ByteTokenizer):
        return (np.frombuffer(piece.encode(), np.uint8).astype(np.uint32) for piece in pieces)
    if isinstance(tokenizer, CharTokenizer):
        return (_encode_chars(tokenizer, piece) for piece in pieces)
    if not hasattr(tokenizer, "encode_to_numpy"):  # neither ours nor tiktoken's
        return iter([np.array(tokenizer.encode_ordinary("".join(pieces)), np.uint32)])
    return (_encode_slice(tokenizer, part) for part in slices(pieces, SLICE))


def _encode_slice(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """A slice through tiktoken, or a UserError where its regular expression gives up or passes over some of the text.

    What it matches it keeps in order, and no two tokens share their bytes; so equal lengths are equal texts.
    """
    try:
        tokens = tokenizer.encode_to_numpy(text, disallowed_special=())
    except ValueError as error:
        raise UserError(f"tokenizer {tokenizer.name}: its pattern gives up on this text ({error})") from error
    except BaseException as error:  # a panic in Rust is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"tokenizer {tokenizer.name}: its pattern cannot cut this text ({error})") from error
    size = len(text) if text.isascii() else len(text.encode())
    lost = size - int(token_bytes(tokenizer)[tokens].sum())
    require(
        lost == 0,
        f"tokenizer {tokenizer.name}: its pattern leaves out {lost:,} of {size:,} bytes of the text; end it in an"
        r" alternative that takes any character, such as |(?s:.)",
    )
    return tokens


def _encode_chars(tokenizer: CharTokenizer, text: str) -> np.ndarray:
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    tokens = tokenizer.table[np.minimum(points, len(tokenizer.table) - 1)]
    outside = np.flatnonzero(tokens == tokenizer.eot_token)
    if len(outside):
        character = text[outside[0]]
        raise UserError(
            f"character {character!r} (U+{ord(character):04X}) is not among the {len(tokenizer.alphabet)} characters"
            " this tokenizer was built from; remove it from the text, or use data.tokenizer bytes"
        )
    return tokens


_BOUNDARY = re.compile(r".*\S(?= )", re.DOTALL)


def slices(pieces: Iterable[str], limit: int) -> Iterator[str]:
    """A text that arrives in pieces, cut anew into slices of at most `limit` characters that encode independently.

    A cut falls before a space that follows a non-space: no published pattern (nor ours) matches across that point, so
    the tokens are those of the uncut text. Only a stretch of `limit` characters without such a point, a wall of
    spaces or of Chinese without any, is cut where it stands. Cuts depend on the text alone, not on its pieces.
    """
    text = ""
    for piece in pieces:
        text, start = text + piece, 0
        while len(text) - start > limit:
            safe = _BOUNDARY.match(text, start, start + limit + 1)
            end = safe.end() if safe else start + limit
            yield text[start:end]
            start = end
        text = text[start:]
    if text:
        yield text


def well_formed(text: str) -> str:
    """The text with surrogates paired where they pair and otherwise replaced by U+FFFD, so that UTF-8 can write it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@functools.lru_cache(maxsize=4)
def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes of each token, int32 [n_vocab], read-only; special tokens and unused entries have none."""
    if isinstance(tokenizer, ByteTokenizer | CharTokenizer):
        alphabet = getattr(tokenizer, "alphabet", "x" * 256)
        lengths = np.array([len(character.encode()) for character in alphabet] + [0], np.int32)
    else:
        lengths = np.zeros(tokenizer.n_vocab, np.int32)
        for token, rank in tokenizer._mergeable_ranks.items():
            lengths[rank] = len(token)
    lengths.setflags(write=False)
    return lengths


def bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    """What one token stands for; nothing, for a number that no token has (published encodings have such gaps)."""
    try:
        return tokenizer.decode_bytes([token])
    except KeyError:
        return b""


def spell(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[str]:
    """Each token as a string; bytes that are not whole characters as \\xNN."""
    return [bytes_of(tokenizer, token).decode("utf-8", "backslashreplace") for token in tokens]


# --- build -----------------------------------------------------------------------------------------------------------
def build(data: DataConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that `data.tokenizer` asks for.

    texts: the training text, read only by the kinds that are made from it: chars, words and bpe.
    words and bpe have at most data.vocab entries, fewer when the text does not hold so many.
    Raises UserError for an unknown name, an encoding that is not at hand, or a file that is not a tokenizer.
    """
    match data.tokenizer:
        case "bytes":
            return ByteTokenizer()
        case "chars":
            alphabet = set()
            for text in texts:  # one at a time: union(*texts) would hold them all
                alphabet.update(text)
            return CharTokenizer(alphabet)
        case "words":
            return _build_words(_sample(texts, SAMPLE), data.vocab)
        case "bpe":
            return _build_bpe(_sample(texts, SAMPLE), data.vocab)
        case name if is_path(name):
            return load(name)
        case name:
            return _published(name)


def is_path(name: str) -> bool:
    """Whether data.tokenizer is the path of a saved tokenizer."""
    return name.endswith(".json") or "/" in name


def _build_words(texts: Iterable[str], vocab: int) -> Tokenizer:
    """The 256 bytes and the most frequent pieces of WORD_PATTERN.

    An unseen word falls back to what parts of it are known and to bytes, so every text can be written.
    """
    counts = Counter()
    for text in texts:
        counts.update(re.findall(WORD_PATTERN, text))
    tokens = [bytes((byte,)) for byte in range(256)]
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    tokens += [word for word in map(str.encode, frequent) if len(word) > 1][: vocab - 257]
    return _encoding("words", WORD_PATTERN, {token: rank for rank, token in enumerate(tokens)})


def _build_bpe(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) within pieces of GPT-4's pattern."""
    try:
        import rustbpe
    except ImportError as error:
        raise UserError("data.tokenizer bpe needs the package rustbpe: pip install rustbpe") from error
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), vocab_size=vocab - 1, pattern=BPE_PATTERN)
    return _encoding("bpe", BPE_PATTERN, {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()})


def _encoding(name: str, pattern: str, numbers: dict[bytes, int]) -> Tokenizer:
    import tiktoken

    special = {END_OF_TEXT: len(numbers)}
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=numbers, special_tokens=special)


def _published(name: str) -> Tokenizer:
    import tiktoken

    known = tiktoken.list_encoding_names()
    require(
        name in known,
        f"data.tokenizer {name!r}: no such tokenizer{nearest(name, [*KINDS, *known])}"
        f" (known: {', '.join([*KINDS, *known])}; or a path to a tokenizer.json)",
    )
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum is a ValueError
        raise UserError(
            f"data.tokenizer {name}: not on this machine and could not be fetched ({type(error).__name__});"
            " connect to the network once, or set TIKTOKEN_CACHE_DIR to a folder that holds it"
        ) from error


def _sample(texts: Iterable[str], limit: int) -> list[str]:
    """At most `limit` characters from all over a stream of unknown length; everything when it is shorter.

    Units of text with the smallest hashes of their number are kept: no period of the stream can miss one of its kinds.
    Streams of up to twice the limit keep every other unit instead, as they always have, the quick start's among them.
    """
    kept, held, bound = [], 0, 1 << 64  # a heap: the largest hash first
    for number, text in enumerate(_units(texts)):
        rank = int.from_bytes(hashlib.blake2b(number.to_bytes(8), digest_size=8, person=b"lm.sample").digest())
        if rank < bound:
            heapq.heappush(kept, (-rank, number, text))
            held += len(text)
        while held > 2 * limit and len(kept) > 1:
            bound, held = -kept[0][0], held - len(heapq.heappop(kept)[2])
    while bound < 1 << 64 and held > limit and len(kept) > 1:
        held -= len(heapq.heappop(kept)[2])
    chosen = [text for _, text in sorted((number, text) for _, number, text in kept)]
    while bound == 1 << 64 and sum(map(len, chosen)) > limit and len(chosen) > 1:
        chosen = chosen[::2]
    return chosen


def _units(texts: Iterable[str], size: int = 1 << 14) -> Iterator[str]:
    """Texts, the long ones in units of so many characters."""
    return (text[start : start + size] for text in texts for start in range(0, len(text), size))


# --- save and load ---------------------------------------------------------------------------------------------------
def to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything needed to rebuild the tokenizer, as plain JSON values."""
    if isinstance(tokenizer, ByteTokenizer):
        return {"kind": "bytes"}
    if isinstance(tokenizer, CharTokenizer):
        return {"kind": "chars", "alphabet": tokenizer.alphabet}
    in_order = sorted(tokenizer._mergeable_ranks.items(), key=lambda item: item[1])
    return {
        "kind": "tiktoken",
        "name": tokenizer.name,
        "pattern": tokenizer._pat_str,
        "special": tokenizer._special_tokens,
        "ranks": {base64.b64encode(token).decode(): rank for token, rank in in_order},
    }


def from_json(values: dict[str, Any]) -> Tokenizer:
    """The inverse of to_json: the same tokens for every text. Raises UserError when `values` is something else."""
    require(isinstance(values, dict), "expected a JSON object with the tokenizer's kind")
    match values.get("kind"):
        case "bytes":
            return ByteTokenizer()
        case "chars":
            alphabet = values.get("alphabet")
            require(isinstance(alphabet, str) and bool(alphabet), "its alphabet must be a string of characters")
            require(alphabet == well_formed(alphabet), "its alphabet holds half a character (a lone surrogate)")
            require(len(set(alphabet)) == len(alphabet), "its alphabet holds a character twice")
            return CharTokenizer(alphabet)
        case "tiktoken":
            tokenizer = ranks.rebuild(values)
            if values["pattern"] not in (BPE_PATTERN, WORD_PATTERN):
                with _panics_unseen():
                    encode(tokenizer, EVERY_KIND)
            return tokenizer
        case kind:
            raise UserError(f"tokenizer kind {str(kind)[:40]!r}: one of bytes, chars, tiktoken")


EVERY_KIND = string.printable * 2 + " The naïve  cafés\r\n\n\t don't: 12345 ١٢٣ 東京 e\u0301 🙂\u2028\u00a0 aaaa-aaaa"
"""Letters, digits, marks, punctuation, spaces and line ends: a pattern that loses text loses some of this."""


@contextlib.contextmanager
def _panics_unseen() -> Iterator[None]:
    """Keep what Rust itself writes of a panic, a page of stack, off standard error while a pattern is tried out."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing can be seen anyway
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def save(tokenizer: Tokenizer, path: str | os.PathLike) -> None:
    """Write tokenizer.json: whole, or not at all."""
    text = json.dumps(to_json(tokenizer), ensure_ascii=False, indent=1)
    with whole(path) as file:
        file.write(text)


def load(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer saved at `path`, rebuilt from that file alone. Raises UserError when it is not one."""
    require(Path(path).is_file(), f"no tokenizer file {path}; `lm tokenizer train` makes one")
    try:
        return from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or from_json's UserError; nested too deep
        raise UserError(f"{path} is not a saved tokenizer: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def digest(tokenizer: Tokenizer) -> str:
    """sha256 (hex) of what defines the tokenizer: equal digests encode equally."""
    canonical = json.dumps(to_json(tokenizer), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
