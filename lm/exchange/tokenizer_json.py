"""The parts of a tokenizer.json, the file by which the package `tokenizers` cuts text, for whoever writes one."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

Token = TypeVar("Token", bytes, str)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern that GPT-2 cuts text by."""


def document(model: dict[str, Any], added: Iterable[dict[str, Any]], **steps: Any) -> dict[str, Any]:
    """A whole file: steps are its normalizer, pre_tokenizer, post_processor and decoder, those it has."""
    none = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **none, **steps, "added_tokens": list(added), "model": model}


def added(text: str, number: int, *, special: bool = True) -> dict[str, Any]:
    """A token that is found in a text before all others; a special one is not found where text is but text."""
    marks = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    return {"id": number, "content": text, **marks, "special": special}


def bpe(numbers: Mapping[str, int], pairs: Iterable[tuple[str, str]], **flags: Any) -> dict[str, Any]:
    """Byte-pair encoding: each token's number, and the pairs that are merged, the first before all others."""
    nothing = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    off = dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    return {"type": "BPE", **nothing, **off, **flags, "vocab": dict(numbers), "merges": [list(pair) for pair in pairs]}


def merges(ranks: Mapping[Token, int]) -> Iterator[tuple[Token, Token]]:
    """Each pair of tokens that makes another, by the ranks of what it makes, then of its parts.

    tiktoken and sentencepiece merge any two that make a token, not only the two that training merged.
    """
    for token in sorted(ranks, key=ranks.get):
        pairs = ((token[:at], token[at:]) for at in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        yield from sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def split(pattern: str) -> dict[str, Any]:
    """A step that cuts text into what a regular expression matches and what stands between."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(patterns: Iterable[str]) -> dict[str, Any]:
    """The steps of byte-level encodings: cut by one pattern after the other, and spell bytes in GPT-2's letters."""
    letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    steps = [*map(split, patterns), letters]
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "decoder": letters}


def opens_with(token: str, number: int) -> dict[str, Any]:
    """A post-processor that puts a token before every text."""
    opener, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [opener, text],
        "pair": [opener, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
