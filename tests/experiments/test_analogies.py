"""Cells hold a number for each seed; the smallest of the study trains eight runs and draws its panels."""

import sys
from types import SimpleNamespace

import pytest
import tiny

SCRIPT = "analogies"
SUITE = ": who\nking queen fish mat\nfish mat king queen\nking queen river sat\nriver sat king queen\n"


def test_a_cell_is_the_mean_over_seeds(script):
    seeds = {column: [0.25, 0.5, 0.75] for column in script.COLUMNS}
    cell = script.Cell("corpus", "tied", "input", "who", 4, seeds)
    assert (cell.accuracy, cell.only_c, cell.interval) == (0.5, 0.5, (0.25, 0.75))
    with pytest.raises(AttributeError):
        cell.nothing  # noqa: B018
    line = script.table([cell]).splitlines()[1]
    assert line.count("0.500 ± 0.250") == len(script.COLUMNS) and "tied" in line


@pytest.mark.slow
def test_the_smallest_of_it_trains_scores_and_draws(script, monkeypatch, tmp_path, capsys, corpus):
    """Two seeds, four steps: every space of tied and untied models, on the text and its control."""
    small = tiny.experiment(corpus, data__tokenizer="words", data__vocab=300, schedule__warmup=1)
    monkeypatch.setattr(script, "BASE", small)
    control, suite, figure = tmp_path / "control.txt", tmp_path / "suite.txt", tmp_path / "made" / "figure.svg"
    control.write_text(tiny.text(seed=1))
    suite.write_text(SUITE)
    given = ["--corpus", corpus, "--control", control, "--suite", suite, "--steps", 4, "--seeds", 2]
    given += ["--folder", tmp_path / "runs", "--figure", figure]
    monkeypatch.setattr(sys, "argv", ["analogies", *map(str, given)])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    spaces = {"tied": ["input", "contextual.1", "contextual.2"]}
    spaces["untied"] = ["input", "unembedding", "contextual.1", "contextual.2"]
    expected = [
        [what, head, space, "who", "4"]
        for what in ("corpus", "control") for head in spaces for space in spaces[head]
    ]  # fmt: skip
    assert [line.split()[:5] for line in lines[1:-1]] == expected
    assert len(list((tmp_path / "runs").iterdir())) == 8 and "</svg>" in figure.read_text()


def test_what_was_stopped_is_not_scored(script, monkeypatch, tmp_path, corpus):
    """A run that Ctrl-C ended half way is no result."""
    monkeypatch.setattr(script, "BASE", tiny.experiment(corpus))
    half = SimpleNamespace(steps=lambda: [15, 30], record={"steps": {"total": 60}})
    monkeypatch.setattr(script.lm, "train_pack", lambda *_, **__: [half])
    options = SimpleNamespace(config=None, steps=None, seeds=1, folder=tmp_path)
    with pytest.raises(SystemExit, match="stopped; the same command goes on from there"):
        script.train("corpus", str(corpus), "tied", options)
