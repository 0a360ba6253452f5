"""Scores: every token once, equal to the plain computation, in units worked out by hand."""

import dataclasses
import functools
import gzip
import io
import json
import lzma
import math
import os
import tracemalloc
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import tokenizer as tokenizers
from lm.config import DataConfig
from lm.data import readers
from lm.data.corpora import open_text
from lm.data.supply import prepare
from lm.errors import UserError
from lm.evaluation import (
    Score,
    baselines,
    evaluate,
    evaluate_validation,
    score_columns,
    score_continuations,
    strided_windows,
)
from lm.model.api import Inputs, build
from lm.run import load

TEXT = "the queen ran to the river.\nthe old king sat on a mat and the fish ran.\n" * 2


@functools.partial(jax.jit, static_argnames="c", compiler_options=tiny.QUICK)
def plain_log_probabilities(c, params, tokens_BT):
    """The whole forward pass, without windows, batches or chunks."""
    return jax.nn.log_softmax(build(c).apply(params, Inputs(tokens_BT))[0])


def one_by_one(m, tokens: np.ndarray, stride: int) -> list[float]:
    """Nats of each token after the first, each from a pass of its own over the context it is due."""
    c, nats = m.experiment.model, []
    for target in range(1, len(tokens)):
        start = 0 if target <= c.context else math.ceil((target - c.context) / stride) * stride
        window = tokens[start:target]
        padded = np.pad(window, (0, c.context - len(window)))[None]
        nats.append(-float(plain_log_probabilities(c, m.params, padded)[0, len(window) - 1, tokens[target]]))
    return nats


@pytest.fixture(scope="module")
def m(tiny_run):
    return load(tiny_run)


@pytest.fixture(scope="module")
def many(m):
    """The same model as one trained on several documents, in which end-of-text precedes each."""
    return dataclasses.replace(m, run=SimpleNamespace(record=m.run.record | {"documents": 3}))


@pytest.fixture(scope="module")
def texts(m):
    return np.array(m.tokenizer.encode_ordinary(TEXT), np.int32)


# --- continuations ---------------------------------------------------------------------------------------------------
def test_continuations_cost_what_their_tokens_cost_one_by_one(m):
    """Lengths mixed over batches of two; contexts beyond the model's lose their beginning; what greedy says is told."""
    c, rng = m.experiment.model, np.random.default_rng(0)
    lengths = [(1, 1), (5, 3), (c.context, 1), (c.context + 7, 4), (1, c.context), (2, 9), (9, 2)]
    requests = [tuple(rng.integers(0, m.tokenizer.n_vocab, n).tolist() for n in pair) for pair in lengths]
    context = requests[1][0]
    padded = np.pad(context, (0, c.context - len(context)))[None]
    likeliest = int(plain_log_probabilities(c, m.params, padded)[0, len(context) - 1].argmax())
    requests.append((context, [likeliest]))
    done = []
    scores = score_continuations(m, requests, batch=2, report=lambda *at: done.append(at))
    for (context, continuation), score in zip(requests, scores, strict=True):
        row, nats = np.array([*context, *continuation])[-(c.context + 1) :], 0.0
        for place in range(len(row) - len(continuation), len(row)):
            padded = np.pad(row[:place], (0, c.context - place))[None]
            nats -= float(plain_log_probabilities(c, m.params, padded)[0, place - 1, row[place]])
        assert score.nats == pytest.approx(nats, abs=1e-4)
    assert scores[-1].greedy and not scores[4].greedy and done[-1] == (8, 8) and len(done) == 4
    for wrong in (([], [1]), ([1], []), ([1], [1] * (c.context + 1))):
        with pytest.raises(UserError, match="request 0"):
            score_continuations(m, [wrong])


# --- windows ---------------------------------------------------------------------------------------------------------
strides = st.integers(1, 24).flatmap(lambda context: st.tuples(st.just(context), st.integers(1, context)))


