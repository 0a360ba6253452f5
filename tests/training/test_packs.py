"""Runs packed equal each run trained alone: bit for bit in threads, up to rounding when batched."""

import functools
import os
import shutil
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_dispatch import HARD
from test_resume import assert_same_run, everything
from tiny import logged

from lm.data import batches
from lm.errors import Diverged, UserError
from lm.run import Run
from lm.training.loop import train, train_pack
from lm.training.step import hyperparameters, init_state

# Dropout, Muon, accumulation and wsd, with whatever a pack may differ in.
MEMBERS = {
    "a": dict(),
    "b": dict(
        train__seed=2**32 - 1, optimizer__learning_rate=1e-2, schedule__warmup=11, schedule__decay="20%",
        optimizer__clip=None,
    ),
    "c": dict(
        train__seed=2, optimizer__matrix_learning_rate=0.05, optimizer__weight_decay=0.4, optimizer__clip=0.3,
        train__z_loss=1e-2, schedule__final=0.2, train__diverged=3.0,
    ),
}  # fmt: skip
WILD = dict(optimizer__learning_rate=1e4, optimizer__matrix_learning_rate=1e4, optimizer__clip=None)


def member(corpus: Path, name: str, **changes):
    return tiny.experiment(corpus, **{"name": name, **HARD, **MEMBERS.get(name, {}), **changes})


def members(corpus: Path, **changes):
    return [member(corpus, name, **changes) for name in MEMBERS]


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """name -> the run trained alone, when first asked for."""
    folder = tmp_path_factory.mktemp("alone")
    return functools.cache(lambda name: train(member(corpus, name), folder=folder))


@pytest.fixture(scope="module")
def cut(corpus, tmp_path_factory) -> Path:
    """The folder of a pack that got SIGTERM between two checkpoints, its threads at work. For copying only."""
    folder = tmp_path_factory.mktemp("cut")
    device_get, sent = jax.device_get, []

    def report_of_a_thread(report):
        """The first thread that comes to step 22 sends the signal, while others are at work."""
        report = device_get(report)
        if threading.current_thread() is not threading.main_thread() and report["step"] >= 22 and not sent:
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_get", report_of_a_thread)
        train_pack(members(corpus), folder=folder, how="threads")
    assert sent
    assert [Run(folder / name).steps() for name in MEMBERS] == [Run(folder / "a").steps()] * 3
    assert 22 <= Run(folder / "a").steps()[-1] < 30
    return folder


# --- as if alone -----------------------------------------------------------------------------------------------------
def test_a_pack_in_threads_equals_each_run_alone_bit_for_bit(alone, corpus, tmp_path):
    """Parameters, optimizer, sums and log; seeds, rates, decays, warm-ups, clips and z-losses of their own."""
    made = train_pack(members(corpus), folder=tmp_path, how="threads")
    assert [run.name for run in made] == list(MEMBERS)
    for run in made:
        assert_same_run(run, alone(run.name))
        assert run.experiment == alone(run.name).experiment
        assert run.record["fingerprint"] == alone(run.name).record["fingerprint"]
    seeds = [everything(run)[1]["params"]["embedding"] for run in made]
    assert not np.array_equal(seeds[0], seeds[1]) and not np.array_equal(seeds[0], seeds[2])


def test_windows_from_the_host_are_each_runs_own(corpus, tmp_path, monkeypatch):
    """A token file too large for the device: a read-ahead a run. Adam is enough for that."""
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    pack = [tiny.experiment(corpus, name=f"seed{seed}", train__seed=seed, train__steps=10) for seed in (0, 1)]
    for run, e in zip(train_pack(pack, folder=tmp_path / "pack", how="threads"), pack, strict=True):
        assert_same_run(run, train(e, folder=tmp_path / "alone"))


@pytest.mark.gate
def test_a_pack_in_one_program_equals_each_run_alone(corpus, tmp_path):
    """Ten steps, up to rounding, since products over P add up in another order.

    Rounding is 6e-8 and an update about a hundred times smaller than what it is added to: errors of 1e-5 of the way
    the parameters have moved are expected. Another seed is 1.4 ways off, a wrong decay or clip hundredths.
    """
    short = [member(corpus, name, train__steps=10, schedule__warmup=3, train__log_every=2) for name in MEMBERS]
    pack = train_pack(short, folder=tmp_path / "pack", how="vmap")
    norm = lambda tree: float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))))  # noqa: E731
    for e, batched in zip(short, pack, strict=True):
        single = train(e, folder=tmp_path / "alone")
        (_, a), (_, b) = everything(batched), everything(single)
        error = norm(jax.tree.map(jnp.subtract, a["params"], b["params"]))
        moved = norm(jax.tree.map(jnp.subtract, b["params"], init_state(single.experiment).params))
        assert error < 1e-4 * moved
        for one, other in zip(logged(batched), logged(single), strict=True):
            assert one == pytest.approx(other, rel=1e-4)


def test_a_pack_of_one_is_the_run_alone(alone, corpus, tmp_path):
    [run] = train_pack([member(corpus, "b")], folder=tmp_path, how="vmap")
    assert_same_run(run, alone("b"))


def test_the_key_of_dropout_is_that_of_the_seed_itself(corpus):
    """The traced 32 bits give the key that JAX makes of the whole number."""
    for seed in (0, 1, 2**31 + 3, 2**32 - 1):
        e = tiny.experiment(corpus, model__vocab=20, train__seed=seed)
        steps = e.steps(epoch_tokens=1000)
        key = jax.random.key(hyperparameters(e, steps)["seed"])
        assert np.array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(seed))), seed


