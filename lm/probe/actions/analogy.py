"""analogy king man woman: king - man + woman, and what answers without analogy."""

import dataclasses
from typing import Annotated, Literal

import numpy as np
import tyro

from lm.errors import require
from lm.limits import Count
from lm.model.trained import Trained
from lm.probe.index import Index
from lm.probe.maps import draw_map, principal_map
from lm.probe.options import OneSpaceOptions, Report
from lm.probe.scorers import OF_QUESTIONS, combine, require_method
from lm.probe.spaces import spaces_of
from lm.probe.words import Space
from lm.tables import table


@dataclasses.dataclass(frozen=True)
class Options(OneSpaceOptions):
    """king man woman: king - man + woman."""

    words: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Three words: from the first take the second, add the third."""
    method: Literal["3cosadd", "3cosmul"] = "3cosadd"
    """Sum of cosines (Mikolov 2013), or their product (Levy and Goldberg 2014)."""
    unexcluded: bool = False
    """Let the three words be answers, too."""
    n: Count = 10
    """Answers to show."""

    def check(self) -> None:
        count = len(self.words)
        require(count == 3, f"an analogy takes three words, not {count}: lm probe RUN analogy king man woman")


@dataclasses.dataclass(frozen=True)
class Answer:
    """Words with scores, best first, and what must be known to judge them.

    Scores of 3cosadd are cosines with b - a + c.
    """

    answers: list[tuple[str, float]]
    space: str
    about: str
    excluded: list[str]
    """The query's words when they could not be answers, else none."""
    searched: int
    """Words among which the answers were found."""
    only_c: str | None = None
    """The nearest neighbour of c alone, the query left out: an analogy proves nothing that this answers too."""
    only_b: str | None = None

    def to_json(self) -> dict:
        """The fields, each answer as an object."""
        answers = [{"word": word, "score": score} for word, score in self.answers]
        return dataclasses.asdict(self) | {"answers": answers}

    def tables(self, question: str) -> list:
        """The question and its answers for a person."""
        head = f"{question}   in {self.space}, {self.searched:,} words searched"
        head += f", {' '.join(self.excluded)} left out" if self.excluded else ", nothing left out"
        parts = [head + (f" ({self.about})" if self.about else ""), "", table(("word", "score"), self.answers)]
        if self.only_c:
            parts += ["", f"without analogy: nearest to the last word {self.only_c}, to the first {self.only_b}"]
        return parts


def analogy(
    m: Trained | Space,
    b: str,
    a: str,
    c: str,
    *,
    space: str = "input",
    method: str = "3cosadd",
    exclude: bool = True,
    n: int = 10,
    case: str = "fold",
    restrict: int | None = None,
    **options,
) -> Answer:
    """Answer b - a + c, in the order it is said: analogy(m, "king", "man", "woman").

    space: see `spaces_of`; contextual is its last layer. exclude: leave the three words out of the answers.
    case, restrict: see Index. options: see `spaces_of`.
    Raises UserError for words that the space does not have, with the nearest that it has.
    """
    require_method(method, OF_QUESTIONS)
    *_, chosen = spaces_of(m, [space], words=(b, a, c), case=case, **options)
    index = Index(chosen, case=case, restrict=restrict)
    keys_13 = np.array([[index.require_key(word) for word in (a, b, c)]])
    a_V, b_V, c_V = index.cosines(keys_13[0])
    scores_QV = np.stack([combine(method, a_V, b_V, c_V), b_V, c_V])
    if method == "3cosadd":
        a_D, b_D, c_D = index.vectors(keys_13[0])
        scores_QV[0] /= max(np.linalg.norm(b_D - a_D + c_D), 1e-30)
    index.leave_out(scores_QV if exclude else scores_QV[1:], np.repeat(keys_13, 3 if exclude else 2, axis=0))
    only_b, only_c = (index.best(row_V, 1) for row_V in scores_QV[1:])
    return Answer(
        answers=index.best(scores_QV[0], n), space=chosen.name, about=chosen.about,
        excluded=[b, a, c] if exclude else [], searched=len(index.words),
        only_c=only_c[0][0] if only_c else None, only_b=only_b[0][0] if only_b else None,
    )  # fmt: skip


def run(m: Trained | Space, o: Options) -> Report:
    """Answer, and draw the four words in the plane."""
    b, a, c = o.words
    *_, space = o.spaces(m, [o.space], o.words)
    found = analogy(space, b, a, c, method=o.method, exclude=not o.unexcluded, n=o.n, case=o.case, restrict=o.restrict)

    def draw(out):
        answer = found.answers[0][0] if found.answers else c
        return draw_map(principal_map(space, [a, b, c, answer], case=o.case), out, pairs=[(a, b), (c, answer)])

    return Report(found.to_json(), found.tables(f"{b} - {a} + {c}"), draw)
