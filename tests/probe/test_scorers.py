"""Scorers against gensim question by question, against plain loops, and where the answer is known beforehand."""

import itertools

import numpy as np
import pytest
from close import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from probe_cases import lattice, random_space, write_suite

from lm.errors import UserError
from lm.probe import Space, analogy, centred, neighbours, suite, whitened
from lm.probe.index import Index
from lm.probe.scorers import combine, logistic_regression


# --- against others --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", ["fold", "exact"])
@pytest.mark.parametrize("restrict", [None, 90])
def test_counts_are_gensims(tmp_path, case, restrict):
    """Words in several cases, words that are missing, repeated questions, vectors of different lengths."""
    keyed = pytest.importorskip("gensim.models.keyedvectors")
    space, file = random_space(words=150, width=5), tmp_path / "suite.txt"
    write_suite(file, space, sections=4, questions=150)
    theirs = keyed.KeyedVectors(space.vectors_VD.shape[1])
    theirs.add_vectors(list(space.words), space.vectors_VD)
    options = dict(restrict_vocab=restrict or 300_000, case_insensitive=case == "fold", dummy4unknown=False)
    sections = theirs.evaluate_word_analogies(str(file), **options)[1]
    ours = suite(space, file, case=case, restrict=restrict, samples=2)
    for row, their in zip(ours.sections + ours.totals, sections, strict=True):
        correct, kept = len(their["correct"]), len(their["correct"]) + len(their["incorrect"])
        assert (row.correct, row.kept, row.kept + row.dropped) == (correct, kept, 600 if row.name == "total" else 150)
    assert 0 < ours.totals[0].correct < ours.totals[0].kept


def plain(space: Space, a: str, b: str, c: str, method: str, exclude: bool, case: str) -> str:
    """The best word, by definition and in float64, a candidate at a time."""
    form = str.upper if case == "fold" else str
    unit = {w: v / np.linalg.norm(v) for w, v in zip(space.words, space.vectors_VD.astype(float), strict=True)}
    vectors = [next(unit[known] for known in space.words if form(known) == form(word)) for word in (a, b, c)]

    def score(x):
        to_a, to_b, to_c = (vector @ x for vector in vectors)
        if method == "3cosadd":
            return to_b - to_a + to_c
        return (to_b + 1) / 2 * (to_c + 1) / 2 / ((to_a + 1) / 2 + 0.001)

    out = {form(word) for word in (a, b, c)} if exclude else set()
    return max((w for w in space.words if form(w) not in out), key=lambda w: score(unit[w]))


@pytest.mark.parametrize("method", ["3cosadd", "3cosmul"])
@pytest.mark.parametrize("case", ["fold", "exact"])
def test_the_vectorised_scores_are_the_plain_ones(tmp_path, method, case):
    """Accuracy with and without the words, and single answers, question for question."""
    space, file = random_space(words=60, width=6, seed=1), tmp_path / "suite.txt"
    questions = write_suite(file, space, sections=1, questions=60, missing=False)
    form = str.upper if case == "fold" else str
    row = suite(space, file, method=method, case=case, samples=2).sections[0]
    for exclude, share in ((True, row.accuracy), (False, row.accuracy_unexcluded)):
        right = 0
        for a, b, c, d in questions:
            best = plain(space, a, b, c, method, exclude, case)
            right += form(best) == form(d)
            found = analogy(space, b, a, c, method=method, case=case, exclude=exclude, n=1)
            assert found.answers[0][0] == best
        assert share == pytest.approx(right / len(questions))
    only = {"only_b": 1, "only_c": 2}
    for name, place in only.items():
        right = 0
        for question in questions:
            known = {form(word) for word in question[:3]}
            alone = neighbours(space, question[place], n=len(space.words), case=case).answers
            right += form(next(word for word, _ in alone if form(word) not in known)) == form(question[3])
        assert getattr(row, name) == pytest.approx(right / len(questions))


@pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
def test_multiplying_is_gensims_too():
    """Their epsilon is another, their order the same."""
    keyed = pytest.importorskip("gensim.models.keyedvectors")
    space = random_space(words=80, width=6, seed=2, cases=False)
    theirs = keyed.KeyedVectors(6)
    theirs.add_vectors(list(space.words), space.vectors_VD)
    for b, a, c in itertools.islice(itertools.permutations(space.words[:8], 3), 40):
        expected = theirs.most_similar_cosmul(positive=[b, c], negative=[a], topn=1)[0][0]
        cosines = Index(space, case="exact").cosines(np.array([space.words.index(word) for word in (a, b, c)]))
        scores = combine("3cosmul", *cosines, epsilon=1e-6)
        scores[[space.words.index(word) for word in (a, b, c)]] = -np.inf
        assert space.words[scores.argmax()] == expected


# --- where the answer is known ---------------------------------------------------------------------------------------
METHODS = ("3cosadd", "3cosmul", "3cosavg", "lrcos")


@pytest.mark.parametrize("method", METHODS)
def test_planted_directions_are_found_whole(tmp_path, method):
    """Gender x age x domain, each a direction of its own: every question right, and every offset the same."""
    space, file = lattice(tmp_path)
    for row in suite(space, file, method=method).sections:
        assert row.accuracy == 1.0 and row.kept > 0 and row.dropped == 0
        assert row.interval == (1.0, 1.0)
        assert row.offset_cosine == pytest.approx(1, abs=1e-5)
    if method == "3cosadd":
        assert [row.accuracy_unexcluded for row in suite(space, file).sections] == [1.0, 1.0]


@pytest.mark.parametrize("method", METHODS)
def test_random_vectors_know_nothing(tmp_path, method):
    """About one in 400 by chance; c itself is the nearest to a sum in which it stands once c may be the answer."""
    space, file = lattice(tmp_path)
    rng = np.random.default_rng(0)
    noise = Space("noise", space.words, rng.normal(size=(len(space.words), 50)).astype("float32"))
    total = suite(noise, file, method=method).totals[0]
    assert total.accuracy <= 0.05 and total.accuracy_unexcluded == 0 and total.only_c <= 0.05
    assert abs(total.offset_cosine) < 0.15


def test_two_words_a_domain_need_no_analogy(tmp_path):
    """Pairs that differ by noise alone: d is the nearest neighbour of c, and c is nearer still.

    Leaving the question's words out then scores 1 without any relation, as only-c tells, and not leaving them out 0
    (Linzen 2016).
    """
    rng, file = np.random.default_rng(0), tmp_path / "pairs.txt"
    words = [f"{gender}{i}" for i in range(9) for gender in "mf"]
    noise = rng.normal(size=(18, 40)) * 0.02
    space = Space("pairs", tuple(words), np.repeat(np.eye(9, 40), 2, axis=0) + noise)
    asked = [f"m{i} f{i} m{j} f{j}" for i in range(9) for j in range(9) if i != j]
    file.write_text(": nothing\n" + "\n".join(asked))
    (row,) = suite(space, file).sections
    assert (row.accuracy, row.accuracy_unexcluded, row.only_c) == (1, 0, 1)
    assert row.only_b < 0.25  # one word in fifteen, by chance
    assert abs(row.offset_cosine) < 0.05


def test_bases_and_answers_are_named(tmp_path):
    space, _ = lattice(tmp_path)
    found = analogy(space, "m0o", "f0o", "f3o")
    assert found.answers[0][0] == "m3o" and found.excluded == ["m0o", "f0o", "f3o"]
    assert {"m0o", "f0o", "f3o"}.isdisjoint(word for word, _ in found.answers)
    assert {found.only_b, found.only_c}.isdisjoint({"m0o", "f0o", "f3o"})
    free = analogy(space, "m0o", "f0o", "f3o", exclude=False, n=3)
    assert free.excluded == [] and free.to_json()["answers"][0] == {"word": "m3o", "score": free.answers[0][1]}
    scores = [score for _, score in free.answers]
    assert scores == sorted(scores, reverse=True) and len(scores) == 3


