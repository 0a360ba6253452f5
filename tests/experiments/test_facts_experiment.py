"""The experiment runs on two small models, and its edits are judged fact by fact."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lm.probe import Fact

SCRIPT = "facts"
FACTS = [
    Fact("lives", "bob", "bob lives in", "oslo"), Fact("lives", "bob", "bob is from", "oslo"),
    Fact("plays", "bob", "bob plays", "go"), Fact("lives", "anna", "anna lives in", "rome"),
    Fact("plays", "anna", "anna plays", "go"), Fact("plays", "carl", "carl plays", "chess"),
]  # fmt: skip


def test_an_edit_is_judged_by_what_should_follow_and_what_should_stay(script, monkeypatch):
    """Answers are those wanted of the edited fact, in either phrasing, and those that were right of all others."""
    right = {"bob lives in": "rome", "bob is from": "oslo", "bob plays": "go", "anna lives in": "oslo"}

    def complete(m, wanted):
        return [SimpleNamespace(fact=f, correct=right.get(f.prompt, f.answer) == f.answer) for f in wanted]

    monkeypatch.setattr(script.probe, "complete", complete)
    before = [True, True, True, True, True, False]
    shares = script.judge(FACTS, before, [(None, FACTS[0], "rome")])
    assert list(shares.values()) == [1.0, 0.0, 1.0, 0.0, 1.0]  # carl's was wrong before, and does not count


@pytest.mark.slow
def test_the_whole_of_it_prints_and_draws(script, knowing, monkeypatch, tmp_path, capsys):
    runs, facts = knowing
    figure = tmp_path / "made" / "facts.svg"
    arguments = [*(str(run.path) for run in runs), "--facts", str(facts), "--figure", str(figure)]
    few = ["--traces", "3", "--edits", "2", "--samples", "2"]
    monkeypatch.setattr(sys, "argv", ["facts", *arguments, *few])
    script.main()
    printed = capsys.readouterr().out
    for words in ("completion:", "ablation:", "trace: mean over 3 facts", "edit: 2 facts", "2 runs, mean and standard"):
        assert words in printed
    drawn = figure.read_text()
    for words in ("facts completed", "loss added by switching off", "residual stream", "one fact edited in layer"):
        assert words in drawn
    first = next(line for line in printed.splitlines() if line.startswith("first, phrasing seen"))
    assert float(first.split()[3]) == pytest.approx(1, abs=0.15)
    assert np.isfinite([float(x) for x in first.split() if x[0].isdigit()]).all()
