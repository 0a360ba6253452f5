"""Scores of answers against sacrebleu's own numbers, closed forms and scikit-learn."""

import math
import random
import sys
import xml.etree.ElementTree

import numpy as np
import pytest

from lm.errors import UserError
from lm.sample.scores import OTHER, accuracy, bleu, chrf, confusion, draw_confusion, references_by_source

ANSWERS = ["the cat sat on the mat", "a dog ran to the river", "where is the old king now"]
REFERENCES = [
    ["the cat sat on a mat", "a cat was on the mat", "the cat sat on the mat there"],
    ["the dog ran to the river"],
    ["where is the king now", "where is that old king now"],
]


@pytest.fixture
def sacrebleu():
    return pytest.importorskip("sacrebleu", reason="needs the extra translation")


def test_one_reference_each_is_what_sacrebleu_says(sacrebleu):
    """Its public functions are the judge, with their signatures."""
    first = [texts[0] for texts in REFERENCES]
    for score, judge, metric in ((bleu, sacrebleu.corpus_bleu, "BLEU"), (chrf, sacrebleu.corpus_chrf, "CHRF")):
        found = score(ANSWERS, first)
        assert found.value == judge(ANSWERS, [first]).score and 40 < found.value < 100
        assert score(ANSWERS, [[text] for text in first]) == found
        assert found.signature.startswith("nrefs:1|") and sacrebleu.__version__ in found.signature, metric


def test_bleu_is_its_formula(sacrebleu):
    """Geometric mean of n-gram precisions times the brevity penalty, counted here by hand for one short pair."""
    found = bleu(["a b c d e x"], ["a b c d e f g h"])
    precisions = [5 / 6, 4 / 5, 3 / 4, 2 / 3]
    expected = 100 * math.exp(sum(map(math.log, precisions)) / 4) * math.exp(1 - 8 / 6)
    assert found.value == pytest.approx(expected, rel=1e-9)


def test_several_references_each_are_used(sacrebleu):
    """3, 1 and 2 of them: streams with gaps, which sacrebleu takes; an n-gram of any of them counts."""
    streams = [
        [REFERENCES[0][0], REFERENCES[1][0], REFERENCES[2][0]],
        [REFERENCES[0][1], None, REFERENCES[2][1]],
        [REFERENCES[0][2], None, None],
    ]
    for score, judge in ((bleu, sacrebleu.corpus_bleu), (chrf, sacrebleu.corpus_chrf)):
        found = score(ANSWERS, REFERENCES)
        assert found.value == judge(ANSWERS, streams).score > score(ANSWERS, [texts[0] for texts in REFERENCES]).value
        assert found.signature.startswith("nrefs:var|")
    for answer in REFERENCES[0]:
        assert bleu([answer], [REFERENCES[0]]).value == pytest.approx(100)


def test_a_repeated_source_is_one_with_several_references():
    sources, references = references_by_source(["go", "stop", "go", "run"], ["va", "arrête", "vas-y", "cours"])
    assert (sources, references) == (["go", "stop", "run"], [["va", "vas-y"], ["arrête"], ["cours"]])


@pytest.mark.parametrize(
    "answers, references, message",
    [
        ([], [], "no answers"),
        (["a"], [], "1 answers and references for 0"),
        (["a", "b"], [["a"], []], "an answer has no reference"),
    ],
)
def test_what_cannot_be_scored_is_refused(sacrebleu, answers, references, message):
    for score in (bleu, chrf):
        with pytest.raises(UserError, match=message):
            score(answers, references)


def test_without_sacrebleu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UserError, match=r"need the package sacrebleu: pip install -e '\.\[translation\]'"):
        bleu(["a"], ["a"])


@pytest.mark.parametrize("right, count", [(0, 7), (5, 7), (7, 7), (180, 200)])
def test_accuracy_and_wilsons_interval_in_closed_form(right, count):
    """(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96."""
    found = accuracy(["yes"] * right + ["no"] * (count - right), ["yes"] * count)
    z, p = 1.959963984540054, right / count
    middle, half = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    expected = p, (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count), count
    assert found == pytest.approx(expected, abs=1e-12)


def answers_and_labels(answerable: list[str], labels: list[str], count: int = 300):
    rng = random.Random(0)
    return rng.choices(answerable, k=count), rng.choices(labels, k=count)


def test_confusion_is_that_of_scikit_learn():
    """With answers that are no label in a column of their own, and without any, square."""
    metrics = pytest.importorskip("sklearn.metrics")
    labels = ["seven", "one", "two", "nine"]
    answers, true = answers_and_labels([*labels, "eleven", ""], labels)
    names, counts_RC = confusion(answers, true)
    assert names == [*sorted(labels), OTHER] and counts_RC.shape == (4, 5)
    named = [answer if answer in labels else OTHER for answer in answers]
    np.testing.assert_array_equal(counts_RC, metrics.confusion_matrix(true, named, labels=names)[:4])

    answers, true = answers_and_labels(labels[:3], labels)
    names, counts_RC = confusion(answers, true)
    assert names == sorted(labels)
    np.testing.assert_array_equal(counts_RC, metrics.confusion_matrix(true, answers, labels=names))
    assert counts_RC.trace() / counts_RC.sum() == pytest.approx(accuracy(answers, true).value)


def test_the_figure_says_names_and_counts(tmp_path):
    """SVG keeps each text as paths after a comment that spells it; dollars are no formulas."""
    names, counts_RC = confusion(["$a$", "b", "b", "?"], ["$a$", "$a$", "b", "b"])
    out = tmp_path / "confusion.svg"
    draw_confusion(names, counts_RC, out, title="of 4")
    first = out.read_bytes()
    xml.etree.ElementTree.fromstring(first)
    for text in ("$a$", "b", OTHER, "label", "answer", "of 4"):
        assert f"<!-- {text} -->" in first.decode(), text
    assert first.decode().count("<!-- 1 -->") == 4
    draw_confusion(names, counts_RC, out, title="of 4")
    assert out.read_bytes() == first


def test_labels_and_answers_must_pair():
    for score in (accuracy, confusion):
        with pytest.raises(UserError, match="1 answers and 2 labels"):
            score(["a"], ["a", "b"])
        with pytest.raises(UserError, match="nothing to score"):
            score([], [])
