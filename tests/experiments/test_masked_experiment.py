"""Snippets are read from the source archive; answers are the likelier of the classes; a tiny run draws and resumes."""

import io
import sys
import tarfile

import jax.numpy as jnp
import numpy as np
import pytest

import lm

SCRIPT = "masked"
LINES = "1\t0.5\tA good film\r\n2\t-1.5\tA bad film\r\n3\t0\tA film\r\n4\t0.5\tA good film\r\n5\t2\t" + "word " * 50


SMALL = {"model.layers": 1, "model.width": 16, "model.context": 32, "optimizer.name": "adamw"}


def archive(members: dict[str, bytes]) -> bytes:
    """A .tar.gz file of these."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


@pytest.fixture(scope="module")
def tiny(script, tmp_path_factory):
    """The folder of a run of two steps on 40 made-up snippets, of which 10 are held out and 20 have labels."""
    folder = tmp_path_factory.mktemp("masked")
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    lines = [
        f"{i}\t{1 if i % 2 else -1}\ta {'good' if i % 2 else 'bad'} film of {words[i // 2 % 10]} {words[i // 20]} hours"
        for i in range(40)
    ]
    (folder / "snippets.txt").write_text("\n".join(lines))
    arguments = ["--data", str(folder / "snippets.txt"), "--steps", "2", "--seeds", "0", "--runs", str(folder / "runs")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HELD": 10, "LABELS": (20,)}.items():
            patch.setattr(script, name, value)
        load = lm.load_experiment
        patch.setattr(script.lm, "load_experiment", lambda name: lm.replace(load(name), SMALL))
        patch.setattr(script, "keep_compiled_programs", lambda folder: None)
        patch.setattr(sys, "argv", ["masked", *arguments, "--figure", str(folder / "masked.svg")])
        script.main()
        patch.setattr(script, "learn", None)  # nothing is learnt again
        script.main()
    return folder


def test_the_archive_and_the_file_in_it_hold_the_same_snippets(script, tmp_path):
    (tmp_path / "snippets.txt").write_text(LINES)
    inner = archive({script.SNIPPETS: LINES.encode()})
    (tmp_path / "source.tar.gz").write_bytes(archive({script.INNER: inner}))
    for name in ("snippets.txt", "source.tar.gz"):
        texts, labels = script.read_snippets(tmp_path / name)
        assert texts == ["A good film", "A bad film", " ".join(["word"] * 32)]
        assert labels.tolist() == [True, False, True]
    (tmp_path / "snippets.txt").write_text("no tabs")
    with pytest.raises(lm.UserError, match="expected lines of number, rating and text"):
        script.read_snippets(tmp_path / "snippets.txt")


def test_without_data_nothing_is_done_and_that_is_said(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["masked", "--runs", str(tmp_path / "runs")])
    script.main()
    assert "--download" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "results.jsonl").exists()


def test_an_answer_is_the_likelier_token_after_a_text_that_is_read_both_ways(script, tiny):
    """Against one full pass without padding, its places opened by hand."""
    m = lm.load(tiny / "runs" / "scratch-20-0")
    texts = ["a good film of ten two hours", "a bad film"]
    for text, answer in zip(texts, script.classify(m, texts), strict=True):
        eot, tokens = m.tokenizer.eot_token, m.tokenizer.encode_ordinary(text)
        row = jnp.array([[eot, *tokens, eot]])
        logits, _ = m.model.apply(m.params, lm.Inputs(row, open_B=jnp.array([1 + len(tokens)])))
        assert answer == (m.tokenizer.decode([int(logits[0, -1].argmax())]) == "+")


def test_a_tiny_run_starts_from_what_was_read_before_and_draws(script, tiny):
    records = [script.json.loads(line) for line in (tiny / "runs" / "results.jsonl").read_text().splitlines()]
    assert [record["model"] for record in records] == ["pretrained", "scratch", "words"]
    assert records[2]["accuracy"] == 1.0  # two words decide
    run = lm.Run(tiny / "runs" / "pretrained-20-0")
    assert run.experiment.train.start.endswith("masked-0") and run.experiment.model.mask == "prefix"
    assert "logistic, bag of words" in (tiny / "masked.svg").read_text()


def test_the_table_gives_mean_and_deviation(script, monkeypatch):
    monkeypatch.setattr(script, "LABELS", (100,))
    records = [{"model": "words", "labels": 100, "accuracy": accuracy} for accuracy in (0.5, 0.6, 0.7)]
    assert script.table(records).splitlines()[-1] == "| logistic, bag of words | 0.600 ± 0.100 |"
    assert np.isclose(script.spread(np.array([0.5])), 0)
