"""The race's bookkeeping, on processes that train nothing; and nanoGPT's recipe, where PyTorch is installed."""

import importlib.util
import itertools
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from lm.errors import UserError

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
SCRIPT = "time_to_loss"
EAGER, COMPILED = "PyTorch, eager", "PyTorch, torch.compile"


@pytest.fixture
def race(script):
    """The script, by a short name."""
    return script


@pytest.fixture(scope="module")
def recipe(script):
    """experiments/torch_recipe.py, which the script's processes run."""
    pytest.importorskip("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        patch.setattr("os.cpu_count", lambda: 1)  # threads wait for each other for long on a busy machine
        yield importlib.import_module("torch_recipe")


def attempts(race, seconds: dict[str, list[float]]):
    said = {"step": 10, "tokens": 7680}
    made = [race.Attempt(who, seed, s, 1.8 + seed / 100, [], said) for who in seconds for seed, s in
            enumerate(seconds[who])]  # fmt: skip
    return sorted(made, key=lambda a: a.seed)


def test_summary_pairs_the_warm_rounds(race):
    made = attempts(race, {"lm": [20, 4, 5, 8], EAGER: [90, 80, 70, 60], COMPILED: [50, 40, 45, 64]})
    ours, fast, slow = race.summary(made)
    assert (ours.who, fast.who, slow.who) == ("lm", COMPILED, EAGER)
    assert (ours.seconds, fast.seconds, slow.seconds) == (5, 45, 70)
    assert (ours.cold, fast.cold, slow.cold) == (20, 50, 90)
    assert fast.ratio == [10, 9, 8]
    assert slow.ratio == [20, 14, 7.5]
    assert ours.losses == pytest.approx([1.81, 1.82, 1.83])
    told = fast.markdown(1.825)
    assert "9.00 (8.00 to 10.00)" in told and "1.8200 (1.8100 1.8200 1.8300) | 1 of 3 |" in told
    assert "nanoGPT's: AdamW, GELU, learned positions, 10 steps of 768 characters" in told


def test_summary_refuses_missing_rounds(race):
    with pytest.raises(UserError, match=r"torch.compile: 1 rounds, lm made 2"):
        race.summary(attempts(race, {"lm": [1, 1, 1], COMPILED: [1, 1]}))


FAKE = """
import json, sys, time
with open("log.jsonl", "w", buffering=1) as log:
    for step, loss in enumerate([3.0, 2.0]):
        log.write(json.dumps({"step": step, "loss": loss, "watching_seconds": step / 10}) + "\\n")
        time.sleep(0.2)
    log.write(json.dumps({"step": 2, "val_loss": 1.5}) + "\\n")
print("noise")
print(json.dumps({"val_loss": 1.5, "watching_seconds": 0.25, "step": 2, "tokens": 128}))
"""


def test_an_attempt_is_timed_with_its_curve(race, tmp_path):
    made = race.attempt("PyTorch", 3, [sys.executable, "-c", FAKE], tmp_path, tmp_path / "log.jsonl")
    assert (made.who, made.seed, made.val_loss, made.said["watching_seconds"]) == ("PyTorch", 3, 1.5, 0.25)
    (first, high), (second, low) = made.curve("loss")
    assert (high, low) == (3.0, 2.0)
    assert 0 < first < second < made.seconds
    assert second == made.points[1][0] - 0.1  # without what went into watching
    assert [loss for _, loss in made.curve("val_loss")] == [1.5]


def test_a_failed_attempt_tells_why(race, tmp_path):
    with pytest.raises(UserError, match="PyTorch, eager failed: a cable is loose"):
        command = [sys.executable, "-c", "import sys; sys.exit('a cable is loose')"]
        race.attempt(EAGER, 0, command, tmp_path, tmp_path / "log.jsonl")


def test_the_whole_race(race, tmp_path, monkeypatch, capsys):
    """With processes that only pretend; a goal that they miss is told and is the exit status."""
    pytest.importorskip("torch")
    fake = lambda seed: ([sys.executable, "-c", FAKE], f"{seed}/../log.jsonl")  # noqa: E731
    monkeypatch.setattr(race, "commands", lambda corpus, passed_on: {"lm": fake, EAGER: fake})
    corpus, figure = tmp_path / "input.txt", tmp_path / "figures" / "race.svg"
    corpus.write_text("words")
    arguments = [str(corpus), "--rounds", "1", "--torch", "eager", "--figure", str(figure)]
    for goal, status in (("1.5", 0), ("1.49", 1)):
        monkeypatch.setattr(sys, "argv", ["time_to_loss.py", *arguments, "--goal", goal])
        assert race.main() == status
    out = capsys.readouterr().out
    assert "| lm | ours: Muon" in out
    assert "PyTorch, eager: the mean 1.5000 reaches 1.5" in out and "lm: the mean 1.5000 MISSES 1.49" in out
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

    def rate(step):
        return recipe.learning_rate(step, 2000)

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
    model = recipe.make_model(recipe.RECIPES["cpu"], vocab=5)
    tokens = torch.randint(5, (2 * 64 + 3,))
    x_WT, y_WT = recipe.windows(tokens, 64)
    whole = recipe.score(model, x_WT, y_WT)
    assert recipe.score(model, x_WT, y_WT, batch=1) == pytest.approx(whole, abs=1e-5)
    with torch.no_grad():
        each = [float(model(x[None], y[None])) for x, y in zip(x_WT, y_WT, strict=True)]
    assert whole == pytest.approx((64 * each[0] + 64 * each[1] + 2 * each[2]) / 130, abs=1e-5)


def test_the_recipes_are_of_nanogpts_sizes(recipe):
    """0.80 and 10.65 million, as nanoGPT counts: without the positions, and with the embedding once."""
    models = {name: recipe.make_model(one, 65) for name, one in recipe.RECIPES.items()}
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert sizes["cpu"] - 64 * 128 == 65 * 128 + 4 * 12 * 128**2 + 9 * 128 == pytest.approx(0.80e6, rel=0.01)
    assert sizes["gpu"] - 256 * 384 == pytest.approx(10.65e6, rel=1e-3)


TINY = dict(shape=dict(layers=1, width=16, heads=2, context=16, dropout=0.1), batch=8)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "input.txt"
    path.write_text("ABCDEFGH" * 200)
    return path


def test_the_recipe_learns_and_reports(recipe, corpus, tmp_path, monkeypatch):
    """A simple text is soon known."""
    for name, value in dict(WARMUP=5, PEAK=1e-2, LOGS=4, EVALS=2).items():
        monkeypatch.setattr(recipe, name, value)
    log = tmp_path / "log.jsonl"
    made = recipe.train(corpus, recipe.Recipe(**TINY, steps=80), log=log)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["step"] for record in records] == [20, 40, 60, 80]
    assert ["subset_loss" in record for record in records] == [False, True, False, True]
    assert records[0]["loss"] > records[-1]["loss"]
    assert made["val_loss"] < 0.5 < math.log(8)
    assert 0 < records[0]["watching_seconds"] < records[-1]["watching_seconds"] == made["watching_seconds"]
    assert (made["step"], made["tokens"]) == (80, 80 * 8 * 16)


