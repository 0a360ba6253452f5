"""Who reaches nanoGPT's figure in how long: the bookkeeping, on processes that train nothing."""

import json
import sys
from pathlib import Path

import pytest

import lm
from lm.errors import UserError

SCRIPT = "loss_in_minutes"
OURS = dict(step=100, tokens=409_600, params_total=2_700_000)
THEIRS = dict(step=50, tokens=819_200, parameters=10_650_000, watching_seconds=20.0)


def attempt(script, who, seed, seconds, loss):
    if who == script.OURS:
        points, said = [(1.0, {"step": 0, "val_loss": 4.2}), (200.0, {"step": 50, "val_loss": 1.8})], OURS
    else:
        points, said = [(100.0, {"step": 5, "loss": 3.0, "subset_loss": 2.9, "watching_seconds": 10.0})], THEIRS
    return script.Attempt(who, seed, seconds, loss, points, said)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "input.txt"
    path.write_text("x" * 1000)
    return path


@pytest.fixture
def race(script, monkeypatch, corpus, tmp_path):
    """race(*arguments, losses=, seconds=) -> exit status; commands are noted in race.commands, and none is run."""

    def run(*arguments, losses, seconds=400.0):
        run.commands.clear()

        def told(who, seed, command, folder, log):
            run.commands.append(command)
            ours = who == script.OURS
            return attempt(script, who, seed, seconds if ours else 505.0, losses[seed] if ours else 2.0)

        monkeypatch.setattr(script, "attempt", told)
        monkeypatch.setattr(script, "require_whole", lambda run, corpus: None)
        monkeypatch.setattr(script.lm, "Run", Path)
        figure = tmp_path / "figures" / "minutes.svg"
        monkeypatch.setattr(sys, "argv", ["loss_in_minutes.py", str(corpus), "--figure", str(figure), *arguments])
        status = script.main()
        assert figure.read_text().startswith("<?xml")
        kept = json.loads(figure.with_suffix(".json").read_text())
        assert len(kept["attempts"]) == len(run.commands) and kept["attempts"][0]["points"]
        return status

    run.commands = []
    return run


def test_the_mean_decides_and_so_does_the_time(race, capsys):
    pytest.importorskip("torch")
    assert race(losses=[1.46, 1.48, 1.44]) == 0
    out = capsys.readouterr().out
    assert "| lm | 2.70 | 100 | 4,096 | 400 cold, 400 400 warm | counted | 1.4600 (1.4600 1.4800 1.4400) |" in out
    assert "| nanoGPT's recipe, PyTorch | 10.65 | 50 | 16,384 | 505 | 20 of them | 2.0000 (2.0000) |" in out
    assert "mean 1.4600: reaches 1.4697; 1 of 3 seeds above it" in out and "400 s: within 480 s" in out
    assert race("--rivals", losses=[1.46, 1.48, 1.48]) == 1
    assert "MISSES" in capsys.readouterr().out
    assert race("--rivals", losses=[1.46, 1.48, 1.44], seconds=481.0) == 1
    assert "481 s: LONGER THAN 480 s" in capsys.readouterr().out


def test_settings_are_passed_on_and_rivals_have_the_same_time(race):
    pytest.importorskip("torch")
    assert race("--seconds", "600", "--seeds", "7", "--rivals", "fit-12", "--bfloat16", "--train.steps", "9",
                "--config", "some", losses={7: 1.0}) == 0  # fmt: skip
    ours, theirs = race.commands
    assert ours[2:6] == ["lm.cli", "train", "some", "--train.steps"] and ours[ours.index("--train.seed") + 1] == "7"
    assert theirs[-8:] == ["--recipe", "gpu", "--seconds", "600", "--fit", "--batch", "12", "--bfloat16"]


def test_a_curve_ends_with_the_process_and_leaves_watching_out(script):
    assert script.curve(attempt(script, script.OURS, 0, 300.0, 1.7)) == [(1.0, 4.2), (200.0, 1.8), (300.0, 1.7)]
    assert script.curve(attempt(script, "a rival", 0, 500.0, 2.0)) == [(90.0, 2.9), (480.0, 2.0)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.eval_tokens": 99}, "eval_tokens 99: the validation split is a tenth"),
        ({"model.context": 64}, "context 64"),
    ],
)
def test_a_loss_of_something_else_is_refused(script, corpus, changes, said):
    class Run:
        experiment = lm.replace(lm.load_experiment("shakespeare_char_cpu"), {"model.context": 256} | changes)

    with pytest.raises(UserError, match=said):
        script.require_whole(Run, corpus)


@pytest.mark.parametrize("arguments", [["nowhere.txt"], [__file__, "--seconds", "0"], [__file__, "--figure", "a.gif"]])
def test_bad_input_is_told(script, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["loss_in_minutes.py", *arguments])
    with pytest.raises(UserError, match=arguments[-1]):
        script.main()
