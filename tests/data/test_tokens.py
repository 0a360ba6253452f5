"""Token files hold the text, all of it, once; train and validation never overlap; what is found again is the same."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm import tokenizer as tokenizers
from lm.config import DataConfig
from lm.data import corpora, readers, tokens
from lm.data.supply import prepare, prepare_again
from lm.errors import UserError
from lm.tokenizer import digest

SEPARATOR = "<|endoftext|>\n"
STORIES = [f"Story {i}: " + f"the {i % 7} bears of {i}. " * (i % 9 + 1) + "\n" for i in range(60)]


def write(path, documents, time=1e9):
    """A corpus file whose time stamp is old enough for its scan to be remembered."""
    path.write_text(SEPARATOR.join(documents))
    os.utime(path, (time, time))
    return path


@pytest.fixture
def stories(tmp_path):
    return DataConfig(corpus=str(write(tmp_path / "stories.txt", STORIES)), validation=0.2)


def documents(file, tokenizer):
    """The documents of a token file in the EOT layout."""
    ends = np.flatnonzero(file.tokens == file.eot)
    return [tokenizer.decode(file.tokens[a + 1 : b].tolist()) for a, b in itertools.pairwise(ends)]


def leftovers(cache):
    """Everything in a cache but finished folders and scans."""
    return [path for path in Path(cache).rglob(".*")]


# --- layout ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["bytes", "chars", "words", "bpe"])
def test_every_document_is_there_once_between_ends_of_text(kind, stories):
    stories = DataConfig(corpus=stories.corpus, tokenizer=kind, vocab=300)
    prepared = prepare(stories)
    for file in (prepared.train, prepared.validation):
        assert file.eot == prepared.tokenizer.eot_token
        assert file.tokens[0] == file.tokens[-1] == file.eot
        assert np.count_nonzero(file.tokens == file.eot) == file.documents + 1
        assert len(file.tokens) == file.count
        assert file.tokens.dtype == np.uint16
        assert file.bytes == sum(len(document.encode()) for document in documents(file, prepared.tokenizer))
    train, held_out = (documents(file, prepared.tokenizer) for file in (prepared.train, prepared.validation))
    assert sorted(train + held_out) == sorted(STORIES)
    assert train == [story for story in STORIES if story in train]  # in order


def test_one_document_is_cut_at_its_end_and_has_no_end_of_text(tmp_path):
    text = "Pease porridge – hot. " * 50
    prepared = prepare(DataConfig(corpus=str(write(tmp_path / "a.txt", [text])), tokenizer="chars", validation=0.1))
    assert (prepared.train.eot, prepared.validation.eot) == (None, None)
    assert (prepared.train.documents, prepared.validation.documents) == (1, 1)
    cut = int(len(text) * 0.9)
    assert prepared.tokenizer.decode(prepared.train.tokens.tolist()) == text[:cut]
    assert prepared.tokenizer.decode(prepared.validation.tokens.tolist()) == text[cut:]
    assert prepared.validation.bytes == len(text[cut:].encode())


def test_large_vocabularies_take_four_bytes(tmp_path):
    """65,536 tokens still fit in two."""
    for n_vocab, dtype in ((65536, "uint16"), (65537, "uint32")):
        alphabet = [chr(0x10000 + i) for i in range(n_vocab - 1)]
        data = DataConfig(corpus=str(write(tmp_path / "a.txt", ["".join(alphabet)])), tokenizer="chars")
        prepared = prepare(data)
        assert (prepared.tokenizer.n_vocab, prepared.train.dtype) == (n_vocab, dtype)
        assert prepared.train.tokens[-1] == prepared.train.count - 1


@pytest.mark.skipif("LM_DATA" not in os.environ, reason="LM_DATA names no folder with corpora")
def test_shakespeare_is_divided_as_in_nanogpt():
    path = Path(os.environ["LM_DATA"]) / "corpora/shakespeare/input.txt"
    prepared = prepare(DataConfig(corpus=str(path), tokenizer="chars"))
    assert (prepared.train.count, prepared.validation.count) == (1_003_854, 111_540)
    assert prepared.tokenizer.n_vocab == 65 + 1  # and the end of text
    text = path.read_text()
    ids = {character: token for token, character in enumerate(sorted(set(text)))}
    assert prepared.train.tokens.tolist() == [ids[character] for character in text[:1_003_854]]


@pytest.mark.parametrize("kind", ["bytes", "words", "bpe"])
def test_streaming_equals_whole(kind, tmp_path, monkeypatch):
    """A document read in many small pieces becomes the tokens of the document read at once."""
    data = DataConfig(corpus=str(write(tmp_path / "a.txt", ["".join(STORIES)])), tokenizer=kind, vocab=300)
    whole = prepare(data, cache=tmp_path / "whole")
    monkeypatch.setattr(readers, "PIECE", 7)
    monkeypatch.setattr(readers, "CHUNK", 5)
    tokenizer = whole.train.path.parent / "tokenizer.json"
    data = DataConfig(corpus=data.corpus, tokenizer=str(tokenizer))
    pieces = prepare(data, cache=tmp_path / "pieces")
    assert pieces.train.sha256 == whole.train.sha256
    assert pieces.validation.sha256 == whole.validation.sha256


# --- what is held out ------------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text("ab é", min_size=1, max_size=40).filter(str.strip), min_size=2, max_size=30),
    fraction=st.floats(0.01, 0.99),
)
def test_train_and_validation_never_overlap(texts, fraction, tmp_path):
    """Not even where a document occurs twice; and neither side is empty."""
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = DataConfig(corpus=str(corpus), validation=fraction)
    if len(set(texts)) == 1:
        with pytest.raises(UserError, match=r"documents are all the same; give a data\.validation_corpus"):
            prepare(data)
        return
    prepared = prepare(data)
    train, held_out = (documents(file, prepared.tokenizer) for file in (prepared.train, prepared.validation))
    assert train and held_out and not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(texts)


def test_about_the_fraction_is_held_out_and_it_follows_the_text_alone(stories, tmp_path):
    prepared = prepare(stories)
    total = sum(len(story.encode()) for story in STORIES)
    assert 0.15 < prepared.validation.bytes / total <= 0.2
    shuffled = write(tmp_path / "other.txt", STORIES[::-1])
    again = prepare(DataConfig(corpus=str(shuffled), validation=0.2))
    assert documents(again.validation, again.tokenizer) == documents(prepared.validation, prepared.tokenizer)[::-1]


def test_the_choice_is_the_same_on_every_machine():
    """A change here changes everybody's validation set: then raise VERSION."""
    assert [tokens.bucket(text) for text in (b"", b"a", "東京".encode())] == [11017, 59976, 16456]


