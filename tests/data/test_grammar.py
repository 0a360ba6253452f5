"""A grammar's entropy, lengths, samples and readings against the list of everything it can write."""

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.kingdom.grammar import Choice, Sequence, Text, choice, fill, maybe, sequence, ways

TEXTS = st.sampled_from(["", "a", "b", "ab", "é"]).map(Text)
TREES = st.recursive(
    TEXTS,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: Sequence(tuple(parts)))
        | st.lists(st.tuples(inner, st.floats(0.1, 5)), min_size=1, max_size=3).map(
            lambda pairs: Choice(*(tuple(column) for column in zip(*pairs, strict=True)))
        )
    ),
    max_leaves=7,
)


def derivations(tree) -> list[tuple[str, float]]:
    """(text, probability) of every way to write something, by plain enumeration."""
    if isinstance(tree, Text):
        return [(tree.text, 1.0)]
    if isinstance(tree, Choice):
        total = sum(tree.weights)
        return [
            (text, p * weight / total)
            for option, weight in zip(tree.options, tree.weights, strict=True)
            for text, p in derivations(option)
        ]
    products = itertools.product(*map(derivations, tree.parts))
    return [("".join(text for text, _ in product), math.prod(p for _, p in product)) for product in products]


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_everything_against_enumeration(tree):
    every = derivations(tree)
    assert tree.entropy == pytest.approx(-sum(p * math.log(p) for _, p in every), abs=1e-12)
    assert tree.characters == pytest.approx(sum(p * len(text) for text, p in every))
    assert tree.bytes == pytest.approx(sum(p * len(text.encode()) for text, p in every))
    for wanted in {text for text, _ in every} | {"b", "aba"}:
        found = [p for text, p in every if text == wanted]
        count, probability = ways(tree, wanted)
        assert count == len(found)
        assert probability == pytest.approx(sum(found))


def test_samples_have_the_probabilities_they_are_said_to_have():
    tree = sequence(choice("x", "y", "z", weights=(1, 2, 5)), maybe(0.25, "!"))
    rng, n = random.Random(0), 20_000
    counts = Counter(tree.sample(rng) for _ in range(n))
    for text, p in derivations(tree):
        assert abs(counts[text] - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_a_text_that_can_be_written_in_two_ways_is_told():
    tree = sequence(maybe(0.5, "a"), maybe(0.5, "a"))
    assert ways(tree, "a") == (2, 0.5)
    assert tree.entropy > 1.5 * math.log(2)  # of the choices; the text's own entropy is 1.5 ln 2


def test_templates():
    tree = fill("The {noun} lost {his} {thing}.", {"noun": "king", "his": "his", "thing": choice("crown", "ring")})
    assert sorted(derivations(tree)) == [("The king lost his crown.", 0.5), ("The king lost his ring.", 0.5)]
    with pytest.raises(KeyError, match="wife"):
        fill("His {wife}", {})