@settings(deadline=None, max_examples=300)
@given(length=st.integers(2, 150), shape=strides, cuts=st.lists(st.integers(0, 150), max_size=5))
def test_every_token_after_the_first_is_scored_once_with_enough_before_it(length, shape, cuts):
    """For any length, context and stride: targets 1 ... n-1 once each, in order, each after its true predecessors."""
    context, stride = shape
    pieces = np.split(np.arange(100, 100 + length), sorted(cuts))  # where the stream is cut does not show
    scored, weights = [], []
    for row, weight in strided_windows(pieces, context, stride):
        weights.append(weight)
        for place in np.flatnonzero(weight):
            target = int(row[place + 1])
            before = row[: place + 1]
            assert (before == np.arange(target - place - 1, target)).all()
            assert place + 1 >= min(target - 100, context - stride + 1), "too little to go by"
            scored.append(target)
    assert scored == list(range(101, 100 + length))
    assert set(np.unique(weights)) <= {0.0, 1.0}


@pytest.mark.parametrize("stride", [0, 17, -1, 2.5, True])
def test_a_stride_outside_of_the_context_is_refused(stride, m):
    with pytest.raises(
        UserError, match=f"stride {stride}: (must be between 1 and the model's context of 16|expected int)"
    ):
        evaluate(m, TEXT, stride=stride)


@pytest.mark.parametrize("batch", [0, -5, 2.5, math.nan])
def test_a_batch_is_a_whole_number_of_windows(batch, m):
    with pytest.raises(UserError, match=f"batch {batch}: (must be at least 1|expected int)"):
        evaluate(m, TEXT, batch=batch)


# --- scores ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stride", [16, 5, 1])
def test_the_loss_equals_one_plain_pass_per_token(m, texts, stride):
    score = evaluate(m, TEXT, stride=stride, batch=3)
    assert score.tokens == len(texts) - 1
    assert score.loss == pytest.approx(np.mean(one_by_one(m, texts, stride)), rel=1e-5)


def test_the_size_of_batches_and_chunks_does_not_matter(m, texts):
    c, bytes_V = m.experiment.model, np.ones(m.tokenizer.n_vocab, np.int64)
    tokens, weights = (np.stack(rows) for rows in zip(*strided_windows([texts], c.context, 7), strict=True))
    columns = {"tokens_BU": tokens, "weights_BT": weights}
    scores = [
        score_columns(m.model, m.params, columns, bytes_V, batch=batch, chunk=chunk)
        for batch, chunk in ((32, None), (3, 11))
    ]
    assert scores[0].nats == pytest.approx(scores[1].nats, rel=1e-6)
    assert scores[0].tokens == scores[1].tokens == len(texts) - 1


def test_smaller_strides_never_take_context_away():
    """Each token's context is at least as long with a smaller stride that divides the larger."""

    def contexts(stride):
        windows = strided_windows([np.arange(200)], 16, stride)
        return np.array([place + 1 for _, weights in windows for place in np.flatnonzero(weights)])

    for smaller, larger in ((1, 2), (2, 4), (4, 8), (8, 16)):
        assert (contexts(smaller) >= contexts(larger)).all()


def test_packed_models_do_not_look_across_documents(m):
    """With the end-of-text token given, a document's score does not depend on the one before it."""
    eot, bytes_V = m.tokenizer.eot_token, np.ones(m.tokenizer.n_vocab, np.int64)
    rng = np.random.default_rng(0)
    first, other, second = rng.integers(0, eot, (3, 7))
    weights = np.zeros((1, 16), np.float32)
    weights[0, 8:] = 1

    def score(before, packed):
        window = np.concatenate([[eot], before, [eot], second, [eot]]).astype(np.int32)[None]
        columns = {"tokens_BU": window, "weights_BT": weights}
        return score_columns(m.model, m.params, columns, bytes_V, eot=eot if packed else None).nats

    assert score(first, True) == score(other, True)
    assert score(first, False) != score(other, False)


# --- units -----------------------------------------------------------------------------------------------------------
def test_units_by_hand():
    """16 tokens of 2 bits each, for 8 bytes of text: 2 ln 2 nats a token, perplexity 4, 4 bits a byte."""
    score = Score(nats=16 * 2 * math.log(2), tokens=16, bytes=8)
    assert score.loss == pytest.approx(2 * math.log(2))
    assert score.perplexity == pytest.approx(4)
    assert score.bits_per_byte == pytest.approx(4)


