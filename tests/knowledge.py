"""A small world of people, games and cities: text that states it, facts that ask about it, and two models of it."""

import random
from pathlib import Path

import tiny

from lm.probe import Fact

PEOPLE = ("anna", "bob", "carl", "dora", "emil", "fred", "gina", "hugo", "ines", "joel", "kate", "liam")
ANSWERS = {"plays": ("chess", "golf", "tennis", "go"), "lives": ("rome", "oslo", "paris", "new york")}
PHRASINGS = {
    "plays": ("{} plays", "the game of {} is"),
    "lives": ("{} lives in", "the home of {} is"),
}


def facts() -> list[Fact]:
    """Both phrasings of each person's two facts; the second phrasing of every fourth person's is not in the text."""
    made = []
    for i, person in enumerate(PEOPLE):
        for relation, answers in ANSWERS.items():
            answer = answers[(i * (3 if relation == "plays" else 1) + i // 4) % 4]
            for second, phrasing in enumerate(PHRASINGS[relation]):
                made.append(Fact(relation, person, phrasing.format(person), answer, not (second and i % 4 == 3)))
    return made


def text(documents: int = 1500, seed: int = 0) -> str:
    """Documents of three facts each."""
    rng = random.Random(seed)
    sentences = [f"{fact.prompt} {fact.answer} ." for fact in facts() if fact.seen]
    return "<|endoftext|>".join(" ".join(rng.sample(sentences, 3)) for _ in range(documents))


def experiment(corpus: Path | str, **changes):
    """Grouped queries, a window in the first of two layers, rotary positions, plain feed-forward layers."""
    shape = dict(width=32, heads=4, kv_heads=2, feedforward=64, context=32, window=12, global_every=2)
    world = {f"model__{key}": value for key, value in shape.items()} | {
        "data__tokenizer": "words", "train__steps": 250, "train__batch": 16, "train__eval_every": "100%",
        "train__checkpoint_every": "100%", "optimizer__learning_rate": 1e-2, "train__log_every": 50,
    }  # fmt: skip
    return tiny.experiment(corpus, **(world | changes))
