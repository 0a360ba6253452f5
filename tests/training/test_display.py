"""What a person sees while waiting: nothing at once, in a terminal a line after a while, elsewhere nothing at all."""

import functools
import time

import pytest

from lm.console import console
from lm.training.display import patience


@pytest.mark.parametrize("terminal, wait, said", [(True, 0.3, True), (True, 0.0, False), (False, 0.3, False)])
def test_long_silences_are_explained_in_a_terminal(monkeypatch, capsys, terminal, wait, said):
    monkeypatch.setattr("lm.training.display.console", functools.partial(console, force_terminal=terminal))
    with patience("fitting [points/x]", seconds=0.1):
        time.sleep(wait)
    out, err = capsys.readouterr()
    assert out == "" and ("fitting [points/x]" in err) == said
