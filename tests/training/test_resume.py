"""A run that was stopped, killed or cut into pieces equals the one that never was, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from test_dispatch import HARD

from lm import checkpoints, settings
from lm.data.batches import Batches
from lm.data.tokens import prepare
from lm.errors import UserError
from lm.run import Run
from lm.training import loop
from lm.training.loop import train, with_vocabulary
from lm.training.step import init_state

TIMINGS = {"seconds", "data_wait", "tokens_per_second", "mfu"}


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Run:
    """60 steps at once: dropout, Muon, accumulation, wsd, z-loss."""
    return train(tiny.experiment(corpus, **HARD), folder=tmp_path_factory.mktemp("whole"))


def everything(run: Run):
    """Parameters, optimizer, step and sums of the latest checkpoint, bit by bit."""
    abstract = jax.eval_shape(lambda: init_state(run.experiment))
    training = {"optimizer": abstract.optimizer, "step": abstract.step, "sums": abstract.sums}
    step = run.steps()[-1]
    return step, checkpoints.load(run.checkpoint_folder, step, params=abstract.params, training=training)


def logged(run: Run) -> list[dict]:
    return [{key: value for key, value in record.items() if key not in TIMINGS} for record in run.metrics()]


def assert_same_run(a: Run, b: Run):
    """Same state and the same story, but for how long it took."""
    (step_a, state_a), (step_b, state_b) = everything(a), everything(b)
    assert step_a == step_b
    assert tiny.same_bits(state_a, state_b)
    assert logged(a) == logged(b)


class StopAt:
    """Stop a training after given numbers of steps, as Ctrl-C and SIGTERM do."""

    def __init__(self, monkeypatch, steps):
        advance, waiting = loop.Trainer.advance, sorted(steps)

        def until(trainer):
            trainer.rate = 3 / loop.DISPATCH_SECONDS  # three steps a dispatch, so that any step can be the last
            advance(trainer)
            if waiting and trainer.step >= waiting[0]:
                waiting.pop(0)
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(loop.Trainer, "advance", until)


# --- in pieces -------------------------------------------------------------------------------------------------------
def test_pieces_equal_the_whole(whole, corpus, tmp_path, monkeypatch):
    """Stopped by SIGTERM at four places, on and between log points, evaluations and checkpoints."""
    StopAt(monkeypatch, [1, 7, 22, 45])
    e = tiny.experiment(corpus, **HARD)
    sessions = 0
    while True:
        run = train(e, folder=tmp_path)
        sessions += 1
        if run.metrics()[-1]["step"] == 60 and run.steps()[-1] == 60:
            break
        assert sessions < 9
    assert sessions == 5
    assert_same_run(whole, run)


def test_what_was_logged_after_the_last_checkpoint_is_told_once(whole, corpus, tmp_path):
    """A log that ran on to step 60, a checkpoint of step 45: those steps are made again, and so are their lines."""
    shutil.copytree(whole.path, tmp_path / "tiny")
    shutil.rmtree(tmp_path / "tiny" / "checkpoints" / "60")
    assert_same_run(whole, train(tiny.experiment(corpus, **HARD), folder=tmp_path))


def test_the_next_batch_depends_on_the_step_alone(whole, corpus):
    """What an interrupted run reads next is what the whole one read: nothing of the order is saved."""
    e = with_vocabulary(tiny.experiment(corpus), prepare(whole.experiment.data))
    make = lambda: Batches(prepare(e.data).train, context=16, batch=4, seed=0)  # noqa: E731
    at_once, later = make().at(0, 60), make().at(37, 23)
    assert np.array_equal(at_once[37:], later)


def test_stopping_before_the_first_step_tells_the_story_once(corpus, tmp_path):
    """SIGTERM while preparing: saved at step 0; the resumed run does not evaluate step 0 again."""

    class Impatient(loop.Display):
        def say(self, text):
            if "parameters" in text:  # the headline
                os.kill(os.getpid(), signal.SIGTERM)

    e = tiny.experiment(corpus, train__steps=7, train__eval_every=4)
    run = train(e, folder=tmp_path, display=Impatient(quiet=True))
    assert run.steps() == [0]
    run = train(e, folder=tmp_path)
    assert [record["step"] for record in run.metrics()] == [0, 4, 7]


def test_the_logged_loss_is_the_mean_since_the_last_log_point(whole):
    """The sums of a log interval, cut by nothing: 7 steps of 64 tokens, and 4 steps at the end."""
    records = {record["step"]: record for record in whole.metrics() if "loss" in record}
    assert sorted(records) == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    _, parts = everything(whole)
    sums = parts["training"]["sums"]
    assert int(sums["steps"]) == 4 and int(sums["tokens"]) == 4 * 64
    assert records[60]["loss"] == float(sums["nats"]) / 256
    evaluated = [record["step"] for record in whole.metrics() if "val_loss" in record]
    assert evaluated == [0, 15, 20, 30, 40, 45, 60]


# --- killed ----------------------------------------------------------------------------------------------------------
def start(corpus: Path, folder: Path, **changes) -> subprocess.Popen:
    """Train in a process of its own."""
    config = folder / "config.py"
    changes = {"name": "tiny", **HARD, **changes}
    config.write_text(
        f"import sys; sys.path.insert(0, {str(Path(tiny.__file__).parent)!r}); import tiny\n"
        f"experiment = tiny.experiment({str(corpus)!r}, **{changes!r})\n"
    )
    command = [sys.executable, "-m", "lm.cli", "train", str(config), "--json"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process: subprocess.Popen, seconds: float = 60):
    end = time.time() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.time() < end, "waited in vain"
        time.sleep(0.01)


def test_killed_runs_resume_to_the_same_bits(whole, corpus, tmp_path):
    """SIGKILL while the third checkpoint is due, SIGTERM later on; then to the end: exit 0 each time it may choose."""
    folder = tmp_path / "runs" / "tiny" / "checkpoints"
    process = start(corpus, tmp_path)
    wait_for(lambda: (folder / "15").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    process = start(corpus, tmp_path)
    wait_for(lambda: (folder / "30").exists() or (folder / "45").exists(), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "resuming runs/tiny at step" in err
    assert json.loads(out)["step"] == Run(tmp_path / "runs" / "tiny").metrics()[-1]["step"]

    run = train(settings.replace(tiny.experiment(corpus, **HARD), {"name": "tiny"}), folder=tmp_path / "runs")
    assert_same_run(whole, run)
    assert not [entry for entry in folder.iterdir() if not entry.name.isdigit()], "no half checkpoint stays behind"


# --- what may change and what may not --------------------------------------------------------------------------------
def test_a_longer_run_goes_on_from_the_shorter_one(corpus, tmp_path):
    """With a constant rate, 21 steps extended to 35 are 35 steps; a run is never cut back below where it is."""
    constant = dict(schedule__name="constant", schedule__warmup=5, train__checkpoint_every=35)
    run = train(tiny.experiment(corpus, train__steps=21, **constant), folder=tmp_path / "a")
    run = train(tiny.experiment(corpus, train__steps=35, **constant), folder=tmp_path / "a")
    once = train(tiny.experiment(corpus, train__steps=35, **constant), folder=tmp_path / "b")
    assert tiny.same_bits(everything(run), everything(once))
    assert run.record["steps"]["total"] == 35

    before = (run.path / "experiment.json").read_text()
    with pytest.raises(UserError, match=r"at step 35, past train\.steps 20"):
        train(tiny.experiment(corpus, train__steps=20, **constant), folder=tmp_path / "a")
    assert (run.path / "experiment.json").read_text() == before


CHANGES = {
    "model": (dict(model__layers=3), ["model.layers 2, now 3"]),
    "optimizer": (dict(optimizer__name="muon"), ["optimizer.name adamw, now muon"]),
    "rate and seed": (
        dict(optimizer__learning_rate=0.01, train__seed=1),
        ["optimizer.learning_rate 0.003, now 0.01", "train.seed 0, now 1"],
    ),
    "batch": (dict(train__batch=8), ["train.batch 4, now 8"]),
    "schedule": (dict(schedule__warmup=6), ["schedule.warmup 5, now 6"]),
    "tokenizer": (dict(data__tokenizer="bytes"), ["data.tokenizer chars, now bytes", "model.vocab", "tokenizer sha"]),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_another_experiment_is_refused_by_its_differences(tiny_run, corpus, kind):
    """And only those are named; nothing in the directory changes."""
    changes, said = CHANGES[kind]
    before = {path: path.read_bytes() for path in tiny_run.path.glob("*.json*")}
    with pytest.raises(UserError) as refusal:
        train(tiny.experiment(corpus, **changes), folder=tiny_run.path.parent)
    message = str(refusal.value)
    assert all(part in message for part in said), message
    named = message.count(", now ")
    assert named == len(said) + (1 if kind == "tokenizer" else 0), message  # its validation tokens differ as well
    assert "choose another --name" in message
    assert before == {path: path.read_bytes() for path in tiny_run.path.glob("*.json*")}


def test_changed_text_is_refused_by_its_hash(tiny_run, corpus, tmp_path):
    """The same path with other text in it."""
    original = corpus.read_text()
    sha = tiny_run.record["hashes"]["corpus"]
    try:
        corpus.write_text(original.replace("king", "ring", 1))
        with pytest.raises(UserError, match=f"corpus sha {sha[:8]}, now "):
            train(tiny.experiment(corpus), folder=tiny_run.path.parent)
    finally:
        corpus.write_text(original)


def test_bookkeeping_may_change(tiny_run, corpus):
    """Logging, evaluation, saving and memory settings do not decide what is learnt."""
    free = dict(
        train__log_every=3, train__eval_every=9, train__checkpoint_every=4, train__keep=5, train__loss_chunk=8,
        train__eval_tokens=64, train__diverged=5.0, model__remat=True, model__unroll=2,
    )  # fmt: skip
    same = settings.fingerprint(tiny.experiment(corpus), {}) == settings.fingerprint(
        tiny.experiment(corpus, **free), {}
    )
    assert same
    assert settings.fingerprint(tiny.experiment(corpus, train__z_loss=0.1), {}) != tiny_run.record["fingerprint"]


def test_two_trainings_in_one_directory_are_refused(corpus, tmp_path):
    """The second is told so, and changes nothing, not even with other settings that could be resumed."""
    refused = []

    class Second(loop.Display):
        def say(self, text):
            if not refused:
                refused.append(None)
                with pytest.raises(UserError, match="is being trained by another process; choose another --name"):
                    train(tiny.experiment(corpus, train__steps=9), folder=tmp_path)
                refused[0] = json.loads((tmp_path / "tiny" / "experiment.json").read_text())["steps"]["total"]

    train(tiny.experiment(corpus, train__steps=7), folder=tmp_path, display=Second(quiet=True))
    assert refused == [7]
