"""Word vectors from elsewhere are probed as our own spaces are, and our spaces come back from what gensim reads."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
import tiny

from lm import tokenizer as tokenizers
from lm.config import DataConfig, Experiment, ModelConfig
from lm.data.vectors import read_vectors
from lm.errors import UserError
from lm.exchange.vectors import write
from lm.model.api import build
from lm.model.trained import Trained
from lm.probe import Space, neighbours, space_in, suite

gensim = pytest.importorskip("gensim.models", reason="needs the extra vectors")

WORDS = ("king", "queen", "man", "woman", "boy", "girl", "café", "東京")
QUESTIONS = ": family\nking queen man woman\nman woman boy girl\nking queen boy girl\n"
RATED = "king queen 8\nman woman 7\nking girl 2\nboy girl 6\n"


@pytest.fixture(scope="module")
def space():
    """Women are men and a direction: the analogies hold."""
    rng = np.random.default_rng(0)
    vectors_VD = rng.normal(size=(len(WORDS), 12)).astype(np.float32)
    vectors_VD[1:6:2] = vectors_VD[0:5:2] + rng.normal(size=12).astype(np.float32)
    return Space("made", WORDS, vectors_VD)


@pytest.fixture
def files(space, tmp_path):
    """The same vectors as others write them: word2vec by gensim, GloVe by hand, fastText's text with spaces at ends."""
    keyed = gensim.KeyedVectors(12)
    keyed.add_vectors(space.words, space.vectors_VD)
    for name in ("w2v.txt", "w2v.bin", "w2v.txt.gz", "w2v.bin.gz"):
        keyed.save_word2vec_format(str(tmp_path / name), binary=".bin" in name)
    lines = (tmp_path / "w2v.txt").read_text().splitlines()
    (tmp_path / "glove.txt").write_text("".join(f"{line}\n" for line in lines[1:]))
    (tmp_path / "glove.txt.gz").write_bytes(gzip.compress((tmp_path / "glove.txt").read_bytes()))
    (tmp_path / "cc.vec").write_text("".join(f"{line} \n" for line in lines))
    (tmp_path / "questions.txt").write_text(QUESTIONS)
    (tmp_path / "rated.txt").write_text(RATED)
    return tmp_path


NAMES = ("w2v.txt", "w2v.bin", "w2v.txt.gz", "w2v.bin.gz", "glove.txt", "glove.txt.gz", "cc.vec")


@pytest.mark.parametrize("name", NAMES)
def test_every_format_is_read_to_the_bit(files, space, name):
    read = read_vectors(files / name)
    assert read.words == WORDS and read.vectors_VD.tobytes() == space.vectors_VD.tobytes()
    first = space_in(files / name, restrict=3)
    assert first.words == WORDS[:3] and first.name == name and (first.vectors_VD == space.vectors_VD[:3]).all()


def test_fasttext_models_give_the_vectors_of_their_words(tmp_path):
    """As gensim has them, from the words' pieces too."""
    from gensim.models.fasttext import save_facebook_model

    model = gensim.FastText([["king", "queen", "man"]] * 4, vector_size=8, min_count=1, bucket=50, epochs=1, workers=1)
    save_facebook_model(model, str(tmp_path / "model.bin"))
    read = read_vectors(tmp_path / "model.bin")
    assert set(read.words) == {"king", "queen", "man"}
    for word, vector_D in zip(read.words, read.vectors_VD, strict=True):
        np.testing.assert_array_equal(vector_D, model.wv[word])


def test_the_probes_of_words_answer_as_for_a_space_of_ours(files, space, lm):
    """Tables, JSON and figures of suite, analogy, neighbours, similarity and geometry."""
    status, out, err = lm("probe", files / "glove.txt", "suite", files / "questions.txt", "--json")
    assert status == 0, err
    found, wanted = json.loads(out), suite(space, files / "questions.txt").to_json()
    (made,), (same,) = found["sections"], json.loads(json.dumps(wanted["sections"]))
    assert made == same | {"space": "glove.txt"} and made["accuracy"] == 1 and not found["tied"]
    answers = json.loads(lm("probe", files / "w2v.bin", "analogy", "king", "man", "woman", "--json")[1])
    assert answers["answers"][0]["word"] == "queen" and answers["space"] == "w2v.bin"
    for action in (
        ["neighbours", "king"], ["similarity", files / "rated.txt"], ["geometry", "isotropy"],
        ["geometry", "directions", files / "questions.txt"], ["geometry", "map", "king", "queen", "man"],
    ):  # fmt: skip
        status, out, err = lm("probe", files / "cc.vec", *action, "--center")
        assert status == 0 and "cc.vec, centred" in out, err
    assert lm("probe", files / "cc.vec", "neighbours", "king", "--figure", files / "map.svg")[0] == 0
    assert (files / "map.svg").read_text().startswith("<?xml")
    assert lm("probe", files / "cc.vec", "neighbours", "KING", "--case", "exact")[0] == 2


