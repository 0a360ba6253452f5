"""Making a tokenizer: from a text, from a file, or one that was published."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator

from lm.config import DataConfig
from lm.errors import UserError, nearest, require
from lm.tokenizer.patterns import BPE_PATTERN, WORD_PATTERN
from lm.tokenizer.saved import load
from lm.tokenizer.simple import END_OF_TEXT, ByteTokenizer, CharTokenizer, Tokenizer

KINDS = ("bytes", "chars", "words", "bpe")

SAMPLE = 8_000_000
"""Characters that words and bpe are trained on at most, spread over the whole text."""


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
    import regex

    pattern, counts = regex.compile(WORD_PATTERN), Counter()
    for text in texts:
        counts.update(pattern.findall(text))
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
