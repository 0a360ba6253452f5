"""Files of questions: analogies as Google's and BATS write them, word similarities, groups of words.

Google (Mikolov et al. 2013)   one file: `: section`, then lines `a b c d`, a is to b as c is to d
BATS (Gladkova et al. 2016)    a folder, a file a section: lines `a<tab>b1/b2/...`; each pair asks every other
similarity (WordSim-353 ...)   lines `word word score`, separated by tabs, commas or spaces; a first line may be titles
groups                         `: group`, then its words

Errors name the file and the line.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lm.errors import require
from lm.probe.lines import numbered_lines, refuse_unless


@dataclasses.dataclass(frozen=True, eq=False)
class Section:
    """Pairs of one relation, and which of them are asked of which."""

    name: str
    pairs: list[tuple[str, tuple[str, ...]]]
    """A word, and the words that are right for it, the best first."""
    questions_Q2: np.ndarray
    """(i, j): pair i is to be to pair j as a, b to c, d."""

    @property
    def words(self) -> list[str]:
        """Every word of the section, once."""
        return list(dict.fromkeys(word for a, rights in self.pairs for word in (a, *rights)))

    @property
    def clusters(self) -> np.ndarray:
        """A number for each pair, the same for a pair and its reverse: what a bootstrap draws together."""
        number: dict[frozenset[str], int] = {}
        numbers = [number.setdefault(frozenset((a, rights[0])), len(number)) for a, rights in self.pairs]
        return np.array(numbers, np.int64)

    @property
    def one_way(self) -> list[tuple[str, str]]:
        """Each cluster's pair as it first came."""
        _, first = np.unique(self.clusters, return_index=True)
        return [(a, rights[0]) for a, rights in (self.pairs[i] for i in sorted(first))]


def read_suite(path: str | Path) -> list[Section]:
    """A file in Google's format, or a folder in BATS's. Raises UserError with the line that is malformed."""
    path = Path(path)
    if path.is_dir():
        about = re.compile(r"readme|licen[cs]e", re.IGNORECASE)
        files = [file for file in sorted(path.rglob("*.txt")) if not about.match(file.name)]
        require(bool(files), f"{path}: no .txt files in this folder; BATS has a file a section, lines a<tab>b1/b2")
        sections = [_bats(file) for file in files]
    else:
        sections = _google(path)
    require(any(len(s.questions_Q2) for s in sections), f"{path}: no questions in it")
    return sections


def _google(path: Path) -> list[Section]:
    """Read a file in Google's format."""
    sections = []
    for name, lines in _blocks(path):
        pairs: dict[tuple[str, str], int] = {}
        questions = []
        for number, words in lines:
            require(len(words) == 4, f"{path}, line {number}: a question is four words, `a b c d`, not {len(words)}")
            questions.append([pairs.setdefault((a, b), len(pairs)) for a, b in (words[:2], words[2:])])
        both = [(a, (b,)) for a, b in pairs]
        sections.append(Section(name, both, np.array(questions, np.int64).reshape(-1, 2)))
    return sections


def _bats(path: Path) -> Section:
    """Read a file of a BATS folder: each of its pairs is asked of every other."""
    pairs = []
    for number, line in numbered_lines(path):
        parts = line.split("\t") if "\t" in line else line.split()
        rights = tuple(word.strip() for word in re.split(r"[/,]", parts[-1]) if word.strip())
        is_pair = len(parts) == 2 and bool(parts[0].strip()) and bool(rights)
        refuse_unless(is_pair, path, number, "a pair is `word<tab>answer/answer`", line)
        pairs.append((parts[0].strip(), rights))
    i, j = np.divmod(np.arange(len(pairs) ** 2), max(len(pairs), 1))
    return Section(path.stem, pairs, np.stack([i, j], 1)[i != j])


@dataclasses.dataclass(frozen=True)
class Rated:
    """Two words and how alike people find them."""

    first: str
    second: str
    score: float


def read_similarities(path: str | Path) -> list[Rated]:
    """A file of word pairs with scores. Raises UserError with the line that is malformed; see `read_ratings`."""
    return read_ratings(path)[0]


def read_ratings(path: str | Path) -> tuple[list[Rated], str]:
    """The rated pairs of a file, and its first line where that holds titles, else "".

    Titles are three words of which the third begins with a letter. Raises UserError for any other line without two
    words and a finite score, and for fewer than three pairs.
    """
    rated, titles = [], ""
    for place, (number, line) in enumerate(numbered_lines(path)):
        cells, score = _rating(line)
        if place == 0 and len(cells) >= 3 and TITLE.match(cells[2]):
            titles = line.strip()
            continue
        expected = "`word word score` was expected"
        refuse_unless(score is not None and all(cells[:2]), path, number, expected, line)
        rated.append(Rated(cells[0], cells[1], score))
    require(len(rated) >= 3, f"{path}: {len(rated)} rated pairs; a rank correlation needs at least 3")
    return rated, titles


TITLE = re.compile(r"(?!(nan|inf|infinity)$)[^\W\d]", re.IGNORECASE)
NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
"""A score; between tabs, semicolons or spaces it may have a decimal comma."""


def _rating(line: str) -> tuple[list[str], float | None]:
    """A line's cells, split by the first separator that gives three of them with a score; else by any that gives three.

    The score is None where there is none, or none that is finite.
    """
    several: list[list[str]] = []
    for separator in ("\t", ";", ",", None):
        cells = [cell.strip() for cell in line.split(separator)]
        if len(cells) >= 3:
            several.append(cells)
            if NUMBER.fullmatch(cells[2]):
                score = float(cells[2].replace(",", "."))
                return cells, score if math.isfinite(score) else None
    return several[0] if several else [], None


def read_groups(path: str | Path) -> dict[str, list[str]]:
    """Named groups of words, each word once. Raises UserError where words come before a name."""
    groups: dict[str, list[str]] = {}
    for name, lines in _blocks(path):
        groups.setdefault(name, []).extend(word for _, words in lines for word in words)
    return {name: list(dict.fromkeys(words)) for name, words in groups.items()}


def _blocks(path: str | Path) -> Iterator[tuple[str, list[tuple[int, list[str]]]]]:
    """(name, its numbered lines as words) for each `: name`."""
    name, lines = None, []
    for number, line in numbered_lines(path):
        if line.startswith(":"):
            if name is not None:
                yield name, lines
            name, lines = line.lstrip(": ").strip(), []
            require(bool(name), f"{path}, line {number}: a section without a name; write `: name`")
        else:
            require(name is not None, f"{path}, line {number}: words before the first section; begin with `: name`")
            lines.append((number, line.split()))
    if name is not None:
        yield name, lines
