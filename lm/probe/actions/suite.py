"""suite FILE | FOLDER: analogies as Google's file or BATS's folder has them, in every space.

Every section in every space, with the questions' words as answers and without, beside what needs no analogy.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from lm.errors import printable, require
from lm.model.trained import Trained
from lm.probe.drawing import canvas
from lm.probe.index import ABSENT, Index
from lm.probe.options import BootstrapOptions, Report, require_bootstrap
from lm.probe.questions import Section, read_suite
from lm.probe.scorers import OF_QUESTIONS, Verdicts, answer_pairs, answer_questions, require_method
from lm.probe.spaces import spaces_of
from lm.probe.words import Space
from lm.tables import records_table

FEWEST = 3
"""Clusters of pairs below which a bootstrap says nothing."""


@dataclasses.dataclass(frozen=True)
class Options(BootstrapOptions):
    """Analogies as Google's file (": section", then `a b c d`) or BATS's folder (a file a section: `a<tab>b1/b2`)."""

    file: Annotated[Path, tyro.conf.Positional]
    """A file or a folder."""
    method: Literal["3cosadd", "3cosmul", "3cosavg", "lrcos"] = "3cosadd"
    """3cosavg and lrcos (Drozd 2016) ask each pair what the section's other pairs teach."""

    def check(self) -> None:
        read_suite(self.file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SectionScore:
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
    """The interval of accuracy, by bootstrap over pairs; None with fewer than FEWEST."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """What a suite found, and what must be known to judge it."""

    sections: list[SectionScore]
    totals: list[SectionScore]
    """Over all sections, every question counting once."""
    method: str
    case: str
    level: float
    spaces: dict[str, dict]
    """words: searched; found, asked: of the suite's words; about: see Space."""

    def to_json(self) -> dict:
        """The fields."""
        return dataclasses.asdict(self)

    def tables(self) -> list:
        """A row for each section in each space, the totals last, and what must be known to judge them."""
        rows = sorted(self.sections + self.totals, key=lambda row: list(self.spaces).index(row.space))
        if len(self.sections) == len(self.totals):
            rows = self.sections
        columns = {
            "space": "space", "name": "section", "kept": "kept", "dropped": "dropped", "accuracy": "accuracy",
            "interval": f"{self.level:.0%} interval", "accuracy_unexcluded": "not excluded", "only_c": "only c",
            "only_b": "only b", "offset_cosine": "offset cosine",
        }  # fmt: skip
        notes = [
            f"{name}: {s['words']:,} words searched, {s['found']:,} of the suite's {s['asked']:,} among them"
            + (f"; {s['about']}" if s["about"] else "")
            for name, s in self.spaces.items()
        ]
        how = f"{self.method}, case rule {self.case}; intervals by bootstrap over pairs"
        return [records_table(columns, rows, left=2), "", *notes, how]


def suite(
    m: Trained | Space | Sequence[Space],
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

    method: see scorers.py; for 3cosavg and lrcos a section's pairs are its questions. case, restrict: see Index.
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
    return Suite(sections=rows, totals=totals, method=method, case=case, level=level, spaces=about)


# --- a section's questions -------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, eq=False)
class _Asked:
    """A section's kept questions with their verdicts, and the cluster of each pair of a question."""

    name: str
    dropped: int
    verdicts: Verdicts
    cluster_QX: np.ndarray

    def sums(self, samples: int, seed: int) -> np.ndarray:
        """Count right answers and questions, [samples, 2], when clusters of pairs are drawn anew with replacement.

        A question counts as often as all its pairs were drawn, the product (Owen 2007).
        """
        if not len(self.cluster_QX):
            return np.zeros((samples, 2))
        clusters, cluster_QX = np.unique(self.cluster_QX, return_inverse=True)
        cluster_QX = cluster_QX.reshape(self.cluster_QX.shape)
        random, count = np.random.default_rng(seed), len(clusters)
        drawn_ZJ = random.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float32)
        right_Q2 = np.stack([self.verdicts.excluded, np.ones(len(cluster_QX))], 1).astype(np.float32)
        if cluster_QX.shape[1] == 1:
            tally_J2 = np.zeros((count, 2), np.float32)
            np.add.at(tally_J2, cluster_QX[:, 0], right_Q2)
            return drawn_ZJ @ tally_J2
        tally_JJ2 = np.zeros((count, count, 2), np.float32)
        np.add.at(tally_JJ2, tuple(cluster_QX.T), right_Q2)
        return np.einsum("zj,zjk->zk", drawn_ZJ, np.tensordot(drawn_ZJ, tally_JJ2, axes=(1, 1)))


def _ask(index: Index, section: Section, method: str, seed: int) -> _Asked:
    """Ask what the space has the words for."""
    a_J = np.array([index.key(a) for a, _ in section.pairs], np.int64)
    rights = [[key for key in map(index.key, some) if key != ABSENT] for _, some in section.pairs]
    most = max(map(len, rights), default=1) or 1
    right_JR = np.array([keys + (keys[:1] or [ABSENT]) * (most - len(keys)) for keys in rights], np.int64)
    right_JR = right_JR.reshape(len(a_J), most)  # also of a section without pairs
    known_J = (a_J != ABSENT) & (right_JR[:, 0] != ABSENT)
    keys_J2, cluster_J = np.stack([a_J, right_JR[:, 0]], 1), section.clusters
    if method in OF_QUESTIONS:
        i, j = section.questions_Q2[known_J[section.questions_Q2].all(1)].T
        dropped = len(section.questions_Q2) - len(i)
        keys_Q3 = np.column_stack([keys_J2[i], keys_J2[j, 0]])
        verdicts = answer_questions(index, method, keys_Q3, right_JR[j]) if len(i) else NOTHING
        return _Asked(section.name, dropped, verdicts, np.stack([cluster_J[i], cluster_J[j]], 1))
    first = np.unique(cluster_J, return_index=True)[1]  # a pair and its reverse would teach opposite offsets
    kept = first[known_J[first]]
    if len(kept) < 2:
        kept, verdicts = kept[:0], NOTHING
    else:
        verdicts = answer_pairs(index, method, keys_J2[kept], right_JR[kept], seed)
    return _Asked(section.name, len(first) - len(kept), verdicts, cluster_J[kept, None])


NOTHING = Verdicts(**{field.name: np.zeros(0) for field in dataclasses.fields(Verdicts)})


def _score(space: str, asked: list[_Asked], sums_Z2: np.ndarray, level: float) -> SectionScore:
    """Score one section, or all of them together."""
    kept = sum(len(one.cluster_QX) for one in asked)

    def mean(name):
        return float(np.concatenate([getattr(one.verdicts, name) for one in asked]).mean()) if kept else None

    drawn_Z2 = sums_Z2[sums_Z2[:, 1] > 0]
    clusters = sum(len(np.unique(one.cluster_QX)) for one in asked)
    interval = None
    if clusters >= FEWEST and len(drawn_Z2):
        low, high = np.quantile(drawn_Z2[:, 0] / drawn_Z2[:, 1], [(1 - level) / 2, (1 + level) / 2])
        interval = (float(low), float(high))
    return SectionScore(
        space=space, name=asked[0].name if len(asked) == 1 else "total", kept=kept,
        dropped=sum(one.dropped for one in asked), correct=int(sum(one.verdicts.excluded.sum() for one in asked)),
        accuracy=mean("excluded"), accuracy_unexcluded=mean("unexcluded"), only_c=mean("only_c"),
        only_b=mean("only_b"), offset_cosine=mean("offset_cosine"), interval=interval,
    )  # fmt: skip


# --- for the command, and the figure ---------------------------------------------------------------------------------
def run(m: Trained | Space, o: Options) -> Report:
    """Score the suite in the model's spaces, or in a file's."""
    sections = read_suite(o.file)
    spaces = o.spaces(m, o.space, [word for section in sections for word in section.words])
    found = suite(
        spaces, sections, method=o.method, case=o.case, restrict=o.restrict, level=o.level, samples=o.samples,
        seed=o.seed,
    )  # fmt: skip
    value = found.to_json() | {"tied": isinstance(m, Trained) and m.model.tied}
    return Report(value, found.tables(), lambda out: draw_suite(found, out))


def draw_suite(found: Suite, out: Path) -> None:
    """Draw each section's accuracy, a panel a space: words excluded (with interval) or not, and what c alone gives."""
    names = list(dict.fromkeys(row.space for row in found.sections))
    sections = list(dict.fromkeys(row.name for row in found.sections))
    columns = 3 if len(names) > 1 else 1  # of the legend, which is wider than one panel
    size = (1.8 + 3.1 * len(names), 1.6 + 0.44 * len(sections) + 0.3 * (3 // columns - 1))
    with canvas(out, 1, len(names), figsize=size, sharey=True, squeeze=False) as axes:
        for axis, name in zip(axes[0], names, strict=True):
            rows = {row.name: row for row in found.sections if row.space == name and row.kept}
            draw_scores(axis, [rows.get(section) for section in sections])
            axis.set_title(name, fontsize=12)
            axis.set_yticks(range(len(sections)), map(printable, sections))
            axis.set_xlabel("share of questions right")
        axes[0, 0].invert_yaxis()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        axes[0, 0].figure.legend(
            handles[1:] + handles[:1], labels[1:] + labels[:1], loc="outside lower center", ncols=columns
        )


def draw_scores(axis, rows: Sequence) -> None:
    """Draw two bars a row, and a mark for the nearest neighbour of c; None leaves a gap."""
    shown = [(y, row) for y, row in enumerate(rows) if row is not None]
    y = np.array([y for y, _ in shown], float)
    axis.grid(False, axis="y")
    axis.set_xlim(0, 1.02)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])  # panels stand side by side
    bars = (("accuracy", "query words excluded", "C0", -0.19), ("accuracy_unexcluded", "not excluded", "C1", 0.19))
    for key, label, colour, shift in bars:
        axis.barh(y + shift, [getattr(row, key) for _, row in shown], 0.36, color=colour, label=label)
    for place, row in shown:
        if row.interval:
            axis.plot(row.interval, [place - 0.19] * 2, color="0.1", linewidth=1.6, solid_capstyle="butt")
    only = [row.only_c for _, row in shown]
    axis.plot(
        only, y, "D", color="0.1", markersize=5, markerfacecolor="white", label="nearest to c alone", clip_on=False
    )
