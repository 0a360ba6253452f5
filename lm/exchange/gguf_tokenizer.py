"""The tokenizer of a GGUF file, as llama.cpp runs it: keys `tokenizer.*` to and from a Hugging Face folder's texts.

Two models are read. "gpt2" is byte-level BPE: tokens in GPT-2's letters, merges in order, and in `pre` the name of the
patterns that cut text first, which llama.cpp has by heart; an unknown name is refused, for another pattern gives other
tokens without a word. "llama" is sentencepiece's BPE: of all neighbours that make a token, those whose token has the
highest score are merged first, ▁ is a space, and what no token spells is written in bytes.
"""

import itertools
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from lm.errors import UserError, require
from lm.exchange.tokenizer_json import GPT2, added, bpe, byte_level, document, merges, opens_with
from lm.exchange.tokenizers import tokenizer_json
from lm.tokenizer import BPE_PATTERN, END_OF_TEXT, CharTokenizer, HuggingFaceTokenizer, Tokenizer
from lm.tokenizer.huggingface import SPACE, parts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens."""
KEY = "tokenizer.ggml."
IDS = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
       "pad_token": "padding_token_id"}  # fmt: skip
"""Special tokens: their names in a folder, and their keys here."""

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
WHOLE = ("llama-bpe", "llama3", "llama-v3", "falcon3")
"""Names by which a piece that is a token as a whole is that token, and a text begins with <bos> unless it is said."""
PATTERNS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais"), (GPT2,)),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (r"\p{N}", GPT2)
    ),
    **dict.fromkeys((*WHOLE, "dbrx", "smaug-bpe"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "stablelm2", "megrez"), (QWEN2,)),
}
"""The regular expressions that cut a text, one within the pieces of the other, by llama.cpp's names."""
ALIKE = {
    BPE_PATTERN: LLAMA3,
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": GPT2,  # tiktoken's gpt2
}
"""Patterns that cut as one of llama.cpp's does, and that one."""
INERT = f"{END_OF_TEXT} {END_OF_TEXT}"
"""A merge of what never stands in a text: llama.cpp asks for merges, and there is no empty list in GGUF."""


