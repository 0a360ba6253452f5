"""What experiments/recipe.py does with losses and times: steps to a loss, ratios, the table and the figure."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

import lm
from lm import settings

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "recipe.py"
CELL, OTHER = "tiny-stdlib", "small-stdlib"


@pytest.fixture(scope="module")
def recipe():
    specification = importlib.util.spec_from_file_location("recipe", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules["recipe"] = module  # its dataclasses look themselves up
    specification.loader.exec_module(module)
    yield module
    del sys.modules["recipe"]


@pytest.fixture
def small(recipe, monkeypatch):
    """The smallest of models in the tiny cells, by an optimizer that compiles fast."""
    size = recipe.Size(dict(layers=1, width=16, heads=2, context=8), batch=4, steps=6)
    monkeypatch.setitem(recipe.SIZES, "tiny", size)
    monkeypatch.setattr(recipe, "BASELINE", lm.replace(recipe.BASELINE, {"optimizer.name": "adamw"}))


@pytest.fixture
def trained(recipe, tmp_path):
    """trained(cell, name, seed, loss) writes down what runs would leave whose loss is loss(steps)."""

    def write(cell, name, seed, loss):
        for longer in (False, True):
            e = recipe.experiment(cell, name, longer, seed, None)
            (tmp_path / e.name).mkdir(parents=True)
            records = [{"step": 0, "val_loss": 9.0}, {"step": e.train.steps, "val_loss": loss(e.train.steps)}]
            (tmp_path / e.name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))

    return write


@pytest.mark.parametrize("steps", [(100, 200), (50, 150)])
@pytest.mark.parametrize("wanted", [70, 100, 141, 290])
def test_steps_to_a_loss_inverts_a_line_over_log_steps(recipe, steps, wanted):
    """Between the two runs and beyond them."""
    loss = lambda n: 3 - 0.25 * math.log(n)  # noqa: E731
    assert recipe.steps_to(loss(wanted), steps, [loss(n) for n in steps]) == pytest.approx(wanted)


@pytest.mark.parametrize("losses", [(2.0, 2.0), (2.0, 2.1), (2.0, math.nan)])
def test_a_run_that_gains_nothing_by_more_steps_never_gets_there(recipe, losses):
    assert recipe.steps_to(1.9, (100, 200), losses) == math.inf


@pytest.mark.slow
def test_a_variant_that_learns_twice_as_fast_needs_half_the_steps(recipe, trained, tmp_path):
    """Seed by seed, whatever each seed's own loss; a missing run of either leaves that seed out."""
    loss = lambda n, seed: 3 + 0.1 * seed - 0.25 * math.log(n)  # noqa: E731
    for seed in (0, 1, 2):
        trained(CELL, "baseline", seed, lambda n, seed=seed: loss(n, seed))
    for seed in (0, 2, 3):
        trained(CELL, "GELU", seed, lambda n, seed=seed: loss(2 * n, seed))
    assert recipe.steps_ratios(CELL, "GELU", range(4), tmp_path) == pytest.approx([0.5, 0.5])
    assert recipe.steps_ratios(OTHER, "GELU", range(4), tmp_path) == []
    # the baseline's own seeds differ by what a tenth of a nat is worth in steps
    expected = np.exp(np.array([-0.1, 0, 0.1]) / 0.25)
    assert recipe.steps_ratios(CELL, "baseline", range(4), tmp_path) == pytest.approx(expected)


def test_a_batch_twice_as_large_sees_the_same_tokens(recipe):
    """Half the steps at sqrt(2) times the rates; if each does as much as two, it needs half of them."""
    base, large = (recipe.experiment(CELL, name, True, 0, None) for name in ("baseline", "batch x 2"))
    assert large.batch_tokens == 2 * base.batch_tokens
    assert large.train.steps * large.batch_tokens == base.train.steps * base.batch_tokens
    for name in ("learning_rate", "matrix_learning_rate"):
        rates = [getattr(e.optimizer, name) for e in (base, large)]
        assert rates[1] == pytest.approx(2**0.5 * rates[0])


