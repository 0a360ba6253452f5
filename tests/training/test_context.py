"""Windows that grow: what a step reads, what it costs, and that stopping, packs and streams change no bit of it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_resume import StopAt, assert_same_run

from lm.config import ModelConfig, Steps
from lm.data.batches import Batches
from lm.data.supply import prepare
from lm.model.api import build
from lm.training import dry_run
from lm.training.context import agreement, stages, training_flops
from lm.training.loop import train, train_pack
from lm.training.programs import batch_at

HALVES = dict(
    schedule__context_start=8, schedule__name="wsd", schedule__decay="30%", train__steps=20, train__log_every=4,
    train__eval_every=10, train__checkpoint_every=10, model__dropout=0.1,
)  # fmt: skip


def times(total: int, growth: int) -> Steps:
    return Steps(total, warmup=0, decay=0, log_every=1, eval_every=1, checkpoint_every=1, growth=growth)


def contexts(start: int | None, steps: Steps) -> list[int]:
    """The length of windows in every step."""
    e = tiny.experiment("text.txt", schedule__context_start=start)
    return [stage.context for stage in stages(e, steps) for _ in range(stage.begin, stage.end)]


def test_windows_double_at_equal_intervals_until_they_are_whole():
    """Of 16 tokens: halves in one interval, quarters and halves in two, eighths, quarters and halves in three."""
    assert contexts(None, times(6, 0)) == contexts(16, times(6, 3)) == [16] * 6
    assert contexts(8, times(12, 6)) == [8] * 6 + [16] * 6
    assert contexts(4, times(24, 16)) == [4] * 8 + [8] * 8 + [16] * 8
    assert contexts(2, times(32, 24)) == [2] * 8 + [4] * 8 + [8] * 8 + [16] * 8
    assert contexts(8, times(6, 6)) == [8] * 6
    assert contexts(4, times(20, 13)) == [4] * 4 + [8] * 8 + [16] * 8, "quarters are read by fours, halves by twos"
    assert contexts(2, times(20, 13)) == [4] * 8 + [8] * 4 + [16] * 8, "an interval without a step is left out"


def test_two_lengths_agree_until_a_window_is_longer_in_one():
    e = tiny.experiment("text.txt", schedule__context_start=4)
    for one, other in ((times(12, 8), times(24, 16)), (times(12, 8), times(24, 8)), (times(12, 10), times(12, 8))):
        pairs = zip(contexts(4, one), contexts(4, other), strict=False)
        expected = next((step for step, (a, b) in enumerate(pairs) if a != b), 12)
        assert agreement(e, one, other) == agreement(e, other, one) == expected


@pytest.mark.parametrize("pieces", [2, 4])
@pytest.mark.parametrize("step", [0, 8, 12])
def test_steps_in_pieces_read_what_they_would_have_read_whole(corpus, pieces, step):
    """Over as many steps: each piece once, those of a window in its order, none beside another; the second pass begins
    at step 10 of 9.75, where windows wrap around the end. The device gathers what the host would send."""
    file = prepare(tiny.experiment(corpus).data).train
    whole = Batches(dataclasses.replace(file, count=16 * 39 + 5), context=16, batch=4, seed=3)
    cut = dataclasses.replace(whole, pieces=pieces)
    rows, T = whole.at(step, pieces).reshape(-1, 17), 16 // pieces
    for turn in range(pieces):
        wanted = rows[:, turn * T : (turn + 1) * T + 1]
        assert np.array_equal(cut.at(step + turn), wanted)
        starts = cut.dispatch(step + turn, 1, 3)
        assert np.array_equal(batch_at(0, jnp.asarray(starts), jnp.asarray(cut.store()), T).tokens_BU, wanted)


def test_flops_are_those_of_every_steps_own_windows():
    """By hand, of a model whose attention weighs: 4 L (T + 1) / 2 N H forward for a token, and matrices twice each."""
    c = ModelConfig(layers=2, width=16, heads=2, context=16, feedforward=32, vocab=24)
    e, steps = tiny.replaced(tiny.experiment("text.txt"), schedule__context_start=4, model__vocab=24), times(12, 8)
    matrices = 2 * (2 * (4 * 16 * 16 + 2 * 16 * 32) + 16 * 24)

    def by_hand(context: int) -> float:
        return 3 * 64 * (matrices + 2 * 4 * 16 * (context + 1) / 2)

    assert 64 * build(c).cost(4).training_flops == by_hand(4)
    total = 0.0
    for step, context in enumerate(contexts(4, steps)):
        assert training_flops(e, steps, step) == total
        total += by_hand(context)
    assert (
        training_flops(e, steps, 12)
        == total
        < training_flops(tiny.replaced(e, schedule__context_start=None), steps, 12)
    )


def test_a_dry_run_adds_up_the_stages(corpus, monkeypatch):
    """Time, memory and FLOPs; the rate is the mean of the run."""
    e = tiny.experiment(corpus, **HALVES | dict(schedule__context_growth="25%"))
    monkeypatch.setattr(dry_run, "_measure_stage", lambda *arguments: {2: (1.0, 70), 1: (3.0, 50)}[arguments[-1]])
    found = dry_run.dry_run(e)
    assert found.steps_by_context == {8: 4, 16: 16} and found.memory_activations == 70
    assert found.eta_seconds == 4 * 1 + 16 * 3 and found.tokens_per_second == 20 * 64 / 52
    assert found.flops_exact < found.tokens * found.flops_exact_per_token
    assert "in windows of 8 tokens" in found.table()
    monkeypatch.setattr(dry_run, "_measure_stage", lambda *arguments: (None if arguments[-1] == 1 else 1.0, 50))
    assert dry_run.dry_run(e).eta_seconds is None


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """20 steps at once, ten of them on halves; between two log points the windows change."""
    return train(tiny.experiment(corpus, **HALVES), folder=tmp_path_factory.mktemp("whole"))


def test_a_run_says_what_its_stages_cost(whole):
    """Records count FLOPs up to their step; utilisation is of the windows that were timed."""
    records, c = {record["step"]: record for record in whole.metrics()}, whole.experiment.model
    short, long = (build(c).cost(context).training_flops for context in (8, 16))
    assert [records[step]["flops"] for step in (0, 8, 12, 20)] == pytest.approx(
        [0, 8 * 64 * short, 64 * (10 * short + 2 * long), 64 * (10 * short + 10 * long)]
    )
    ratios = {step: r["mfu"] / r["tokens_per_second"] for step, r in records.items() if "mfu" in r}
    assert ratios[20] / ratios[8] == pytest.approx(long / short) and long > short
    assert whole.flops(records[12]) == records[12]["flops"]
    assert whole.flops({"tokens": 100}) == 100 * long, "a record of before there were stages"


def test_pieces_of_a_run_equal_the_whole(whole, corpus, tmp_path, monkeypatch):
    """Stopped within the first stage, where the second begins, and within that."""
    StopAt(monkeypatch, [4, 10, 14])
    for _ in range(4):
        run = train(tiny.experiment(corpus, **HALVES), folder=tmp_path)
    assert run.finished
    assert_same_run(run, whole)


def test_runs_of_a_pack_equal_the_run_alone(whole, corpus, tmp_path):
    pack = [tiny.experiment(corpus, **HALVES, name=name, train__seed=seed) for seed, name in enumerate(("tiny", "b"))]
    run, other = train_pack(pack, folder=tmp_path, how="threads")
    assert_same_run(run, whole)
    assert other.metrics()[-1]["val_loss"] != run.metrics()[-1]["val_loss"]
