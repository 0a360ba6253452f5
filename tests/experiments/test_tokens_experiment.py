"""Encodings are given the same FLOPs and the same text; n-grams are counted as by hand; the real text is scored."""

import numpy as np
import pytest
import tiny
from scipy.special import log_softmax

import lm

SCRIPT = "tokens"


def test_ngrams_are_counted_as_by_hand(script):
    rows = [[1, 2, 1, 2, 1, 2], [1, 2, 3]]
    assert script.distinct(rows, 1) == 3 / 9
    assert script.distinct(rows, 2) == 3 / 7  # 12 21 23
    assert script.repetition(rows, 2) == 3 / 7  # the second and third 12, the second 21
    assert script.repetition([[1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6]]) == 2 / 6


def test_every_encoding_has_the_same_flops_and_blocks(script, corpus):
    sizes, flops = {}, 1e10
    for name in script.ENCODINGS:
        e = script.experiment(name, str(corpus), flops)
        model = lm.build(lm.replace(e, {"model.vocab": lm.data.prepare(e.data).tokenizer.n_vocab}).model)
        step = model.cost().training_flops * e.batch_tokens
        assert abs(e.train.steps * step - flops) <= step / 2, name
        sizes[name] = (model.parameter_count()[1], e.batch_tokens)
    assert len(set(sizes.values())) == 1


def test_continuations_are_compared_with_the_real_text(script, tiny_run, monkeypatch):
    """The real text's loss is that of its own tokens; greedy text is the least varied, and the likeliest of all."""
    monkeypatch.setattr(script, "CONTEXT", 16)
    monkeypatch.setattr(script, "PROMPT", 4)
    monkeypatch.setattr(script, "WRITTEN", 8)
    monkeypatch.setattr(script, "TEMPERATURES", (0, 1, 100))
    m = lm.load(tiny_run)
    real, greedy, one, hot = script.write(m, 6)
    tokens = lm.data.prepare(m.experiment.data).validation.tokens
    windows_WU = tokens[: len(tokens) // 16 * 16].reshape(-1, 16)[:, :12]
    tokens_BU = windows_WU[:: len(windows_WU) // 6][:6].astype(np.int32)
    logp_BTV = log_softmax(np.asarray(m.apply(tokens_BU)[0], np.float64), axis=-1)
    nats = -sum(logp_BTV[b, t - 1, tokens_BU[b, t]] for b in range(6) for t in range(4, 12))
    assert real["bits"] == pytest.approx(nats / np.log(2) / (6 * 8), rel=1e-5)  # characters of one byte
    assert greedy["bits"] < one["bits"] < hot["bits"]
    assert greedy["distinct-3"] < hot["distinct-3"]
    with pytest.raises(lm.UserError, match="windows within one document"):
        script.write(m, 10**6)


@pytest.mark.slow
def test_a_little_of_it_trains_and_draws(script, monkeypatch, tmp_path, capsys):
    corpus = tmp_path / "text.txt"
    corpus.write_text(tiny.text(words=30_000))
    encodings = {name: script.ENCODINGS[name] for name in ("characters", "BPE 512")}
    monkeypatch.setattr(script, "ENCODINGS", encodings)
    monkeypatch.setattr(script, "WRITER", "BPE 512")
    arguments = ["--corpus", str(corpus), "--flops", "3e9", "--seeds", "0", "1", "--bytes", "1000", "--rows", "2"]
    figure = tmp_path / "out.svg"
    monkeypatch.setattr("sys.argv", [SCRIPT, *arguments, "--runs", str(tmp_path / "runs"), "--figure", str(figure)])
    script.main()
    printed = capsys.readouterr().out
    assert "| characters | " in printed and "| real | " in printed and "nan" not in printed
    assert "equal FLOPs, equal blocks" in figure.read_text()
