"""Kingdom: generated English of which every relation, every fact and the entropy are known.

Documents are short stories (stories.py) and notes on people and countries (notes.py) over the words of lexicon.py,
written by a grammar (grammar.py). Document i is a pure function of the seed and i, so a longer corpus begins with the
shorter one. What is known is exported beside the text: analogies, facts, entropy. questions.py asks about its world.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

from lm.data.kingdom import lexicon, notes, questions, stories
from lm.data.kingdom.grammar import Node, choice, sequence, ways
from lm.data.kingdom.notes import facts
from lm.errors import require
from lm.files import whole

__all__ = [
    "DOCUMENTS", "analogies", "documents", "entropy", "export", "facts", "nats", "questions", "tree", "version",
    "write",
]  # fmt: skip

DOCUMENTS = 40_000
"""Documents of the named corpora, about 11 MB."""
SEPARATOR = "<|endoftext|>"


@functools.cache
def tree(shuffled: bool = False) -> Node:
    """The distribution of documents: 7 stories to 2 notes on a person and 1 on a country, each ending its line."""
    people, countries = notes.trees()
    return sequence(choice(stories.tree(shuffled), people, countries, weights=(0.7, 0.2, 0.1)), "\n")


def documents(count: int, seed: int = 0, shuffled: bool = False) -> Iterator[str]:
    """The first `count` documents of a seed, each one line."""
    require(count >= 1, f"documents {count}: at least 1")
    grammar = tree(shuffled)
    return (grammar.sample(random.Random(f"{seed}/{i}")) for i in range(count))


# --- the floor -------------------------------------------------------------------------------------------------------
def entropy(shuffled: bool = False) -> dict[str, float]:
    """What no model can beat on average: the text's entropy given the grammar, by document, character and UTF-8 byte.

    A document's end is known from its text, so end-of-text tokens cost nothing, and nats per token are
    nats_per_document / tokens per document, end of text included. A model starts without the grammar, lexicon and
    facts: it approaches this from above as it learns them. (Rates are expectation over expectation.)
    """
    grammar = tree(shuffled)
    return {
        "nats_per_document": grammar.entropy,
        "nats_per_character": grammar.entropy / grammar.characters,
        "nats_per_byte": grammar.entropy / grammar.bytes,
        "bits_per_byte": grammar.entropy / grammar.bytes / math.log(2),
    }


def nats(document: str, shuffled: bool = False) -> float:
    """-ln p(document): what a model that knows the grammar pays for this very text. UserError for any other text."""
    count, probability = ways(tree(shuffled), document)
    require(count > 0, f"not a document of this corpus: {document[:60]!r}")
    return -math.log(probability)


# --- what is known ---------------------------------------------------------------------------------------------------
def analogies() -> dict[str, list[tuple[str, str, str, str]]]:
    """section -> questions (a, b, c, d): a is to b as c is to d.

    gender, age: c and d are of a domain whose words never share a document, a and b of any other domain; the same
    questions about lexicon.SHOWN domains, whose words do, are gender-shown and age-shown. Both directions.
    """
    words = {(noun.domain, noun.gender, noun.age): noun.word for noun in lexicon.NOUNS}
    other = {"m": "f", "f": "m", "old": "young", "young": "old"}
    people = list(itertools.product("mf", ("old", "young")))
    sections: dict[str, list[tuple[str, str, str, str]]] = {}
    for section in ("gender", "age"):
        to = [(other[gender], age) if section == "gender" else (gender, other[age]) for gender, age in people]
        for c in (domain.name for domain in lexicon.DOMAINS):
            sections.setdefault(f"{section}-shown" if c in lexicon.SHOWN else section, []).extend(
                (words[a, *one], words[a, *two], words[c, *one], words[c, *two])
                for a in (domain.name for domain in lexicon.DOMAINS if domain.name != c)
                for one, two in zip(people, to, strict=True)
            )
    countries, adjectives = lexicon.COUNTRIES, lexicon.ADJECTIVES.values()
    verbs = [verb for of_age in lexicon.VERBS.values() for verb in of_age]
    things = [thing for domain in lexicon.DOMAINS for thing, _ in domain.objects]
    for section, pairs in {
        "number": [(thing, thing + "s") for thing in things],
        "capital": [(country, capital) for country, capital, _ in countries],
        "currency": [(country, currency) for country, _, currency in countries],
        "comparative": [(forms[0], forms[1]) for forms in adjectives],
        "superlative": [(forms[0], forms[2]) for forms in adjectives],
        "past": [(verb[0], verb[1]) for verb in verbs],
        "participle": [(verb[0], verb[2]) for verb in verbs],
    }.items():
        sections[section] = [first + second for first, second in itertools.permutations(pairs, 2)]
    return sections


# --- files -----------------------------------------------------------------------------------------------------------
def write(path: Path, texts: Iterator[str]) -> None:
    """Documents as a text file with a separator line between them: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write(next(texts))
        file.writelines(f"{SEPARATOR}\n{text}" for text in texts)


def export(folder: Path, count: int = DOCUMENTS, seed: int = 0, shuffled: bool = False) -> list[Path]:
    """Write the text and what is known of it, and return the files.

    kingdom.txt: the documents; analogies.txt: questions in word2vec's format (": section", then "a b c d"), the same
    for the shuffled control, of which they do not hold; facts.jsonl: every fact in every phrasing, `seen` telling
    whether that sentence stands in this very text; entropy.json: entropy() of the grammar, and the text's size.
    Raises UserError for no documents and for a folder that cannot be one.
    """
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file; give a folder for the corpus and its facts")
    sentences = {f"{fact.prompt} {fact.answer}": fact for fact in facts()}
    written: set[str] = set()
    size = {"documents": count, "characters": 0, "bytes": 0}

    def noted(texts: Iterator[str]) -> Iterator[str]:
        for text in texts:
            written.update(sentences.keys() & text.removesuffix(".\n").split(". "))
            size["characters"] += len(text)
            size["bytes"] += len(text.encode())
            yield text

    files = [folder / name for name in ("kingdom.txt", "analogies.txt", "facts.jsonl", "entropy.json")]
    write(files[0], noted(documents(count, seed, shuffled)))
    with whole(files[1]) as file:
        for section, questions in analogies().items():
            file.writelines([f": {section}\n", *(" ".join(question) + "\n" for question in questions)])
    with whole(files[2]) as file:
        for sentence, fact in sentences.items():
            file.write(json.dumps(dataclasses.asdict(fact) | {"seen": sentence in written}) + "\n")
    about = {"seed": seed, "shuffled": shuffled}
    with whole(files[3]) as file:
        file.write(json.dumps(entropy(shuffled) | size | about, indent=1) + "\n")
    return files


def version() -> str:
    """A digest of this package's own text, as far as it decides documents."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.name != "questions.py":  # which asks about them
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
