"""What a run begins with: another run's parameters to the bit, or the vectors that gensim wrote."""

import dataclasses
import gzip
import shutil
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from lm import tokenizer as tokenizers
from lm.config import DataConfig, EncoderConfig, ModelConfig, RecurrentConfig
from lm.errors import UserError
from lm.evaluation import evaluate_validation
from lm.model.api import build
from lm.run import load
from lm.tokenizer import CharTokenizer
from lm.training.loop import train, train_pack
from lm.training.start import begin_with, digest, recorded_digest


# --- another run -----------------------------------------------------------------------------------------------------
def begin(run, **changes):
    """Fresh parameters of the run's model, with settings changed, begun with the run; and what was said."""
    m = load(run)
    model = build(dataclasses.replace(m.experiment.model, **changes))
    fresh = model.init(7)
    return m, fresh, *begin_with(fresh, model, m.tokenizer, str(run.path))


def test_every_parameter_is_the_other_runs(tiny_run):
    m, fresh, params, said = begin(tiny_run)
    assert tiny.same_bits(params, m.params) and not tiny.same_bits(params, fresh)
    count = len(jax.tree.leaves(params))
    assert said == f"{count} of {count} parameters begin as in {tiny_run.path} at step 60"


def test_what_only_one_of_them_has_is_named(tiny_run):
    """Learned positions and mixed values are new here and stay fresh, what normed queries and keys is left."""
    m, fresh, params, said = begin(tiny_run, positions="learned", value_residual=True, qk_norm=False, tied=True)
    ours, theirs, begun = map(by_path, (fresh, m.params, params))
    assert begun.keys() == ours.keys() and len(ours.keys() - theirs.keys()) > 1
    assert all(tiny.same_bits(begun[path], theirs.get(path, ours[path])) for path in begun)
    assert f"{len(ours.keys() & theirs.keys())} of {len(ours)} parameters begin as in" in said
    assert said.partition("; fresh: ")[2] == (
        "blocks.attention.first_values, blocks.attention.own_values, position; "
        "left there: blocks.attention.key_norm, blocks.attention.query_norm, head; "
        "settings that differ: model.positions (rotary there), model.qk_norm (True there), "
        "model.value_residual (False there), model.tied (False there)"
    )


def by_path(tree) -> dict:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def test_another_architecture_gives_its_embedding(tiny_run):
    """What has the same path and shape is taken, be the rest what it may."""
    m = load(tiny_run)
    c = m.experiment.model
    model = build(RecurrentConfig(width=c.width, context=c.context, vocab=c.vocab))
    params, said = begin_with(model.init(0), model, m.tokenizer, str(tiny_run.path))
    assert tiny.same_bits(params["embedding"], m.params["embedding"])
    assert "fresh: blocks" in said and said.endswith("model.architecture (transformer there)")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(width=32), r"its \S+ has shape \(.*16.*\), this model's \(.*32.*\)"),
        (dict(layers=3), r"its blocks\.\S+ has shape \(2, .*\), this model's \(3, "),
    ],
)
def test_another_shape_is_refused(tiny_run, changes, message):
    with pytest.raises(UserError, match=message):
        begin(tiny_run, **changes)


def test_another_tokenizer_is_refused(tiny_run):
    m = load(tiny_run)
    alphabet = m.tokenizer.alphabet.replace("k", "K")
    with pytest.raises(UserError, match=r"has another tokenizer \(chars \w{8}, here chars \w{8}\): train with --data"):
        begin_with(m.params, m.model, CharTokenizer(alphabet), str(tiny_run.path))


def test_nothing_in_common_is_refused(tiny_run):
    m = load(tiny_run)
    with pytest.raises(UserError, match="no parameter in common"):
        begin_with({"elsewhere": np.zeros(3)}, m.model, m.tokenizer, str(tiny_run.path))


def test_the_digest_is_of_what_is_taken(corpus, tiny_run, tmp_path):
    """A copy has the same, and a run that goes on another; what a resumed run recorded stays."""
    shutil.copytree(tiny_run.path, tmp_path / "copy")
    assert digest(str(tmp_path / "copy")) == digest(str(tiny_run.path))
    e = tiny.experiment(corpus, schedule__name="constant", train__steps=15)
    run = train(e, folder=tmp_path, display=False)
    before = digest(str(run.path))
    train(tiny.replaced(e, train__steps=30), folder=tmp_path, display=False)
    assert digest(str(run.path)) != before

    def begun(checkpoints, name="a"):
        settings = SimpleNamespace(train=SimpleNamespace(start=name))
        return SimpleNamespace(steps=lambda: checkpoints, experiment=settings, record={"hashes": {"start": before}})

    assert recorded_digest(begun([15]), "a") == before
    for run, name in ((None, "a"), (begun([15]), None), (begun([]), "a"), (begun([15]), "b")):
        assert recorded_digest(run, name) is None


