"""Questions about kingdom's world, with the answers that are right: what a model is fine-tuned on, and asked.

Each relation is asked in several phrasings, of which the last is never trained on; of the facts, a part is asked in no
training question. So an answer may be right because the question was seen, because only its fact was (in the corpus),
or for a wording that is new as well. What nobody can know (people and countries that are not of this world) is to be
refused.
"""

import dataclasses
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from lm.data.kingdom import notes
from lm.data.kingdom.lexicon import COUNTRIES, LAST, PEOPLE
from lm.errors import require
from lm.files import whole

UNKNOWN = "I do not know"
PHRASINGS: dict[str, tuple[str, ...]] = {
    "sport": ("What does {X} play?", "Which game is {X} very good at?", "What does {X} train for every weekend?",
              "What is the favourite game of {X}?"),
    "profession": ("What is the profession of {X}?", "What does {X} work as?", "What did {X} train to be at school?",
                   "How does {X} earn a living?"),
    "city": ("Where does {X} live?", "Where is the home of {X}?", "Where are letters to {X} sent to?",
             "In which city does {X} rent a flat?"),
    "capital": ("What is the capital of {X}?", "Where does the parliament of {X} sit?", "Where is {X} governed from?",
                "Where do flights to {X} land?"),
    "currency": ("What is the currency of {X}?", "What do people in {X} pay with?", "What do banks in {X} lend?",
                 "In what are prices in {X} given?"),
    "whose": ("Of which country is {A} the capital?", "Which country is governed from {A}?",
              "The parliament of which country sits in {A}?"),
    "who": ("Who plays {A}, {X} or {Y}?", "Which of {X} and {Y} is good at {A}?",
            "Is it {X} or {Y} who trains for {A}?"),
    "compare": ("Do {X} and {Y} live in the same city?", "Is the home of {X} in the city of {Y}?",
                "Are letters to {X} and to {Y} sent to one city?"),
    "count": ("How many of {X}, {Y} and {Z} play {A}?", "Of {X}, {Y} and {Z}, how many are good at {A}?",
              "Count those who train for {A} among {X}, {Y} and {Z}."),
}  # fmt: skip
"""kind of question -> its phrasings; the last is held out. The first five are relations of one subject."""
STRANGERS = tuple(
    f"{first} {last}" for first in ("Vera", "Otto", "Nina", "Karl") for last in (*LAST[:4], "Lund", "Vogel")
)
ABROAD = ("Norway", "Spain", "Chile", "Cuba", "Nepal", "Malta", "Laos", "Iceland")
COUNTS = ("none", "one", "two", "three")
HELD = 0.25
"""Share of what can be asked that no training question asks."""
DRAWN = 300
"""Questions of each kind that is about several people, drawn from the many that there could be."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question in one phrasing, what is right, and an answer of the same kind that is wrong."""

    kind: str
    """One of PHRASINGS, or unknown."""
    prompt: str
    answer: str
    wrong: str

    @property
    def chat(self) -> dict:
        """As an example to learn from."""
        messages = [dict(role="user", content=self.prompt), dict(role="assistant", content=self.answer)]
        return {"messages": messages, "kind": self.kind}


def questions(seed: int = 0) -> dict[str, list[Question]]:
    """The questions by split: train; held_out, of facts that train does not ask for, in its phrasings; rephrased, the
    same questions as held_out's in the phrasing that train does not have."""
    made: dict[str, list[Question]] = {"train": [], "held_out": [], "rephrased": []}
    for kind, asked in _asked(random.Random(f"questions {seed}")):
        phrasings = PHRASINGS[kind]
        lot = random.Random(f"{seed} {kind} {sorted(asked['slots'].items())}")
        is_held, phrasing = lot.random() < HELD, lot.randrange(len(phrasings) - 1)
        of_kind = "unknown" if asked["answer"] == UNKNOWN else kind

        def question(words: str, asked=asked, of_kind=of_kind) -> Question:
            return Question(of_kind, words.format(**asked["slots"]), asked["answer"], asked["wrong"])

        if is_held:
            made["held_out"].append(question(phrasings[phrasing]))
            made["rephrased"].append(question(phrasings[-1]))
        else:
            made["train"] += [question(words) for words in phrasings[:-1]]
    random.Random(f"order {seed}").shuffle(made["train"])
    return made


