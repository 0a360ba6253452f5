"""Shards are the one file, cut: the same tokens, batches and digests, by any number of processes, killed or not."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import tokenizer as tokenizers
from lm.config import DataConfig
from lm.data import temporary, token_files, tokens, workers
from lm.data.batches import Batches, validation_windows
from lm.data.corpora import cache_folder
from lm.data.token_files import Shards
from lm.errors import UserError

STORIES = [f"Story {i}: " + f"the {i % 7} bears – of {i}. " * (i % 9 + 1) + "\n" for i in range(300)]


def write(path, texts, separator="<|endoftext|>"):
    path.write_text(separator.join(texts))
    os.utime(path, (1e9, 1e9))
    return DataConfig(corpus=str(path), tokenizer="words", vocab=300, validation=0.2)


@pytest.fixture
def stories(tmp_path):
    return write(tmp_path / "stories.txt", STORIES)


@pytest.fixture
def small(monkeypatch):
    """Every corpus is large, and shards hold 4 kB."""
    monkeypatch.setattr(tokens, "LARGE", 0)
    monkeypatch.setattr(workers, "SHARD", 4000)


def prepare(data, cache, count=1, **options):
    return tokens.prepare_corpus(data, cache=cache, workers=count, **options)


# --- one array -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cut_array(tmp_path_factory):
    """Thirteen tokens in one array, and in shards of 1, 5, 3 and 4."""
    folder, whole = tmp_path_factory.mktemp("shards"), np.arange(100, 113, dtype=np.uint16)
    paths = [folder / f"{number}" for number in range(4)]
    for path, part in zip(paths, np.split(whole, [1, 6, 9]), strict=True):
        path.write_bytes(part.tobytes())
    return whole, Shards(paths, [1, 5, 3, 4], "uint16")


@settings(deadline=None)
@given(bounds=st.tuples(*[st.none() | st.integers(-16, 16)] * 2), step=st.none() | st.sampled_from([1, 2, -1, -3]))
def test_a_slice_of_shards_is_that_of_the_array(bounds, step, cut_array):
    whole, shards = cut_array
    part = shards[slice(*bounds, step)]
    assert part.dtype == np.uint16 and part.tolist() == whole[slice(*bounds, step)].tolist()


@settings(deadline=None)
@given(places=st.lists(st.integers(-13, 12), max_size=12))
def test_places_in_shards_are_those_of_the_array(places, cut_array):
    whole, shards = cut_array
    index = np.array(places * 2, np.int64).reshape(2, -1)
    assert shards[index].dtype == np.uint16 and shards[index].tolist() == whole[index].tolist()


def test_shards_look_like_the_array(cut_array, monkeypatch):
    whole, shards = cut_array
    assert (len(shards), shards.shape, shards.dtype, shards.ndim) == (13, whole.shape, whole.dtype, 1)
    assert np.array(shards).tolist() == np.asarray(shards, np.int32).tolist() == whole.tolist()
    assert shards[5] == 105 and shards[-1] == 112 and np.ndim(shards[5]) == 0
    for outside in (13, -14):
        with pytest.raises(IndexError):
            shards[outside]
    monkeypatch.setattr(token_files, "MAPPED", 1)
    few = Shards(shards.paths, [1, 5, 3, 4], "uint16")
    assert few[np.arange(13)[::-1]].tolist() == whole[::-1].tolist()
    assert few.mapped.cache_info().currsize == 1


# --- the same as one file --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", ["stories", "one document", "another corpus to validate"])
def test_shards_are_the_one_file(case, stories, tmp_path, small, monkeypatch):
    """Tokens, division, counts and digests; windows across borders and the end; for one worker and for two."""
    monkeypatch.setattr(tokenizers, "SLICE", 1000)
    monkeypatch.setattr("lm.tokenizer.encoding.SLICE", 1000)
    data = stories
    if case == "one document":
        data = write(tmp_path / "one.txt", [*STORIES, " " * 5000, "x" * 9000, *STORIES], separator="")
    elif case == "another corpus to validate":
        other = write(tmp_path / "other.txt", ["".join(STORIES)])
        data = dataclasses.replace(stories, validation_corpus=other.corpus, tokenizer="chars")
    made = [prepare(data, tmp_path / f"{count}", count) for count in (1, 2)]
    monkeypatch.setattr(tokens, "LARGE", 1 << 40)
    one = prepare(data, tmp_path / "one")
    assert one.hashes == made[0].hashes and not one.train.shards
    for side in ("train", "validation"):
        files = [getattr(prepared, side) for prepared in (one, *made)]
        plain = [dataclasses.replace(file, path=Path(), shards=()) for file in files]
        assert plain[0] == plain[1] == plain[2]
        assert len(files[1].shards) >= 2 and files[1].shards == files[2].shards
        assert files[0].path.read_bytes() == b"".join(path.read_bytes() for path in files[1].paths)
    first, shards = (Batches(prepared.train, context=700, batch=2, seed=3) for prepared in (one, made[1]))
    steps = 2 * first.windows  # two passes of each row: the second is shifted, and wraps around
    assert (first.at(0, steps) == shards.at(0, steps)).all()
    assert (first.store() == shards.store()).all()
    columns = [validation_windows(prepared.validation, 100, 500)["tokens_BU"] for prepared in (one, made[1])]
    assert (columns[0] == columns[1]).all()


def test_a_cut_depends_on_the_text_alone_and_bounds_a_shard(monkeypatch):
    monkeypatch.setattr(workers, "SHARD", 50)
    parts = [(side, "é" * 10, opens) for side, opens in [("train", True), ("validation", True), ("train", False)] * 9]
    cuts = list(workers.cut(iter(parts), {"train"}))
    assert [len(text) for name, text in cuts if name.startswith("train")] == [63] * 5 + [64]
    assert len([name for name, _ in cuts]) == len({name for name, _ in cuts})
    assert b"".join(bytes(text) for name, text in cuts if name.startswith("v")) == 9 * (b"\xff" + "é".encode() * 10)


# --- what is interrupted ---------------------------------------------------------------------------------------------
CHILD = """
import json, os, signal, sys, threading
from pathlib import Path
from lm.config import DataConfig
from lm.data import tokens, workers
tokens.LARGE, workers.SHARD = 0, 4000