def test_bytes_are_those_of_the_scored_text(m, tmp_path):
    """The first character is not scored, so its bytes are not counted either."""
    assert evaluate(m, TEXT).bytes == len(TEXT.encode()) - 1


# --- texts -----------------------------------------------------------------------------------------------------------
def test_the_first_token_is_scored_after_end_of_text_where_training_had_documents(m, many, texts):
    """Models of one unbroken text never saw the end-of-text token: nothing precedes their first token."""
    one = evaluate(m, TEXT)
    assert one.tokens == len(texts) - 1
    several = evaluate(many, TEXT)
    assert several.tokens == len(texts)
    with_eot = np.concatenate([[m.tokenizer.eot_token], texts])
    assert several.loss == pytest.approx(np.mean(one_by_one(m, with_eot, 16)), rel=1e-5)
    assert several.bytes == len(TEXT.encode())


def test_documents_are_laid_out_as_in_training(many, tmp_path):
    """The layout of the prepared token file of the same text, scored where it is text; by a file and by a string."""
    text = "the old king\n<|endoftext|>\nsat on the mat and ran.\n<|endoftext|> a fish"
    (tmp_path / "a.txt").write_text(text)
    alphabet = tmp_path / "tokenizer.json"
    tokenizers.save(many.tokenizer, alphabet)
    data = many.experiment.data
    laid = prepare(DataConfig(corpus=data.corpus, tokenizer=str(alphabet), validation_corpus=str(tmp_path / "a.txt")))
    tokens = np.array(laid.validation.tokens)
    nats = np.array(one_by_one(many, tokens, 5))
    expected = nats[tokens[1:] != laid.validation.eot]
    for source in (text, open_text(data, tmp_path / "a.txt")):
        score = evaluate(many, source, stride=5)
        assert (score.tokens, score.bytes) == (len(expected), laid.validation.bytes)
        assert score.nats == pytest.approx(expected.sum(), rel=1e-5)


def test_without_ends_of_text_each_document_stands_alone(m):
    first, second = "the old king sat", "a fish ran to the river"
    apart = [evaluate(m, text) for text in (first, second)]
    both = evaluate(m, f"{first}<|endoftext|>{second}")
    assert (both.tokens, both.bytes) == (sum(score.tokens for score in apart), len(first) + len(second) - 2)
    assert both.nats == pytest.approx(sum(score.nats for score in apart), rel=1e-5)


def one_nat_each(model, params, batch, *_):
    """In place of a model: summed nats, the targets and their weights."""
    return batch.weights_BT.sum(), batch.tokens_BU[:, 1:], batch.weights_BT


@pytest.mark.parametrize(
    ("content", "bytes_read"),
    [(b"the king\r\nsat\r\n", 15), (b"\xef\xbb\xbfthe king", 8), (b"a\rking\n", 7), ("a\u2028b\u0085c".encode(), 8)],
)
def test_a_text_is_scored_as_it_is(content, bytes_read, many, tmp_path):
    """Line ends stay what they are, and a byte-order mark is no text."""
    (tmp_path / "a.md").write_bytes(content)
    own = dataclasses.replace(many, tokenizer=tokenizers.ByteTokenizer())
    own = dataclasses.replace(own, experiment=tiny.replaced(own.experiment, model__vocab=257), params=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.evaluation._learnt", one_nat_each)
        score = evaluate(own, open_text(own.experiment.data, tmp_path / "a.md"))
    assert (score.bytes, score.tokens, score.nats) == (bytes_read, bytes_read, bytes_read)


def test_every_kind_of_source_is_read(many, tmp_path, monkeypatch):
    """Files, folders, globs, compressed, records, a file of any name, and standard input."""
    texts = ["the king sat", "a fish ran"]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.txt").write_text(texts[0])
    (tmp_path / "folder/b.txt.gz").write_bytes(gzip.compress(texts[1].encode()))
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "NAME").write_text("<|endoftext|>".join(texts))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "NAME").read_bytes())))
    data, scores = many.experiment.data, set()
    for path in (tmp_path / "folder", tmp_path / "folder/*", tmp_path / "c.jsonl", tmp_path / "NAME", "-"):
        scores.add(evaluate(many, open_text(data, path)))
    assert scores == {evaluate(many, "<|endoftext|>".join(texts))}