def test_one_large_document_among_few_is_not_held_out():
    sizes = np.zeros(tokens.BUCKETS, np.int64)
    sizes[[3, 50, 900]] = [900, 60, 40]
    assert tokens.hold_out(sizes, 0.1) == (50, 900)
    assert tokens.hold_out(sizes, 0.05) == (900,)
    assert tokens.hold_out(sizes, 0.001) == (900,)  # at least one: the smallest
    assert tokens.hold_out(sizes, 0.999) == (3, 50)  # never all


def test_a_validation_corpus_is_taken_whole_and_leaves_the_training_text_alone(stories, tmp_path):
    other = write(tmp_path / "other.txt", ["a single document, nothing like a story"])
    prepared = prepare(DataConfig(corpus=stories.corpus, validation_corpus=str(other), tokenizer="chars"))
    assert prepared.train.documents == len(STORIES)
    assert prepared.validation.eot is None
    assert prepared.tokenizer.decode(prepared.validation.tokens.tolist()) == other.read_text()


def test_held_out_words_do_not_enter_the_vocabulary(stories):
    """A tokenizer is built from the training text: a word of validation alone is not among its entries."""
    data = DataConfig(corpus=stories.corpus, tokenizer="words", vocab=4096, validation=0.2)
    prepared = prepare(data)
    held_out = "".join(documents(prepared.validation, prepared.tokenizer))
    train = "".join(documents(prepared.train, prepared.tokenizer))
    alone = set(re.findall(r" \d+", held_out)) - set(re.findall(r" \d+", train))
    assert alone
    assert all(len(prepared.tokenizer.encode_ordinary(word)) > 1 for word in alone)


