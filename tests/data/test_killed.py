"""A preparation of data that was killed is made again, to the same bits."""

import signal
import subprocess
import sys

import pytest
import tiny

from lm.config import DataConfig
from lm.data.supply import prepare

CHILD = """
import os, signal, sys
from lm.config import DataConfig
from lm.data import tokens

def report(stage, done, total):
    if stage == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3] == "rename":
    os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
tokens.prepare_corpus(DataConfig(corpus=sys.argv[1], tokenizer="words"), cache=sys.argv[2], report=report)
"""


@pytest.mark.parametrize("place", ["tokens", "rename"])
def test_a_killed_preparation_is_made_again_to_the_same_bits(corpus, tmp_path, place):
    """SIGKILL when the tokens are written, and when all is there but the name."""
    command = [sys.executable, "-c", CHILD, str(corpus), str(tmp_path / "killed"), place]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    left = list((tmp_path / "killed" / "tokens").iterdir())
    assert [path.name[0] for path in left] == ["."], "the kill came while the folder had no name yet"
    data = DataConfig(corpus=str(corpus), tokenizer="words")
    whole, again = prepare(data, cache=tmp_path / "whole"), prepare(data, cache=tmp_path / "killed")
    assert again.hashes == whole.hashes and again.train.sha256 == whole.train.sha256
    for side in ("train", "validation"):
        assert getattr(again, side).path.read_bytes() == getattr(whole, side).path.read_bytes()
    assert again.train.count > len(tiny.text()) // 8