def report(stage, done, total):
    if stage == "tokens" and list(Path(sys.argv[2]).rglob("*/train/*.json")):
        os.kill(os.getpid(), int(sys.argv[3]))

tokens.prepare_corpus(DataConfig(**json.loads(sys.argv[1])), cache=sys.argv[2], report=report, workers=2)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_what_was_finished_stays_and_the_rest_is_made_again(how, stories, tmp_path, small):
    command = [
        sys.executable,
        "-c",
        CHILD,
        json.dumps(dataclasses.asdict(stories)),
        str(tmp_path / "cut"),
        str(int(how)),
    ]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == -how
    (unfinished,) = (tmp_path / "cut/tokens").iterdir()
    kept = {path.name: path.stat().st_mtime_ns for path in unfinished.rglob("train/*.json")}
    assert unfinished.name.startswith(".unfinished-") and kept
    damaged = max(unfinished.rglob("train/*.bin"))  # one bit: made again
    damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
    kept.pop(damaged.with_suffix(".json").name, None)
    whole, again = prepare(stories, tmp_path / "whole"), prepare(stories, tmp_path / "cut")
    assert (again.train.sha256, again.hashes) == (whole.train.sha256, whole.hashes)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in again.train.path.glob("*.json")}.items()
    assert len(kept) < len(again.train.shards) - 1
    assert [path.name[0] for path in (tmp_path / "cut/tokens").iterdir()] == ["s"]
    assert not list((tmp_path / "cut").rglob(".*"))


def test_a_worker_that_is_killed_is_one_sentence(stories, tmp_path, small, monkeypatch):
    started = []
    start = workers.start
    monkeypatch.setattr(workers, "start", lambda folder: started.append(start(folder)) or started[-1])

    def kill(stage, *_):
        if stage == "tokens":
            started[0].kill()

    with pytest.raises(UserError, match=r"was killed by signal 9 .*; run again: what was finished is kept"):
        prepare(stories, tmp_path / "cache", 2, report=kill)
    assert all(worker.returncode is not None for worker in started)
    assert prepare(stories, tmp_path / "cache").train.whole


def test_text_that_a_tokenizer_cannot_write_is_refused_as_in_one_process(stories, tmp_path, small):
    tokenizers.save(tokenizers.CharTokenizer("abc"), tmp_path / "abc.json")
    with pytest.raises(UserError, match=r"character 'S' \(U\+0053\) is not among the 3 characters"):
        prepare(dataclasses.replace(stories, tokenizer=str(tmp_path / "abc.json")), tmp_path / "cache")


def test_a_full_disk_is_one_sentence_and_the_preparation_goes_on(stories, tmp_path, small):
    """Files may not grow beyond 5 kB here: a shard of 4 kB of text takes 8 at two bytes a token."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = dataclasses.replace(stories, tokenizer="bytes")
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot keep tokens in .*; set LM_CACHE to a folder with room"):
            prepare(data, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert prepare(data, tmp_path / "cache").train.whole
    assert not list((tmp_path / "cache").rglob(".*"))


def test_damaged_shards_are_noticed_and_made_again(stories, tmp_path, small):
    first = prepare(stories, tmp_path)
    path = first.train.paths[1]
    path.write_bytes(path.read_bytes()[:-2])
    assert tokens._open(path.parents[1]) is None
    again = prepare(stories, tmp_path)
    assert (again.train, again.hashes) == (first.train, first.hashes) and again.train.whole


def test_what_nobody_finished_is_cleared_away_after_a_month(tmp_path, monkeypatch):
    folder = tmp_path / f"{temporary.UNFINISHED}a"
    (folder / "train").mkdir(parents=True)
    temporary.clear_abandoned(tmp_path)
    assert folder.is_dir()
    monkeypatch.setattr(temporary, "MONTH", -1)
    with temporary._only_one(folder):
        temporary.clear_abandoned(tmp_path)
        assert folder.is_dir()  # somebody works there
    temporary.clear_abandoned(tmp_path)
    assert not folder.exists()


def test_one_file_stays_one_file(stories):
    """A corpus that is not large has the layout it always had, in a folder of the name it always had."""
    made = tokens.prepare_corpus(stories)
    assert sorted(path.name for path in made.train.path.parent.iterdir()) == [
        "tokenizer.json", "tokens.json", "train.bin", "validation.bin"]  # fmt: skip
    assert "shards" not in json.loads((made.train.path.parent / "tokens.json").read_text())["train"]
    assert made.train.path.is_relative_to(cache_folder())


def test_cores_follow_affinity_and_quota(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for quota, expected in (("max 100000", 8), ("250000 100000", 3), ("9900000 100000", 8), ("1000 100000", 1)):
        monkeypatch.setattr(workers, "Path", lambda _, quota=quota: SimpleNamespace(read_text=lambda: quota))
        assert workers.cores() == expected
