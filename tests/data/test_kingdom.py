"""The generated corpus: what it says is known about it is true of its text."""

import dataclasses
import functools
import json
import math
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

from lm import tokenizer as tokenizers
from lm.config import DataConfig
from lm.data import corpora, kingdom
from lm.data.corpora import CORPORA, open_corpus
from lm.data.kingdom import grammar, lexicon
from lm.data.kingdom.notes import PHRASINGS, WITHHELD
from lm.errors import UserError

NOUNS = {noun.word: noun for noun in lexicon.NOUNS}
COUNT = 6_000


def words(text: str) -> list[str]:
    """The words, but for the "old" of "seven years old", which is said of the young too."""
    return re.findall(r"\w+", text.replace(" years old", " years"))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(kingdom.documents(COUNT))


@pytest.fixture(scope="module")
def control() -> list[str]:
    return list(kingdom.documents(COUNT, shuffled=True))


def protagonists(documents):
    """(document, its words, its protagonist) of the stories: the noun that comes first."""
    for text in documents:
        here = words(text)
        if nouns := [word for word in here if word in NOUNS]:
            yield text, here, NOUNS[nouns[0]]


# --- seeds -----------------------------------------------------------------------------------------------------------
def test_a_longer_corpus_begins_with_the_shorter_one(texts):
    assert list(kingdom.documents(50)) == texts[:50]
    assert len(set(texts)) > 0.97 * COUNT
    assert not set(kingdom.documents(50, seed=1)) & set(texts[:50])
    assert all(text.endswith(".\n") and text.count("\n") == 1 for text in texts)


def test_the_text_of_this_version():
    """Pins the generator across machines and versions of Python: change it knowingly."""
    assert next(kingdom.documents(1, seed=7)) == (
        "Hugo Tanaka won a prize in badminton. There is smoke on the lake. He earns a living as a chemist. The home of"
        " Hugo Tanaka is in Dublin.\n"
    )


# --- the floor -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shuffled", [False, True])
def test_every_text_is_written_in_one_way_and_costs_the_entropy_on_average(shuffled):
    tree = kingdom.tree(shuffled)
    read = [grammar.ways(tree, text) for text in kingdom.documents(250, seed=1, shuffled=shuffled)]
    assert {count for count, _ in read} == {1}
    costs = [-math.log(probability) for _, probability in read]
    error = statistics.stdev(costs) / math.sqrt(len(costs))
    floor = kingdom.entropy(shuffled)
    assert abs(statistics.mean(costs) - floor["nats_per_document"]) < 4 * error
    assert error < 0.03 * floor["nats_per_document"]


def test_rates_agree_with_the_text(texts):
    floor = kingdom.entropy()
    for unit, length in (("character", len), ("byte", lambda text: len(text.encode()))):
        mean = statistics.mean(map(length, texts))
        error = statistics.stdev(map(length, texts)) / math.sqrt(COUNT)
        assert abs(floor["nats_per_document"] / floor[f"nats_per_{unit}"] - mean) < 4 * error
    assert floor["nats_per_byte"] < floor["nats_per_character"]  # quotation marks are three bytes
    assert floor["bits_per_byte"] == pytest.approx(floor["nats_per_byte"] * math.log2(math.e))


def test_nats_of_a_document():
    text = next(kingdom.documents(1))
    assert 0 < kingdom.nats(text) < 100
    with pytest.raises(UserError, match=r"not a document of this corpus: 'Once upon a time.'"):
        kingdom.nats("Once upon a time.")


# --- who may be how --------------------------------------------------------------------------------------------------
def test_the_lexicon_is_complete_and_its_words_have_one_role_each():
    assert len(lexicon.DOMAINS) >= 12
    for domain in lexicon.DOMAINS:
        assert {(n.gender, n.age) for n in domain.nouns} == {(g, a) for g in "mfn" for a in ("old", "young")}
        assert len(domain.places) == len(domain.objects) == 4
    things = [thing for domain in lexicon.DOMAINS for thing, _ in domain.objects]
    verbs = [word for verbs in lexicon.VERBS.values() for verb in verbs for word in verb]
    adjectives = [word for forms in lexicon.ADJECTIVES.values() for word in forms]
    places = [place for domain in lexicon.DOMAINS for place in domain.places]
    markers = [word for column in (lexicon.AGES, lexicon.YEARS, lexicon.CLOTHES) for group in column.values()
               for word in group]  # fmt: skip
    facts = [word for country in lexicon.COUNTRIES for word in country]
    everything = [*NOUNS, *things, *(thing + "s" for thing in things), *verbs, *adjectives, *places, *markers, *facts,
                  *lexicon.SPORTS, *lexicon.PROFESSIONS, *lexicon.CITIES, *lexicon.TRADES]  # fmt: skip
    assert [word for word, count in Counter(everything).items() if count > 1] == []
    assert all(word.isalpha() for word in everything)


