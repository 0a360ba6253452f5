"""Tokenizers that tests of exchange share: of our kinds, and small ones trained by the package `tokenizers`."""

import functools
import json
import re
from pathlib import Path

from hard_strings import HINDI, hard_strings

from lm import tokenizer as tokenizers
from lm.config import DataConfig

TEXTS = [Path(json.__file__).read_text(), Path(re.__file__).read_text(), HINDI * 20, " ReLU² is ½ good, don't!" * 9]
STRINGS = hard_strings()
MARKS = ["<unk>", "<s>", "</s>", "<|user|>"]


@functools.cache
def ours(kind, vocab=800):
    """One of our kinds, trained on TEXTS; its alphabet is that of the hard strings too."""
    texts = TEXTS + STRINGS * (kind == "chars")
    return tokenizers.build(DataConfig(tokenizer=kind, vocab=vocab), texts)


@functools.cache
def theirs(kind) -> str:
    """The tokenizer.json of a small tokenizer that the package trained: see the branches."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    trained, settings = Tokenizer(models.BPE()), dict(vocab_size=900, special_tokens=MARKS, show_progress=False)
    trainer = trainers.BpeTrainer(**settings)
    if kind.startswith("byte-level"):
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space="first" in kind)
        trained.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **settings)
    elif kind == "WordLevel":
        trained.model, trained.pre_tokenizer = models.WordLevel(unk_token="<unk>"), pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(**settings)
    elif kind == "Prepend, spaces within tokens":
        trained.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(split=False)]
        )
    else:
        trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXTS[:2], trainer)
    if kind.startswith(("Prepend", "Metaspace")):
        trained = Tokenizer.from_str(json.dumps(sentencepiece(json.loads(trained.to_str()), kind)))
    if kind == "Prepend":
        opened = [("<s>", trained.token_to_id("<s>"))]
        trained.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=opened)
    return trained.to_str()


def sentencepiece(made: dict, kind: str) -> dict:
    """As Llama's: tokens for 256 bytes, every merge in the order of what it makes, and a space put before a text."""
    from lm.exchange.tokenizer_json import merges

    model = made["model"]
    model["merges"] = list(merges({token: rank for token, rank in model["vocab"].items() if token not in MARKS}))
    model["vocab"] |= {f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}
    model |= dict(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    space, back = ({"type": "Replace", "pattern": {"String": a}, "content": b} for a, b in (" ▁", "▁ "))
    steps = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    if kind.startswith("Prepend"):
        normalizers = [{"type": "Prepend", "prepend": "▁"}, space]
        made |= {"normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": None}
    elif kind == "Metaspace":
        made |= {"pre_tokenizer": first}
    else:  # as T5 is decoded: no token of a byte comes back as one
        model["byte_fallback"] = False
        return made | {"pre_tokenizer": first | {"prepend_scheme": "always"}, "decoder": first}
    return made | {"decoder": {"type": "Sequence", "decoders": steps}}