# --- found again -----------------------------------------------------------------------------------------------------
@pytest.fixture
def readings(monkeypatch):
    """A list that grows with every file that is read."""
    seen, read = [], readers.read
    monkeypatch.setattr(readers, "read", lambda path, **kind: seen.append(path) or read(path, **kind))
    return seen


def test_a_second_call_reads_no_text(stories, readings):
    first = prepare(stories)
    assert readings
    readings.clear()
    second = prepare(stories)
    assert readings == []
    assert (second.train, second.validation, second.hashes) == (first.train, first.validation, first.hashes)
    assert digest(second.tokenizer) == digest(first.tokenizer)


def test_a_touched_file_is_read_again_but_its_tokens_are_kept(stories, readings):
    first = prepare(stories)
    readings.clear()
    os.utime(stories.corpus, (1e9 + 5, 1e9 + 5))
    assert prepare(stories).train.path == first.train.path
    assert len(readings) == 1


def test_a_file_written_just_now_is_not_trusted_to_stay(stories, readings):
    """Its time stamp could hide one more change."""
    os.utime(stories.corpus)
    prepare(stories)
    readings.clear()
    prepare(stories)
    assert len(readings) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": "chars"},
        {"validation": 0.3},
        {"separator": "bears"},
        {"separator": SEPARATOR},
        {"text_field": "body"},
        {"tokenizer": "words", "vocab": 300},
        {"tokenizer": "words", "vocab": 301},
    ],
)
def test_other_settings_make_other_tokens(change, stories):
    first = prepare(stories)
    other = prepare(DataConfig(**{"corpus": stories.corpus, "validation": 0.2} | change))
    assert other.train.path != first.train.path


def test_other_text_makes_other_tokens(stories):
    first = prepare(stories)
    write(Path(stories.corpus), [*STORIES[:-1], STORIES[-1].upper()], time=1e9 + 1)
    other = prepare(stories)
    assert other.train.path != first.train.path
    assert other.hashes["corpus"] != first.hashes["corpus"]


def test_other_code_makes_other_tokens(stories, monkeypatch):
    first = prepare(stories)
    monkeypatch.setattr(tokens, "VERSION", tokens.VERSION + 1)
    assert prepare(stories).train.path != first.train.path


@pytest.mark.parametrize("damage", ["train.bin", "validation.bin", "tokens.json", "tokenizer.json", "missing"])
def test_damaged_tokens_are_noticed_and_made_again(damage, stories):
    first = prepare(stories)
    folder = first.train.path.parent
    if damage == "missing":
        (folder / "train.bin").unlink()
    else:
        (folder / damage).write_bytes((folder / damage).read_bytes()[:-7])
    again = prepare(stories)
    assert again.train.path == first.train.path
    assert again.train.path.stat().st_size == 2 * first.train.count
    assert (again.train.sha256, again.hashes) == (first.train.sha256, first.hashes)
    assert leftovers(corpora.cache_folder()) == []


def test_two_at_once_both_get_whole_tokens(stories):
    """Both start before either has finished; the second finds the first's folder in its place."""
    gate, results = threading.Barrier(4), []

    def one():
        gate.wait()
        results.append(prepare(stories))

    threads = [threading.Thread(target=one) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len({(made.train, made.validation) for made in results}) == 1 and len(results) == 4
    assert leftovers(corpora.cache_folder()) == []


def test_a_slower_process_takes_what_a_faster_one_left(stories, monkeypatch):
    first = prepare(stories)
    answers = iter([None])  # at first sight there was nothing; at the end there is
    real = tokens._open
    monkeypatch.setattr(tokens, "_open", lambda folder: next(answers, real(folder)))
    assert prepare(stories).train == first.train
    assert leftovers(corpora.cache_folder()) == []


# --- what goes wrong -------------------------------------------------------------------------------------------------
def test_text_without_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="no text in it, only blank"):
        prepare(DataConfig(corpus=str(write(tmp_path / "a.txt", ["\n", " \n"]))))
    with pytest.raises(UserError, match="one character cannot be divided"):
        prepare(DataConfig(corpus=str(write(tmp_path / "a.txt", ["x"]))))