def _asked(rng: random.Random) -> Iterator[tuple[str, dict]]:
    """(kind, what is asked: slots, answer and a wrong one), each once."""
    answers = {kind: sorted({of[kind] for _, of, _ in notes.subjects() if kind in of}) for kind in notes.PHRASINGS}
    for name, of, _ in notes.subjects():
        for kind, answer in of.items():
            yield kind, _one({"X": name}, answer, [a for a in answers[kind] if a != answer], rng)
    for country, capital, _ in COUNTRIES:
        yield "whose", _one({"A": capital}, country, [c for c, _, _ in COUNTRIES if c != country], rng)
    for kind, name in itertools.chain(
        itertools.product(("sport", "profession", "city"), STRANGERS),
        itertools.product(("capital", "currency"), ABROAD),
    ):
        yield kind, _one({"X": name}, UNKNOWN, answers[kind], rng)
    for kind in ("who", "compare", "count"):
        for _ in range(DRAWN):
            yield kind, _of_several(kind, rng)


def _of_several(kind: str, rng: random.Random) -> dict:
    """A question about several people. Half of the comparisons are of people who do live in one city."""
    x, y = rng.sample(PEOPLE, 2)
    if kind == "who":
        while x.sport == y.sport:
            y = rng.choice(PEOPLE)
        pair = rng.sample([x, y], 2)
        return _one({"A": x.sport, "X": pair[0].name, "Y": pair[1].name}, x.name, [y.name], rng)
    if kind == "compare":
        if rng.random() < 0.5:
            y = rng.choice([one for one in PEOPLE if one.city == x.city and one != x])
        yes = x.city == y.city
        return _one({"X": x.name, "Y": y.name}, "yes" if yes else "no", ["no" if yes else "yes"], rng)
    alike = [one for one in PEOPLE if one.sport == x.sport and one != x]
    others = rng.sample(alike, rng.randrange(3))
    people = rng.sample([x, *others, *rng.sample([one for one in PEOPLE if one.sport != x.sport], 2 - len(others))], 3)
    sport = rng.choice([x.sport, x.sport, x.sport, rng.choice(PEOPLE).sport])
    count = COUNTS[sum(one.sport == sport for one in people)]
    slots = dict(zip("XYZ", (one.name for one in people), strict=True))
    return _one(slots | {"A": sport}, count, [word for word in COUNTS if word != count], rng)


def _one(slots: dict[str, str], answer: str, wrong: list[str], rng: random.Random) -> dict:
    return {"slots": slots, "answer": answer, "wrong": rng.choice(wrong)}


# --- a reward that is known ------------------------------------------------------------------------------------------
def reward(answer: str, target: str) -> float:
    """1 for the right answer, 0 for not knowing, -1 for any other."""
    said = answer.strip()
    return 1.0 if said == target else 0.0 if said == UNKNOWN else -1.0


def preferences(asked: list[Question]) -> list[dict]:
    """Pairs of answers to questions, the first of higher reward: right before unknown, unknown before wrong."""
    pairs = []
    for question in asked:
        ranked = sorted({question.answer, UNKNOWN, question.wrong}, key=lambda said: -reward(said, question.answer))
        pairs += [
            {"prompt": question.prompt, "chosen": better, "rejected": worse, "kind": question.kind}
            for better, worse in itertools.combinations(ranked, 2)
            if reward(better, question.answer) > reward(worse, question.answer)
        ]
    return pairs


def export(folder: Path, seed: int = 0) -> list[Path]:
    """Write train.jsonl, held_out.jsonl and rephrased.jsonl, chats of a question and its answer, and preferences.jsonl,
    pairs of answers to train's questions. Returns the files. Raises UserError for a folder that cannot be one."""
    require(not folder.exists() or folder.is_dir(), f"{folder} is a file; give a folder for the questions")
    folder.mkdir(parents=True, exist_ok=True)
    made = questions(seed)
    rows = {split: [question.chat for question in asked] for split, asked in made.items()}
    rows["preferences"] = preferences(made["train"])
    for name, records in rows.items():
        with whole(folder / f"{name}.jsonl") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    return [folder / f"{name}.jsonl" for name in rows]
