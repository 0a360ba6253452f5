"""What goes wrong on disks and in numbers: told on one line, with what was good still there."""

import contextlib
import functools
import json
import random
import resource
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from lm import checkpoints, settings
from lm.cli import main
from lm.errors import Diverged, UserError
from lm.run import Run, load
from lm.training import loop, trackers
from lm.training.loop import train, train_pack
from lm.training.pack import Pack
from lm.training.step import abstract_parts


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


@pytest.mark.parametrize("content", ['{"val_lo', "[]", '{"val_loss": 0.5}', "[" * 100_000])
def test_validation_losses_of_a_checkpoint_that_are_not_those_saved_are_refused(copy, corpus, content):
    """They decide which checkpoint is the best; the one that holds them is not the latest."""
    checkpoints.remove(copy.checkpoint_folder, 60)
    shutil.copytree(copy.checkpoint_folder / "45", copy.checkpoint_folder / "30")
    (copy.checkpoint_folder / "30" / "metrics" / "metrics").write_text(content)
    with pytest.raises(UserError, match=r"checkpoints/30 is damaged.*delete it to go on from step 45"):
        train(tiny.experiment(corpus), folder=copy.path.parent)


def test_a_damaged_log_stops_no_resume(copy, corpus, tiny_run, capsys):
    """A last line cut by a crash is skipped; of another one line tells. The resumed run writes on from whole lines."""
    file = copy.path / "metrics.jsonl"
    before = file.read_bytes()
    file.write_bytes(before[:-20])
    assert copy.metrics() == tiny_run.metrics()[:-1]
    assert capsys.readouterr().err == ""
    file.write_bytes(b'\xff{"step": 5}\n' + before[:-20])
    checkpoints.remove(copy.checkpoint_folder, 60)
    run = train(tiny.experiment(corpus), folder=copy.path.parent, display=False)
    assert capsys.readouterr().err.count("metrics.jsonl: 1 of ") == 1
    assert [record["step"] for record in run.metrics()] == [record["step"] for record in tiny_run.metrics()]
    for line in file.read_bytes().split(b"\n")[:-1]:
        json.loads(line)


def flipped(content: bytes, rng: random.Random) -> bytes:
    """The content with one bit, anywhere in it, the other way round."""
    place = rng.randrange(8 * len(content))
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


@pytest.mark.gate
def test_no_flipped_bit_changes_what_is_loaded(copy):
    """Anywhere in a checkpoint's files: refused on one line with the way out, or the very same bits. Many of the flips
    in arrays are caught by the digest alone: the libraries below load another model."""
    folder, parts, rng = copy.checkpoint_folder, abstract_parts(copy.experiment), random.Random(0)
    good = jax.device_get(checkpoints.load(folder, 60, **parts))
    by_digest = 0
    files = [file for file in sorted((folder / "60").rglob("*")) if file.is_file() and file.stat().st_size]
    data = [file for file in files if "ocdbt.process_0/d/" in str(file)]
    for file in [*files, *(rng.choice(data) for _ in range(12))]:
        content = file.read_bytes()
        file.write_bytes(flipped(content, rng))
        try:
            assert tiny.same_bits(jax.device_get(checkpoints.load(folder, 60, **parts)), good), file
        except UserError as error:
            assert str(error).startswith(f"checkpoint {folder / '60'} is damaged")
            assert str(error).endswith("delete it to go on from step 45") and "\n" not in str(error)
            by_digest += "not what was saved" in str(error)
        file.write_bytes(content)
    assert by_digest >= 6


def test_callbacks_that_come_late_say_nothing(monkeypatch):
    """Threads of a failed load call back when its event loop is closed; whatever else goes wrong is still told."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    for _ in range(2):
        with checkpoints._quiet():
            pass
    late, other = (SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "another"))
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert told == [other]


def test_a_damaged_trunk_is_not_branched_from(copy, corpus):
    """The copy is checked before it is made, and the message names the trunk's checkpoint."""
    [file] = (copy.checkpoint_folder / "45" / "params" / "ocdbt.process_0" / "d").iterdir()
    file.write_bytes(flipped(file.read_bytes(), random.Random(1)))
    with pytest.raises(UserError, match=r"copy/tiny/checkpoints/45 is damaged"):
        loop.branch(copy, tiny.experiment(corpus, name="twig"), 45, folder=copy.path.parent)
    assert Run(copy.path.parent / "twig").steps() == []


