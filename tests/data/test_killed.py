"""A preparation of data that was killed is made again, to the same bits."""

import pytest
import tiny
from killed import kill

from lm.config import DataConfig
from lm.data.supply import prepare


@pytest.mark.parametrize("place", ["tokens", "rename"])
def test_a_killed_preparation_is_made_again_to_the_same_bits(corpus, tmp_path, place):
    """SIGKILL when the tokens are written, and when all is there but the name."""
    data = DataConfig(corpus=str(corpus), tokenizer="words")
    kill(data, tmp_path / "killed", place)
    whole, again = prepare(data, cache=tmp_path / "whole"), prepare(data, cache=tmp_path / "killed")
    assert again.hashes == whole.hashes and again.train.sha256 == whole.train.sha256
    for side in ("train", "validation"):
        assert getattr(again, side).path.read_bytes() == getattr(whole, side).path.read_bytes()
    assert again.train.count > len(tiny.text()) // 8
