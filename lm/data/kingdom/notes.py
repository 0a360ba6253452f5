"""Facts: notes on one person or country, each fact in one of several phrasings.

Each relation's first phrasing is the probe. For a part of the subjects (WITHHELD) it is never written, by name or by
pronoun, though it is for all the others: to complete it for them, a model must have the fact and not the sentence.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from lm.data.kingdom import lexicon
from lm.data.kingdom.grammar import Choice, Node, choice, fill, maybe, sequence
from lm.data.kingdom.lexicon import COUNTRIES, PEOPLE


@dataclass(frozen=True)
class Fact:
    """A fact in one phrasing: prompt + " " + answer + "." is the sentence."""

    relation: str
    subject: str
    prompt: str
    answer: str
    seen: bool
    """Whether the grammar ever writes this sentence."""


PHRASINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "sport": (
        ("{X} plays", "{He} plays"),
        ("{X} is very good at", "{He} is very good at"),
        ("The favourite game of {X} is", "{His} favourite game is"),
        ("Every weekend {X} trains for", "Every weekend {he} trains for"),
        ("{X} won a prize in", "{He} won a prize in"),
    ),
    "profession": (
        ("{X} works as a", "{He} works as a"),
        ("The profession of {X} is that of a", "{His} profession is that of a"),
        ("{X} earns a living as a", "{He} earns a living as a"),
        ("At school {X} trained to be a", "At school {he} trained to be a"),
    ),
    "city": (
        ("{X} lives in", "{He} lives in"),
        ("The home of {X} is in", "{His} home is in"),
        ("{X} rents a flat in", "{He} rents a flat in"),
        ("Letters to {X} are sent to", "Letters to {him} are sent to"),
    ),
    "capital": (
        ("The capital of {X} is", "Its capital is"),
        ("The parliament of {X} sits in", "Its parliament sits in"),
        ("{X} is governed from", "It is governed from"),
        ("Flights to {X} land in", "Flights there land in"),
    ),
    "currency": (
        ("The currency of {X} is the", "Its currency is the"),
        ("People in {X} pay with the", "People there pay with the"),
        ("Banks in {X} lend the", "Banks there lend the"),
        ("Prices in {X} are given in the", "Prices there are given in the"),
    ),
}
"""relation -> phrasings, each with the subject's name and with a pronoun; the answer follows."""


def withheld(relation: str) -> frozenset[str]:
    """Subjects whose probe is never written: one of the four people with each answer, every fourth country."""
    if relation in ("capital", "currency"):
        return frozenset(country for country, _, _ in COUNTRIES[3::4])
    last = {getattr(person, relation): person.name for person in PEOPLE}
    return frozenset(last.values())


WITHHELD = {relation: withheld(relation) for relation in PHRASINGS}


def subjects() -> Iterator[tuple[str, dict[str, str], str | None]]:
    """(name, answers by relation, gender)."""
    for person in PEOPLE:
        yield person.name, {name: getattr(person, name) for name in ("sport", "profession", "city")}, person.gender
    for country, capital, currency in COUNTRIES:
        yield country, {"capital": capital, "currency": currency}, None


def facts() -> list[Fact]:
    """Every fact in every phrasing by name."""
    return [
        Fact(relation, name, named.format(X=name), answer, number > 0 or name not in WITHHELD[relation])
        for name, answers, _ in subjects()
        for relation, answer in answers.items()
        for number, (named, _) in enumerate(PHRASINGS[relation])
    ]


def trees() -> tuple[Choice, Choice]:
    """The distributions of notes on people and of notes on countries, subjects alike."""
    people, countries = [], []
    for name, answers, gender in subjects():
        (countries if gender is None else people).append(_note(name, answers, gender))
    return choice(*people), choice(*countries)


def _note(name: str, answers: dict[str, str], gender: str | None) -> Node:
    """All relations of a subject in any order, the first by name, the others by name or pronoun."""
    pronouns = lexicon.PRONOUNS[gender] if gender else {}
    slots = pronouns | {key.capitalize(): word.capitalize() for key, word in pronouns.items()} | {"X": name}
    first = {relation: _sentence(relation, answer, slots, True) for relation, answer in answers.items()}
    later = {relation: sequence(" ", _sentence(relation, answer, slots, False)) for relation, answer in answers.items()}
    orders = itertools.permutations(answers)
    return choice(*(sequence(first[one], *(later[other] for other in others)) for one, *others in orders))


def _sentence(relation: str, answer: str, slots: dict[str, str], named: bool) -> Node:
    pairs = PHRASINGS[relation][slots["X"] in WITHHELD[relation] :]  # all but the probe where it is withheld
    options = [fill(pair[0], slots) if named else choice(*(fill(words, slots) for words in pair)) for pair in pairs]
    return sequence(choice(*options), f" {answer}.", _ASIDE)


_ASIDE = maybe(
    0.25,
    choice(
        fill(" There is {rain} on the {hill}.", {"rain": choice(*lexicon.WEATHER), "hill": choice(*lexicon.WHERE)}),
        fill(" The {trade} knows the {dog} well.", {"trade": choice(*lexicon.TRADES), "dog": choice(*lexicon.ANIMALS)}),
    ),
)
