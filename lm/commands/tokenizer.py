"""lm tokenizer train | show: encodings."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lm.arguments import parse
from lm.commands.common import Json, action, print_json
from lm.config import DataConfig
from lm.errors import UserError, require


def run(arguments: list[str]) -> None:
    action("tokenizer", arguments, {"train": train, "show": show})


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Build an encoding from a corpus's training split, to use as `--data.tokenizer FILE`."""

    corpus: Annotated[str, tyro.conf.Positional]
    """A named corpus, or a file, folder or glob."""
    kind: Literal["bpe", "words", "chars"] = "bpe"
    """Byte pairs, words with a fall-back to bytes, or characters."""
    vocab: int = DataConfig.vocab
    """Vocabulary entries for words and bpe, the end-of-text token included."""
    text_field: Annotated[str, tyro.conf.arg(name="data.text-field")] = DataConfig.text_field
    """Field of a .jsonl or .parquet record that holds the text; meta.text is text within meta."""
    separator: Annotated[str, tyro.conf.arg(name="data.separator")] = DataConfig.separator
    """What stands between the documents of plain text."""
    out: Path = Path("tokenizer.json")
    """File to write."""
    json: Json = False


def train(arguments: list[str]) -> None:
    o = parse(TrainOptions, arguments, "lm tokenizer train")
    from lm import tokenizer as tokenizers
    from lm.data.supply import prepare
    from lm.training.display import Display

    with Display() as display:
        settings = DataConfig(
            corpus=o.corpus, text_field=o.text_field, separator=o.separator, tokenizer=o.kind, vocab=o.vocab
        )
        made = prepare(settings, report=display.stage)
    try:
        tokenizers.save(made.tokenizer, o.out)
    except OSError as error:
        raise UserError(f"cannot write {o.out}: {error.strerror}") from error
    ratio = made.train.bytes / made.train.count
    if o.json:
        print_json({"file": str(o.out), "n_vocab": made.tokenizer.n_vocab, "bytes_per_token": ratio})
    else:
        print(f"{o.out}: {made.tokenizer.n_vocab:,} tokens, {ratio:.2f} bytes of the training text a token")


@dataclasses.dataclass(frozen=True)
class ShowOptions:
    """How an encoding cuts a text."""

    encoding: Annotated[str, tyro.conf.Positional]
    """A run, a saved tokenizer.json, bytes, or a tiktoken name such as gpt2."""
    text: str = "The quick brown fox."
    """Text to cut; - is standard input."""
    json: Json = False


def show(arguments: list[str]) -> None:
    o = parse(ShowOptions, arguments, "lm tokenizer show")
    from lm import tokenizer as tokenizers
    from lm.data.readers import read_text
    from lm.run import Run, exists

    require(bool(o.encoding), "which encoding? A run, a saved tokenizer.json, bytes, or a tiktoken name such as gpt2")
    is_run = exists(o.encoding)
    made = Run(o.encoding).tokenizer if is_run else tokenizers.build(DataConfig(tokenizer=o.encoding), [])
    tokens = tokenizers.encode(made, read_text("-") if o.text == "-" else o.text).tolist()
    pieces = tokenizers.spell(made, tokens)
    if o.json:
        about = {"name": made.name, "n_vocab": made.n_vocab, "eot_token": made.eot_token}
        print_json(about | {"tokens": tokens, "pieces": pieces})
        return
    print(f"{made.name}: {made.n_vocab:,} tokens, end of text is {made.eot_token}; {len(tokens)} tokens here:")
    print(" ".join(f"{piece!r}={token}" for piece, token in zip(pieces, tokens, strict=True)))