# --- divergence ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["threads", "vmap"])
def test_a_run_that_diverges_disturbs_no_other(alone, corpus, tmp_path, how):
    """It leaves what it leaves alone; the others go on to their end; then the error names it."""
    wild = member(corpus, "wild", **WILD)
    with pytest.raises(Diverged) as lonely:
        train(wild, folder=tmp_path / "alone")
    pack = [member(corpus, "a"), wild, member(corpus, "c")]
    with pytest.raises(Diverged, match=r"^1 of 3 runs diverged, the others went on: .*/wild: training div") as together:
        train_pack(pack, folder=tmp_path / "pack", how=how)
    assert "\n" not in str(together.value)
    for name in "ac":
        run = Run(tmp_path / "pack" / name)
        assert run.steps()[-1] == 60
        if how == "threads":
            assert_same_run(run, alone(name))
    a, b = Run(tmp_path / "pack" / "wild"), Run(tmp_path / "alone" / "wild")
    assert a.steps() == b.steps() == []
    assert [r["step"] for r in a.metrics()] == [r["step"] for r in b.metrics()]
    if how == "threads":
        assert logged(a) == logged(b)
        assert str(lonely.value) in str(together.value)


# --- resuming --------------------------------------------------------------------------------------------------------
def test_a_pack_that_was_cut_resumes_to_the_same_bits(alone, cut, corpus, tmp_path):
    """Cut while saving: one run lags behind at step 15, is brought level, and all go on as one."""
    shutil.copytree(cut, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "b" / "checkpoints" / str(Run(tmp_path / "b").steps()[-1]))
    assert Run(tmp_path / "b").steps() == [15]
    for run in train_pack(members(corpus), folder=tmp_path):
        assert_same_run(run, alone(run.name))


def test_a_run_of_a_pack_that_was_cut_resumes_alone_to_the_same_bits(alone, cut, corpus, tmp_path):
    shutil.copytree(cut / "b", tmp_path / "b")
    assert_same_run(train(member(corpus, "b"), folder=tmp_path), alone("b"))


@pytest.mark.gate
def test_a_finished_pack_is_left_as_it_is(alone, corpus, tmp_path):
    for name in MEMBERS:
        shutil.copytree(alone(name).path, tmp_path / name)
    for run in train_pack(members(corpus), folder=tmp_path):
        assert_same_run(run, alone(run.name))


@pytest.mark.gate
def test_a_pack_made_longer_equals_each_run_alone(alone, corpus, tmp_path):
    """From 40 steps to 60, each from where it began to decay itself: step 24, or 32 under a decay of 20%."""
    made = train_pack(members(corpus, train__steps=40), folder=tmp_path)
    assert [{24, 32} & set(run.steps()) for run in made] == [{24}, {32}, {24}]
    for run in train_pack(members(corpus), folder=tmp_path):
        assert_same_run(run, alone(run.name))


# --- refusals --------------------------------------------------------------------------------------------------------
DIFFERENCES = {
    "model.layers: 2 in a, 3 in b": dict(model__layers=3),
    "train.batch: 4 in a, 8 in b": dict(train__batch=8),
    "train.steps: 60 in a, 61 in b": dict(train__steps=61),
    "optimizer.momentum: 0.95 in a, 0.9 in b": dict(optimizer__momentum=0.9),
    "train.log_every: 7 in a, 8 in b": dict(train__log_every=8),
}


@pytest.mark.parametrize("said", DIFFERENCES)
def test_experiments_that_differ_in_anything_else_are_refused(corpus, tmp_path, said):
    with pytest.raises(UserError, match=f"^a pack's runs differ in {said}; only these may: .*train.seed"):
        train_pack([member(corpus, "a"), member(corpus, "b", **DIFFERENCES[said])], folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_names_that_are_not_distinct_an_empty_pack_and_an_unknown_way_are_refused(corpus, tmp_path):
    a = member(corpus, "a")
    with pytest.raises(UserError, match="two experiments of the pack are named a: each needs a directory"):
        train_pack([a, tiny.replaced(a, train__seed=1)], folder=tmp_path)
    with pytest.raises(UserError, match="a pack needs at least one experiment"):
        train_pack([], folder=tmp_path)
    with pytest.raises(UserError, match="how 'pmap': one of auto, vmap, threads"):
        train_pack([a], folder=tmp_path, how="pmap")
    assert not list(tmp_path.iterdir())


def test_a_refused_directory_leaves_no_other_behind(alone, corpus, tmp_path):
    """The last of the pack was trained with another seed: the first two get no directory."""
    shutil.copytree(alone("c").path, tmp_path / "c")
    with pytest.raises(UserError, match=r"train\.seed 2, now 5"):
        train_pack([member(corpus, "a"), member(corpus, "b"), member(corpus, "c", train__seed=5)], folder=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_a_pack_of_which_one_cannot_be_made_longer_changes_none(alone, corpus, tmp_path):
    """One run lost the checkpoint from which it could go on: the other keeps its later ones and its length."""
    for name in "ac":
        shutil.copytree(alone(name).path, tmp_path / name)
    shutil.rmtree(tmp_path / "c" / "checkpoints" / "36")
    before = (tmp_path / "a" / "experiment.json").read_text(), Run(tmp_path / "a").steps()
    with pytest.raises(UserError, match=r"/c: 90 steps instead of 60 change the learning rate from step 36 on"):
        train_pack([member(corpus, name, train__steps=90) for name in "ac"], folder=tmp_path)
    assert before == ((tmp_path / "a" / "experiment.json").read_text(), Run(tmp_path / "a").steps())
