"""The study of exchange: one model there and back, what is refused told as such, and the figure drawn."""

import pytest
from libraries import library

library("torch")
library("transformers")
pytest.importorskip("gguf", reason="needs the extra exchange")
SCRIPT = "exchange"


def test_a_model_goes_in_and_out(script, tmp_path):
    """A mistral: into lm, out to transformers; llama.cpp knows no windows in that family."""
    journey = script.travel("mistral", tmp_path)
    assert list(journey.differences) == list(script.WAYS)
    into, out, file = journey.differences.values()
    assert 0 < into < 2e-5 and 0 < out < 2e-5
    assert file.startswith("refused: ") and "sliding_window 5" in file
    assert journey.row().startswith("| mistral | ") and journey.row().count("|") == 5
    alone = script.Journey("alone", dict.fromkeys(script.WAYS, None))
    script.draw([journey, alone], tmp_path / "out.svg")
    drawn = (tmp_path / "out.svg").read_text()
    assert drawn.count("<!-- mistral -->") == 1 and "<!-- refused -->" in drawn
