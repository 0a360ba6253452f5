"""The whole study on a tiny text and a handful of questions, and the pieces that decide what is compared."""

import json
import random
import sys

import numpy as np
import pytest
import tiny

from lm import probe
from lm.errors import UserError

SCRIPT = "google_set"
QUESTIONS = (
    ": family\nking queen man woman\nman woman king queen\nboy girl king queen\nking queen boy girl\n"
    "boy girl man woman\nman woman boy girl\n: nowhere\nzebra zebras king queen\n"
)
PAIRS = {"he": ("king", "man", "boy"), "she": ("queen", "woman", "girl")}


def documents(count: int = 240) -> str:
    """Words of a gender stay with its pronoun; capitals, numbers and punctuation are there to be folded away."""
    rng = random.Random(0)
    made = ["3 Rare_words, "]
    for _ in range(count):
        pronoun = rng.choice(list(PAIRS))
        words = [rng.choice((pronoun.capitalize(), rng.choice(PAIRS[pronoun]), rng.choice(("sat", "ran,")))
                           ) for _ in range(12)]  # fmt: skip
        made.append(" ".join(words) + ".\n")
    return "<|endoftext|>\n".join(made)


@pytest.fixture
def arguments(script, monkeypatch, tmp_path):
    """A tiny study's command line."""
    small = tiny.replaced(script.BASE, model__width=16, model__heads=2, model__context=16, model__unroll=1,
                          model__feedforward=32, train__batch=4, schedule__warmup=1, data__validation=0.05)  # fmt: skip
    monkeypatch.setattr(script, "BASE", small)
    files = {"corpus": documents(), "questions": QUESTIONS, "wordsim": "king queen 8\nman boy 6\nking sat 1\n"}
    given = ["--minutes", "0.005", "--vocab", "10", "--tokens", "4000", "--folder", str(tmp_path / "kept")]
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text)
        given += [f"--{name}", str(tmp_path / f"{name}.txt")]
    return [*given, "--figure", str(tmp_path / "made" / "figure.svg")]


def study(script, monkeypatch, arguments) -> dict:
    monkeypatch.setattr(sys, "argv", ["google_set", *arguments])
    script.main()
    folder = script.Path(arguments[arguments.index("--folder") + 1])
    return json.loads((folder / "results-0.005min.json").read_text())


@pytest.mark.slow
def test_the_tiny_study(script, monkeypatch, tmp_path, capsys, arguments):
    """Both read the same tokens, search the same words, and what was made is not made again."""
    pytest.importorskip("gensim")
    found = study(script, monkeypatch, arguments)
    out = capsys.readouterr().out
    text = (tmp_path / "kept" / "text.txt").read_text()
    assert not set(text) - set("abcdefghijklmnopqrstuvwxyz \n") and len(text.splitlines()) == 241
    assert text.count(" ") == found["text"]["kept"] < found["text"]["words"] and found["text"]["known"] == 10
    lines = (tmp_path / "kept" / "lines.txt").read_text()
    assert set(lines.splitlines()) <= {line.strip() for line in text.splitlines()}
    assert len(lines.split()) + len(lines.splitlines()) + 1 == found["plan"]["train_tokens"]  # end-of-text tokens
    rows = {(row["model"], row["name"]): row for row in found["rows"]}
    assert [rows[model, "family"]["kept"] for model in script.NAMES] == [2, 2]  # asks for `man woman` and `boy girl`...
    assert rows["word2vec", "nowhere"]["kept"] == 0 and rows["transformer", "total"]["kept"] == 2
    assert {row["kept"] for row in found["all"] if row["name"] == "family"} == {6}
    spaces = [f"{space}{how}" for space in ("input", "contextual.1", "contextual.2")
              for how in ("", ", centred", ", whitened")]  # fmt: skip
    assert [row["space"] for row in found["wordsim"]] == spaces[:3] + spaces
    assert all(name in out for name in ("| family | 2 | 0 |", "| word2vec | input |", "| transformer | contextual.2 |"))
    assert "</svg>" in (tmp_path / "made" / "figure.svg").read_text()

    monkeypatch.setattr(script.Word2Vec, "train", None)  # would fail if it were asked to train again
    assert study(script, monkeypatch, arguments) == found
    with pytest.raises(UserError, match=r"holds .*'vocab': 10.*choose another folder"):
        study(script, monkeypatch, [*arguments, "--vocab", "9"])


@pytest.mark.slow
def test_without_gensim_the_transformer_is_scored_alone(script, monkeypatch, arguments, capsys):
    monkeypatch.setattr(script, "has_gensim", lambda: False)
    found = study(script, monkeypatch, arguments)
    assert list(found["chosen"]) == ["transformer"] and "epochs" not in found["plan"]
    assert "word2vec is left out: pip install gensim" in capsys.readouterr().err


def test_halves_ask_for_different_pairs(script):
    pairs = [(letter, (letter.upper(),)) for letter in "abcd"]
    i, j = np.divmod(np.arange(16), 4)
    section = probe.Section("letters", pairs, np.stack([i, j], 1)[i != j])
    choosing, other = (script.half([section], which)[0] for which in (0, 1))
    asked = [{int(one) for one in part.questions_Q2[:, 1]} for part in (choosing, other)]
    assert asked == [{0, 2}, {1, 3}] and len(choosing.questions_Q2) + len(other.questions_Q2) == 12


def test_spaces_are_cut_to_the_words_that_all_have(script):
    few = probe.Space("few", ("b", "a", "z"), np.array([[1.0, 0], [0, 1], [2, 2]], np.float32))
    many = probe.Space("many", ("a", "y", "b"), np.array([[1.0, 2], [3, 4], [5, 6]], np.float32))
    made = script.shared({"one": [[few]], "two": [[many]]})
    assert [space.words for space in made["one"][0]] == [("b", "a")] * 3
    plain, centred, _ = made["two"][0]
    assert plain.words == ("a", "b") and plain.vectors_VD.tolist() == [[1, 2], [5, 6]]
    assert centred.vectors_VD.tolist() == [[-2, -2], [2, 2]]


def test_a_text_without_documents_is_cut_into_lines(script, monkeypatch):
    monkeypatch.setattr(script, "LINE", 3)
    words = ["a", "b", "c", "eot"]
    assert list(script.lines(np.array([0, 1, 2, 0, 1]), None, words)) == ["a b c", "a b"]
    assert list(script.lines(np.array([3, 0, 1, 3, 2, 3]), 3, words)) == ["a b", "c"]
