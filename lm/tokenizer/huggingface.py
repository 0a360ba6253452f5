"""A tokenizer that came with a model from elsewhere: Hugging Face's tokenizer.json, run by the package `tokenizers`.

Its files are kept as they came and say everything. Byte-level BPE, sentencepiece's BPE (with bytes for what has no
token) and words are read; in all three a token's bytes depend on that token alone, once the decoder is known:

decoder                     a token's text                             before a text's first word
ByteLevel                   one letter a byte, as GPT-2 spells them    nothing
Replace, ByteFallback ...   ▁ is a space, <0x0A> a byte                a space that decoding takes away again
Metaspace                   ▁ is a space                               the same
Fuse                        itself                                     nothing
none (words)                itself, after a space                      a space that is not there
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from lm.errors import UserError, require
from lm.tokenizer.text import SLICE, slices, well_formed

MOST = 1 << 24
"""Numbers that a vocabulary may reach: sixty times the largest published one."""
SPACE = "▁"
"""How sentencepiece writes a space."""
CUT = re.compile(r"\S ")
"""Where `slices` cuts a text."""
KEEPS_CUTS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Replace")
"""Normalizers that treat what stands before a space and what follows apart."""


def byte_letters() -> dict[str, int]:
    """The letter that GPT-2's vocabulary spells each byte with -> the byte: itself where it can be seen."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


LETTERS = byte_letters()
BYTE_LETTERS = {byte: letter for letter, byte in LETTERS.items()}


