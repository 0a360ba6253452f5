"""The smallest of the pack bench: what is one after another does P times the work, and the choice is judged fairly."""

import sys

import pytest

from lm.bench import Spread, Timing

SCRIPT = "pack_speed"


def test_one_after_another_does_the_work_of_all(script):
    made = []
    script.contestant("apart", made.append, 3).run(5)
    assert made == [5 * script.STEPS] * 3


def test_the_runs_differ_in_seed_and_rate_alone(script):
    runs = script.experiments(script.FIRST, 8)
    assert len({(e.train.seed, e.optimizer.learning_rate) for e in runs}) == 8
    same = {"train.seed": 0, "optimizer.learning_rate": 1.0}
    assert len({script.lm.replace(e, same) for e in runs}) == 1


def test_the_choice_is_compared_with_the_fastest(script, monkeypatch):
    monkeypatch.setattr(script, "resolve", lambda how: "threads")
    some = lambda **seconds: [  # noqa: E731
        Timing(name, Spread(s, s, s), Spread(1, 1, 1), 1) for name, s in seconds.items()
    ]
    measured = {"a": {2: some(threads=1.0, vmap=2.0)}, "b": {2: some(threads=4.0, map=3.0), 4: some(threads=1.0)}}
    assert "threads here: the fastest in 2 of 3 cases, at worst 0.75" in script.judge_choice(measured)


@pytest.mark.slow
def test_the_smallest_of_it_measures_and_draws(script, monkeypatch, tmp_path, capsys):
    tiny = "1 layer, D=8"
    monkeypatch.setattr(script, "SHAPES", {tiny: (dict(layers=1, width=8, heads=1, context=8), 2)})
    monkeypatch.setattr(script, "FIRST", tiny)
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    figure = tmp_path / "made" / "packs.svg"
    how = ["--runs", "2", "3", "--rounds", "1", "--seconds", "0.01", "--figure", str(figure)]
    monkeypatch.setattr(sys, "argv", ["pack_speed", *how])
    script.main()
    rows = [line.removeprefix(tiny).split() for line in capsys.readouterr().out.splitlines() if line.startswith(tiny)]
    packed = [(row[0], row[1]) for row in rows if row[1] != "one"]
    assert packed == [(runs, way) for runs in "23" for way in script.WAYS] and len(rows) == 8
    assert figure.read_text().startswith("<?xml")