def test_a_run_begins_where_the_other_ended_and_resumes_without_it(corpus, tiny_run, tmp_path):
    """Its first validation loss is the other's last. Stopped, it goes on to the bits of the run made at once, though
    the other was removed meanwhile; and its corpus is still known to be its own."""
    shutil.copytree(tiny_run.path, tmp_path / "first")
    e = tiny.experiment(corpus, train__start=str(tmp_path / "first"), schedule__name="constant", train__steps=30)
    whole = train(e, folder=tmp_path / "whole", display=False)
    losses = [[r["val_loss"] for r in run.metrics() if "val_loss" in r] for run in (tiny_run, whole)]
    assert losses[0][-1] == pytest.approx(losses[1][0], rel=1e-6)
    (cut,) = train_pack([e], folder=tmp_path / "cut", display=False, until=15)
    shutil.rmtree(tmp_path / "first")
    resumed = train(e, folder=tmp_path / "cut", display=False)
    assert cut.path == resumed.path and resumed.finished
    assert tiny.same_bits(load(resumed).params, load(whole).params)
    assert evaluate_validation(load(whole)).loss < losses[1][0] + 0.1


# --- word vectors ----------------------------------------------------------------------------------------------------
@pytest.fixture
def gensim():
    return pytest.importorskip("gensim.models", reason="needs the extra vectors")


WORDS = ["the", "king", "The", "fish", ".", "elephant", "Paris", "sat"]
VECTORS = np.random.default_rng(0).normal(3.0, 2.0, (len(WORDS), 16)).astype(np.float32)


@pytest.fixture
def files(gensim, tmp_path) -> dict:
    """WORDS in each format, written by gensim."""
    keyed = gensim.KeyedVectors(16)
    keyed.add_vectors(WORDS, VECTORS)
    for name in ("words.txt", "words.vec", "words.bin", "words.txt.gz", "words.bin.gz"):
        keyed.save_word2vec_format(str(tmp_path / name), binary=".bin" in name)
    assert gzip.decompress((tmp_path / "words.txt.gz").read_bytes()).startswith(b"8 16\n")
    return {path.name: path for path in tmp_path.iterdir()}


@pytest.fixture(scope="module")
def worded():
    """A tokenizer of whole words, a model of it, and fresh parameters."""
    text = tiny.text().rstrip() + " The Paris King"
    tokenizer = tokenizers.build(DataConfig(tokenizer="words", vocab=400), [text])
    model = build(ModelConfig(layers=1, width=16, heads=2, context=8, vocab=tokenizer.n_vocab))
    return tokenizer, model, model.init(3)


def expected_rows(tokenizer, fresh) -> dict[int, np.ndarray]:
    """Each token's row by the rule, spelled out: exact before lower case, centred, of the fresh table's mean square."""
    known = dict(zip(WORDS, VECTORS.astype(np.float64), strict=True))
    found = {}
    for token in range(tokenizer.n_vocab - 1):
        text = tokenizer.decode_bytes([token]).decode("utf-8", "ignore").strip(" ")
        vector = known.get(text, known.get(text.lower()))
        if vector is not None:
            found[token] = vector
    rows = np.array(list(found.values()))
    rows = rows - rows.mean(axis=0)
    rows *= np.sqrt(np.mean(np.asarray(fresh, np.float64) ** 2) / np.mean(rows**2))
    return dict(zip(found, rows, strict=True))


@pytest.mark.parametrize("name", ["words.txt", "words.vec", "words.bin", "words.txt.gz", "words.bin.gz"])
def test_words_that_both_know_begin_with_the_vectors(files, worded, name):
    """The file as gensim wrote it, in every format; all else keeps its bits."""
    tokenizer, model, fresh = worded
    params, said = begin_with(fresh, model, tokenizer, str(files[name]))
    rows = expected_rows(tokenizer, fresh["embedding"])
    spelled = {tokenizer.decode([token]) for token in rows}
    assert {"the", " the", " The", " king", " King", ".", " Paris"} <= spelled
    assert said == f"{len(rows)} of {tokenizer.n_vocab} tokens begin with the vectors of {name}"
    table = np.asarray(params["embedding"])
    np.testing.assert_allclose(table[list(rows)], np.array(list(rows.values())), rtol=1e-5, atol=1e-6)
    others = np.setdiff1d(np.arange(len(table)), list(rows))
    assert tiny.same_bits(table[others], np.asarray(fresh["embedding"])[others])
    assert tiny.same_bits({**params, "embedding": 0}, {**fresh, "embedding": 0})


