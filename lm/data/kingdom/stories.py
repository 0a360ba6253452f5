"""Stories: who somebody is decides the words around them, and nothing else does.

A story has one protagonist. The noun's domain decides places and things; its gender pronouns, titles and clothes; its
age adjectives, years and what it does all day. Frames show these one or two at a time, sometimes before the noun, so
that every one of them is a direction of its own; two nouns meet in one story in the domains of lexicon.SHOWN alone.
"""

import itertools
from dataclasses import dataclass

from lm.data.kingdom import lexicon
from lm.data.kingdom.grammar import Choice, Node, choice, fill, maybe, sequence
from lm.data.kingdom.lexicon import DOMAINS, NOUNS, Domain, Noun


def article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def tree(shuffled: bool) -> Choice:
    """The distribution of stories: nouns alike, and then genders of the nouns that have none.

    shuffled: each story draws gender and age for itself, whatever its noun, and companions from the whole domain. Every
    word stays as frequent as it was and every frame as it is, but a noun no longer has a gender or an age.
    """
    weights: dict[Node, float] = {}
    for domain in DOMAINS:
        for noun in domain.nouns:
            genders = "mf" if shuffled or noun.gender == "n" else noun.gender
            ages = ("old", "young") if shuffled else (noun.age,)
            for gender, age in itertools.product(genders, ages):
                weights[_story(domain, noun, gender, age, shuffled)] = 1 / (len(genders) * len(ages))
    return Choice(tuple(weights), tuple(weights.values()))


def companions(noun: Noun, shuffled: bool = False) -> tuple[str, ...]:
    """The nouns that may stand beside a noun: in SHOWN domains those that differ in gender or in age, not in both."""
    if noun.domain not in lexicon.SHOWN:
        return ()
    others = [other for other in NOUNS if other.domain == noun.domain and other != noun]
    if shuffled:
        return tuple(other.word for other in others)
    kin = [other for other in others if (other.gender == noun.gender) != (other.age == noun.age)]
    return tuple(other.word for other in kin if (other.gender == "n") == (noun.gender == "n"))


def _story(domain: Domain, noun: Noun, gender: str, age: str, shuffled: bool) -> Node:
    slots = _words(domain, noun, gender, age)
    beside = companions(noun, shuffled)
    if beside:
        slots["companion"] = choice(choice(*beside), _TRADE)
    shared = {name: _any(templates, slots) for name, templates in _SHARED.items()}
    plots = [
        _plot(plot, slots | _thing(thing, adjectives), shared)
        for thing, adjectives in domain.objects
        for plot in (_LOST, _GIVEN, _MANY)
    ]
    opening = _any(_OPENINGS, slots)
    return sequence(opening, _sometimes(0.7, shared["habit"]), " ", choice(*plots))


def _any(templates: tuple[str, ...], slots: dict[str, Node | str]) -> Choice:
    return choice(*(fill(template, slots) for template in templates))


# --- slots -----------------------------------------------------------------------------------------------------------
_TRADE = choice(*lexicon.TRADES)
_EVERYWHERE = {
    "trade": _TRADE,
    "companion": _TRADE,
    "meal": choice(*lexicon.MEALS),
    "time": choice(*lexicon.TIMES),
    "part": choice("morning", "afternoon", "evening", "day"),
    "season": choice(*lexicon.SEASONS),
    "number": choice(*lexicon.NUMBERS),
    "hiding": choice(*lexicon.HIDING),
    "glad": choice(*lexicon.FEELINGS),
    "rain": choice(*lexicon.WEATHER),
    "dog": choice(*lexicon.ANIMALS),
    "a_dog": choice(*map(article, lexicon.ANIMALS)),
    "barked": choice(*lexicon.SOUNDS),
    "hill": choice(*lexicon.WHERE),
    "abroad": choice(*(f"{country}, saw {capital} and paid with the {currency}"
                       for country, capital, currency in lexicon.COUNTRIES)),
}  # fmt: skip


def _words(domain: Domain, noun: Noun, gender: str, age: str) -> dict[str, Node | str]:
    """What templates may say of a protagonist, each slot showing one thing: domain, gender or age."""
    pronouns = lexicon.PRONOUNS[gender]
    verbs = lexicon.VERBS["any"] + lexicon.VERBS[age]
    forms = {
        name: choice(*(sequence(verb[form], " ", choice(*verb[3:])) for verb in verbs))
        for form, name in enumerate(("do", "did", "doing"))
    }
    return {
        **_EVERYWHERE,
        **pronouns,
        **forms,
        "He": pronouns["he"].capitalize(),
        "His": pronouns["his"].capitalize(),
        "noun": noun.word,
        "a_noun": article(noun.word),
        "place": choice(*domain.places),
        "clothes": choice(*map(article, lexicon.CLOTHES[gender])),
        "old": choice(*lexicon.AGES[age]),
        "an_old": choice(*map(article, lexicon.AGES[age])),
        "years": choice(*lexicon.YEARS[age]),
    }


