"""The race's bookkeeping, on processes that train nothing; and nanoGPT's recipe, where PyTorch is installed."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm.errors import UserError

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def load(name: str):
    specification = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # its dataclasses look themselves up
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def race():
    yield load("time_to_loss")
    del sys.modules["time_to_loss"]


@pytest.fixture(scope="module")
def recipe():
    pytest.importorskip("torch")
    yield load("torch_recipe")
    del sys.modules["torch_recipe"]


def attempts(race, **seconds: list[float]):
    made = [race.Attempt(who, seed, s, 1.8 + seed / 100, [], {}) for who in seconds for seed, s in
            enumerate(seconds[who])]  # fmt: skip
    return sorted(made, key=lambda a: a.seed)


def test_summary_pairs_the_warm_rounds(race):
    ours, fast, slow = race.summary(attempts(race, lm=[20, 4, 5, 8], eager=[90, 80, 70, 60], compile=[50, 40, 45, 64]))
    assert (ours.who, fast.who, slow.who) == ("lm", "compile", "eager")
    assert (ours.seconds, fast.seconds, slow.seconds) == (5, 45, 70)
    assert (ours.cold, fast.cold, slow.cold) == (20, 50, 90)
    assert fast.ratio == [10, 9, 8]
    assert slow.ratio == [20, 14, 7.5]
    assert ours.losses == pytest.approx([1.81, 1.82, 1.83])
    assert "9.00 (8.00 to 10.00)" in fast.markdown() and "1.8200 (1.8100 to 1.8300)" in fast.markdown()


def test_summary_refuses_missing_rounds(race):
    with pytest.raises(UserError, match="compile: 1 rounds, lm made 2"):
        race.summary(attempts(race, lm=[1, 1, 1], compile=[1, 1]))


FAKE = """
import json, sys, time
with open("log.jsonl", "w", buffering=1) as log:
    for step, loss in enumerate([3.0, 2.0]):
        log.write(json.dumps({"step": step, "loss": loss}) + "\\n")
        time.sleep(0.3)
    log.write(json.dumps({"step": 2, "val_loss": 1.5}) + "\\n")
print("noise")
print(json.dumps({"val_loss": 1.5, "watching_seconds": 0.25}))
"""


def test_an_attempt_is_timed_with_its_curve(race, tmp_path):
    made = race.attempt("eager", 3, [sys.executable, "-c", FAKE], tmp_path, tmp_path / "log.jsonl")
    assert (made.who, made.seed, made.val_loss, made.said["watching_seconds"]) == ("eager", 3, 1.5, 0.25)
    (first, high), (second, low) = made.curve
    assert (high, low) == (3.0, 2.0)
    assert first > 0 and 0.2 < second - first and second < made.seconds


def test_a_failed_attempt_tells_why(race, tmp_path):
    with pytest.raises(UserError, match="PyTorch, eager failed: a cable is loose"):
        command = [sys.executable, "-c", "import sys; sys.exit('a cable is loose')"]
        race.attempt("eager", 0, command, tmp_path, tmp_path / "log.jsonl")


def test_the_whole_race(race, tmp_path, monkeypatch, capsys):
    """With processes that only pretend; a goal that they miss is told and is the exit status."""
    pytest.importorskip("torch")
    fake = lambda seed: ([sys.executable, "-c", FAKE], f"{seed}/../log.jsonl")  # noqa: E731
    monkeypatch.setattr(race, "commands", lambda corpus, passed_on: {"lm": fake, "eager": fake})
    corpus, figure = tmp_path / "input.txt", tmp_path / "figures" / "race.svg"
    corpus.write_text("words")
    arguments = [str(corpus), "--rounds", "1", "--torch", "eager", "--figure", str(figure)]
    for goal, status in (("1.5", 0), ("1.49", 1)):
        monkeypatch.setattr(sys, "argv", ["time_to_loss.py", *arguments, "--goal", goal])
        assert race.main() == status
    assert "| lm | " in capsys.readouterr().out
    assert figure.read_text().startswith("<?xml")


@pytest.mark.parametrize("arguments", [["nowhere.txt"], [__file__, "--rounds", "0"], [__file__, "--figure", "a.gif"]])
def test_bad_input_is_told_on_a_line(arguments):
    done = subprocess.run(
        [sys.executable, str(EXPERIMENTS / "time_to_loss.py"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("time_to_loss: ") and arguments[-1] in line


def test_missing_torch_is_told(race, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["time_to_loss.py", __file__])
    monkeypatch.setattr(race.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="PyTorch"):
        race.main()


# --- nanoGPT's recipe ------------------------------------------------------------------------------------------------
def test_the_rate_is_nanogpts(recipe):
    """Known places: one part in 101 first, the peak after the warm-up, half way down half way, the floor at the end."""
    rate = recipe.learning_rate
    assert rate(0) == pytest.approx(1e-3 / 101)
    assert rate(99) == pytest.approx(1e-3 * 100 / 101)
    assert rate(100) == pytest.approx(1e-3)
    assert rate(1050) == pytest.approx((1e-3 + 1e-4) / 2)
    assert rate(2000) == pytest.approx(1e-4)


def test_windows_score_every_token_once_as_ours_do(recipe):
    import torch

    from lm.evaluation import strided_windows

    tokens = np.arange(150)
    x_WT, y_WT = recipe.windows(torch.from_numpy(tokens), 64)
    ours_WT1, weights_WT = map(np.stack, zip(*strided_windows([tokens], 64, 64), strict=True))
    kept = y_WT.numpy() != recipe.IGNORED
    assert (kept == (weights_WT > 0)).all() and kept.sum() == 149
    assert (x_WT.numpy()[kept] == ours_WT1[:, :-1][kept]).all() and (y_WT.numpy()[kept] == ours_WT1[:, 1:][kept]).all()


def test_the_score_is_the_mean_over_tokens(recipe):
    """Not the mean of windows, whose last is short, nor of batches."""
    import torch

    torch.manual_seed(0)
    model = recipe.make_model(vocab=5)
    tokens = torch.randint(5, (2 * 64 + 3,))
    x_WT, y_WT = recipe.windows(tokens, 64)
    whole = recipe.score(model, x_WT, y_WT)
    assert recipe.score(model, x_WT, y_WT, batch=1) == pytest.approx(whole, abs=1e-5)
    with torch.no_grad():
        each = [float(model(x[None], y[None])) for x, y in zip(x_WT, y_WT, strict=True)]
    assert whole == pytest.approx((64 * each[0] + 64 * each[1] + 2 * each[2]) / 130, abs=1e-5)


def test_the_recipe_learns_and_reports(recipe, tmp_path, monkeypatch):
    """The model is of nanoGPT's size (without its 65 x 128 embedding 0.80 million), and a simple text is soon known."""
    assert sum(p.numel() for p in recipe.make_model(65).parameters()) == 65 * 128 + 64 * 128 + 4 * 12 * 128**2 + 9 * 128
    monkeypatch.setattr(recipe, "WARMUP", 5)
    monkeypatch.setattr(recipe, "LOG_EVERY", 10)
    monkeypatch.setattr(recipe, "EVAL_EVERY", 20)
    corpus, log = tmp_path / "input.txt", tmp_path / "log.jsonl"
    corpus.write_text("ABCDEFGH" * 200)
    made = recipe.train(corpus, 40, 0, False, log)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["step"] for record in records] == [10, 20, 30, 40]
    assert ["subset_loss" in record for record in records] == [False, True, False, True]
    assert records[0]["loss"] > records[-1]["loss"]
    assert made["val_loss"] < 0.5 < math.log(8)
    assert 0 < made["watching_seconds"]