def test_a_fitted_schedule_ends_with_the_time(recipe, corpus, tmp_path, monkeypatch):
    """Of a recipe that is far from its end, the rate is at the peak; of the fitted one it comes down to the floor. By a
    clock of which each look takes a millisecond."""
    rates, rate_at, looks = [], recipe.learning_rate, itertools.count()

    def noted(step, steps):
        rates.append(rate_at(step, steps))
        return rates[-1]

    monkeypatch.setattr(recipe, "learning_rate", noted)
    monkeypatch.setattr(recipe, "time", types.SimpleNamespace(perf_counter=lambda: next(looks) / 1000))
    monkeypatch.setattr(recipe, "WARMUP", 1)
    endless = recipe.Recipe(**TINY, steps=10**7)
    for fit, last in ((False, recipe.PEAK), (True, recipe.FLOOR)):
        rates.clear()
        begun = next(looks)
        made = recipe.train(corpus, endless, log=tmp_path / "log.jsonl", seconds=0.3, fit=fit)
        assert 250 < next(looks) - begun - 1000 * made["watching_seconds"] <= 310
        assert made["step"] == len(rates) > 50
        assert rates[1] == pytest.approx(recipe.PEAK, rel=0.05) and rates[-1] == pytest.approx(last, rel=0.05)