class HuggingFaceTokenizer:
    """tiktoken's face for a tokenizer.json.

    files: tokenizer.json and the texts beside it, by name. end_of_text: the token that ends a text.
    special: what the files call bos_token, eos_token and so on, as chat templates want it: name -> text.
    ends: all tokens that end an answer, end_of_text among them. chat_template: Jinja, or None.
    """

    name = "hf"

    def __init__(
        self,
        files: Mapping[str, str],
        end_of_text: int,
        special: Mapping[str, str] | None = None,
        ends: Sequence[int] = (),
        chat_template: str | None = None,
    ):
        self.files, self.special, self.chat_template = dict(files), dict(special or {}), chat_template
        self.whole, self.settings = open_tokenizer(self.files["tokenizer.json"])
        self.vocabulary = self.whole.get_vocab(with_added_tokens=True)
        self.n_vocab = max(self.vocabulary.values(), default=-1) + 1
        require(0 < self.n_vocab <= MOST, f"its tokens are numbered up to {self.n_vocab - 1:,}: at most {MOST - 1:,}")
        self.eot_token, self.ends = end_of_text, tuple(dict.fromkeys([end_of_text, *ends]))
        for token in self.ends:
            require(0 <= token < self.n_vocab, f"its end of text {token} is none of its {self.n_vocab:,} tokens")
        self.token_to_bytes, self.stripped = reading(self.settings.get("decoder"))
        added = self.settings.get("added_tokens") or []
        self.control = {token["id"] for token in added if token.get("special")}

    # --- what tokens are ---
    @property
    def bos_token(self) -> int | None:
        """The token that these files put before a text, if they name one."""
        return self.vocabulary.get(self.special.get("bos_token"))

    @functools.cached_property
    def prefix(self) -> list[int]:
        """The tokens that its makers put before every text: the beginning-of-text token of Llama and Gemma, or none."""
        if not self.settings.get("post_processor"):
            return []
        alone, around = self._ids(self.whole, "a"), self.whole.encode("a", add_special_tokens=True).ids
        starts = (at for at in range(len(around)) if around[at : at + len(alone)] == alone)
        return around[: next(starts, 0)]

    @functools.cached_property
    def texts(self) -> list[bytes]:
        """What each token writes; nothing for numbers without a token."""
        texts = [b""] * self.n_vocab
        for token, number in self.vocabulary.items():
            texts[number] = self.token_to_bytes(token)
        return texts

    def token_texts(self) -> dict[int, bytes]:
        """What each token writes, special ones left out."""
        return {token: self.texts[token] for token in sorted(self.vocabulary.values()) if token not in self.control}

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes of tokens one after the other; a number beyond the vocabulary, which a model may have, has none."""
        return b"".join(self.texts[token] if 0 <= token < self.n_vocab else b"" for token in tokens)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, without the space that encoding puts before a text's first word."""
        tokens = list(tokens)
        start = self.decode_bytes(tokens[:1])
        rest = self.decode_bytes(tokens[1:])
        stripped = start.lstrip(b" ") if self.stripped is None else start.removeprefix(b" " * self.stripped)
        return (stripped + rest).decode("utf-8", errors="replace")

    # --- encode ---
    def encode_ordinary(self, text: str) -> list[int]:
        """The tokens of a text, without those that its makers put around it; text that spells a special one is text."""
        return [token for part in self.encode_pieces([well_formed(text)]) for token in part.tolist()]

    def encode_within(self, text: str) -> list[int]:
        """The tokens of a text that goes on after another: nothing is put before its first word."""
        return self._ids(self.within, well_formed(text))

    def encode_marked(self, text: str, *, within: bool = False) -> list[int]:
        """The tokens of a text in which special tokens are spelled; within: it goes on after another."""
        tokenizer = self.within if within else self.whole
        tokenizer.encode_special_tokens = False
        try:
            return self._ids(tokenizer, well_formed(text))
        finally:
            tokenizer.encode_special_tokens = True

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        """The tokens of one text that arrives in pieces, as `lm.tokenizer.encode_pieces` has it.

        In bounded memory unless a token may hold a word's end and the next space, or a text is rewritten as a whole.
        """
        if not self.cuts:
            yield np.array(self._ids(self.whole, "".join(pieces)), np.uint32)
            return
        for number, part in enumerate(slices(pieces, SLICE)):
            yield np.array(self._ids(self.within if number else self.whole, part), np.uint32)

    @functools.cached_property
    def cuts(self) -> bool:
        """Whether slices encode independently: no token goes on from a non-space to a space, nor does a normalizer."""
        normalizers = {part["type"] for part in parts(self.settings.get("normalizer"), "normalizers")}
        texts = (text.decode("utf-8", "replace") for text in self.token_texts().values())
        return normalizers <= set(KEEPS_CUTS) and not any(CUT.search(text) for text in texts)

    @property
    def independent(self) -> bool:
        """Whether the slices of a text encode as they would if each were a text of its own."""
        return self.cuts and self.within is self.whole

    @functools.cached_property
    def within(self):
        """The same tokenizer, but nothing is put before the first word of a text."""
        changed = without_prefix(self.settings)
        return self.whole if changed == self.settings else open_tokenizer(json.dumps(changed))[0]

    def _ids(self, tokenizer, text: str) -> list[int]:
        with told("cannot write this text"):
            return tokenizer.encode(text, add_special_tokens=False).ids

    # --- save and load ---
    def to_json(self) -> dict[str, Any]:
        """Everything needed to rebuild it, as plain JSON values."""
        return {
            "kind": "hf",
            "end_of_text": self.eot_token,
            "ends": list(self.ends),
            "special": self.special,
            "chat_template": self.chat_template,
            "files": self.files,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "HuggingFaceTokenizer":
        """The inverse of to_json. Raises UserError when `values` is something else."""
        files, special, ends = (values.get(key) for key in ("files", "special", "ends"))
        template = values.get("chat_template")
        require(
            texts_by_name(files) and "tokenizer.json" in files, "its 'files' must be texts, tokenizer.json among them"
        )
        require(texts_by_name(special), "its 'special' must be an object of strings")
        require(isinstance(ends, list) and all(type(end) is int for end in ends), "its 'ends' must be whole numbers")
        require(type(values.get("end_of_text")) is int, "its 'end_of_text' must be a whole number")
        require(template is None or isinstance(template, str), "its 'chat_template' must be a string or null")
        return cls(files, values["end_of_text"], special, ends, template)


def texts_by_name(values: Any) -> bool:
    """Whether these are strings by name."""
    return isinstance(values, dict) and all(isinstance(text, str) for text in values.values())


# --- tokenizer.json --------------------------------------------------------------------------------------------------
def open_tokenizer(text: str):
    """The tokenizers.Tokenizer of a tokenizer.json, to which special tokens are text, and the file's object.

    Raises UserError for what it cannot be.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("this tokenizer needs the package tokenizers: pip install 'lm-lab[exchange]'") from error

    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"tokenizer.json is no JSON ({error})") from error
    require(isinstance(settings, dict) and isinstance(settings.get("model"), dict), "tokenizer.json has no model")
    model = settings["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)
    require(
        kind in ("BPE", "WordLevel"),
        f"tokenizer.json has a model of type {str(kind)[:40]}: BPE and WordLevel are read, whose tokens have bytes",
    )
    require(not model.get("dropout"), "tokenizer.json draws its merges at random (dropout): set that to null")
    marks = [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    require(not marks, f"tokenizer.json marks the parts of words ({', '.join(marks)}), which is not read")
    with told("tokenizer.json cannot be read"):
        tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer, settings


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn what `tokenizers` raises, and its panics, which are no Exceptions, into a UserError."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"tokenizer hf: {what} ({str(error)[:150]})") from error


def parts(settings: dict[str, Any] | None, plural: str) -> list[dict[str, Any]]:
    """The steps of a normalizer, a pre-tokenizer or a decoder: none, one, or those of a Sequence."""
    if not settings:
        return []
    steps = settings.get(plural) if settings.get("type") == "Sequence" else [settings]
    typed = isinstance(steps, list) and all(
        isinstance(step, dict) and isinstance(step.get("type"), str) for step in steps
    )
    require(typed, f"tokenizer.json has {plural} without a type")
    return steps


def reading(decoder: dict[str, Any] | None) -> tuple[Callable[[str], bytes], int | None]:
    """What turns a token into bytes, and how many spaces decoding takes from a text's start: None for all of the first
    token's. Raises UserError for a decoder by which a token's bytes depend on its neighbours."""
    steps = parts(decoder, "decoders")
    kinds = [step["type"] for step in steps]
    known = {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
    unknown = [kind for kind in kinds if kind not in known]
    require(not unknown, f"tokenizer.json has a decoder {', '.join(unknown)[:40]}: one of {', '.join(sorted(known))}")
    if not kinds:
        return (lambda token: b" " + token.encode()), 1
    if "ByteLevel" in kinds:
        return spelled, 0
    replaced = [(step["pattern"].get("String"), step["content"]) for step in steps if step["type"] == "Replace"]
    require(all(old for old, _ in replaced), "tokenizer.json has a decoder that replaces by a regular expression")
    metaspaces = [step for step in steps if step["type"] == "Metaspace"]
    replaced += [(step["replacement"], " ") for step in metaspaces]

    def read(token: str) -> bytes:
        if "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes.fromhex(token[3:5])
            except ValueError:
                pass
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    if metaspaces:
        never = metaspaces[0].get("prepend_scheme") == "never" or metaspaces[0].get("add_prefix_space") is False
        return read, 0 if never else None
    return read, sum(step["start"] for step in steps if step["type"] == "Strip" and step["content"] == " ")


def spelled(token: str) -> bytes:
    """The bytes that GPT-2's letters spell; text that is not all in those letters, an added token's, is itself."""
    if all(letter in LETTERS for letter in token):
        return bytes(LETTERS[letter] for letter in token)
    return token.encode()


def without_prefix(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a tokenizer that puts no space before a text's first word."""
    changed = dict(settings)
    normalizers = parts(settings.get("normalizer"), "normalizers")
    if any(step["type"] == "Prepend" for step in normalizers):
        kept = [step for step in normalizers if step["type"] != "Prepend"]
        changed["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    steps = []
    for step in parts(settings.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace":
            step = {**step, "prepend_scheme": "never"}
            step.pop("add_prefix_space", None)
        elif step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            step = {**step, "add_prefix_space": False}
        steps.append(step)
    if steps != parts(settings.get("pre_tokenizer"), "pretokenizers"):
        changed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    return changed