# --- in --------------------------------------------------------------------------------------------------------------
def from_gguf(fields: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a folder that encodes as llama.cpp does with these fields; see `from_texts`.

    fields: plain values (strings, numbers, lists) by key, those of `tokenizer.` among them.
    Raises UserError for a model or a `pre` that is not known here, and for fields that do not fit together.
    """
    kind, pre = fields.get(f"{KEY}model"), fields.get(f"{KEY}pre")
    tokens, types = _tokens(fields)
    numbers = {token: number for number, token in enumerate(tokens) if types[number] != UNUSED}
    if kind == "gpt2":
        require(
            isinstance(pre, str) and pre in PATTERNS,
            f"{KEY}pre {str(pre)[:40]!r}: how it cuts text is not known here (known: {', '.join(PATTERNS)})",
        )
        (model, steps), begins = _byte_level(fields, numbers, pre), pre in WHOLE
    elif kind == "llama":
        (model, steps), begins = _sentencepiece(fields, numbers, types), True
    else:
        raise UserError(f"{KEY}model {str(kind)[:40]!r}: expected gpt2 (byte-level BPE) or llama (sentencepiece's BPE)")
    special = {}
    for name, key in IDS.items():
        number = fields.get(f"{KEY}{key}")
        if type(number) is int and 0 <= number < len(tokens):
            special[name] = tokens[number]
    bos = special.get("bos_token")
    begins = bool(fields.get(f"{KEY}add_bos_token", begins)) and bos in numbers
    kinds = {UNKNOWN: True, CONTROL: True, USER_DEFINED: False}
    marked = [(token, number) for token, number in numbers.items() if types[number] in kinds]
    if begins:
        steps["post_processor"] = opens_with(bos, numbers[bos])
    made = document(model, [added(*one, special=kinds[types[one[1]]]) for one in marked], **steps)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    ends = {"eos_token_id": fields.get(f"{KEY}eos_token_id"), "bos_token_id": fields.get(f"{KEY}bos_token_id")}
    texts = {
        "tokenizer.json": json.dumps(made, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2),
        "generation_config.json": json.dumps({key: end for key, end in ends.items() if end is not None}, indent=2),
    }
    template = fields.get("tokenizer.chat_template")
    return texts | ({"chat_template.jinja": template} if isinstance(template, str) else {})


def _tokens(fields: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """The tokens in order, and their types."""
    tokens = _listed(fields, "tokens", str)
    require(bool(tokens), f"{KEY}tokens is missing: the file has no tokenizer")
    types = _listed(fields, "token_type", int) or [NORMAL] * len(tokens)
    require(len(types) == len(tokens), f"{KEY}token_type has {len(types):,} entries for {len(tokens):,} tokens")
    require(len(set(tokens)) == len(tokens), f"{KEY}tokens holds a token twice")
    return tokens, types


def _listed(fields: Mapping[str, Any], key: str, kind: type) -> list:
    """A field's list, empty where there is none."""
    values = fields.get(f"{KEY}{key}") or []
    good = isinstance(values, list) and all(isinstance(value, kind) for value in values)
    require(good, f"{KEY}{key} is no list of {kind.__name__} values")
    return values


def _byte_level(fields: Mapping[str, Any], numbers: dict[str, int], pre: str) -> tuple[dict, dict]:
    pairs = [merge.partition(" ") for merge in _listed(fields, "merges", str) if merge != INERT]
    pairs = [(left, right) for left, _, right in pairs]
    whole = (left in numbers and right in numbers and left + right in numbers for left, right in pairs)
    lost = next((left + right for (left, right), is_whole in zip(pairs, whole, strict=True) if not is_whole), None)
    require(lost is None, f"{KEY}merges makes {str(lost)[:40]!r}, which is no token, or is made of what is none")
    return bpe(numbers, pairs, ignore_merges=pre in WHOLE), byte_level(PATTERNS[pre])


def _sentencepiece(fields: Mapping[str, Any], numbers: dict[str, int], types: list[int]) -> tuple[dict, dict]:
    scores = _listed(fields, "scores", float)
    require(len(scores) == len(types), f"{KEY}scores has {len(scores):,} entries for {len(types):,} tokens")
    apart = (UNKNOWN, CONTROL, BYTE)
    spelled = {token: number for token, number in numbers.items() if types[number] not in apart}
    order = sorted(spelled, key=lambda token: (-scores[spelled[token]], spelled[token]))
    unknown = next((token for token, number in numbers.items() if types[number] == UNKNOWN), None)
    normalizers = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}
    ]  # fmt: skip
    if fields.get(f"{KEY}add_space_prefix", True):
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    pairs = merges({token: rank for rank, token in enumerate(order)})
    model = bpe(numbers, pairs, byte_fallback=True, fuse_unk=True, unk_token=unknown)
    return model, {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


# --- out -------------------------------------------------------------------------------------------------------------
def to_gguf(tokenizer: Tokenizer, rows: int | None = None) -> dict[str, Any]:
    """The fields with which llama.cpp cuts text as the tokenizer does: plain values by key.

    rows: entries that the model's table has, where it has more than there are tokens; those are marked as unused.
    Raises UserError where llama.cpp has no such tokenizer: characters, words, a pattern or a normalizer of one's own.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        settings, special = tokenizer.settings, tokenizer.special
    else:
        require(
            not isinstance(tokenizer, CharTokenizer) and tokenizer.name != "words",
            f"llama.cpp has no tokenizer of {'characters' if tokenizer.name == 'chars' else 'words'}: train with"
            " data.tokenizer bpe or bytes to use a model there",
        )
        settings, special = tokenizer_json(tokenizer), {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    model = settings["model"]
    require(model.get("type") == "BPE", f"llama.cpp runs BPE, this tokenizer is a {model.get('type')}")
    apart = {token["content"]: token for token in settings.get("added_tokens") or []}
    numbers = model["vocab"] | {text: token["id"] for text, token in apart.items()}
    size = max(max(numbers.values()) + 1, rows or 0)
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [UNUSED] * size
    for token, number in numbers.items():
        tokens[number], types[number] = token, _type(token, apart, model)
    made = {f"{KEY}tokens": tokens, f"{KEY}token_type": types}
    made |= (
        _merged(model, settings, apart) if not model.get("byte_fallback") else _scored(model, settings, tokens, types)
    )
    for name, key in IDS.items():
        if special.get(name) in numbers:
            made[f"{KEY}{key}"] = numbers[special[name]]
    made.setdefault(f"{KEY}bos_token_id", tokenizer.eot_token)  # llama.cpp would take token 11
    made[f"{KEY}eos_token_id"] = tokenizer.eot_token
    made[f"{KEY}add_bos_token"] = bool(getattr(tokenizer, "prefix", []))
    if template := getattr(tokenizer, "chat_template", None):
        made["tokenizer.chat_template"] = template
    return made


def _type(token: str, apart: dict[str, Any], model: dict[str, Any]) -> int:
    if model.get("byte_fallback") and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return BYTE
    if token == model.get("unk_token"):
        return UNKNOWN
    if token in apart:
        return CONTROL if apart[token].get("special") else USER_DEFINED
    return NORMAL


def _merged(model: dict[str, Any], settings: dict[str, Any], apart: Collection[str]) -> dict[str, Any]:
    """The fields of byte-level BPE: the merges, and the name of the patterns that cut the text.

    apart: tokens that are not made of letters.
    """
    normalizers = {step["type"] for step in parts(settings.get("normalizer"), "normalizers")}
    other = ", ".join(normalizers - {"NFC"})  # llama.cpp composes nothing, but nearly all text is composed already
    require(not other, f"llama.cpp does not rewrite text as this tokenizer does ({other})")
    decoders = [step["type"] for step in parts(settings.get("decoder"), "decoders")]
    require(decoders == ["ByteLevel"], "llama.cpp runs BPE of bytes or sentencepiece's, and this is neither")
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    patterns = cutting(settings) if pairs else (GPT2,)  # without merges no cut shows
    names = [name for name, known in PATTERNS.items() if known == patterns]
    require(
        bool(names), f"llama.cpp does not cut text by the pattern of this tokenizer: {' then '.join(patterns)[:100]}"
    )
    name = next((name for name in names if (name in WHOLE) == bool(model.get("ignore_merges"))), None)
    ordinary = {token: number for token, number in model["vocab"].items() if token not in apart}
    require(
        name is not None or reached(ordinary, pairs),
        "llama.cpp would not find all tokens of this tokenizer: its merges do not make them",
    )
    return {
        f"{KEY}model": "gpt2",
        f"{KEY}pre": name or names[0],
        f"{KEY}merges": [" ".join(pair) for pair in pairs] or [INERT],
    }


def cutting(settings: dict[str, Any]) -> tuple[str, ...]:
    """The regular expressions by which a byte-level tokenizer cuts text. Raises UserError where it does otherwise."""
    found = []
    for step in parts(settings.get("pre_tokenizer"), "pretokenizers"):
        isolates = (step.get("behavior"), step.get("invert")) in (("Isolated", False), ("Removed", True))
        if step["type"] == "Split" and isolates and "Regex" in step["pattern"]:
            found.append(ALIKE.get(step["pattern"]["Regex"], step["pattern"]["Regex"]))
        elif step["type"] == "Digits" and step.get("individual_digits"):
            found.append(r"\p{N}")
        elif step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
            found += [GPT2] if step.get("use_regex", True) else []
        else:
            raise UserError(f"llama.cpp does not cut text as this tokenizer does ({step['type']})")
    return tuple(found)


def reached(numbers: Mapping[str, int], pairs: list[tuple[str, str]]) -> bool:
    """Whether merging makes every token out of its own letters, so that looking it up as a whole changes nothing."""
    import tokenizers

    bpe = tokenizers.models.BPE(dict(numbers), pairs)
    return all(len(token) == 1 or len(bpe.tokenize(token)) == 1 for token in numbers)


def _scored(model: dict[str, Any], settings: dict[str, Any], tokens: list[str], types: list[int]) -> dict[str, Any]:
    """The fields of sentencepiece's BPE: each token's score, by the order in which merges make it."""
    normalizers = parts(settings.get("normalizer"), "normalizers")
    others = [step for step in normalizers if step["type"] not in ("Prepend", "Replace")]
    splits = parts(settings.get("pre_tokenizer"), "pretokenizers")
    others += [step for step in splits if step.get("pattern") != {"String": " "}]  # Gemma's: no space is left by then
    require(
        not others, f"llama.cpp does not rewrite or cut text as this tokenizer does ({others and others[0]['type']})"
    )
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    order = [token for token, _ in itertools.groupby(left + right for left, right in pairs)]
    ranks = {token: rank for rank, token in enumerate(order)}
    ordinary = (token for token in model["vocab"] if types[model["vocab"][token]] in (NORMAL, USER_DEFINED))
    every = set(merges({token: ranks.get(token, len(order)) for token in ordinary}))
    require(
        len(ranks) == len(order) and every == set(pairs),
        "llama.cpp merges by tokens, and this tokenizer's merges are not in the order of what they make",
    )
    scores = [float(-ranks.get(token, len(order))) for token in tokens]
    prefix = any(step["type"] == "Prepend" for step in normalizers)
    made = {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}
    return {f"{KEY}{key}": value for key, value in made.items()}
