"""Memory is counted before it is allocated: never more than XLA plans, refused on one line where it is not there."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lm import hardware
from lm.cli import main
from lm.errors import UserError, out_of_memory
from lm.model.api import build
from lm.training.dry_run import dry_run
from lm.training.loop import train
from lm.training.memory import estimate, readable, require_memory, require_plan, tree_bytes
from lm.training.step import init_state

HUGE = dict(model__width=2**28, model__heads=1, model__feedforward=2**30, model__layers=2**31 - 1)


@pytest.mark.parametrize("optimizer, moments", [("adamw", 2), ("lion", 1), ("sgd", 1)])
def test_any_size_is_counted_at_once_and_exactly(corpus, optimizer, moments):
    """Beyond 2^64, in whole numbers."""
    e = tiny.experiment(corpus, **HUGE, model__vocab=2**31 - 8, optimizer__name=optimizer)
    need, (total, _) = estimate(e), build(e.model).parameter_count()
    assert total > 2**80 and need.parameters == need.gradients == 4 * total
    assert 0 <= need.optimizer - 4 * total * moments <= 4
    assert need.total == need.parameters + need.optimizer + need.gradients + need.activations


def test_what_does_not_fit_is_refused_before_anything_is_made(corpus, workplace, monkeypatch):
    """With the estimate and what is there; side by side the states count each."""
    e = tiny.experiment(corpus)
    need = estimate(tiny.experiment(corpus, model__vocab=23))
    monkeypatch.setattr(hardware, "memory", lambda: need.total - 1)
    with pytest.raises(
        UserError, match=r"^training needs at least 0\.\d MB of memory \(parameters .* there are 0\.\d MB"
    ):
        train(e)
    assert not (workplace / "runs").exists()
    monkeypatch.setattr(hardware, "memory", lambda: need.total + need.parameters)
    require_memory(tiny.experiment(corpus, model__vocab=23))
    with pytest.raises(UserError, match=r"^2 runs side by side need at least"):
        require_memory(tiny.experiment(corpus, model__vocab=23), runs=2)


def test_a_dry_run_of_what_does_not_fit_answers(corpus, workplace, capsys):
    """Counts and the estimate, no rate, and nothing allocated."""
    (workplace / "configs").mkdir()
    changes = {"data.corpus": str(corpus), "model.context": 16}
    (workplace / "configs" / "huge.py").write_text(f"import lm\nexperiment = lm.replace(lm.Experiment(), {changes})\n")
    arguments = ["train", "huge", "--dry-run", "--model.layers", "2147483647", "--model.feedforward", "2147483640"]
    assert main([*arguments, "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert cost["tokens_per_second"] is cost["eta_seconds"] is None
    assert cost["params_total"] > 2**31 * 2**31 * 128 and cost["memory_parameters"] == 4 * cost["params_total"]
    assert cost["memory_total"] > cost["memory_available"] > 0
    assert main(arguments) == 0
    assert "does not fit here" in capsys.readouterr().out


def test_the_estimate_is_the_least_that_xla_plans_and_its_plan_counts(corpus, monkeypatch):
    """Where the estimate passes and XLA's plan does not, neither the dry run nor training calls the program."""
    need = estimate(tiny.experiment(corpus, model__vocab=23))
    monkeypatch.setattr(hardware, "memory", lambda: need.total)
    cost = dry_run(tiny.experiment(corpus))
    assert not cost.fits and cost.tokens_per_second is None
    assert 0.1 * cost.memory_activations < need.gradients + need.activations < cost.memory_activations
    state = init_state(tiny.experiment(corpus, model__vocab=23))
    assert (need.parameters, need.optimizer) == (tree_bytes(state.params), tree_bytes(state.optimizer))

    plan = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(temp_size_in_bytes=cost.memory_activations))
    with pytest.raises(
        UserError, match=r"^the compiled step needs .* of memory beside its state, there are .* left here"
    ):
        require_plan(plan)
    monkeypatch.setattr(hardware, "memory", lambda: cost.memory_activations)
    require_plan(plan)


def test_memory_that_was_not_there_all_the_same_is_one_line(workplace, monkeypatch, capsys):
    """NumPy's and XLA's own errors, from any verb; any other error of theirs stays what it is."""
    with pytest.raises(RuntimeError) as xla:
        jnp.zeros(2**44).block_until_ready()
    with pytest.raises(MemoryError) as numpy:
        np.zeros(2**52)
    for error, said in (
        (xla.value, "Out of memory allocating 70368744177664 bytes"),
        (numpy.value, "Unable to allocate"),
    ):
        monkeypatch.setattr("lm.commands.runs.run", lambda _, error=error: (_ for _ in ()).throw(error))
        assert main(["runs"]) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and err.startswith(f"lm: out of memory: {said}")
    assert out_of_memory(RecursionError("maximum recursion depth exceeded")) is None


def test_this_machine_says_what_it_has(tmp_path, monkeypatch):
    """More than this process uses and less than a petabyte; a container's limit holds where it is lower."""
    assert 1e8 < hardware.memory() < 1e15
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "CONTAINER_LIMITS", (limit, tmp_path / "none"))
    for text, right in (("123456\n", 123456), ("max\n", None)):
        limit.write_text(text)
        assert (hardware.memory() == right) if right else (hardware.memory() > 1e8)


def test_sizes_are_written_in_the_unit_that_fits():
    assert [readable(n) for n in (3 * 10**5, 26_800_600_000, 10**13, 10**25)] == [
        "0.3 MB",
        "26.8 GB",
        "10.0 TB",
        "1e+13 TB",
    ]