def test_mistakes_are_told_on_one_line(files, lm):
    (files / "cut.bin").write_bytes((files / "w2v.bin").read_bytes()[:100])
    (files / "long.txt").write_text("3 4\na 1 2 3 4\nb 1 2 3\nc 1 2 3 4\n")
    (files / "glove.840.txt").write_text("a 1 2\n. . . 1 2\n")
    (files / "empty.vec").write_text("")
    (files / "huge.bin").write_bytes(b"999999999999 300\n")
    (files / "model.bin").write_bytes(b"\xba\x16\x4f\x2f" + bytes(8))
    (files / "nan.txt").write_text("a nan 2\nb 1 2\n")
    for name, action, said in (
        ("cut.bin", ["neighbours", "a"], "cut.bin is damaged, or not word2vec's binary format"),
        ("long.txt", ["neighbours", "a"], "long.txt is damaged, or not word2vec's text format or GloVe's"),
        ("glove.840.txt", ["neighbours", "a"], "is damaged, or not word2vec's text format or GloVe's"),
        ("empty.vec", ["neighbours", "a"], "empty.vec"),
        ("huge.bin", ["neighbours", "a"], "huge.bin is damaged"),
        ("model.bin", ["neighbours", "a"], "model.bin is damaged, or not a fastText model"),
        ("nan.txt", ["neighbours", "a"], "some vectors are not finite"),
        ("none.txt", ["neighbours", "a"], "no such run (`lm runs` lists them), and no such file of word vectors"),
        ("w2v.txt", ["lens", "a"], "lens looks inside a model, and"),
        ("w2v.txt", ["neighbours", "king", "--space", "contextual"], "--space contextual:"),
        ("w2v.txt", ["neighbours", "king", "--pieces", "mean"], "--pieces mean: the words of"),
        ("w2v.txt", ["neighbours", "king", "--checkpoint", "3"], "--checkpoint 3:"),
        ("w2v.txt", ["neighbours", "kingg"], "kingg: not among the 8 words of space w2v.txt; did you mean king?"),
    ):  # fmt: skip
        status, out, err = lm("probe", files / name, *action)
        assert status == 2 and out == "" and said in err, err
        assert err.count("\n") == 1 and err.startswith("lm: ")


@pytest.mark.parametrize("name", ["a.txt", "a.vec", "a.bin", "a.txt.gz", "a.bin.gz"])
def test_what_is_written_comes_back_through_gensim(space, tmp_path, name):
    """Words and numbers to the bit; our own reader has them, too, and equal spaces are equal files."""
    assert write(space, tmp_path / name) == [tmp_path / name]
    read = gensim.KeyedVectors.load_word2vec_format(str(tmp_path / name), binary=".bin" in name)
    assert tuple(read.index_to_key) == WORDS and read.vectors.tobytes() == space.vectors_VD.tobytes()
    assert space_in(tmp_path / name).vectors_VD.tobytes() == space.vectors_VD.tobytes()
    before = (tmp_path / name).read_bytes()
    write(space, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


def test_a_run_gives_its_words_away(tmp_path, lm, monkeypatch):
    """`lm export` writes the space that is asked for, and the file answers as the model does."""
    tokenizer = tokenizers.build(DataConfig(tokenizer="words", vocab=400), [tiny.text()])
    c = ModelConfig(layers=1, width=16, heads=2, context=8, vocab=tokenizer.n_vocab, tied=False, zero_init=False)
    m = Trained(build(c).init(0), tokenizer, Experiment(model=c), step=0)
    monkeypatch.setattr("lm.run.load", lambda *_, **__: m)
    for space in ("input", "unembedding"):
        path = tmp_path / f"{space}.txt"
        assert lm("export", "run", "--to", "vectors", path, "--space", space)[:2] == (0, f"{path}\n")
        there, here = neighbours(m, "king", space=space), neighbours(space_in(path), "king")
        assert here.answers == there.answers and here.searched == there.searched == len(tiny.WORDS)
    for arguments, said in ((["words.csv"], "its suffix is none of"), (["a.txt", "--space", "outer"], "space outer:")):
        status, _, err = lm("export", "run", "--to", "vectors", *arguments)
        assert status == 2 and said in err and err.count("\n") == 1


def test_the_projector_gets_numbers_and_words(space, tmp_path):
    paths = write(space, tmp_path / "a.tsv")
    assert [path.name for path in paths] == ["a.tsv", "a.metadata.tsv"]
    table = np.loadtxt(paths[0], delimiter="\t", dtype=np.float32)
    assert table.tobytes() == space.vectors_VD.tobytes()
    assert tuple(paths[1].read_text(encoding="utf-8").split("\n")) == (*WORDS, "")


def test_what_such_files_cannot_hold_is_refused(space, tmp_path):
    for name in ("a.npz", "a.tsv.gz", "a"):
        with pytest.raises(UserError, match=r"its suffix is none of \.txt, \.vec, \.bin, \.tsv"):
            write(space, tmp_path / name)
    with pytest.raises(UserError, match="the word 'New York' holds a space"):
        write(dataclasses.replace(space, words=("New York", *WORDS[1:])), tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())
