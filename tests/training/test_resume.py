"""A run that was stopped, killed, cut into pieces or made longer equals the one that never was, bit for bit."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from test_dispatch import HARD
from tiny import logged

from lm import checkpoints, settings
from lm.data.batches import Batches
from lm.data.supply import prepare
from lm.errors import UserError
from lm.run import Run
from lm.training import loop, resume
from lm.training.loop import train, with_vocabulary
from lm.training.pack import Pack
from lm.training.step import init_state


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


def assert_same_run(a: Run, b: Run):
    """Same state and the same story, but for how long it took."""
    (step_a, state_a), (step_b, state_b) = everything(a), everything(b)
    assert step_a == step_b
    assert tiny.same_bits(state_a, state_b)
    assert logged(a) == logged(b)


class StopAt:
    """Stop a training after given numbers of steps, as Ctrl-C and SIGTERM do."""

    def __init__(self, monkeypatch, steps):
        advance, length, waiting = Pack.advance, loop.dispatch_length, sorted(steps)

        def until(pack, *arguments):
            reports = advance(pack, *arguments)
            if waiting and reports[0]["step"] >= waiting[0]:
                waiting.pop(0)
                os.kill(os.getpid(), signal.SIGTERM)
            return reports

        monkeypatch.setattr(Pack, "advance", until)
        # Three steps a dispatch, so that any step can be the last.
        monkeypatch.setattr(loop, "dispatch_length", lambda *arguments: min(3, length(*arguments)))


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
    """SIGKILL while the third checkpoint is due, SIGTERM later on, which exits 75 and still prints; then to the end."""
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
    assert process.returncode == 75, err
    assert "resuming runs/tiny at step" in err and "the same command goes on from there" in err
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


def test_a_longer_run_goes_back_to_where_the_shorter_began_to_decay(whole, corpus, tmp_path, monkeypatch):
    """A finished run of 40 steps, whose last 16 decayed, made 60 long: it says so, and equals 60 at once, log and all.

    Killed in the middle of going back, it is the shorter run, stopped earlier."""
    said, remove = [], checkpoints.remove
    monkeypatch.setattr(loop.Display, "say", lambda _, text: said.append(text))
    run = train(tiny.experiment(corpus, **HARD, train__steps=40), folder=tmp_path)
    assert 24 in run.steps() and run.steps()[-1] == 40

    def killed(folder, step):
        remove(folder, step)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "remove", killed)
        train(tiny.experiment(corpus, **HARD), folder=tmp_path)
    assert run.steps()[-1] == 30 and Run(run.path).record["steps"]["total"] == 40

    said.clear()
    run = train(tiny.experiment(corpus, **HARD), folder=tmp_path)
    assert said[0].endswith("60 steps instead of 40 change what comes after step 24: going back there from step 30")
    assert_same_run(whole, run)
    assert 36 in run.steps()


def made_run(e, kept, steps) -> SimpleNamespace:
    """A run as far as the decision to resume it looks at it."""
    record = {"steps": dataclasses.asdict(e.steps(10**6)), "hashes": {}}
    record["steps"] |= {"total": steps}
    return SimpleNamespace(
        path="runs/a", checkpoint_folder=Path("runs/a/checkpoints"), steps=lambda: kept, reached=max(kept, default=0),
        record=record, experiment=e,
    )  # fmt: skip


WSD = dict(schedule__name="wsd", schedule__warmup=20, train__log_every=10)
COSINE, LINEAR, CONSTANT = (WSD | dict(schedule__name=name) for name in ("cosine", "linear", "constant"))
PERCENT, SUMS = WSD | dict(schedule__warmup="10%"), WSD | dict(train__log_every="5%")
LONGER = {  # (settings, checkpoints kept by 200 steps, where 400 go on, or what is said)
    "wsd": (WSD, [120, 160, 200], 120),
    "wsd, half-way": (WSD, [60, 80], 80),
    "wsd, none early enough": (WSD, [160, 200], r"400 steps instead of 200 change the learning rate from step 120 on"),
    "wsd, warm-up in percent": (
        PERCENT, [120, 200],
        r"from step 0 on \(schedule\.warmup 10% is 40 steps, was 20; schedule\.decay 40% is 160 steps, was 80\)",
    ),
    "nothing made yet": (PERCENT, [0], 0),
    "no checkpoint": (PERCENT, [], 0),
    "constant": (CONSTANT, [160, 200], 200),
    "cosine": (COSINE, [160, 200], r"from step 21 on \(cosine falls over the whole length\)"),
    "cosine, in its warm-up": (COSINE, [10, 20, 40], 20),
    "linear": (LINEAR, [160, 200], r"its checkpoints \(160, 200\) are later: choose another"),
    "context in steps": (WSD | dict(schedule__context_start=4, schedule__context_growth=50), [120, 160], 120),
    "context in percent, before it changes": (WSD | dict(schedule__context_start=8), [80, 100, 120], 100),
    "context in percent": (
        WSD | dict(schedule__context_start=8), [120],
        r"change the context from step 100 on \(schedule\.context_growth 50% is 200 steps, was 100;",
    ),
    "sums of other log points": (WSD | dict(train__log_every="15%"), [110, 120], 120),
    "sums that are dropped": (SUMS, [110, 115, 120], 120),
    "sums that differ": (SUMS, [115], "give --train.log-every 10, or choose another --name"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LONGER)
def test_where_a_run_made_longer_goes_on(kind):
    """From the last checkpoint before which no rate and no sum would be another; else why not, and the way out."""
    changes, kept, expected = LONGER[kind]
    short, long = (tiny.experiment("text.txt", **changes, train__steps=steps) for steps in (200, 400))
    run, steps = made_run(short, kept, 200), long.steps(10**6)
    if isinstance(expected, int):
        assert resume.resume_step(run, long, {}, steps) == expected
    else:
        with pytest.raises(UserError, match=expected) as refusal:
            resume.resume_step(run, long, {}, steps)
        assert "--name" in str(refusal.value)


def test_lengths_in_tokens_are_lengths_in_steps():
    """A longer run in tokens is one in steps; a warm-up in tokens stays where it was."""
    changes = WSD | dict(schedule__warmup=f"{20 * 64} tokens")
    short, long = (tiny.experiment("text.txt", **changes, train__steps=f"{n * 64} tokens") for n in (200, 400))
    assert resume.resume_step(made_run(short, [120, 200], 200), long, {}, long.steps(10**6)) == 120


def test_a_finished_run_is_only_looked_at(tiny_run, corpus, monkeypatch):
    """Nothing is made ready to train; of its checkpoint the digests are compared."""
    monkeypatch.setattr(loop, "make_member", None)
    run = train(tiny.experiment(corpus), folder=tiny_run.path.parent, display=False)
    assert run.finished and run.path == tiny_run.path


@pytest.mark.parametrize(("display", "shown"), [(True, True), (False, False), (None, False)])
def test_training_shows_itself_unless_told_not_to(tiny_run, corpus, capsys, monkeypatch, display, shown):
    monkeypatch.setattr(loop, "prepare", lambda data, report: report("reading", 1, 2) or prepare(data))
    monkeypatch.setattr(loop.Display, "stage", lambda self, *_: self.say("reading"))
    train(tiny.experiment(corpus), folder=tiny_run.path.parent, display=display)
    assert ("reading" in capsys.readouterr().err) == shown


def test_text_that_lies_elsewhere_by_now_is_the_same_text(tiny_run, corpus, tmp_path):
    """Named by its hash, wherever it is; other text at another place is refused as such."""
    shutil.copytree(tiny_run.path, tmp_path / "tiny")
    checkpoints.remove(tmp_path / "tiny" / "checkpoints", 60)
    shutil.copy(corpus, tmp_path / "moved.txt")
    run = train(tiny.experiment(tmp_path / "moved.txt"), folder=tmp_path)
    assert tiny.same_bits(everything(run), everything(tiny_run))
    assert Run(run.path).experiment.data.corpus == str(tmp_path / "moved.txt")
    (tmp_path / "other.txt").write_text(tiny.text(seed=1))
    with pytest.raises(UserError, match=r"data\.corpus .*moved\.txt, now .*other\.txt; corpus sha"):
        train(tiny.experiment(tmp_path / "other.txt"), folder=tmp_path)


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
        train__eval_tokens=64, train__diverged=5.0, model__remat="full", model__unroll=2,
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


def test_a_file_in_the_place_of_the_checkpoints_is_refused_before_anything_is_written(corpus, tmp_path):
    e = tiny.experiment(corpus)
    run = train(e, folder=tmp_path, display=False)
    shutil.rmtree(run.checkpoint_folder)
    run.checkpoint_folder.write_text("a file")
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="checkpoints is no folder"):
        train(e, folder=tmp_path, display=False)
    assert (run.path / "metrics.jsonl").read_bytes() == before
