"""lm data list | prepare | kingdom: corpora and token files."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Annotated

import tyro

from lm.arguments import parse
from lm.commands.common import Json, action, print_json
from lm.config import DataConfig
from lm.typed import Range


def run(arguments: list[str]) -> None:
    action("data", arguments, {
        "list": list_corpora, "prepare": prepare, "kingdom": write_kingdom, "questions": write_questions,
    })  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """The named corpora, and which are on this machine."""

    json: Json = False


def list_corpora(arguments: list[str]) -> None:
    o = parse(ListOptions, arguments, "lm data list")
    from lm.data.corpora import CORPORA

    names = ("name", "what", "size", "origin", "licence", "present")
    rows = [{name: getattr(source, name) for name in names} for source in CORPORA.values()]
    if o.json:
        print_json({"corpora": rows})
        return
    for r in rows:
        here = "here" if r["present"] else f"fetch with: lm data prepare {r['name']} --download"
        print(f"{r['name']:<12} {r['what']}\n{'':<12} {r['size']}, {r['licence']}, {r['origin']}; {here}")
    print("or any file, folder or glob of .txt .md .py .rst .jsonl .parquet (.gz .xz .zst): --data.corpus PATH")


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Tokenize a corpus ahead of training, which otherwise does it by itself."""

    corpus: Annotated[str, tyro.conf.Positional]
    """A named corpus, or a file, folder or glob."""
    data: Annotated[DataConfig, tyro.conf.arg(name="")]
    download: bool = False
    """Fetch a named corpus that is not on this machine."""
    workers: Annotated[int | None, Range(least=1, most=1024)] = None
    """Processes that encode a corpus of more than 64 MB; by default as many as there are cores."""
    json: Json = False


def prepare(arguments: list[str]) -> None:
    # Settings may be written as everywhere else, with the part they belong to: --data.text-field.
    o = parse(PrepareOptions, [re.sub(r"^--data\.", "--", word) for word in arguments], "lm data prepare")
    from lm.data import tokens
    from lm.data.corpora import CORPORA, fetch
    from lm.training.display import Display

    with Display() as display:
        if o.download and o.corpus in CORPORA and not CORPORA[o.corpus].present:
            fetch(o.corpus, functools.partial(display.stage, "downloading"))
        data = dataclasses.replace(o.data, corpus=o.corpus)
        made = tokens.prepare_corpus(data, report=display.stage, workers=o.workers)
    names = ("count", "bytes", "documents", "sha256")
    files = {"train": made.train, "validation": made.validation}
    facts = {
        side: {name: getattr(file, name) for name in names} | {"path": str(file.path), "files": len(file.paths)}
        for side, file in files.items()
    }
    if o.json:
        about = {"tokenizer": made.tokenizer.name, "n_vocab": made.tokenizer.n_vocab, "hashes": made.hashes}
        print_json(about | facts)
        return
    print(f"{o.corpus} as {made.tokenizer.name}, {made.tokenizer.n_vocab:,} tokens in the vocabulary")
    for side, f in facts.items():
        numbers = f"{f['count']:>13,} tokens, {f['bytes']:>13,} bytes ({f['bytes'] / max(f['count'], 1):.2f} a token)"
        print(f"  {side:<11} {numbers}, {f['documents']:,} documents")


@dataclasses.dataclass(frozen=True)
class KingdomOptions:
    """Write a generated corpus of any size, with its analogies, facts and entropy. Train on it with --data.corpus."""

    out: Path
    """Folder for kingdom.txt, analogies.txt, facts.jsonl and entropy.json."""
    documents: int = 40_000
    """Stories and notes, about 270 bytes each; a longer corpus begins with the shorter one."""
    seed: int = 0
    """0 is the named corpora's."""
    shuffled: bool = False
    """The control: gender and age are drawn anew in each story, whatever its noun."""
    json: Json = False


def write_kingdom(arguments: list[str]) -> None:
    o = parse(KingdomOptions, arguments, "lm data kingdom")
    from lm.data import kingdom

    files = kingdom.export(o.out, o.documents, o.seed, o.shuffled)
    floor = kingdom.entropy(o.shuffled)
    if o.json:
        print_json({"files": [str(file) for file in files]} | floor)
        return
    print(f"{o.documents:,} documents in {files[0]}, {files[0].stat().st_size:,} bytes")
    print(f"the floor: {floor['nats_per_document']:.2f} nats a document, {floor['bits_per_byte']:.4f} bits per byte")
    print(f"beside it: {', '.join(file.name for file in files[1:])}")


@dataclasses.dataclass(frozen=True)
class QuestionOptions:
    """Write questions about kingdom's world with their answers, as chats to fine-tune on, and pairs of answers."""

    out: Path
    """Folder for train.jsonl, held_out.jsonl (facts that train does not ask for), rephrased.jsonl (the same in words
    that train does not have) and preferences.jsonl."""
    seed: int = 0
    """What is asked of several people, and what is held out, is a function of it."""
    json: Json = False


def write_questions(arguments: list[str]) -> None:
    o = parse(QuestionOptions, arguments, "lm data questions")
    from lm.data.kingdom.questions import export

    files = export(o.out, o.seed)
    if o.json:
        print_json({"files": [str(file) for file in files]})
        return
    for file in files:
        print(f"{sum(1 for _ in file.open()):>6,} examples in {file}")
    print(f"lm train kingdom && lm train CONFIG --train.start kingdom --data.examples {files[0]}")