def test_a_cache_that_cannot_be_written_is_one_sentence(stories, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot keep tokens in .*/file/cache: Not a directory; set LM_CACHE"):
        prepare(stories, cache=tmp_path / "file/cache")


def test_a_full_disk_leaves_nothing_behind(stories, tmp_path):
    """Files may not grow beyond 4 kB here, which the file system reports as a full disk does."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot keep tokens in .*; set LM_CACHE to a folder with room"):
            prepare(stories, cache=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache/tokens").iterdir()) == []


def test_a_bad_file_leaves_nothing_behind(stories, tmp_path):
    Path(stories.corpus).with_name("zzz.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"zzz\.txt is not UTF-8"):
        prepare(DataConfig(corpus=str(tmp_path)), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_corpus_that_changes_under_the_reader_is_noticed(stories, monkeypatch):
    """Same size, same time: only the text itself tells."""
    prepare(stories)
    shutil.rmtree(corpora.cache_folder() / "tokens")
    write(Path(stories.corpus), [*STORIES[:-1], STORIES[-1].upper()])
    with pytest.raises(UserError, match="changed while it was being read"):
        prepare(stories)
    assert leftovers(corpora.cache_folder()) == []
    assert prepare(stories).hashes["corpus"]  # and the stale memory of it is gone


def test_what_a_run_was_trained_on_is_made_again_by_its_own_tokenizer(stories, tmp_path):
    """The setting may make another by now: words were cut by another pattern once."""
    words = dataclasses.replace(stories, tokenizer="words", vocab=300)
    before = tokenizers.to_json(prepare(words).tokenizer) | {"pattern": r" ?\w+| ?[^\w\s]+|\s+"}
    (tmp_path / "run").mkdir()
    tokenizers.save(tokenizers.from_json(before), tmp_path / "run/tokenizer.json")
    trained = prepare(dataclasses.replace(words, tokenizer=str(tmp_path / "run/tokenizer.json")))
    again = prepare_again(words, tmp_path / "run", trained.hashes)
    assert again.hashes == trained.hashes != prepare(words).hashes
    np.testing.assert_array_equal(again.train.tokens, trained.train.tokens)
    write(Path(stories.corpus), [*STORIES, "One more."], time=2e9)
    with pytest.raises(UserError, match=r"stories\.txt has changed since .*run was trained on it; give --text FILE"):
        prepare_again(words, tmp_path / "run", trained.hashes)


# --- size ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["bytes", "chars", "bpe"])
def test_memory_is_bounded(kind, tmp_path, monkeypatch):
    """A file of one document goes through in less than half its size; what bounds it is made smaller with the file."""
    monkeypatch.setattr("lm.tokenizer.building.SAMPLE", 200_000)
    monkeypatch.setattr(readers, "PIECE", 1 << 17)
    line = "The quick brown fox jumps over the lazy dog, twice. "
    (tmp_path / "a.txt").write_text(line * (24_000_000 // len(line)))
    tracemalloc.start()
    try:
        prepared = prepare(DataConfig(corpus=str(tmp_path / "a.txt"), tokenizer=kind, vocab=300))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert prepared.train.bytes > 20_000_000
    assert peak < 10_000_000


def test_progress_is_reported_in_bytes(stories):
    seen = []
    prepare(DataConfig(corpus=stories.corpus, tokenizer="words"), report=lambda *progress: seen.append(progress))
    total = sum(len(story.encode()) for story in STORIES)
    assert [stage for stage, _, _ in seen] == ["reading", "tokenizer", "tokens"]
    assert all(done == of == total for _, done, of in seen)
