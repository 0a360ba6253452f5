"""Tokenizers as a Hugging Face folder holds them, read and written.

What is written encodes as ours does, by rules that were found by comparing: text is cut by our pattern (Split) and
spelled in GPT-2's byte letters; a piece that is a token as a whole is that token, as tiktoken has it (ignore_merges);
each pair of tokens that makes another is a merge, in the order of what it makes. AutoTokenizer takes all that as it
stands only where tokenizer_class is PreTrainedTokenizerFast: by a family's name it would put that family's pattern in.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from lm.errors import UserError, require
from lm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer, HuggingFaceTokenizer, Tokenizer
from lm.tokenizer.huggingface import BYTE_LETTERS
from lm.tokenizer.patterns import WORD

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
         "chat_template.jinja", "generation_config.json")  # fmt: skip
"""What a folder says of its tokenizer."""
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")
"""What ends a text where no file says so."""

Token = TypeVar("Token", bytes, str)


# --- in --------------------------------------------------------------------------------------------------------------
def from_texts(texts: Mapping[str, str]) -> HuggingFaceTokenizer:
    """The tokenizer of a folder.

    texts: its files by name, tokenizer.json and what stands beside it. No code of theirs is run.
    Raises UserError where tokenizer.json is missing or cannot be read, and where nothing ends a text.
    """
    require(
        "tokenizer.json" in texts,
        "no tokenizer.json: a tokenizer.model or vocab.json alone is not read; transformers writes one:"
        " AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    )
    files = {name: texts[name] for name in FILES if name in texts}
    config, map_, generation = (
        _json(files, name) for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
    )
    special = {name: text for name in NAMED if (text := _content(config.get(name)) or _content(map_.get(name)))}
    vocabulary = _vocabulary(_json(files, "tokenizer.json"))
    ends = generation.get("eos_token_id")
    ends = [end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int]
    named = [vocabulary[text] for text in (special.get("eos_token"), *ENDS) if text in vocabulary]
    end = named[:1] if special.get("eos_token") in vocabulary else ends[:1] or named[:1]
    require(bool(end), "nothing ends a text: tokenizer_config.json names no eos_token that tokenizer.json has")
    return HuggingFaceTokenizer(files, end[0], special, ends, _chat_template(files, config))


def _json(files: Mapping[str, str], name: str) -> dict[str, Any]:
    """The object that a file holds, empty where there is no such file."""
    try:
        values = json.loads(files.get(name, "{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is no JSON ({error})") from error
    require(isinstance(values, dict), f"{name}: expected a JSON object")
    return values


def _content(token: Any) -> str | None:
    """The text of a special token, which is written as such or as an object that holds it."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _vocabulary(settings: dict[str, Any]) -> dict[str, int]:
    """Each token's number."""
    model, added = settings.get("model"), settings.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    pairs = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    added = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    pairs += [(token.get("content"), token.get("id")) for token in added]
    return {text: number for text, number in pairs if isinstance(text, str) and type(number) is int}


def _chat_template(files: Mapping[str, str], config: dict[str, Any]) -> str | None:
    """The template of a chat: a file of its own, or a setting, of which there may be several by name."""
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"]
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}.get("default")
    return found if isinstance(found, str) else None


# --- out -------------------------------------------------------------------------------------------------------------
def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """bos_token_id and eos_token_id, as config.json and generation_config.json have them; nothing pads.

    The end of a text is a number, or a list where several end one; ours begins one too.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return {"bos_token_id": tokenizer.eot_token, "eos_token_id": tokenizer.eot_token, "pad_token_id": None}
    ends = list(tokenizer.ends)
    eos = ends if len(ends) > 1 else ends[0]
    return {"bos_token_id": tokenizer.bos_token, "eos_token_id": eos, "pad_token_id": None}


def to_texts(tokenizer: Tokenizer, context: int) -> dict[str, str]:
    """The files of a folder that say how text becomes tokens, by name; what came from elsewhere goes as it came.

    context: tokens that the model reads at most.
    Raises UserError for a pattern that `tokenizers` cannot read.
    """
    ends = {key: ids for key, ids in token_ids(tokenizer).items() if ids is not None}
    files = {"generation_config.json": _written(ends)}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        named = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special, "model_max_length": context}
        return files | {"tokenizer_config.json": _written(named)} | tokenizer.files
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "split_special_tokens": True,  # text that spells the end of a text is text, as here
    }
    return files | {
        "tokenizer.json": json.dumps(tokenizer_json(tokenizer), ensure_ascii=False),
        "tokenizer_config.json": _written(config),
    }


def _written(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tokenizer.json says of one of our tokenizers, or of tiktoken's."""
    special, pieces, decoder = {END_OF_TEXT: tokenizer.eot_token}, None, {"type": "ByteLevel"}
    if isinstance(tokenizer, ByteTokenizer):
        model = _bpe({bytes((byte,)): byte for byte in range(256)})
    elif isinstance(tokenizer, CharTokenizer):
        # A character outside the alphabet is refused, as here: what would stand for it is no token.
        model = {"type": "WordLevel", "vocab": {c: i for i, c in enumerate(tokenizer.alphabet)}, "unk_token": "<none>"}
        pieces, decoder = r"(?m:.)", {"type": "Fuse"}
    else:
        special = dict(tokenizer._special_tokens)
        model, pieces = _bpe(tokenizer._mergeable_ranks), for_oniguruma(tokenizer._pat_str)
        if max(special.values()) >= len(model["vocab"]) + len(special):
            model["vocab"] |= special  # numbers would be left out before them
    split = {"type": "Split", "pattern": {"Regex": pieces}, "behavior": "Isolated", "invert": False}
    steps = [split] if pieces else []
    if decoder["type"] == "ByteLevel":
        decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        steps.append(decoder)
    marks = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": text, **marks} for text, number in sorted(special.items(), key=lambda one: one[1])
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _bpe(ranks: Mapping[bytes, int]) -> dict[str, Any]:
    """A byte-pair model of `tokenizers` from tiktoken's ranks: tokens in GPT-2's letters, and every merge."""
    spelled = {token: "".join(BYTE_LETTERS[byte] for byte in token) for token in ranks}
    in_order = sorted(ranks, key=ranks.get)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": len(ranks) > 256,  # without merges no piece is a token as a whole
        "vocab": {spelled[token]: ranks[token] for token in in_order},
        "merges": [[spelled[left], spelled[right]] for left, right in merges(ranks)],
    }


def merges(ranks: Mapping[Token, int]) -> Iterator[tuple[Token, Token]]:
    """Each pair of tokens that makes another, by the ranks of what it makes, then of its parts.

    tiktoken merges any two that make a token, not only the two that training merged.
    """
    for token in sorted(ranks, key=ranks.get):
        pairs = ((token[:at], token[at:]) for at in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        yield from sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def for_oniguruma(pattern: str) -> str:
    r"""A pattern of Rust's for the regular expressions of `tokenizers`, to which \w means 8 characters more or less.

    Only those written here: \w stands alone in them or within brackets.
    """
    outside = pattern.replace("[^\\w", f"[^{WORD}")
    return outside.replace("\\w", f"[{WORD}]")


def differing(tokenizer: Tokenizer, texts: Mapping[str, str], samples: Iterable[str]) -> list[str]:
    """The samples that the written files encode otherwise than the tokenizer does: none, it is to be hoped."""
    written = from_texts(texts)
    return [text for text in samples if written.encode_ordinary(text) != tokenizer.encode_ordinary(text)]