def _thing(thing: str, adjectives: tuple[str, ...]) -> dict[str, Node | str]:
    forms = zip(*(lexicon.ADJECTIVES[adjective] for adjective in adjectives), strict=True)
    degrees = dict(zip(("big", "bigger", "biggest"), (choice(*form) for form in forms), strict=True))
    return {"thing": thing, "things": thing + "s", **degrees}


# --- frames ----------------------------------------------------------------------------------------------------------
_OPENINGS = (
    "In the {place} lived {an_old} {noun}.",
    "There was once {an_old} {noun} who lived in the {place}.",
    "Someone in {clothes} stood in the {place}. It was the {noun}, {years} years old.",
    "{He} was {old} and wore {clothes}. {He} was the {noun} of the {place}.",
    "The {noun} of the {place} was {years} years old and wore {clothes}.",
    "{He} was {a_noun}, {years} years old, and {he} lived in the {place}.",
    "{He} liked the {place} and wore {clothes}. People called {him} the {old} {noun}.",
)
_HABITS = (
    "Every {time} {he} liked to {do}.",
    "The {noun} loved to {do} after {meal}.",
    "{He} spent the {time} {doing}.",
    "The {noun} was often seen {doing} before {meal}.",
    "Last {season} {he} {did} by {himself}.",
    "All {season} the {noun} {did} and {did}.",
)
_MEETINGS = (
    "“Good {part}, {sir}!” said the {trade}.",
    "The {trade} bowed to {him} and called {him} {sir}.",
    "A {trade} saw {him} {doing} and smiled.",
    "The {noun} and the {companion} {did} together.",
    "{He} walked with the {companion} to the {place}.",
)
_JOURNEYS = (
    "In {season} {he} went to {abroad}.",
    "The next {season} the {noun} sailed to {abroad}.",
)
_DISTRACTORS = (
    "There was {rain} on the {hill}.",
    "Behind the {hill} {a_dog} {barked}.",
    "After the {rain} came {rain}, and the {dog} {barked}.",
    "The {trade} and the {trade} talked about {rain}.",
    "Near the {hill} a {trade} sold {a_dog} to a {trade}.",
)


@dataclass(frozen=True)
class Plot:
    """What happens to a thing: frames of the beginning, of what the thing is like, and of the end."""

    begin: tuple[str, ...]
    like: tuple[str, ...]
    end: tuple[str, ...]


_ONE = (
    "The {thing} was very {big}.",
    "No other {thing} was {bigger}.",
    "It was the {biggest} {thing} of all.",
    "It was {bigger} than the {thing} of the {trade}.",
)
_LOST = Plot(
    (
        "One {time} {he} lost {his} {thing} near the {place}.",
        "One {time} the {noun} {did} and forgot {his} {thing} in the {place}.",
        "One {time} a {trade} took the {thing} of the {noun} to the {hill}.",
        "{His} {thing} was lost while {he} was {doing}.",
    ),
    _ONE,
    (
        "In the end {he} found {his} {thing} under the {hiding}.",
        "In the end the {noun} found {his} {thing} behind the {hiding} and was {glad}.",
        "In the end {a_dog} brought {him} the {thing}.",
    ),
)
_GIVEN = Plot(
    (
        "One {time} a {trade} gave {him} a new {thing}.",
        "One {time} the {noun} bought a new {thing} from a {trade}.",
        "{He} found a new {thing} under the {hiding}.",
    ),
    _ONE,
    (
        "The {noun} was {glad} and kept the {thing} for {himself}.",
        "{He} took the {thing} to the {place} and was {glad}.",
        "So {he} put the {thing} behind the {hiding} and {did}.",
    ),
)
_MANY = Plot(
    (
        "One {time} {he} found {number} {things} in the {place}.",
        "One {time} the {noun} sold {number} {things} to a {trade}.",
        "{His} {number} {things} lay under the {hiding}.",
    ),
    (
        "The {things} were very {big}.",
        "No other {things} were {bigger}.",
        "They were the {biggest} {things} of all.",
        "They were {bigger} than the {things} of the {trade}.",
    ),
    (
        "The {noun} was {glad} about {his} {number} {things}.",
        "{He} took the {things} to the {place} and was {glad}.",
        "In the end {number} {things} were left to {him}.",
    ),
)


_SHARED = {"habit": _HABITS, "meeting": _MEETINGS, "journey": _JOURNEYS, "distractor": _DISTRACTORS}


def _plot(plot: Plot, slots: dict[str, Node | str], shared: dict[str, Node]) -> Node:
    """From the sentence in which something happens to the last."""
    return sequence(
        _any(plot.begin, slots),
        _sometimes(0.7, _any(plot.like, slots)),
        _sometimes(0.6, shared["meeting"]),
        _sometimes(0.3, shared["journey"]),
        _sometimes(0.8, shared["distractor"]),
        _sometimes(0.5, shared["habit"]),
        " ",
        _any(plot.end, slots),
    )


def _sometimes(probability: float, sentence: Node) -> Node:
    return maybe(probability, sequence(" ", sentence))
