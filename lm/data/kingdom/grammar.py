"""A grammar whose entropy is exact: texts, sequences and weighted choices, nested to any depth.

A node is a distribution over strings, written by independent choices: those inside an option are made only when it was
chosen. The choices' entropy is a sum over the tree, and it is the entropy of the text where no text can be written in
two ways, which `read` tells: it finds every way to write a given text.
"""

import bisect
import functools
import itertools
import math
import random
import string
from dataclasses import dataclass

Ways = dict[int, tuple[int, float]]
"""end -> (how many ways there are to write text[start:end], their probability together)."""


@dataclass(frozen=True, eq=False)
class Text:
    """Always the same string."""

    text: str

    entropy = 0.0

    @property
    def characters(self) -> float:
        return len(self.text)

    @property
    def bytes(self) -> float:
        return len(self.text.encode())

    def sample(self, rng: random.Random) -> str:
        return self.text

    def read(self, text: str, start: int) -> Ways:
        return {start + len(self.text): (1, 1.0)} if text.startswith(self.text, start) else {}


@dataclass(frozen=True, eq=False)
class Sequence:
    """Its parts one after another, each independent of the others."""

    parts: tuple["Node", ...]

    @functools.cached_property
    def entropy(self) -> float:
        return math.fsum(part.entropy for part in self.parts)

    @functools.cached_property
    def characters(self) -> float:
        return math.fsum(part.characters for part in self.parts)

    @functools.cached_property
    def bytes(self) -> float:
        return math.fsum(part.bytes for part in self.parts)

    def sample(self, rng: random.Random) -> str:
        return "".join([part.sample(rng) for part in self.parts])

    def read(self, text: str, start: int) -> Ways:
        ways: Ways = {start: (1, 1.0)}
        for part in self.parts:
            longer: Ways = {}
            for middle, (count, probability) in ways.items():
                for end, (n, p) in part.read(text, middle).items():
                    before = longer.get(end, (0, 0.0))
                    longer[end] = before[0] + count * n, before[1] + probability * p
            ways = longer
        return ways


@dataclass(frozen=True, eq=False)
class Choice:
    """One of its options, option i with probability weights[i] / sum(weights)."""

    options: tuple["Node", ...]
    weights: tuple[float, ...]

    @functools.cached_property
    def probabilities(self) -> tuple[float, ...]:
        return tuple(weight / math.fsum(self.weights) for weight in self.weights)

    @functools.cached_property
    def entropy(self) -> float:
        """Nats: H(which) + sum_i p_i H(option i)."""
        which = -math.fsum(p * math.log(p) for p in self.probabilities)
        return which + self._mean([option.entropy for option in self.options])

    @functools.cached_property
    def characters(self) -> float:
        return self._mean([option.characters for option in self.options])

    @functools.cached_property
    def bytes(self) -> float:
        return self._mean([option.bytes for option in self.options])

    def _mean(self, values: list[float]) -> float:
        return math.fsum(p * value for p, value in zip(self.probabilities, values, strict=True))

    @functools.cached_property
    def _cumulative(self) -> list[float]:
        return list(itertools.accumulate(self.probabilities))[:-1]

    def sample(self, rng: random.Random) -> str:
        return self.options[bisect.bisect(self._cumulative, rng.random())].sample(rng)

    def read(self, text: str, start: int) -> Ways:
        ways: Ways = {}
        for p, option in zip(self.probabilities, self.options, strict=True):
            for end, (n, q) in option.read(text, start).items():
                count, probability = ways.get(end, (0, 0.0))
                ways[end] = count + n, probability + p * q
        return ways


Node = Text | Sequence | Choice


def node(value: "Node | str") -> Node:
    return Text(value) if isinstance(value, str) else value


def sequence(*parts: "Node | str") -> Sequence:
    return Sequence(tuple(map(node, parts)))


def choice(*options: "Node | str", weights: tuple[float, ...] | None = None) -> Choice:
    """One of the options, all alike unless weights say otherwise."""
    return Choice(tuple(map(node, options)), weights or (1.0,) * len(options))


def maybe(probability: float, option: "Node | str") -> Choice:
    """The option with this probability, else nothing."""
    return choice(option, "", weights=(probability, 1 - probability))


def fill(template: str, slots: dict[str, "Node | str"]) -> Node:
    """A template such as "{She} lost {her} {object}." with each slot's node, or string, in its place."""
    parts: list[Node] = []
    run = ""  # neighbouring strings become one text
    for literal, name in _pieces(template):
        run += literal
        value = "" if name is None else slots[name]
        if isinstance(value, str):
            run += value
        else:
            parts += [Text(run), value]
            run = ""
    parts.append(Text(run))
    kept = tuple(part for part in parts if not (isinstance(part, Text) and not part.text))
    return kept[0] if len(kept) == 1 else Sequence(kept)


@functools.cache
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    return tuple((literal, name) for literal, name, _, _ in string.Formatter().parse(template))


def ways(start: Node, text: str) -> tuple[int, float]:
    """How many ways there are to write the whole text, and its probability; (0, 0.0) where the grammar cannot."""
    return start.read(text, 0).get(len(text), (0, 0.0))
