"""What goes wrong on disks and in numbers: told on one line, with what was good still there."""

import contextlib
import json
import resource
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from lm import checkpoints
from lm.cli import main
from lm.errors import Diverged, UserError
from lm.run import Run, load
from lm.training.loop import train


@pytest.fixture
def copy(tiny_run, tmp_path) -> Run:
    """A copy of the tiny run, to be damaged."""
    shutil.copytree(tiny_run.path, tmp_path / "copy" / "tiny")
    return Run(tmp_path / "copy" / "tiny")


def one_line(capsys) -> str:
    """What stood on standard error: exactly one line of the command's, nothing on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("lm: ") and err.endswith("\n"), err
    return err


def assert_finite(run: Run):
    for step in run.steps():
        params = load(run, step).params
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)), step


# --- checkpoints -----------------------------------------------------------------------------------------------------
def test_the_best_checkpoint_is_kept_beside_the_latest(corpus, tmp_path):
    """A rate that explodes half-way: the best is early, and is still there at the end and after a resume."""
    e = tiny.experiment(
        corpus, schedule__name="constant", optimizer__learning_rate=1.0, schedule__warmup=120, train__diverged=100.0,
        train__steps=120, train__keep=1, optimizer__clip=None,
    )  # fmt: skip
    run = train(e, folder=tmp_path)
    losses = {r["step"]: r["val_loss"] for r in run.metrics() if "val_loss" in r and r["step"] % 15 == 0 and r["step"]}
    best = min(losses, key=losses.__getitem__)
    assert best < 120, "this test needs a run that gets worse"
    assert run.steps() == [best, 120]
    assert load(run, "best").step == run.best_step() == best
    assert load(run).step == 120
    run = train(tiny.replaced(e, train__steps=135), folder=tmp_path)
    assert run.steps() == [best, 135]


PARTS = ["params", "training", "training/_METADATA"]


@pytest.mark.parametrize("part", PARTS)
def test_a_half_deleted_checkpoint_is_refused_and_the_way_out_works(copy, corpus, monkeypatch, capsys, part):
    """One line naming the checkpoint and the step to go on from; deleting it as told resumes from there."""
    monkeypatch.chdir(copy.path.parents[1])
    victim = copy.checkpoint_folder / "60" / part
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    (copy.path.parent / "tiny.py").write_text(
        f"import lm.settings\nexperiment = lm.settings.from_dict({copy.record['experiment']!r})\n"
    )

    if part.startswith("params"):
        assert main(["eval", "copy/tiny"]) == 2
        assert "checkpoints/60 is damaged" in one_line(capsys)
    with pytest.raises(UserError, match=r"checkpoints/60 is damaged.*delete it to go on from step 45$") as refusal:
        train(tiny.experiment(corpus), folder=copy.path.parent)
    assert "\n" not in str(refusal.value)
    assert capsys.readouterr().err == "", "orbax must not narrate"

    shutil.rmtree(copy.checkpoint_folder / "60")
    run = train(tiny.experiment(corpus), folder=copy.path.parent)
    assert run.steps() == [45, 60]


@pytest.mark.slow
def test_no_missing_or_cut_file_of_a_checkpoint_changes_what_is_loaded(copy, tiny_run, caplog):
    """Each file of the parameters deleted, emptied and halved: refused, or the very same parameters."""
    good, folder = jax.device_get(load(tiny_run).params), copy.checkpoint_folder / "60"
    files = [file for file in sorted((folder / "params").rglob("*")) if file.is_file()]
    refused = 0
    for file in files:
        content = file.read_bytes()
        for damaged in (None, b"", content[: len(content) // 2]):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            try:
                assert tiny.same_bits(jax.device_get(load(copy).params), good), file
            except UserError:
                refused += 1
            file.write_bytes(content)
    assert refused >= 9, "the data and its manifest matter"
    assert "asyncio" not in {record.name for record in caplog.records}, "failed coroutines must not narrate"
    assert tiny.same_bits(jax.device_get(load(copy).params), good)


def test_unreadable_validation_losses_of_a_checkpoint_are_refused(copy, corpus):
    (copy.checkpoint_folder / "45" / "metrics" / "metrics").write_text('{"val_lo')
    with pytest.raises(UserError, match=r"checkpoints/45 is damaged.*delete it to go on from step 60"):
        train(tiny.experiment(corpus, train__steps=75), folder=copy.path.parent)


def test_a_cut_last_line_of_metrics_is_left_out(copy, corpus, tiny_run):
    """As a crash leaves it: readers skip it, and the resumed run writes on from whole lines."""
    file = copy.path / "metrics.jsonl"
    file.write_text(file.read_text()[:-20])
    assert copy.metrics() == tiny_run.metrics()[:-1]
    run = train(tiny.experiment(corpus, train__steps=67), folder=copy.path.parent)
    for line in file.read_text().splitlines():
        json.loads(line)
    assert [record["step"] for record in run.metrics()][-2:] == [63, 67]


# --- disks -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB; only root may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_training_and_what_was_saved_resumes(small_disk, corpus):
    """Filled up after the first checkpoint: one sentence; space freed: on to the end as if nothing had been."""
    e = tiny.experiment(corpus, train__keep=1)
    filler = small_disk / "filler"

    class Filling:
        """Takes all space but a little at the first evaluation after the first checkpoint."""

        def __call__(self, record):
            if record["step"] == 20:
                free = shutil.disk_usage(small_disk).free
                filler.write_bytes(b"x" * max(0, free - 8192))

    from lm.training import trackers

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trackers.TRACKERS, "wandb", lambda run: Filling())
        with pytest.raises(UserError, match="MB free"):
            train(tiny.replaced(e, train__trackers=["wandb"]), folder=small_disk)
    run = Run(small_disk / "tiny")
    assert run.steps() == [15]
    assert_finite(run)
    filler.unlink()
    run = train(e, folder=small_disk)
    assert run.steps()[-1] == 60
    assert_finite(run)


def test_a_write_that_fails_half_way_leaves_the_earlier_checkpoints(corpus, tmp_path):
    """A limit on file sizes lets small files through and stops the parameters: one sentence, and a clean resume."""
    e = tiny.experiment(corpus)
    train(tiny.replaced(e, train__steps=15, schedule__warmup=5), folder=tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
        with pytest.raises(UserError, match=r"step 30 was not saved.*: File too large; earlier checkpoints are whole"):
            train(e, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run = Run(tmp_path / "tiny")
    assert run.steps() == [15]
    assert train(e, folder=tmp_path).steps()[-1] == 60
    left = [entry.name for entry in run.checkpoint_folder.iterdir() if not entry.name.isdigit()]
    assert not left, "the half-written checkpoint was cleared away"


def test_a_log_that_cannot_grow_is_told_on_one_line(corpus, tmp_path):
    e = tiny.experiment(corpus)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    train(tiny.replaced(e, train__steps=15), folder=tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
        with pytest.raises(UserError, match=r"cannot write the run to .*tiny: File too large"):
            train(tiny.replaced(e, train__log_every=1), folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_place_that_cannot_be_written_is_told_on_one_line(corpus, workplace, capsys):
    """`runs` is a file here, so there is no making a folder under it, whoever asks."""
    (workplace / "runs").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write the run to runs/tiny: "):
        train(tiny.experiment(corpus))
    assert (workplace / "runs").read_text() == "not a folder"


# --- divergence ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("rate", "diverged"), [(50.0, 2.0), (1e30, 1e30)])
def test_divergence_stops_training_and_saves_nothing_bad(corpus, tmp_path, rate, diverged):
    """A rate that explodes after the first checkpoint, noticed by the loss, or only once it is no number at all."""
    calm = tiny.experiment(corpus, schedule__name="constant", train__steps=15, schedule__warmup=5)
    train(calm, folder=tmp_path)
    # The same run goes on with a rate that its fingerprint would refuse.
    wild = tiny.replaced(calm, optimizer__learning_rate=rate, train__diverged=diverged, train__steps=60, name="wild")
    shutil.copytree(tmp_path / "tiny", tmp_path / "wild")
    record = json.loads((tmp_path / "wild" / "experiment.json").read_text())
    record["experiment"]["optimizer"]["learning_rate"] = rate
    (tmp_path / "wild" / "experiment.json").write_text(json.dumps(record))

    with pytest.raises(Diverged) as stop:
        train(wild, folder=tmp_path)
    message = str(stop.value)
    assert "the last good checkpoint is step 15" in message
    step = int(message.split("diverged at step ")[1].split(":")[0])
    assert 15 < step < 60
    assert "--optimizer.learning-rate" in message and "\n" not in message
    run = Run(tmp_path / "wild")
    assert run.steps() == [15]
    assert_finite(run)
    assert all(np.isfinite(value) for r in run.metrics() for value in r.values())


def test_divergence_before_the_first_checkpoint_says_so(corpus, tmp_path):
    e = tiny.experiment(corpus, optimizer__learning_rate=1e3, schedule__warmup=0)
    with pytest.raises(Diverged, match="nothing was saved"):
        train(e, folder=tmp_path)
    assert Run(tmp_path / "tiny").steps() == []


def test_parameters_that_are_not_finite_are_never_saved(corpus, tmp_path, monkeypatch):
    """Where no loss shows it either: the embedding of a padded entry, which no text reads."""
    from lm.training import loop

    advance = loop.Trainer.advance

    def overflow(trainer):
        params = trainer.pack.state(0).params
        params["embedding"] = params["embedding"].at[-1, 0].set(np.inf)
        advance(trainer)

    monkeypatch.setattr(loop.Trainer, "advance", overflow)
    with pytest.raises(Diverged, match=r"diverged at step 15: .*nothing was saved"):
        train(tiny.experiment(corpus), folder=tmp_path)
    run = Run(tmp_path / "tiny")
    *_, evaluated, last = run.metrics()
    assert run.steps() == [] and np.isfinite(evaluated["val_loss"]) and last["diverged"] and last["step"] == 15


def test_checkpoints_are_written_whole_or_not_at_all(tmp_path):
    """A crash in the middle of saving leaves no numbered folder, and the next writer clears what it left."""
    code = """
import os, pathlib, sys
import jax.numpy as jnp
from lm.checkpoints import Checkpoints

writer = Checkpoints(pathlib.Path(sys.argv[1]), 2)
writer.save(1, 1.0, params={"a": jnp.ones(3)})
os.rename = os.replace = pathlib.Path.rename = pathlib.Path.replace = lambda *_: os._exit(9)  # the last thing done
writer.save(2, 0.5, params={"a": jnp.zeros(3)})
"""
    ended = subprocess.run([sys.executable, "-c", code, tmp_path / "c"], capture_output=True, text=True)
    assert ended.returncode == 9, ended
    assert checkpoints.steps(tmp_path / "c") == [1]
    assert len(list((tmp_path / "c").iterdir())) > 1, "the half one is there, under another name"
    with contextlib.closing(checkpoints.Checkpoints(tmp_path / "c", 2)) as writer:
        writer.save(3, 0.5, params={"a": jax.numpy.zeros(3)})
    assert sorted(entry.name for entry in (tmp_path / "c").iterdir()) == ["1", "3"]
