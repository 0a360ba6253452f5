"""A saved byte-pair vocabulary, checked before tiktoken sees it: damage becomes a panic there, or lost text."""

import base64
from collections import Counter
from typing import Any

from lm.errors import UserError, require
from lm.tokenizer.simple import END_OF_TEXT

MOST = 1 << 24
"""Tokens a vocabulary may have: eighty times the largest published one."""


def rebuild(values: dict[str, Any]):
    """The tiktoken.Encoding of `name`, `pattern`, `special` (text to number) and `ranks` (base64 to number).

    Raises UserError where one of them is missing or of another kind, and for numbers or a pattern that cannot be.
    """
    import tiktoken

    for key, kind, called in (
        ("name", str, "a string"), ("pattern", str, "a string"), ("special", dict, "an object"),
        ("ranks", dict, "an object"),
    ):  # fmt: skip
        require(isinstance(values.get(key), kind), f"its {key!r} must be {called}, and is missing or something else")
    special = values["special"]
    try:
        ranks = {base64.b64decode(token, validate=True): rank for token, rank in values["ranks"].items()}
    except ValueError as error:
        raise UserError(f"one of its tokens is not base64 ({error})") from error
    require(len(ranks) == len(values["ranks"]), "two of its tokens are the same")
    _check(ranks, special)
    try:
        return tiktoken.Encoding(
            values["name"], pat_str=values["pattern"], mergeable_ranks=ranks, special_tokens=special
        )
    except ValueError as error:
        raise UserError(f"its pattern is not a regular expression ({str(error)[:100]})") from error


def _check(ranks: dict[bytes, Any], special: dict[str, Any]) -> None:
    """Refuse numbers that cannot be: each token has its own, every byte is one, none up to the last is left out."""
    numbers = [*ranks.values(), *special.values()]
    for number in numbers:
        is_rank = type(number) is int and 0 <= number < MOST
        require(is_rank, f"rank {str(number)[:40]}: must be a whole number from 0 to {MOST - 1:,}")
    twice = next((number for number, count in Counter(numbers).items() if count > 1), None)
    require(twice is None, f"rank {twice} is that of two tokens")
    missing = [byte for byte in range(256) if bytes((byte,)) not in ranks]
    if missing:
        raise UserError(f"{len(missing)} of the 256 bytes have no token, the first of them 0x{missing[0]:02x}")
    require(b"" not in ranks, "one of its tokens is empty")
    taken = set(numbers)
    gap = next((number for number in range(max(ranks.values())) if number not in taken), None)
    require(gap is None, f"no token has rank {gap}")
    require(END_OF_TEXT in special, f"its special tokens lack {END_OF_TEXT}")