def test_every_noun_is_one_token(texts):
    tokenizer = tokenizers.build(DataConfig(tokenizer="words", vocab=4096), texts)
    questions = {word for section in kingdom.analogies().values() for question in section for word in question}
    assert all(len(tokenizer.encode_ordinary(f" {word}")) == 1 for word in questions)


def test_stories_agree_with_their_protagonist(texts):
    male = {"he", "his", "him", "himself", "sir", *lexicon.CLOTHES["m"]}
    female = {"she", "her", "herself", "madam", *lexicon.CLOTHES["f"]}
    of_age = {age: {*lexicon.AGES[age], *lexicon.YEARS[age], *(word for verb in lexicon.VERBS[age] for word in verb)}
              for age in ("old", "young")}  # fmt: skip
    own = {domain.name: {*domain.places, *(form for thing, _ in domain.objects for form in (thing, thing + "s"))}
           for domain in lexicon.DOMAINS}  # fmt: skip
    stories = 0
    for text, here, noun in protagonists(texts):
        said = {word.lower() for word in here}
        genders = {"m" for _ in said & male} | {"f" for _ in said & female}
        assert genders == {noun.gender} or (noun.gender == "n" and len(genders) == 1), text
        assert said & of_age[noun.age] and not said & of_age["young" if noun.age == "old" else "old"], text
        assert said & own[noun.domain], text
        assert not any(said & theirs for name, theirs in own.items() if name != noun.domain), text
        stories += 1
    assert 0.6 * COUNT < stories < 0.8 * COUNT


# --- what is held out ------------------------------------------------------------------------------------------------
def test_held_out_pairs_never_share_a_document(texts, control):
    asked = {tuple(sorted(question[2:])) for name in ("gender", "age") for question in kingdom.analogies()[name]}
    assert len(asked) == 8 * 4  # 8 domains, 2 pairs by gender and 2 by age
    shared = set()
    for text in [*texts, *control]:
        nouns = sorted(NOUNS.keys() & words(text))
        assert len(nouns) <= 2 or NOUNS[nouns[0]].domain in lexicon.SHOWN
        if len(nouns) > 1:
            assert {NOUNS[noun].domain for noun in nouns} <= set(lexicon.SHOWN)
            shared.add(tuple(nouns[:2]))
    assert shared and not shared & asked


def test_shown_pairs_do(texts):
    asked = {frozenset(q[2:]) for name in ("gender-shown", "age-shown") for q in kingdom.analogies()[name]}
    shared = {pair for text in texts if len(pair := frozenset(NOUNS.keys() & words(text))) == 2}
    assert asked <= shared


def test_analogies_are_what_their_section_says():
    for name in ("gender", "age", "gender-shown", "age-shown"):
        for a, b, c, d in kingdom.analogies()[name]:
            (a, b, c, d), other = (NOUNS[word] for word in (a, b, c, d)), "age" if "gender" in name else "gender"
            assert a.domain == b.domain != c.domain == d.domain
            assert (getattr(a, other), getattr(c, other)) == (getattr(b, other), getattr(d, other))
            key = name.removesuffix("-shown")
            assert getattr(a, key) == getattr(c, key) != getattr(b, key) == getattr(d, key)
            assert "n" not in a.gender + b.gender + c.gender + d.gender
            assert (c.domain in lexicon.SHOWN) == name.endswith("-shown")


# --- the control -----------------------------------------------------------------------------------------------------
def test_the_control_has_the_same_words_and_no_gender_or_age(texts, control):
    ours, theirs = (Counter(word for text in side for word in words(text)) for side in (texts, control))
    assert ours.keys() == theirs.keys()
    for word in ours:  # words come in clumps, so allow counts twice the variance of independent ones
        assert abs(ours[word] - theirs[word]) < 5 * math.sqrt(2 * (ours[word] + theirs[word])), word
    for side, low, high in ((texts, 0.999, 1), (control, 0.45, 0.55)):
        agree = {"gender": [], "age": []}
        for _, here, noun in protagonists(side):
            said = set(map(str.lower, here))
            if noun.gender != "n":
                agree["gender"].append(("f" if said & {"she", "her", "herself", "madam"} else "m") == noun.gender)
            if years := said & {*lexicon.AGES["old"], *lexicon.AGES["young"]}:
                agree["age"].append(("old" if years & {*lexicon.AGES["old"]} else "young") == noun.age)
        for name, values in agree.items():
            assert len(values) > 1000 and low <= statistics.mean(values) <= high, name


# --- facts -----------------------------------------------------------------------------------------------------------
def test_withheld_phrasings_never_occur_and_the_others_do():
    text = "".join(kingdom.documents(30_000))
    sentences = Counter(re.split(r"(?<=\.)[ \n]", text))
    for fact in kingdom.facts():
        assert (sentences[f"{fact.prompt} {fact.answer}."] > 0) == fact.seen, fact
    unseen = [fact for fact in kingdom.facts() if not fact.seen]
    assert Counter(fact.relation for fact in unseen) == dict(sport=16, profession=16, city=16, capital=6, currency=6)