# --- properties ------------------------------------------------------------------------------------------------------
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), method=st.sampled_from(METHODS))
def test_scores_do_not_depend_on_lengths_or_axes(tmp_path_factory, seed, method):
    """Each vector may be scaled and all be turned; excluding the query's words never loses a right answer that is
    none of them."""
    rng = np.random.default_rng(seed)
    space = random_space(words=40, width=8, seed=seed, cases=False)
    file = tmp_path_factory.mktemp("suite") / "suite.txt"
    write_suite(file, space, sections=1, questions=12, missing=False, seed=seed)
    turn_DD = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    scale_V1 = 2.0 ** rng.integers(-3, 4, size=(40, 1))
    moved = Space("moved", space.words, (space.vectors_VD * scale_V1).astype("float32"))
    turned = Space("turned", space.words, (space.vectors_VD.astype(float) @ turn_DD).astype("float32"))
    options = dict(method=method, samples=5, case="exact")
    (row,), (scaled,), (rotated,) = (suite(some, file, **options).sections for some in (space, moved, turned))
    assert (scaled.correct, scaled.accuracy_unexcluded) == (row.correct, row.accuracy_unexcluded)
    assert (rotated.correct, rotated.accuracy_unexcluded) == (row.correct, row.accuracy_unexcluded)
    assert rotated.offset_cosine == pytest.approx(row.offset_cosine, abs=1e-5)
    assert row.accuracy >= row.accuracy_unexcluded


def test_centring_and_whitening():
    """Centred: mean zero. Whitened: covariance the identity on what the words span, duplicates of axes left out."""
    space = random_space(words=50, width=6)
    flat = Space("flat", space.words, np.concatenate([space.vectors_VD, space.vectors_VD[:, :2]], 1) + 3)
    assert np.abs(centred(flat).vectors_VD.mean(0)).max() < 1e-6 * np.abs(flat.vectors_VD).max()
    white_VD = whitened(flat).vectors_VD
    assert white_VD.shape == (50, 6)
    assert_close(white_VD.T @ white_VD / 50, np.eye(6), relative=1e-5)
    assert centred(flat).name == "flat, centred"
    with pytest.raises(UserError, match="nothing to whiten"):
        whitened(Space("one", ("a", "b"), np.ones((2, 3))))


def test_logistic_regression_is_at_its_minimum():
    """Against its own optimality conditions: w is the weighted sum of residuals, which add to zero."""
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(size=(7, 4)) + 0.7, rng.normal(size=(19, 4))
    p = logistic_regression(positive, negative, strength=2.0)
    x, y = np.concatenate([positive, negative]), np.repeat([1.0, 0.0], [7, 19])
    residual = 2.0 * np.repeat([26 / 14, 26 / 38], [7, 19]) * (y - p(x))
    assert residual.sum() == pytest.approx(0, abs=1e-4)
    ahead, at_zero = (np.log(p(x) / (1 - p(x))) for x in (np.eye(4), np.zeros((1, 4))))
    weights = ahead - at_zero
    np.testing.assert_allclose(weights, residual @ x, atol=1e-4)  # the search ends at gradients of that size


def test_unknown_words_are_told_with_the_nearest(tmp_path):
    space, _ = lattice(tmp_path)
    with pytest.raises(UserError, match=r"m0x: not among the \d+ words of space lattice; did you mean m0[oy]\?"):
        analogy(space, "m0x", "f0o", "f3o")
    with pytest.raises(UserError, match="method 3cosad: no such method; did you mean 3cosadd"):
        analogy(space, "m0o", "f0o", "f3o", method="3cosad")
    with pytest.raises(UserError, match="not finite"):
        Space("bad", ("a",), np.array([[np.nan]]))
