"""Many steps in one program: any cut into dispatches, from the device or the host, gives the same bits."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm.config import Experiment, Steps
from lm.data.batches import Batches
from lm.data.supply import prepare
from lm.training.loop import train as train_run
from lm.training.loop import with_vocabulary
from lm.training.programs import make_train_steps
from lm.training.step import hyperparameters, init_state

MOST = 64
STEPS = Steps(total=60, warmup=5, decay=24, log_every=7, eval_every=20, checkpoint_every=15)
HARD = dict(optimizer__name="muon", model__dropout=0.1, train__accumulation=2, schedule__name="wsd", train__z_loss=1e-4)
"""Everything that could depend on where a run is cut."""


@pytest.fixture(scope="module")
def made(corpus):
    """kind -> (experiment, batches, compiled train_steps, fresh state as NumPy), each kind compiled once."""

    @functools.cache
    def make(kind: str):
        changes = HARD if kind == "hard" else {}
        e = tiny.experiment(corpus, **changes)
        data = prepare(e.data)
        e = with_vocabulary(e, data)
        batches = Batches(data.train, context=16, batch=4, seed=0)
        run = make_train_steps(e, data.tokenizer.eot_token)
        return e, batches, run, jax.device_get(init_state(e))

    return make


def device(state):
    """A copy on the device, for a program that overwrites what it is given."""
    return jax.tree.map(jnp.array, state)


def train(run, e: Experiment, batches: Batches, state, cuts, hyper=None):
    """The state after dispatches of these many steps each, and the last report."""
    hyper, state, step = hyper or hyperparameters(e, STEPS), device(state), 0
    tokens = jnp.asarray(batches.store())
    for n in cuts:
        windows = batches.starts(step, MOST).astype(np.int32)
        state, report = run(state, hyper, tokens, windows, n)
        step += n
    return state, report


def test_any_cut_into_dispatches_gives_the_same_bits_from_one_program(made):
    """Dropout, Muon, accumulation and wsd: 20 steps at once, in uneven pieces, and one by one."""
    e, batches, run, state = made("hard")
    results = [train(run, e, batches, state, cuts) for cuts in ([20], [3, 1, 9, 7], [1] * 20)]
    for other in results[1:]:
        assert tiny.same_bits(results[0], other)
    assert int(results[0][0].step) == 20
    assert float(results[0][0].sums["steps"]) == 6, "summed since the log point at step 14"
    assert run._cache_size() == 1


def test_windows_from_the_host_give_the_bits_of_windows_on_the_device(made):
    """The program that gathers on the device and the one that is fed."""
    e, batches, run, state = made("plain")
    resident, _ = train(run, e, batches, state, [5, 8, 2])
    e, batches, run, state = made("streamed")
    hyper, streamed, step = hyperparameters(e, STEPS), device(state), 0
    for n in (5, 8, 2):
        tokens = np.zeros((MOST, 4, 17), np.int32)
        tokens[:n] = batches.at(step, n)
        streamed, _ = run(streamed, hyper, None, {"tokens_BU": tokens}, n)
        step += n
    assert tiny.same_bits(resident, streamed)  # windows are copied in either way; the step is the same


def test_changing_rates_decay_and_lengths_compiles_nothing(made):
    e, batches, run, state = made("plain")
    changed = {
        "learning_rate": 1e-2, "weight_decay": 0.7, "clip": 0.1, "z_loss": 1e-2, "final": 0.3, "total": 40.0,
        "warmup": 2.0, "loss_limit": 9.0, "log_every": 3,
    }  # fmt: skip
    plain, _ = train(run, e, batches, state, [10])
    count = run._cache_size()
    for name, value in changed.items():
        hyper = hyperparameters(e, STEPS)
        hyper[name] = jnp.asarray(value, hyper[name].dtype)
        other, _ = train(run, e, batches, state, [10], hyper)
        same = tiny.same_bits(plain.params, other.params)
        assert same == (name in ("loss_limit", "log_every")), f"{name} has the wrong influence"
    assert run._cache_size() == count


def test_hyperparameters_come_from_the_experiment(made):
    """Every traced number is the setting it is named after; no clipping is an infinite limit."""
    e = made("plain")[0]
    e = dataclasses.replace(
        e,
        optimizer=dataclasses.replace(e.optimizer, learning_rate=0.5, weight_decay=0.25, clip=None),
        schedule=dataclasses.replace(e.schedule, final=0.125),
        train=dataclasses.replace(e.train, z_loss=0.0625, diverged=3.0),
    )
    hyper = {name: float(value) for name, value in hyperparameters(e, STEPS).items()}
    assert hyper.pop("loss_limit") == pytest.approx(3 * np.log(e.model.vocab))
    assert hyper == {
        "learning_rate": 0.5, "matrix_learning_rate": pytest.approx(0.02), "weight_decay": 0.25, "clip": np.inf,
        "final": 0.125, "z_loss": 0.0625, "total": 60, "warmup": 5, "decay": 24, "log_every": 7, "seed": 0,
    }  # fmt: skip


def test_one_batch_is_learnt_by_heart(made):
    """Loss below 0.01 nats after 400 steps on the same four windows, which begin with four different characters."""
    e, batches, run, state = made("plain")
    tokens = batches.store()
    starts = np.array([int(np.flatnonzero(tokens == token)[3]) for token in np.unique(tokens)[[4, 6, 8, 10]]], np.int32)
    windows = np.tile(starts, (MOST, 1))
    hyper = hyperparameters(e, dataclasses.replace(STEPS, total=400)) | {"learning_rate": jnp.float32(2e-2)}
    state = device(state)
    for _ in range(400 // 50):
        state, report = run(state, hyper, jnp.asarray(tokens), windows, 50)
    assert float(report["loss"]) < 0.01


def test_the_loop_stops_at_the_first_step_that_is_not_finite(made):
    """The window of the eighth step is poisoned: seven steps are made as ever, the eighth is the last."""
    e, batches, run, state = made("plain")
    starts = batches.starts(0, MOST).astype(np.int32)
    tokens = batches.store()
    read_before = starts[:7].ravel()[:, None] + np.arange(17)
    place = min(set(starts[7, 0] + np.arange(1, 17)) - set(read_before.ravel()))
    poisoned = tokens.copy()
    poisoned[place] = 60_000  # no such token: its loss is NaN
    hyper = hyperparameters(e, STEPS)
    good, _ = run(device(state), hyper, jnp.asarray(tokens), starts, 7)
    good = jax.device_get(good)
    bad, report = run(device(state), hyper, jnp.asarray(poisoned), starts, 20)
    assert not bool(report["healthy"]) and not np.isfinite(float(report["loss"]))
    assert int(report["step"]) == int(bad.step) == 8
    same, report = run(device(state), hyper, jnp.asarray(poisoned), starts, 7)
    assert bool(report["healthy"]) and tiny.same_bits(good, jax.device_get(same))


def test_the_loop_stops_when_the_loss_passes_its_limit(made):
    e, batches, run, state = made("plain")
    hyper = hyperparameters(e, STEPS) | {"loss_limit": jnp.float32(2.9)}  # ln V = 3.0 at first
    bad, report = train(run, e, batches, state, [9], hyper)
    assert int(bad.step) == 1 and not bool(report["healthy"]) and float(report["loss"]) > 2.9


@pytest.mark.parametrize("resident", [True, False])
def test_the_share_of_time_spent_waiting_for_data_is_told(corpus, tmp_path, monkeypatch, resident):
    """Reading that takes 0.1 s, where steps take a moment, is waited for; as it usually is, it hardly shows."""
    e = tiny.experiment(corpus, train__log_every=1, train__steps=8)
    monkeypatch.setattr("lm.data.batches.RESIDENT_BYTES", (256 << 20) * resident)
    read = Batches.dispatch

    def waited(pause: float) -> float:
        """Seconds, without the first two steps: one compiled, and the other's data was read meanwhile."""
        monkeypatch.setattr(Batches, "dispatch", lambda *how: time.sleep(pause) or read(*how))
        metrics = train_run(e, folder=tmp_path / str(pause)).metrics()
        assert all(0 <= record["data_wait"] < 1 for record in metrics)
        seconds = [record["data_wait"] * record["seconds"] for record in metrics if "loss" in record]
        return seconds[-1] - seconds[1]

    long = waited(0.1)
    assert 0.15 < long < 20 and waited(0) < long / 2
