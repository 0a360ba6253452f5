"""lm data list | prepare: corpora and token files."""

import dataclasses
from typing import Annotated

import tyro

from lm.arguments import parse
from lm.commands.common import Json, action, print_json
from lm.config import DataConfig


def run(arguments: list[str]) -> None:
    action("data", arguments, {"list": list_corpora, "prepare": prepare})


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
    data: DataConfig
    download: bool = False
    """Fetch a named corpus that is not on this machine."""
    json: Json = False


def prepare(arguments: list[str]) -> None:
    o = parse(PrepareOptions, arguments, "lm data prepare")
    from lm.data import tokens
    from lm.data.corpora import CORPORA, fetch
    from lm.training.display import Display

    with Display() as display:
        if o.download and o.corpus in CORPORA and not CORPORA[o.corpus].present:
            fetch(o.corpus, lambda done, total: display.stage("downloading", done, total))
        made = tokens.prepare(dataclasses.replace(o.data, corpus=o.corpus), report=display.stage)
    names = ("count", "bytes", "documents", "sha256")
    files = {"train": made.train, "validation": made.validation}
    facts = {side: {n: getattr(f, n) for n in names} | {"path": str(f.path)} for side, f in files.items()}
    if o.json:
        about = {"tokenizer": made.tokenizer.name, "n_vocab": made.tokenizer.n_vocab, "hashes": made.hashes}
        print_json(about | facts)
        return
    print(f"{o.corpus} as {made.tokenizer.name}, {made.tokenizer.n_vocab:,} tokens in the vocabulary")
    for side, f in facts.items():
        numbers = f"{f['count']:>13,} tokens, {f['bytes']:>13,} bytes ({f['bytes'] / max(f['count'], 1):.2f} a token)"
        print(f"  {side:<11} {numbers}, {f['documents']:,} documents")