def test_texts_with_nothing_to_score_are_refused(m, many):
    with pytest.raises(UserError, match="the text is empty"):
        evaluate(m, "")
    with pytest.raises(
        UserError, match="the text: nothing to score, only blank or a single token, which nothing preced"
    ):
        evaluate(m, "t")
    with pytest.raises(UserError, match=r"the text: nothing to score, only blank$"):
        evaluate(many, " \n<|endoftext|>\n ")
    with pytest.raises(UserError, match=r"character 'é' .* is not among"):
        evaluate(m, "thé")


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"ab\xff\x00")
    (tmp_path / "empty.txt").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("binary", "is not text: a NUL byte at offset 3"),
        ("empty.txt", "nothing but empty files"),
        ("pipe", "a pipe or a device, not a file of text"),
        ("none", "no such file or folder"),
        ("no*", "no files match"),
    ):
        with pytest.raises(UserError, match=message):
            list(open_text(DataConfig(), tmp_path / name).pieces())


def test_memory_does_not_grow_with_the_text(many, tmp_path, monkeypatch):
    """Tokens and windows of 920 kB of text would take 11 MB all at once."""
    (tmp_path / "a.txt").write_text("the king sat on a mat. " * 40_000)
    monkeypatch.setattr("lm.evaluation._learnt", one_nat_each)
    monkeypatch.setattr(readers, "CHUNK", 1 << 16)
    monkeypatch.setattr(readers, "PIECE", 1 << 16)
    source = open_text(many.experiment.data, tmp_path / "a.txt")
    tracemalloc.start()
    try:
        assert evaluate(many, source, stride=16, batch=64).tokens == 23 * 40_000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


# --- the validation split --------------------------------------------------------------------------------------------
def test_the_logged_validation_loss_is_the_score_of_the_whole_split(corpus, tmp_path):
    """With eval_tokens covering it; computed again from the checkpoint and the corpus alone."""
    from lm.training.loop import train

    once = tiny.experiment(corpus, train__steps=15, train__eval_tokens=10**6, train__eval_every="100%")
    run = train(once, folder=tmp_path)
    score, logged = evaluate_validation(load(run)), run.metrics()[-1]
    assert [record["step"] for record in run.metrics() if "val_loss" in record] == [15], "the end alone"
    assert logged["val_loss"] == pytest.approx(score.loss, rel=1e-6)
    assert logged["val_bits_per_byte"] == pytest.approx(score.bits_per_byte, rel=1e-6)
    held_out = corpus.read_text()[-(score.bytes + 1) :]
    assert score.tokens == score.bytes == len(held_out) - 1
    assert abs(len(held_out) / len(corpus.read_text()) - 0.1) < 0.001
    assert evaluate(load(run), held_out).loss == pytest.approx(score.loss, rel=1e-6)


def test_a_corpus_that_changed_is_not_scored(m, corpus):
    original = corpus.read_text()
    try:
        corpus.write_text(original + "the end.\n")
        with pytest.raises(UserError, match=r"has changed since .* was trained on it; give --text FILE"):
            evaluate_validation(m)
    finally:
        corpus.write_text(original)


# --- baselines -------------------------------------------------------------------------------------------------------
def test_baselines_by_hand():
    """xz is lzma at its strongest; guessing among 8 tokens costs 3 bits each."""
    text = TEXT.encode() * 5
    made = baselines(text, vocab=8, tokens=100)
    strongest = lzma.compress(text, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
    assert made["xz"] == 8 * len(strongest) / len(text)
    assert lzma.decompress(strongest) == text
    assert made["uniform"] == pytest.approx(300 / len(text))


def test_progress_is_reported_to_the_end(m):
    seen = []
    evaluate(m, TEXT, batch=4, report=lambda done, total: seen.append((done, total)))
    last = len(TEXT.encode()) - 1
    assert seen == [(min(4 * 16 * i, last), last + 1) for i in range(1, math.ceil(last / 64) + 1)]
