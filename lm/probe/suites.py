"""Suites of analogies: every section in every space, with and without its words, beside what needs no analogy."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lm.errors import require
from lm.probe.analogies import OF_QUESTIONS, Verdicts, answer_pairs, answer_questions, require_method
from lm.probe.index import ABSENT, Index
from lm.probe.questions import Section, read_suite
from lm.probe.spaces import Space, spaces_of
from lm.run import Model

FEWEST = 3
"""Clusters of pairs below which a bootstrap says nothing."""


@dataclasses.dataclass(frozen=True)
class Score:
    """A section in a space. Shares are of the kept questions, None where there are none."""

    space: str
    name: str
    kept: int
    dropped: int
    """Questions with a word that the space does not have: not asked, not counted as wrong."""
    correct: int
    accuracy: float | None
    """The question's own words cannot be answers."""
    accuracy_unexcluded: float | None
    """They can."""
    only_c: float | None
    """The nearest neighbour of c alone (the question's words left out)."""
    only_b: float | None
    """The same of b; of the mean of the other pairs' b for 3cosavg and lrcos."""
    offset_cosine: float | None
    """Mean cosine of b - a with d - c; with the other pairs' mean offset for 3cosavg and lrcos."""
    interval: tuple[float, float] | None
    """Of accuracy, by bootstrap over pairs; None with fewer than FEWEST."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """What a suite found, and what must be known to judge it."""

    sections: list[Score]
    totals: list[Score]
    """Over all sections, every question counting once."""
    method: str
    case: str
    level: float
    spaces: dict[str, dict]
    """words: searched; found, asked: of the suite's words; about: see Space."""

    def to_json(self) -> dict:
        return dataclasses.asdict(self)


def suite(
    m: Model | Space | Sequence[Space],
    file: str | Path | list[Section],
    names: Sequence[str] = (),
    *,
    method: str = "3cosadd",
    case: str = "fold",
    restrict: int | None = None,
    level: float = 0.9,
    samples: int = 1000,
    seed: int = 0,
    **options,
) -> Suite:
    """Score a file or folder of analogies (see questions.py) in the named spaces, all by default.

    method: see analogies.py; for 3cosavg and lrcos a section's pairs are its questions. case, restrict: see Index.
    level, samples, seed: of the intervals. options: see `spaces_of`.
    Raises UserError for malformed files and where no space keeps a single question.
    """
    require_method(method)
    require_bootstrap(level, samples, seed)
    sections = file if isinstance(file, list) else read_suite(file)
    words = list(dict.fromkeys(word for section in sections for word in section.words))
    rows, totals, about = [], [], {}
    for space in spaces_of(m, names, words=words, case=case, **options):
        index = Index(space, case=case, restrict=restrict)
        asked = [_ask(index, section, method, seed) for section in sections]
        draws = [draw.sums(samples, seed + i) for i, draw in enumerate(asked)]
        for draw, sums in zip(asked, draws, strict=True):
            rows.append(_score(space.name, [draw], sums, level))
        totals.append(_score(space.name, asked, np.sum(draws, axis=0), level))
        found = sum(index.key(word) != ABSENT for word in words)
        about[space.name] = dict(words=len(index.words), found=found, asked=len(words), about=space.about)
    missing = ", ".join([word for word in words if index.key(word) == ABSENT][:5])
    require(
        any(total.kept for total in totals),
        f"no question kept of {sum(t.kept + t.dropped for t in totals[:1]):,}: the vocabulary lacks {missing} ..."
        " (words of several tokens: --pieces mean)",
    )
    return Suite(rows, totals, method, case, level, about)


MOST_SAMPLES = 100_000


