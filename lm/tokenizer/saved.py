"""Tokenizers as files: everything that is needed to encode the same way again."""

import base64
import contextlib
import hashlib
import json
import os
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.errors import UserError, require
from lm.files import whole
from lm.tokenizer import ranks
from lm.tokenizer.encoding import encode
from lm.tokenizer.huggingface import HuggingFaceTokenizer
from lm.tokenizer.patterns import BPE_PATTERN, WORD_PATTERN
from lm.tokenizer.simple import ByteTokenizer, CharTokenizer, Tokenizer
from lm.tokenizer.text import well_formed


def to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything needed to rebuild the tokenizer, as plain JSON values."""
    if isinstance(tokenizer, ByteTokenizer):
        return {"kind": "bytes"}
    if isinstance(tokenizer, CharTokenizer):
        return {"kind": "chars", "alphabet": tokenizer.alphabet}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.to_json()
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
        case "hf":
            with _panics_unseen():
                return HuggingFaceTokenizer.from_json(values)
        case None if "model" in values:
            raise UserError("it is Hugging Face's: bring it in with its folder, by `lm import`")
        case kind:
            raise UserError(f"tokenizer kind {str(kind)[:40]!r}: one of bytes, chars, tiktoken, hf")


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
