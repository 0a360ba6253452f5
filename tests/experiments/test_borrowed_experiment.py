"""Early exits are what the lens says, controls are controls, and the study runs on a model that fits in a test."""

import dataclasses
import json
import sys
import zipfile

import numpy as np
import pytest
import tiny

import lm
from lm import probe
from lm import tokenizer as tokenizers
from lm.model.api import build

SCRIPT = "borrowed"
GOOD, BAD = "The king sat.", "The king sat sat the."


@pytest.fixture(scope="module")
def m():
    """Two layers of random parameters and whole words."""
    text = tiny.text() + " The capital of river is mat fish."
    tokenizer = tokenizers.build(lm.DataConfig(tokenizer="words", vocab=400), [text])
    c = lm.ModelConfig(layers=2, width=16, heads=2, context=32, vocab=tokenizer.n_vocab, zero_init=False)
    return lm.Trained(build(c).init(0), tokenizer, lm.Experiment(model=c), step=0)


def test_early_exits_are_the_lens_of_every_layer(script, m):
    """Rows of different lengths in several batches; the last entry is the model itself."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 200, length).tolist() for length in [5, 9, 3, 12] * 5]
    starts = [1, 4, 2, 1] * 5
    nats, ranks = script.early_exits(m, rows, starts, [0, 2])
    for row, start, nats_ET, rank_ET in zip(rows, starts, nats, ranks, strict=True):
        logits_EBTV = np.asarray(probe.lens_logits(m, np.array([row])))[[0, 2]]
        for e, logits_TV in enumerate(logits_EBTV[:, 0]):
            for i, t in enumerate(range(start, len(row))):
                z_V = logits_TV[t - 1].astype(np.float64)
                assert nats_ET[e, i] == pytest.approx(np.logaddexp.reduce(z_V) - z_V[row[t]], abs=1e-4)
                assert rank_ET[e, i] == (z_V >= z_V[row[t]]).sum()


def test_shuffled_pairs_are_all_wrong_and_the_questions_stay(script, tmp_path):
    (tmp_path / "q.txt").write_text(": a\nking queen man woman\nman woman boy girl\nboy girl king queen\n")
    sections = probe.read_suite(tmp_path / "q.txt")
    (moved,) = script.shuffled(sections)
    before = dict(sections[0].pairs)
    assert [word for word, _ in moved.pairs] == list(before)
    assert all(before[word] != rights for word, rights in moved.pairs)
    assert sorted(rights for _, rights in moved.pairs) == sorted(before.values())
    assert (moved.questions_Q2 == sections[0].questions_Q2).all()


def test_spaces_share_their_words_in_any_case(script):
    one = probe.Space("one", ("King", "king", "mat"), np.eye(3, dtype=np.float32))
    two = probe.Space("two", ("fish", "king"), np.eye(2, dtype=np.float32))
    first, second = script.shared([one, two])
    assert first.words == ("King", "king") and second.words == ("king",)
    assert (first.vectors_VD == np.eye(3)[:2]).all() and (second.vectors_VD == [[0, 1]]).all()


def test_capitals_are_asked_once_and_beside_others(script, m, tmp_path):
    (tmp_path / "q.txt").write_text(": capital-world\nmat king fish queen\nmat king mat king\n: other\na b c d\n")
    facts = script.capitals(probe.read_suite(tmp_path / "q.txt"))
    assert [(fact.prompt, fact.answer) for fact in facts] == [
        ("The capital of king is", "mat"), ("The capital of queen is", "fish"),
    ]  # fmt: skip
    rows = script.by_lens("m", m, facts)
    assert [row["entry"] for row in rows] == [0, 1, 2] and all(row["facts"] == 2 for row in rows)
    (last,) = probe.complete(m, facts[:1])
    assert rows[2]["median rank"] >= 1 and (last.rank == 1) <= (rows[2]["first"] > 0)


def test_the_whole_of_it_prints_and_draws(script, m, monkeypatch, tmp_path, capsys):
    words = ("king", "queen", "mat", "fish")
    (tmp_path / "analogies.txt").write_text(f": family\n{' '.join(words)}\n: capital-world\nmat king fish queen\n")
    fact = {"relation": "r", "subject": "king", "prompt": "the king sat on the", "answer": "mat", "seen": True}
    lines = [fact, fact | {"subject": "queen", "answer": "fish"}]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with zipfile.ZipFile(tmp_path / "blimp.zip", "w") as archive:
        archive.writestr("data/p.jsonl", json.dumps({"sentence_good": GOOD, "sentence_bad": BAD}) * 1 + "\n")
    monkeypatch.setattr(script.lm, "load", lambda name: m)
    monkeypatch.setattr(script, "example", lambda model, space: EXAMPLE | {"model": model})
    vectors = dataclasses.replace(probe.spaces_of(m, ["input"])[0], name="word2vec")
    monkeypatch.setattr(script, "word2vec", lambda corpus, seed, options: vectors)
    arguments = ["borrowed", "run", "--questions", tmp_path / "analogies.txt", "--corpus", "text", "--kingdom", "ours",
                 "--kingdom-files", tmp_path, "--blimp", tmp_path / "blimp.zip", "--paradigms", "p", "--folder",
                 tmp_path / "kept", "--figure", tmp_path / "a.svg"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    script.main()
    printed = capsys.readouterr().out
    assert "| SmolLM2 | family | 1 |" in printed and "| kingdom (2) | 2 of 2 |" in printed and "| all |" in printed
    drawn = (tmp_path / "a.svg").read_bytes()
    monkeypatch.setattr(sys, "argv", ["borrowed", "--draw", *map(str, arguments[-4:])])
    script.main()
    assert (tmp_path / "a.svg").read_bytes() == drawn and capsys.readouterr().out == printed


EXAMPLE = {"left out": [("queen", 0.5)], "not left out": [("king", 0.9)], "only b": "queen", "only c": "woman"}