def test_a_checkpoint_from_before_digests_still_loads(copy, tiny_run):
    file = copy.checkpoint_folder / "60" / "_CHECKPOINT_METADATA"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"custom_metadata": {}}))
    assert tiny.same_bits(jax.device_get(load(copy).params), jax.device_get(load(tiny_run).params))
    assert checkpoints._digests(tiny_run.checkpoint_folder, 60).keys() == {"params", "training", "metrics"}


def test_only_whole_numbers_are_steps(copy):
    """Names that int() or str.isdigit() would let through, and a file."""
    for name in ("²", "٣", "007", "+3", "1_0", "9" * 200):
        (copy.checkpoint_folder / name).mkdir()
    (copy.checkpoint_folder / "70").write_text("")
    assert copy.steps() == [45, 60]
    with pytest.raises(UserError, match="has no checkpoint ²"):
        load(copy, "²")


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
    train_pack([e], until=15, folder=tmp_path)
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
    train_pack([e], until=15, folder=tmp_path)
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


# --- folders that go away --------------------------------------------------------------------------------------------
class At:
    """A tracker that does something when a step is logged."""

    def __init__(self, step: int, act):
        self.step, self.act = step, act

    def __call__(self, record):
        if record["step"] == self.step:
            self.act()


@pytest.mark.parametrize("moment", ["before the log", "before the save", "replaced"])
def test_a_run_that_is_taken_away_stops_and_is_not_made_again(corpus, tmp_path, monkeypatch, moment):
    """Removed between two records; at the very moment of a save, which would make the folder anew; or another there."""
    path = tmp_path / "tiny"
    remove, disk_usage = functools.partial(shutil.rmtree, path), shutil.disk_usage

    def replace():
        remove()
        (path / "checkpoints").mkdir(parents=True)
        for name in (".lock", "experiment.json"):
            (path / name).write_text("another's")

    act = {"before the log": remove, "replaced": replace, "before the save": lambda: None}[moment]
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda run: At(20, act))
    if moment == "before the save":

        def at_the_save(folder):
            found = disk_usage(folder)
            remove()
            return found

        monkeypatch.setattr(shutil, "disk_usage", at_the_save)
    with pytest.raises(UserError, match=r"tiny was removed, moved or replaced while it trained: training stopped"):
        train(tiny.experiment(corpus, train__trackers=["wandb"]), folder=tmp_path)
    left = {str(entry.relative_to(tmp_path)) for entry in path.rglob("*")}
    others = {"tiny/checkpoints", "tiny/.lock", "tiny/experiment.json"}
    assert left == (others if moment == "replaced" else set())
    assert path.exists() == (moment == "replaced")


def test_a_run_without_a_checkpoint_is_begun_anew(corpus, tmp_path, monkeypatch):
    """Its first step found no memory: the corrected command is taken, and says so; nothing of the first is left."""

    def fail(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9999999999999 bytes")

    e, said = tiny.experiment(corpus, train__steps=15, train__eval_every=5), []
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Pack, "advance", fail)
        train(tiny.replaced(e, optimizer__learning_rate=0.5), folder=tmp_path)
    assert Run(tmp_path / "tiny").steps() == [] and Run(tmp_path / "tiny").metrics()
    monkeypatch.setattr(loop.Display, "say", lambda _, text: said.append(text))
    run = train(e, folder=tmp_path)
    assert said[0].endswith("tiny has no checkpoint yet: begun anew with optimizer.learning_rate 0.5, now 0.003")
    assert run.finished and run.experiment.optimizer.learning_rate == 0.003
    assert [record["step"] for record in run.metrics()] == [0, 5, 7, 10, 14, 15]


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
    record["fingerprint"] = settings.fingerprint(record["experiment"], record["hashes"])
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
    advance = Pack.advance

    def overflow(pack, *arguments):
        params = pack.state(0).params
        params["embedding"] = params["embedding"].at[-1, 0].set(np.inf)
        return advance(pack, *arguments)

    monkeypatch.setattr(Pack, "advance", overflow)
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
