"""Scores of answers by what they should have been: BLEU and chrF of translations, accuracy and confusion of labels.

Strings in, numbers out. R is labels that should have been given, C answers that were.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.errors import UserError, require

OTHER = "other"
"""The name, among answers, of whatever is no label."""


# --- translations ----------------------------------------------------------------------------------------------------
class TextScore(NamedTuple):
    """A score of a whole set, 0 to 100, and sacrebleu's signature, which says how it was computed."""

    value: float
    signature: str


def references_by_source(sources: Sequence[str], targets: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Each source once, in order, and the list of its targets: the references that several lines give for it."""
    require(len(sources) == len(targets), f"{len(sources)} sources and {len(targets)} targets: give one for each")
    references: dict[str, list[str]] = {}
    for source, target in zip(sources, targets, strict=True):
        references.setdefault(source, []).append(target)
    return list(references), list(references.values())


def bleu(answers: Sequence[str], references: Sequence[str | Sequence[str]]) -> TextScore:
    """BLEU (Papineni et al. 2002) as sacrebleu computes it (Post 2018): one score for all answers together.

    references: for each answer one text, or several. Raises UserError where there is none for an answer, and where
    sacrebleu is not installed.
    """
    return _corpus_score(_sacrebleu().BLEU(), answers, references)


def chrf(answers: Sequence[str], references: Sequence[str | Sequence[str]]) -> TextScore:
    """chrF (Popovic 2015), an F2 score of character n-grams up to 6, as sacrebleu computes it; otherwise as `bleu`."""
    return _corpus_score(_sacrebleu().CHRF(), answers, references)


def _corpus_score(metric, answers: Sequence[str], references: Sequence[str | Sequence[str]]) -> TextScore:
    each = [[texts] if isinstance(texts, str) else list(texts) for texts in references]
    require(len(answers) > 0, "no answers: there is nothing to score")
    require(len(each) == len(answers), f"{len(answers)} answers and references for {len(each)}: give some for each")
    require(all(each), "an answer has no reference: give at least one")
    streams = list(itertools.zip_longest(*each))  # the first reference of every answer, the second or None, ...
    value = metric.corpus_score(list(answers), streams).score
    return TextScore(value, str(metric.get_signature()))


def _sacrebleu():
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise UserError("BLEU and chrF need the package sacrebleu: pip install -e '.[translation]'") from error
    return metrics


# --- labels ----------------------------------------------------------------------------------------------------------
class Accuracy(NamedTuple):
    """The share of right answers among `count`, and Wilson's interval of 95% about it (Wilson 1927)."""

    value: float
    low: float
    high: float
    count: int


def accuracy(answers: Sequence[str], labels: Sequence[str]) -> Accuracy:
    """How many answers are exactly the label."""
    from scipy.stats import binomtest

    _require_pairs(answers, labels)
    right = sum(answer == label for answer, label in zip(answers, labels, strict=True))
    interval = binomtest(right, len(labels)).proportion_ci(0.95, method="wilson")
    return Accuracy(right / len(labels), float(interval.low), float(interval.high), len(labels))


def confusion(answers: Sequence[str], labels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """How often each label was answered by what.

    Returns (names, counts_RC): names of the answers, the labels in sorted order and then OTHER, if any answer is no
    label. Row r is the label names[r], of which there are R; column c the answer names[c].
    """
    _require_pairs(answers, labels)
    names = sorted(set(labels))
    places = {name: place for place, name in enumerate(names)}
    answered = [places.get(answer, len(names)) for answer in answers]
    counts_RC = np.zeros((len(names), len(names) + 1), np.int64)
    np.add.at(counts_RC, ([places[label] for label in labels], answered), 1)
    if counts_RC[:, -1].any():
        return [*names, OTHER], counts_RC
    return names, counts_RC[:, :-1]


def draw_confusion(names: Sequence[str], counts_RC: np.ndarray, out: Path, title: str = "") -> None:
    """Draw what `confusion` returns: shares of each row as colour, counts as numbers; written to out."""
    from lm.figures import STYLE, VERBATIM, check_format, plt, save  # a second to import, for those that draw

    check_format(out, "--figure")
    R, C = counts_RC.shape
    shares_RC = counts_RC / counts_RC.sum(axis=1, keepdims=True)
    framed = {"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}
    with plt.rc_context({**STYLE, **VERBATIM, **framed}):
        figure, axes = plt.subplots(figsize=(3.6 + 0.5 * C, 2.4 + 0.5 * R), layout="constrained")
        image = axes.imshow(shares_RC, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(C), names, rotation=45 if max(map(len, names)) > 6 else 0)
        axes.set_yticks(range(R), names[:R])
        axes.set(xlabel="answer", ylabel="label", title=title)
        for r, c in zip(*np.nonzero(counts_RC), strict=True):
            dark = shares_RC[r, c] > 0.5
            axes.text(
                c, r, f"{counts_RC[r, c]:,}", ha="center", va="center", color="white" if dark else "black", size=9
            )
        figure.colorbar(image, label="share of the label's answers", shrink=0.8)
        save(figure, out)


def _require_pairs(answers: Sequence[str], labels: Sequence[str]) -> None:
    require(len(answers) == len(labels), f"{len(answers)} answers and {len(labels)} labels: give one for each")
    require(len(labels) > 0, "no answers: there is nothing to score")