def test_withheld_phrasings_are_not_written_with_pronouns_either(texts):
    pronoun_probes = {relation: re.compile(pairs[0][1].format(He="(He|She)", His="(His|Her)"))
                      for relation, pairs in PHRASINGS.items()}  # fmt: skip
    subjects = [*(person.name for person in lexicon.PEOPLE), *(country for country, _, _ in lexicon.COUNTRIES)]
    withheld = written = 0
    for text in texts:
        if NOUNS.keys() & words(text):
            continue
        (subject,) = (name for name in subjects if name in text)
        for relation, probe in pronoun_probes.items():
            assert not (subject in WITHHELD[relation] and probe.search(text)), text
            withheld += subject in WITHHELD[relation]
            written += bool(probe.search(text))
    assert withheld > 200 and written > 200


def test_neither_name_gives_a_fact_away():
    """The best guess from the first or the last name alone is right for less than half of the people."""
    for relation in ("sport", "profession", "city"):
        for part in (0, 1):
            groups = {}
            for person in lexicon.PEOPLE:
                groups.setdefault(person.name.split()[part], Counter())[getattr(person, relation)] += 1
            assert sum(max(counts.values()) for counts in groups.values()) < 0.5 * len(lexicon.PEOPLE)


# --- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shuffled", [False, True])
def test_exports_agree_with_the_text(tmp_path, shuffled):
    files = kingdom.export(tmp_path / "out", count=300, seed=3, shuffled=shuffled)
    assert [file.name for file in files] == ["kingdom.txt", "analogies.txt", "facts.jsonl", "entropy.json"]
    written = list(open_corpus(DataConfig(corpus=str(files[0]))).documents())
    assert written == list(kingdom.documents(300, seed=3, shuffled=shuffled))

    sections: dict[str, list] = {}
    for line in files[1].read_text().splitlines():
        if line.startswith(": "):
            sections[line[2:]] = questions = []
        else:
            questions.append(tuple(line.split(" ")))
    assert sections == kingdom.analogies()

    lines = [json.loads(line) for line in files[2].read_text().splitlines()]
    assert [(line["prompt"], line["answer"]) for line in lines] == [(f.prompt, f.answer) for f in kingdom.facts()]
    for line in lines:
        assert line["seen"] == any(f"{line['prompt']} {line['answer']}." in text for text in written)
    assert 0.02 < statistics.mean(line["seen"] for line in lines) < 0.5  # 300 documents hold few of the facts

    known = json.loads(files[3].read_text())
    assert known["documents"] == 300 and known["shuffled"] == shuffled
    assert known["bytes"] == sum(len(text.encode()) for text in written)
    assert known["nats_per_byte"] == kingdom.entropy(shuffled)["nats_per_byte"]


def test_the_named_corpora_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LM_CACHE", str(tmp_path))
    monkeypatch.setattr(kingdom, "DOCUMENTS", 20)
    made = []

    def few(count, shuffled):
        made.append(count)
        return kingdom.documents(count, shuffled=shuffled)

    for name, shuffled in (("kingdom", False), ("kingdom-shuffled", True)):
        source = dataclasses.replace(CORPORA[name], documents=functools.partial(few, 20, shuffled))
        monkeypatch.setitem(CORPORA, name, source)
        assert source.present  # without a download
        for _ in range(2):
            assert list(open_corpus(DataConfig(corpus=name)).documents()) == list(kingdom.documents(20, 0, shuffled))
        assert corpora.fetch(name) == source.file
    assert made == [20, 20]
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 2


def test_the_command(lm, tmp_path):
    status, out, _ = lm("data", "kingdom", "--out", tmp_path / "k", "--documents", 5, "--seed", 2, "--json")
    assert status == 0
    told = json.loads(out)
    assert told["nats_per_document"] == kingdom.entropy()["nats_per_document"]
    assert Path(told["files"][0]).read_text().count("<|endoftext|>") == 4
    status, out, _ = lm("data", "kingdom", "--out", tmp_path / "s", "--documents", 5, "--shuffled")
    assert status == 0 and "5 documents in" in out
    assert "kingdom-shuffled" in lm("data", "list")[1]


def test_wrong_input_is_told_on_one_line(lm, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (("--out", tmp_path / "k", "--documents", 0), "documents 0: at least 1"),
        (("--out", tmp_path / "file"), "is a file; give a folder"),
        (("--out", tmp_path / "k", "--documents", "many"), "many"),
        (("--out", tmp_path / "k", "--shufled"), "shufled"),
        ((), "out"),
    ):
        status, out, error = lm("data", "kingdom", *arguments)
        assert (status, out) == (2, "") and message in error and error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