def test_time_is_steps_times_a_steps_time(recipe, trained, tmp_path):
    """And a variant whose step was not timed is taken to cost the baseline's."""
    loss = lambda n: 3 - 0.25 * math.log(n)  # noqa: E731
    trained(CELL, "baseline", 0, loss)
    trained(CELL, "squared ReLU", 0, lambda n: loss(2 * n))
    trained(CELL, "cosine", 0, lambda n: loss(0.8 * n))
    (tmp_path / "times.json").write_text(json.dumps({CELL: {"squared ReLU": [1.2, 1.1, 1.3]}}))
    costs = recipe.gather([CELL, OTHER], ["baseline", "cosine", "squared ReLU", "GELU"], [0], tmp_path)
    assert list(costs) == ["baseline", "cosine", "squared ReLU"], "GELU was not trained"
    assert costs["squared ReLU"][CELL].time == pytest.approx([0.6])
    assert costs["cosine"][CELL].time == pytest.approx([1.25])

    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in recipe.table(costs, [CELL, OTHER]).split("\n")]
    assert rows[0] == ["variant", CELL, OTHER, "all"]
    assert rows[2:] == [
        ["squared ReLU", "0.60; 0.50 x 1.20", "", "0.60"],
        ["baseline", "1.00; 1.00 x 1.00", "", "1.00"],
        ["cosine", "1.25; 1.25 x 1.00", "", "1.25"],
    ]
    recipe.draw(costs, [CELL, OTHER], tmp_path / "recipe.svg")
    assert "squared ReLU" in (tmp_path / "recipe.svg").read_text()


def test_cells_and_seeds_weigh_the_same_in_the_geometric_mean(recipe):
    of = {"a": recipe.Cost([2.0, 8.0], 1.0), "b": recipe.Cost([0.5], 2.0)}
    assert recipe.overall(of) == pytest.approx(2.0)  # of 4 and 1


def test_every_variant_changes_what_is_learnt_and_nothing_else(recipe):
    """Its settings exist, differ from the baseline's, and leave corpus, seed and shape alone."""
    base = settings.identity(recipe.experiment(OTHER, "baseline", False, 0, None))
    kept = ("model.layers", "model.width", "model.context", "data.corpus", "train.seed", "model.heads")
    for name in recipe.VARIANTS:
        e = recipe.experiment(OTHER, name, False, 0, None)
        changed = {key: value for key, value in settings.identity(e).items() if value != base[key]}
        assert bool(changed) != (name == "baseline"), name
        assert not set(kept) & set(changed), name


def test_runs_in_a_pack_share_a_program_and_others_do_not(recipe):
    """Rates, decay and seeds are traced; another activation, schedule or length is not."""
    program = lambda name, longer=False, seed=0: recipe.program_of(  # noqa: E731
        recipe.experiment(CELL, name, longer, seed, None)
    )
    for name in ("matrix rate x 2", "decay 80%", "no clipping", "no weight decay", "warm-up 10%"):
        assert program(name, seed=1) == program("baseline"), name
    for name in ("GELU", "cosine", "beta2 0.99", "batch x 2"):
        assert program(name) != program("baseline"), name
    assert program("baseline", longer=True) != program("baseline")


@pytest.mark.slow
def test_what_is_trained_is_not_trained_again_and_short_windows_cost_the_same_tokens(
    recipe, small, tmp_path, monkeypatch
):
    """The smallest of runs, for real: both kinds of training leave a loss where it is looked for."""
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 60)
    names = ["baseline", "no clipping", "short windows first"]
    where = (["tiny-shakespeare"], names, [0], tmp_path, str(text))
    recipe.train(*where)
    run = lm.Run(tmp_path / recipe.experiment("tiny-shakespeare", "short windows first", True, 0, str(text)).name)
    assert run.experiment.schedule.context_start == 4 and run.record["steps"]["growth"] == 6
    assert run.metrics()[-1]["tokens"] == 12 * run.experiment.batch_tokens
    losses = [recipe.validation_loss(tmp_path, recipe.experiment(where[0][0], name, longer, 0, str(text)))
              for name in names for longer in (False, True)]  # fmt: skip
    assert all(0.5 < loss < math.log(20) for loss in losses) and len(set(losses)) > 3
    monkeypatch.setattr(recipe, "train_pack", None)
    recipe.train(*where)


@pytest.mark.slow
def test_variants_of_one_program_are_timed_once_and_kept_beside_others(recipe, small, tmp_path, monkeypatch):
    """A traced setting costs what the baseline costs; sixteen times the batch costs more; another cell's times stay."""
    monkeypatch.setitem(recipe.VARIANTS, "batch x 16", recipe.Variant(batch=16, steps=16))
    (tmp_path / "times.json").write_text(json.dumps({OTHER: {"baseline": [1.0, 1.0, 1.0]}}))
    names = ["baseline", "no clipping", "batch x 16", "short windows first"]
    recipe.time_steps([CELL], names, tmp_path, rounds=3, seconds=0.02)
    times = json.loads((tmp_path / "times.json").read_text())
    assert list(times) == [OTHER, CELL] and list(times[CELL]) == names
    assert times[CELL]["baseline"] == times[CELL]["no clipping"] == [1.0, 1.0, 1.0]
    assert times[CELL]["batch x 16"][0] > 1.5
    assert times[CELL]["short windows first"][0] < 5