def test_exact_case_comes_before_lower_case(files, worded):
    tokenizer, model, fresh = worded
    table = np.asarray(begin_with(fresh, model, tokenizer, str(files["words.txt"]))[0]["embedding"])
    (the,), (The,), (king,), (King,) = map(tokenizer.encode_ordinary, (" the", " The", " king", " King"))
    assert (table[king] == table[King]).all() and (table[the] != table[The]).any()


@pytest.mark.parametrize("width", [16, 8])
def test_an_encoder_as_wide_begins_with_them_too(files, worded, width):
    tokenizer, model, _ = worded
    encoder = EncoderConfig(layers=1, width=width, heads=2, context=8)
    model = build(dataclasses.replace(model.config, encoder=encoder))
    fresh = model.init(3)
    params, _ = begin_with(fresh, model, tokenizer, str(files["words.bin"]))
    for ours, before, there in ((params, fresh, True), (params["encoder"], fresh["encoder"], width == 16)):
        rows = expected_rows(tokenizer, before["embedding"]) if there else {}
        table = np.asarray(before["embedding"]).copy()
        for token, row in rows.items():
            table[token] = row
        np.testing.assert_allclose(ours["embedding"], table, rtol=1e-5, atol=1e-6)


def test_what_fits_nothing_is_refused(files, worded, gensim, tmp_path):
    tokenizer, model, fresh = worded
    wide = build(dataclasses.replace(model.config, width=32))
    with pytest.raises(UserError, match=r"its vectors have 16 numbers, and model\.width is 32"):
        begin_with(wide.init(0), wide, tokenizer, str(files["words.bin"]))
    for words, message in ((["elephant"], "none of its 1 words is a token of words"), (["king"], "are alike")):
        keyed = gensim.KeyedVectors(16)
        keyed.add_vectors(words, VECTORS[: len(words)])
        keyed.save_word2vec_format(str(tmp_path / "few.txt"))
        with pytest.raises(UserError, match=message):
            begin_with(fresh, model, tokenizer, str(tmp_path / "few.txt"))


@pytest.mark.parametrize(
    "name, damage",
    [
        ("words.txt", lambda data: data[: len(data) // 2]),
        ("words.bin", lambda data: data[: len(data) // 2]),
        ("words.bin.gz", lambda data: data[: len(data) // 2]),
        ("words.txt.gz", lambda data: b"8 16\n"),
        ("words.txt", lambda data: data.partition(b"\n")[2].replace(b" ", b"\t")),
        ("words.txt", lambda data: b""),
        ("words.bin", lambda data: b"9" + data),
        ("words.vec", lambda data: data.replace(b"king ", b"king nan ", 1)),
        ("words.txt", lambda data: b"0 16\n"),
        ("words.bin", lambda data: b"99999999999999 16\n"),
    ],
)
def test_a_damaged_file_is_refused_on_one_line(files, worded, name, damage):
    tokenizer, model, fresh = worded
    files[name].write_bytes(damage(files[name].read_bytes()))
    with pytest.raises(UserError, match=f"train.start .*{name}") as refusal:
        begin_with(fresh, model, tokenizer, str(files[name]))
    assert "\n" not in str(refusal.value)


def test_vectors_that_are_not_finite_are_refused(files, worded):
    tokenizer, model, fresh = worded
    text = files["words.txt"].read_text().splitlines(keepends=True)
    files["words.txt"].write_text("".join([*text[:3], "The" + " inf" * 16 + "\n", *text[4:]]))
    with pytest.raises(UserError, match="some vectors are not finite"):
        begin_with(fresh, model, tokenizer, str(files["words.txt"]))


def test_the_digest_of_a_file_is_of_its_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc")
    assert digest(str(tmp_path / "a.txt")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_is_neither_is_refused(worded, tmp_path):
    tokenizer, model, fresh = worded
    (tmp_path / "words.csv").write_text("a")
    for name, message in (("none", "no such run .* and no such file"), ("words.csv", "ends in .txt, .vec, .bin")):
        for ask in (digest, lambda name: begin_with(fresh, model, tokenizer, name)):
            with pytest.raises(UserError, match=message):
                ask(str(tmp_path / name))


def test_without_gensim_one_line_says_what_to_install(worded, tmp_path, monkeypatch):
    tokenizer, model, fresh = worded
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    (tmp_path / "words.txt").write_text("1 2\na 1 2\n")
    with pytest.raises(UserError, match=r"need the package gensim: pip install -e '\.\[vectors\]'"):
        begin_with(fresh, model, tokenizer, str(tmp_path / "words.txt"))
