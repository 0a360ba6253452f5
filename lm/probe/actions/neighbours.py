"""neighbours WORD: the nearest words."""

import dataclasses
from typing import Annotated

import numpy as np
import tyro

from lm.limits import Count
from lm.model.trained import Trained
from lm.probe.actions.analogy import Answer
from lm.probe.index import Index
from lm.probe.maps import draw_map, principal_map
from lm.probe.options import OneSpaceOptions, Report
from lm.probe.spaces import spaces_of
from lm.probe.words import Space


@dataclasses.dataclass(frozen=True)
class Options(OneSpaceOptions):
    """The words nearest to a word."""

    word: Annotated[str, tyro.conf.Positional]
    """The word."""
    n: Count = 10
    """Answers to show."""


def neighbours(
    m: Trained | Space,
    word: str,
    *,
    space: str = "input",
    n: int = 10,
    case: str = "fold",
    restrict: int | None = None,
    **options,
) -> Answer:
    """Find the words whose vectors have the largest cosine with a word's; otherwise as `analogy`."""
    *_, chosen = spaces_of(m, [space], words=(word,), case=case, **options)
    index = Index(chosen, case=case, restrict=restrict)
    key_1 = np.array([index.require_key(word)])
    scores_1V = index.cosines(key_1)
    index.leave_out(scores_1V, key_1[:, None])
    return Answer(
        answers=index.best(scores_1V[0], n), space=chosen.name, about=chosen.about, excluded=[word],
        searched=len(index.words),
    )  # fmt: skip


def run(m: Trained | Space, o: Options) -> Report:
    """Find the neighbours, and draw them in the plane."""
    *_, space = o.spaces(m, [o.space], [o.word])
    found = neighbours(space, o.word, n=o.n, case=o.case, restrict=o.restrict)

    def draw(out):
        words = [o.word, *(word for word, _ in found.answers)]
        return draw_map(principal_map(space, words, case=o.case), out)

    return Report(found.to_json(), found.tables(o.word), draw)
