"""Files are read as they were meant or refused with the line; intervals know that questions share pairs."""

import itertools

import numpy as np
import pytest
from probe_cases import lattice, random_space
from scipy import stats

from lm.console import as_text
from lm.errors import UserError
from lm.probe import Space, read_groups, read_similarities, read_suite, similarity, suite
from lm.probe.actions.similarity import tables
from lm.probe.actions.suite import _Asked
from lm.probe.questions import read_ratings
from lm.probe.scorers import METHODS, Verdicts

GOOGLE = """: capitals
Athens Greece Oslo Norway
Oslo Norway Athens Greece

: gender  of people
king queen man woman
"""


@pytest.fixture
def file(tmp_path):
    def write(text: str, name: str = "questions.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


# --- files -----------------------------------------------------------------------------------------------------------
def test_googles_file(file):
    capitals, gender = read_suite(file(GOOGLE))
    assert (capitals.name, gender.name) == ("capitals", "gender  of people")
    assert capitals.pairs == [("Athens", ("Greece",)), ("Oslo", ("Norway",))]
    assert capitals.questions_Q2.tolist() == [[0, 1], [1, 0]] and gender.questions_Q2.tolist() == [[0, 1]]
    assert capitals.words == ["Athens", "Greece", "Oslo", "Norway"]


def test_a_pair_and_its_reverse_are_drawn_together(file):
    (section,) = read_suite(file(": flip\nking queen man woman\nqueen king woman man\n"))
    assert section.clusters.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("method", ["3cosavg", "lrcos"])
def test_what_pairs_teach_together_goes_one_way(tmp_path, file, method):
    """A file that asks both ways scores as the one that asks one way: opposite offsets would average to nothing."""
    space, path = lattice(tmp_path)
    section = read_suite(path)[0]
    lines = [f"{a} {b} {c} {d}" for a, b in section.one_way for c, d in section.one_way if a != c]
    back = [" ".join(np.array(line.split())[[1, 0, 3, 2]]) for line in lines]
    one, both = (suite(space, file(":s\n" + "\n".join(some)), method=method) for some in (lines, lines + back))
    (one,), (both,) = one.sections, both.sections
    assert (both.kept, both.dropped, both.accuracy) == (one.kept, one.dropped, one.accuracy) and one.accuracy > 0.9


@pytest.mark.parametrize(
    "text, said",
    [
        (": a\nking queen man\n", "line 2: a question is four words, `a b c d`, not 3"),
        ("\n: a\n\nking queen man woman child\n", "line 4: a question is four words, `a b c d`, not 5"),
        ("king queen man woman\n", "line 1: words before the first section; begin with `: name`"),
        (": a\nking queen man woman\n:  \n", "line 3: a section without a name"),
        (": a\n: b\n", "no questions in it"),
        ("", "no questions in it"),
        (": a\nking queen man woman\n# not a question\n", "line 3: a comment; remove it"),
    ],
)
def test_malformed_suites_are_told_by_line(file, text, said):
    with pytest.raises(UserError) as refusal:
        read_suite(file(text))
    assert said in str(refusal.value) and "questions.txt" in str(refusal.value)


def test_bats_folder(file):
    """Every pair asks every other; several answers are right, and a missing first one is passed over."""
    file("cat\tcats\nox\toxen/oxes\nmouse\tmice/mouses\n", "BATS/1_Inflectional/I01 [noun - plural].txt")
    file("big\tsmall\nhot\tcold\n", "BATS/4_Lexicographic/L10 [antonyms].txt")
    folder = file("read me", "BATS/readme.txt").parent
    plural, antonyms = read_suite(folder)
    assert plural.name == "I01 [noun - plural]" and plural.pairs[1] == ("ox", ("oxen", "oxes"))
    assert sorted(map(tuple, plural.questions_Q2)) == sorted(itertools.permutations(range(3), 2))
    assert len(antonyms.questions_Q2) == 2
    vectors = {
        "cat": (1, 0, 0),
        "cats": (1, 0, 1),
        "ox": (0, 1, 0),
        "oxes": (0, 1, 1),
        "mouse": (1, 1, 0),
        "x": (0, 0, 1),
    }
    space = Space("s", tuple(vectors), np.array([*vectors.values()], "float32"))
    row = suite(space, folder, samples=2).sections[0]
    assert (row.kept, row.dropped) == (2, 4)  # mouse has no answer here
    assert row.accuracy == 1


def test_a_malformed_pair_and_an_empty_folder(file, tmp_path):
    path = file("cat\tcats\nox\n", "B/I01.txt")
    with pytest.raises(UserError, match=r"I01.txt, line 2: a pair is `word<tab>answer/answer`, not 'ox'"):
        read_suite(path.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.txt files in this folder"):
        read_suite(tmp_path / "empty")
    with pytest.raises(UserError, match=r"cannot read .*nowhere"):
        read_suite(tmp_path / "nowhere")


def test_rated_words(file):
    """Tabs or commas, a line of titles, a carriage return at the end of each line (WordSim-353's ALL has them)."""
    for text in ("a\tb\t1.5\r\nb\tc\t2\r\nc\td\t3\r\n", "Word 1,Word 2,Human (mean)\na,b,1.5\nb,c,2\nc,d,3\n"):
        rated = read_similarities(file(text))
        assert [(one.first, one.second, one.score) for one in rated] == [("a", "b", 1.5), ("b", "c", 2), ("c", "d", 3)]
    with pytest.raises(UserError, match="line 2: `word word score` was expected, not 'b c'"):
        read_similarities(file("a b 1\nb c\nc d 3\nd e 4\n"))
    with pytest.raises(UserError, match="2 rated pairs; a rank correlation needs at least 3"):
        read_similarities(file("a b 1\nb c 2\n"))


@pytest.mark.parametrize("first", ["a b 8,5", "a\tb\t8,5", "a;b;8,5", "a,b,8.5", "a b 8.5 1 2", "a b +85e-1"])
def test_a_first_line_with_a_score_is_a_pair(file, first):
    rated, titles = read_ratings(file(f"{first}\nb c 2\nc d 3\n"))
    assert (rated[0].first, rated[0].second, rated[0].score, len(rated), titles) == ("a", "b", 8.5, 3, "")


@pytest.mark.parametrize(
    "line", ["a b nan", "a b inf", "a b -Infinity", "a b 1e400", "a b 8.5.1", "a b", "a,,8", "a b 1_0"]
)
@pytest.mark.parametrize("place", [0, 2])
def test_a_score_that_is_no_finite_number_is_refused_wherever_it_stands(file, line, place):
    lines = ["b c 2", "c d 3", "d e 4"]
    lines.insert(place, line)
    with pytest.raises(UserError, match=f"line {place + 1}: `word word score` was expected"):
        read_similarities(file("\n".join(lines)))


def test_titles_are_reported(file):
    """They were taken for no pair: who meant one can see it."""
    space = random_space(9, 3, cases=False)
    (found,) = similarity(space, file("one other rated\nword1 word2 5\nword1 word3 5\nword3 word2 4\n"))
    assert found.titles == "one other rated" and "as a pair: one other rated" in as_text(*tables([found]), width=150)


def test_groups(file):
    assert read_groups(file(": pets\ncat dog\nhen\n: tools\nsaw\n: pets\nfish\n")) == {
        "pets": ["cat", "dog", "hen", "fish"], "tools": ["saw"],
    }  # fmt: skip


# --- scores ----------------------------------------------------------------------------------------------------------
def test_missing_words_drop_questions_and_are_counted(tmp_path):
    """Without one of 32 words, each section loses the questions of its pair: 2 x 15 of 240."""
    space, path = lattice(tmp_path)
    fewer = Space("fewer", space.words[1:], space.vectors_VD[1:])
    found = suite(fewer, path)
    assert [(row.kept, row.dropped) for row in found.sections] == [(210, 30), (210, 30)]
    assert (found.totals[0].kept, found.totals[0].dropped) == (420, 60)
    assert found.spaces["fewer"] == dict(words=431, found=31, asked=32, about="")
    pairwise = suite(fewer, path, method="3cosavg")
    assert [(row.kept, row.dropped) for row in pairwise.sections] == [(15, 1), (15, 1)]


def test_a_section_of_which_nothing_is_known_has_no_score(file):
    space = Space("s", ("king", "queen", "man", "woman"), np.eye(4, dtype="float32"))
    found = suite(space, file(GOOGLE))
    capitals, gender = found.sections
    assert (capitals.kept, capitals.dropped, capitals.accuracy, capitals.interval) == (0, 2, None, None)
    assert gender.accuracy == 1 and gender.interval is None  # the only word left; two pairs have no spread
    with pytest.raises(UserError, match=r"no question kept of 3: the vocabulary lacks Athens, Greece, Oslo"):
        suite(Space("s", ("x",), np.eye(1)), file(GOOGLE))


@pytest.mark.parametrize("method", METHODS)
def test_a_section_without_questions_keeps_none(file, method):
    """Anywhere in a file, and as an empty file in a folder."""
    space = random_space(12, 4, cases=False)
    asked = "word1 word3 word4 word5\nword4 word5 word1 word3\nword1 word3 word6 word7\n"
    pairs = file("word1\tword3\nword4\tword5\n", "folder/full.txt")
    file("", "folder/bare.txt")
    for path, names in ((file(f": bare\n: full\n{asked}: last\n"), ("bare", "last")), (pairs.parent, ("bare",))):
        found = suite(space, path, method=method)
        bare = [row for row in found.sections if row.name in names]
        assert [(row.kept, row.dropped, row.accuracy, row.interval) for row in bare] == [(0, 0, None, None)] * len(
            names
        )
        assert found.totals[0].kept >= 2 and "nan" not in as_text(*found.tables(), width=150)


def test_bootstrap_over_pairs_is_the_plain_one():
    """A question counts the product of how often its pairs were drawn: against a loop over the drawn pairs."""
    rng = np.random.default_rng(0)
    cluster_Q2 = np.array([*itertools.permutations(range(5), 2)])
    right_Q = rng.random(len(cluster_Q2)) < 0.4
    asked = _Asked("s", 0, Verdicts(*[right_Q] * 4, offset_cosine=np.zeros(20)), cluster_Q2 * 7)
    sums_S2 = asked.sums(50, seed=3)
    drawn_SP = np.random.default_rng(3).multinomial(5, np.full(5, 0.2), size=50)
    for sums, times in zip(sums_S2, drawn_SP, strict=True):
        pairs = np.repeat(np.arange(5), times)
        chosen = [(i, j) for i in pairs for j in pairs if i != j]
        known = {tuple(q): right for q, right in zip(cluster_Q2.tolist(), right_Q, strict=True)}
        assert sums.tolist() == [sum(known[i, j] for i, j in chosen), len(chosen)]


def test_intervals_are_as_wide_as_pairs_are_few():
    """Whether a question is right depends on its second pair alone, right for half of 40: the share's standard
    deviation is sqrt(.25 / 40), whatever the number of questions made of them."""
    cluster_Q2 = np.array([*itertools.permutations(range(40), 2)])
    right_Q = cluster_Q2[:, 1] % 2 == 0
    asked = _Asked("s", 0, Verdicts(*[right_Q] * 4, offset_cosine=np.zeros(len(right_Q))), cluster_Q2)
    sums_S2 = asked.sums(4000, seed=0)
    share_S = sums_S2[:, 0] / sums_S2[:, 1]
    assert share_S.std() == pytest.approx(np.sqrt(0.25 / 40), rel=0.06)
    assert np.sqrt(0.25 / len(right_Q)) < share_S.std() / 5  # what resampling questions would have claimed


# --- similarity ------------------------------------------------------------------------------------------------------
def test_similarity_is_scipys_and_gensims(file):
    space, rng = random_space(words=60, width=7), np.random.default_rng(1)
    lines = []
    for _ in range(80):
        first, second = rng.choice(space.words, 2, replace=False)
        lines.append(f"{first.lower()}\t{'absent' if rng.random() < 0.1 else second}\t{rng.integers(0, 20) / 2}")
    path = file("\n".join(lines))
    (found,) = similarity(space, path)
    unit = {}
    for word, vector in zip(space.words, space.vectors_VD, strict=True):
        unit.setdefault(word.upper(), vector / np.linalg.norm(vector))
    rated = [line.split("\t") for line in lines if "absent" not in line]
    cosines = [unit[a.upper()] @ unit[b.upper()] for a, b, _ in rated]
    scores = [float(score) for *_, score in rated]
    assert found.rho == pytest.approx(stats.spearmanr(cosines, scores)[0], abs=1e-6)
    assert (found.kept, found.dropped) == (len(rated), 80 - len(rated))
    low, high = found.interval
    assert low < found.rho < high and 0.2 < high - low < 0.6  # about 3.3 / sqrt(72)
    keyed = pytest.importorskip("gensim.models.keyedvectors")
    theirs = keyed.KeyedVectors(7)
    theirs.add_vectors(list(space.words), space.vectors_VD)
    pearson, spearman, _ = theirs.evaluate_word_pairs(str(path))
    assert found.rho == pytest.approx(spearman[0], abs=1e-6) and found.pearson == pytest.approx(pearson[0], abs=1e-6)


def test_similarity_needs_three_pairs(file):
    with pytest.raises(UserError, match="of its 3 pairs fewer than three have both words"):
        similarity(Space("s", ("a", "b"), np.eye(2)), file("a b 1\nb c 2\nc d 3\n"))
    with pytest.raises(UserError, match="or all score the same"):
        similarity(random_space(9, 3, cases=False), file("word1 word2 5\nword1 word3 5\nword3 word2 5\n"))
    few = similarity(random_space(9, 3, cases=False), file("word1 word2 5\nword1 word3 5\nword3 word2 4\n"))
    assert all(np.isfinite(few[0].interval))
