"""Tokenizers as a Hugging Face folder holds them, read and written.

What is written encodes as ours does, by rules that were found by comparing: text is cut by our pattern (Split) and
spelled in GPT-2's byte letters; a piece that is a token as a whole is that token, as tiktoken has it (ignore_merges);
each pair of tokens that makes another is a merge, in the order of what it makes. AutoTokenizer takes all that as it
stands only where tokenizer_class is PreTrainedTokenizerFast: by a family's name it would put that family's pattern in.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lm.errors import UserError, require
from lm.exchange.tokenizer_json import GPT2, added, bpe, byte_level, document, merges, opens_with, split
from lm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer, HuggingFaceTokenizer, Tokenizer
from lm.tokenizer.huggingface import BYTE_LETTERS
from lm.tokenizer.patterns import WORD

KEPT = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
FILES = (*KEPT, "vocab.json", "merges.txt")
"""What a folder says of its tokenizer; tokenizer.json says what the older two do."""
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")
"""What ends a text where no file says so."""


# --- in --------------------------------------------------------------------------------------------------------------
def from_texts(texts: Mapping[str, str], config: Mapping[str, Any] | None = None) -> HuggingFaceTokenizer:
    """The tokenizer of a folder.

    texts: its files by name, tokenizer.json and what stands beside it. No code of theirs is run. config: the object of
    config.json, which is asked what ends a text where generation_config.json does not say.
    Raises UserError where tokenizer.json is missing or cannot be read, and where nothing ends a text.
    """
    files = {name: texts[name] for name in KEPT if name in texts}
    settings, named, generation = (
        _json(files, name) for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
    )
    special = {name: text for name in NAMED if (text := _content(settings.get(name)) or _content(named.get(name)))}
    if "tokenizer.json" not in texts:
        files["tokenizer.json"] = _from_two_files(texts, special, begins=settings.get("add_bos_token") is True)
    vocabulary = _vocabulary(_json(files, "tokenizer.json"))
    ends = generation.get("eos_token_id", (config or {}).get("eos_token_id"))
    ends = [end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int]
    usual = [vocabulary[text] for text in ENDS if text in vocabulary]
    first = [vocabulary[text] for text in (special.get("eos_token"),) if text in vocabulary] or ends or usual
    require(bool(first), "nothing ends a text: tokenizer_config.json names no eos_token that tokenizer.json has")
    return HuggingFaceTokenizer(files, first[0], special, ends, _chat_template(files, settings))


def _from_two_files(texts: Mapping[str, str], special: Mapping[str, str], begins: bool) -> str:
    """The tokenizer.json that GPT-2's older form, of vocab.json and merges.txt, stands for; OPT has no other."""
    require(
        "vocab.json" in texts and "merges.txt" in texts,
        "no tokenizer.json, nor vocab.json with merges.txt: a tokenizer.model alone is not read; transformers makes a"
        " tokenizer.json of it: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    )
    numbers = _json(texts, "vocab.json")
    lines = [line.split(" ") for line in texts["merges.txt"].splitlines() if line and not line.startswith("#version")]
    require(all(len(line) == 2 for line in lines), "merges.txt: expected two tokens a line")
    marked = dict.fromkeys(text for text in special.values() if text in numbers)
    opened = {}
    if begins and special.get("bos_token") in numbers:
        opened["post_processor"] = opens_with(special["bos_token"], numbers[special["bos_token"]])
    tokens = [added(text, numbers[text]) for text in marked]
    return json.dumps(document(bpe(numbers, lines), tokens, **byte_level([GPT2]), **opened), ensure_ascii=False)


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
    if isinstance(tokenizer, CharTokenizer):
        vocabulary = {character: token for token, character in enumerate(tokenizer.alphabet)}
        # A character outside the alphabet is refused, as here: what would stand for it is no token.
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<none>"}
        steps = {"pre_tokenizer": split(r"(?m:.)"), "decoder": {"type": "Fuse"}}
        return document(model, [added(END_OF_TEXT, tokenizer.eot_token)], **steps)
    if isinstance(tokenizer, ByteTokenizer):
        model = bpe({BYTE_LETTERS[byte]: byte for byte in range(256)}, [])
        return document(model, [added(END_OF_TEXT, tokenizer.eot_token)], **byte_level([]))
    ranks, special = tokenizer._mergeable_ranks, sorted(tokenizer._special_tokens.items(), key=lambda item: item[1])
    spelled = {token: "".join(BYTE_LETTERS[byte] for byte in token) for token in ranks}
    vocabulary = {spelled[token]: ranks[token] for token in sorted(ranks, key=ranks.get)}
    if [number for _, number in special] != list(range(len(ranks), len(ranks) + len(special))):
        vocabulary |= dict(special)  # what is not of the vocabulary is numbered on from its end
    pairs = ((spelled[left], spelled[right]) for left, right in merges(ranks))
    model = bpe(vocabulary, pairs, ignore_merges=True)
    return document(model, [added(*one) for one in special], **byte_level([for_oniguruma(tokenizer._pat_str)]))


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