def require_bootstrap(level: float, samples: int, seed: int) -> None:
    """Raise UserError unless these are the options of a bootstrap."""
    require(
        0 < level < 1 and 1 <= samples <= MOST_SAMPLES and seed >= 0,
        f"level {level}, samples {samples}, seed {seed}: a level between 0 and 1, one sample to {MOST_SAMPLES:,},"
        " a seed >= 0",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Asked:
    """A section's kept questions with their verdicts, and the cluster of each pair of a question."""

    name: str
    dropped: int
    verdicts: Verdicts
    cluster_QC: np.ndarray

    def sums(self, samples: int, seed: int) -> np.ndarray:
        """[samples, 2]: right answers and questions, when clusters of pairs are drawn anew with replacement.

        A question counts as often as all its pairs were drawn, the product (Owen 2007).
        """
        if not len(self.cluster_QC):
            return np.zeros((samples, 2))
        clusters, cluster_QC = np.unique(self.cluster_QC, return_inverse=True)
        cluster_QC = cluster_QC.reshape(self.cluster_QC.shape)
        random, count = np.random.default_rng(seed), len(clusters)
        drawn_SP = random.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float32)
        right_P2 = np.stack([self.verdicts.excluded, np.ones(len(cluster_QC))], 1).astype(np.float32)
        if cluster_QC.shape[1] == 1:
            tally_P2 = np.zeros((count, 2), np.float32)
            np.add.at(tally_P2, cluster_QC[:, 0], right_P2)
            return drawn_SP @ tally_P2
        tally_PP2 = np.zeros((count, count, 2), np.float32)
        np.add.at(tally_PP2, tuple(cluster_QC.T), right_P2)
        return np.einsum("sp,spk->sk", drawn_SP, np.tensordot(drawn_SP, tally_PP2, axes=(1, 1)))


def _ask(index: Index, section: Section, method: str, seed: int) -> _Asked:
    """Ask what the space has the words for."""
    a_P = np.array([index.key(a) for a, _ in section.pairs], np.int64)
    rights = [[key for key in map(index.key, some) if key != ABSENT] for _, some in section.pairs]
    most = max((len(keys) for keys in rights), default=1)
    width = max(most, 1)
    right_PA = np.array([keys + (keys[:1] or [ABSENT]) * (width - len(keys)) for keys in rights], np.int64)
    right_PA = right_PA.reshape(len(a_P), width)  # also of a section without pairs
    known_P = (a_P != ABSENT) & (right_PA[:, 0] != ABSENT)
    keys_P2, cluster_P = np.stack([a_P, right_PA[:, 0]], 1), section.clusters
    if method in OF_QUESTIONS:
        i, j = section.questions_Q2[known_P[section.questions_Q2].all(1)].T
        dropped = len(section.questions_Q2) - len(i)
        verdicts = _nothing() if not len(i) else answer_questions(
            index, method, np.column_stack([keys_P2[i], keys_P2[j, 0]]), right_PA[j]
        )  # fmt: skip
        return _Asked(section.name, dropped, verdicts, np.stack([cluster_P[i], cluster_P[j]], 1))
    first = np.unique(cluster_P, return_index=True)[1]  # a pair and its reverse would teach opposite offsets
    kept = first[known_P[first]]
    enough = len(kept) >= 2
    kept = kept if enough else kept[:0]
    given = index, method, keys_P2[kept], right_PA[kept], seed
    verdicts = answer_pairs(*given) if enough else _nothing()
    return _Asked(section.name, len(first) - len(kept), verdicts, cluster_P[kept, None])


def _nothing() -> Verdicts:
    return Verdicts(*(np.zeros(0, bool) for _ in range(4)), offset_cosine=np.zeros(0))


def _score(space: str, asked: list[_Asked], sums_S2: np.ndarray, level: float) -> Score:
    """One section's score, or all of theirs together."""
    kept = sum(len(one.cluster_QC) for one in asked)
    mean = lambda name: (  # noqa: E731
        float(np.concatenate([getattr(one.verdicts, name) for one in asked]).mean()) if kept else None
    )
    drawn = sums_S2[sums_S2[:, 1] > 0]
    clusters = sum(len(np.unique(one.cluster_QC)) for one in asked)
    interval = None
    if clusters >= FEWEST and len(drawn):
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [(1 - level) / 2, (1 + level) / 2])
        interval = (float(low), float(high))
    correct = int(sum(one.verdicts.excluded.sum() for one in asked))
    name = asked[0].name if len(asked) == 1 else "total"
    dropped = sum(one.dropped for one in asked)
    return Score(
        space, name, kept, dropped, correct, mean("excluded"), mean("unexcluded"), mean("only_c"), mean("only_b"),
        mean("offset_cosine"), interval,
    )  # fmt: skip
