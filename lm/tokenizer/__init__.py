"""Tokenizers: build one, encode with it, save it so that it comes back exactly.

A Tokenizer is whatever has tiktoken's face. Published encodings, trained byte-pair encodings and word vocabularies are
real `tiktoken.Encoding`s; bytes and characters are two small classes (simple), and what came with a model from
elsewhere stays what it was (huggingface). Every one ends in an end-of-text token.
"""

from lm.tokenizer.building import KINDS, SAMPLE, build, is_path
from lm.tokenizer.chats import PLAIN, ChatFormat, chat_format, read_template
from lm.tokenizer.encoding import (
    bytes_of,
    encode,
    encode_marked,
    encode_pieces,
    encode_within,
    independent,
    opening,
    prefix,
    serves,
    spell,
    token_bytes,
    token_texts,
)
from lm.tokenizer.huggingface import HuggingFaceTokenizer
from lm.tokenizer.patterns import BPE_PATTERN, WORD_PATTERN
from lm.tokenizer.saved import digest, from_json, load, save, to_json
from lm.tokenizer.simple import END_OF_TEXT, ByteTokenizer, CharTokenizer, Tokenizer
from lm.tokenizer.text import SLICE, slices, well_formed

__all__ = [
    "BPE_PATTERN",
    "END_OF_TEXT",
    "KINDS",
    "PLAIN",
    "SAMPLE",
    "SLICE",
    "WORD_PATTERN",
    "ByteTokenizer",
    "CharTokenizer",
    "ChatFormat",
    "HuggingFaceTokenizer",
    "Tokenizer",
    "build",
    "bytes_of",
    "chat_format",
    "digest",
    "encode",
    "encode_marked",
    "encode_pieces",
    "encode_within",
    "from_json",
    "independent",
    "is_path",
    "load",
    "opening",
    "prefix",
    "read_template",
    "save",
    "serves",
    "slices",
    "spell",
    "to_json",
    "token_bytes",
    "token_texts",
    "well_formed",
]
