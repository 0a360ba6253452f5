"""Encoding with any tokenizer, ours, tiktoken's or another's, and what its tokens stand for."""

import functools
from collections.abc import Iterable, Iterator

import numpy as np

from lm.errors import UserError, require
from lm.tokenizer.simple import END_OF_TEXT, Tokenizer
from lm.tokenizer.text import SLICE, slices, well_formed


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a text, uint32 [tokens]; text that spells a special token is ordinary text.

    Lone surrogates, which UTF-8 cannot write, become U+FFFD. Raises UserError for a character outside an alphabet, and
    where a pattern leaves out part of the text.
    """
    arrays = list(encode_pieces(tokenizer, [well_formed(text)]))
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty(0, np.uint32), *arrays])


def encode_within(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a text that goes on after another, uint32 [tokens].

    They differ from encode's where a published tokenizer puts a space before a text's first word.
    """
    if hasattr(tokenizer, "encode_within"):
        return np.array(tokenizer.encode_within(text), np.uint32)
    return encode(tokenizer, text)


def serves(tokenizer: Tokenizer, vocab: int) -> bool:
    """Whether a model with so many entries is of this tokenizer; those that came with theirs may have more rows than
    tokens."""
    return tokenizer.n_vocab == vocab or (tokenizer.name == "hf" and tokenizer.n_vocab < vocab)


def prefix(tokenizer: Tokenizer) -> list[int]:
    """The tokens that a model from elsewhere wants before every text; none for ours."""
    return getattr(tokenizer, "prefix", [])


def opening(tokenizer: Tokenizer) -> int:
    """The token after which a text begins: the end of the one before it, unless its makers put another there."""
    return (prefix(tokenizer) or [tokenizer.eot_token])[-1]


def encode_marked(tokenizer: Tokenizer, text: str, *, within: bool = False) -> list[int]:
    """The tokens of a text in which special tokens are spelled, as in a rendered chat; of ours, the end of text is one.

    within: it goes on after another text, as in `encode_within`.
    """
    if hasattr(tokenizer, "encode_marked"):
        return tokenizer.encode_marked(text, within=within)
    parts = [encode(tokenizer, part).tolist() for part in text.split(END_OF_TEXT)]
    return parts[0] + [token for part in parts[1:] for token in (tokenizer.eot_token, *part)]


def independent(tokenizer: Tokenizer) -> bool:
    """Whether `slices` of a text encode as they would if each were a text of its own."""
    return getattr(tokenizer, "independent", True)


def encode_pieces(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[np.ndarray]:
    """The tokens of one text that arrives in pieces, as uint32 arrays, in bounded memory.

    Where the text was cut into pieces does not show: the concatenation equals encode(tokenizer, "".join(pieces)).
    """
    if hasattr(tokenizer, "encode_pieces"):
        return tokenizer.encode_pieces(pieces)
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


def token_texts(tokenizer: Tokenizer) -> dict[int, bytes]:
    """What each token writes, special ones left out."""
    if hasattr(tokenizer, "token_texts"):
        return tokenizer.token_texts()
    if hasattr(tokenizer, "encode_to_numpy"):
        return {token: text for text, token in tokenizer._mergeable_ranks.items()}
    return {t: tokenizer.decode_bytes([t]) for t in range(tokenizer.n_vocab) if t != tokenizer.eot_token}


@functools.lru_cache(maxsize=4)
def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes of each token, int32 [n_vocab], read-only; special tokens and unused entries have none."""
    lengths = np.zeros(tokenizer.n_vocab, np.int32)
    for token, text in token_texts(tokenizer).items():
        lengths[token] = len(text)
    lengths.setflags(write=False)
    return lengths


def bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    """What one token stands for; nothing, for a number that no token has (published encodings have such gaps)."""
    try:
        return tokenizer.decode_bytes([token])
    except (KeyError, IndexError, ValueError):
        return b""


def spell(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[str]:
    """Each token as a string; bytes that are not whole characters as \\xNN."""
    return [bytes_of(tokenizer, token).decode("utf-8", "backslashreplace") for token in tokens]
