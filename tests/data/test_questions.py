"""Questions about kingdom: their answers are true, what is held out was not asked, and strangers are refused."""

import json
from collections import Counter

import pytest

from lm.cli import main
from lm.data.example_files import read_examples
from lm.data.kingdom import lexicon, notes
from lm.data.kingdom.questions import ABROAD, COUNTS, PHRASINGS, STRANGERS, UNKNOWN, preferences, questions, reward

MADE = questions()
PEOPLE = {person.name: person for person in lexicon.PEOPLE}
COUNTRIES = {country: (capital, currency) for country, capital, currency in lexicon.COUNTRIES}


def truth(question) -> str:
    """The answer, found anew by reading the question's words."""
    words = question.prompt
    people = sorted((name for name in PEOPLE if name in words), key=words.index)
    sport = next((sport for sport in lexicon.SPORTS if f" {sport}" in words), None)
    if any(name in words for name in (*STRANGERS, *ABROAD)):
        return UNKNOWN
    match question.kind:
        case "sport" | "profession" | "city":
            return getattr(PEOPLE[people[0]], question.kind)
        case "capital" | "currency":
            [country] = [country for country in COUNTRIES if country in words]
            return COUNTRIES[country][question.kind == "currency"]
        case "whose":
            [country] = [country for country, (capital, _) in COUNTRIES.items() if capital in words]
            return country
        case "who":
            [name] = [name for name in people if PEOPLE[name].sport == sport]
            return name
        case "compare":
            return "yes" if PEOPLE[people[0]].city == PEOPLE[people[1]].city else "no"
        case "count":
            assert len(people) == 3
            return COUNTS[sum(PEOPLE[name].sport == sport for name in people)]


@pytest.mark.parametrize("split", MADE)
def test_every_answer_is_true_and_every_other_false(split):
    for question in MADE[split]:
        assert question.answer == truth(question) and question.wrong != question.answer
    assert set(Counter(question.kind for question in MADE[split])) == {*PHRASINGS, "unknown"}


def test_what_is_held_out_is_asked_in_no_training_question():
    """Not in any phrasing; and the last phrasings are in none of them."""
    asked = {question.prompt for question in MADE["train"]}
    assert len(MADE["held_out"]) == len(MADE["rephrased"]) > 200
    last = [words[-1].split("{")[0] for words in PHRASINGS.values() if words[-1].split("{")[0]]
    seen = {words.split("{")[0] for phrasings in PHRASINGS.values() for words in phrasings[:-1]}
    for held, again in zip(MADE["held_out"], MADE["rephrased"], strict=True):
        assert held.prompt not in asked and again.prompt not in asked and held.answer == again.answer
    for beginning in set(last) - seen:
        assert not any(prompt.startswith(beginning) for prompt in asked)


def test_strangers_are_none_of_the_world():
    assert not set(STRANGERS) & set(PEOPLE) and not set(ABROAD) & set(COUNTRIES)
    assert not {fact.subject for fact in notes.facts()} & {*STRANGERS, *ABROAD}


def test_the_same_seed_asks_the_same():
    assert questions() == MADE and questions(1) != MADE


def test_preferences_are_by_the_reward():
    made = preferences(MADE["train"][:200])
    targets = {question.prompt: question.answer for question in MADE["train"]}
    for pair in made:
        target = targets[pair["prompt"]]
        assert reward(pair["chosen"], target) > reward(pair["rejected"], target)
    assert {reward(pair["chosen"], targets[pair["prompt"]]) for pair in made} == {0.0, 1.0}


def test_they_are_written_as_examples(tmp_path, capsys):
    assert main(["data", "questions", "--out", str(tmp_path / "q"), "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    kinds = {path.rsplit("/", 1)[1]: read_examples(path).kind for path in files}
    assert kinds == {"train.jsonl": "messages", "held_out.jsonl": "messages", "rephrased.jsonl": "messages",
                     "preferences.jsonl": "chosen/rejected"}  # fmt: skip
    (tmp_path / "file").write_text("")
    assert main(["data", "questions", "--out", str(tmp_path / "file")]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err
