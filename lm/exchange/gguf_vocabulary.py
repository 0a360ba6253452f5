"""The vocabulary of a GGUF file, from tokenizer.json: byte-level BPE of a pattern that llama.cpp knows by name."""

import json
from typing import Any

from lm.errors import require
from lm.exchange.published import Published
from lm.tokenizer import BPE_PATTERN

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""llama.cpp's types of tokens."""

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TIKTOKEN_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

PATTERNS = {
    (BPE_PATTERN, "bytes"): "llama-bpe",
    (LLAMA3, "bytes"): "llama-bpe",
    (QWEN2, "bytes"): "qwen2",
    (GPT2, "bytes"): "gpt-2",
    (TIKTOKEN_GPT2, "bytes"): "gpt-2",
    ("gpt-2 and bytes",): "gpt-2",
    ("digits", "gpt-2 and bytes"): "smollm",
}
"""How texts are cut into pieces, and llama.cpp's name of it."""


def vocabulary(published: Published, rows: int) -> dict[str, Any]:
    """The `tokenizer` keys of a file whose embedding has so many rows; without tokenizer.json only that there is none.

    Raises UserError for an encoding that llama.cpp does not compute: words, characters, sentencepiece, other patterns.
    """
    if "tokenizer.json" not in published.texts:
        return {"tokenizer.ggml.model": "none"}
    saved = json.loads(published.texts["tokenizer.json"])
    model, pre = saved["model"], _pre_tokenizer(saved.get("pre_tokenizer"))
    kind = model.get("type", "BPE")
    require(kind == "BPE" and saved.get("normalizer") is None, f"a tokenizer of {kind}: llama.cpp does not know it")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    require(
        pre in PATTERNS or (not merges and pre[-1:] == ("bytes",)),
        f"a tokenizer that cuts by {pre}: llama.cpp does not know it",
    )
    name = PATTERNS.get(pre, "gpt-2")  # without merges nothing depends on where a text is cut
    require(
        name == "llama-bpe" or not model.get("ignore_merges") or not merges or _merges_suffice(saved),
        "a tokenizer that takes pieces whole before it merges: llama.cpp merges first, and some tokens have no merges",
    )
    tokens, types = _tokens(saved, rows)
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": False,
    }
    return fields | _special(published)


def _pre_tokenizer(step: dict[str, Any] | None) -> tuple[str, ...]:
    """How a text is cut, in words that PATTERNS has."""
    if step is None:
        return ()
    if step["type"] == "Sequence":
        return sum((_pre_tokenizer(inner) for inner in step["pretokenizers"]), ())
    if step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
        return ("gpt-2 and bytes",) if step.get("use_regex", True) else ("bytes",)
    if step["type"] == "Digits" and step.get("individual_digits"):
        return ("digits",)
    if step["type"] == "Split" and not step.get("invert"):
        return (next(iter(step["pattern"].values())),)
    return (step["type"],)


def _merges_suffice(saved: dict[str, Any]) -> bool:
    """Whether merging gives every token from its letters: then it does not matter what is looked up first."""
    import tokenizers

    merging = tokenizers.Tokenizer.from_str(json.dumps(saved | {"model": saved["model"] | {"ignore_merges": False}}))
    added = {token["id"] for token in saved.get("added_tokens", ())}
    return all(
        len(merging.model.tokenize(token)) == 1
        for token, number in saved["model"]["vocab"].items()
        if number not in added
    )


def _tokens(saved: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """A token and its type for each row of the embedding."""
    tokens, types = [f"[PAD{row}]" for row in range(rows)], [UNUSED] * rows
    numbered = list(saved["model"]["vocab"].items())
    added = [(entry["content"], entry["id"]) for entry in saved.get("added_tokens", ())]
    most = max(number for _, number in [*numbered, *added])
    require(most < rows, f"tokenizer.json has token {most}, the embedding {rows} rows")
    for token, number in numbered:
        tokens[number], types[number] = token, NORMAL
    for entry in saved.get("added_tokens", ()):
        tokens[entry["id"]], types[entry["id"]] = entry["content"], CONTROL if entry["special"] else USER_DEFINED
    return tokens, types


def _special(published: Published) -> dict[str, Any]:
    """Tokens with a part to play, and the template of chats."""
    fields = {}
    for name, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        number = published.config.get(f"{name}_token_id")
        number = number[0] if isinstance(number, list) else number
        if number is not None:
            fields[f"tokenizer.ggml.{theirs}_token_id"] = number
    template = published.texts.get("chat_template.jinja")
    template = template or json.loads(published.texts.get("tokenizer_config.json", "{}")).get("chat_template")
    return fields | ({"tokenizer.chat_template": template} if isinstance(template, str) else {})
