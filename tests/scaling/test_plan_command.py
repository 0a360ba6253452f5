"""lm plan: options to a design, a rate that is measured, and what is refused."""

import json
from types import SimpleNamespace

import pytest

from lm.bench.rates import sizes_to_measure, training_rates
from lm.config import Experiment, ModelConfig
from lm.scaling.design import Design
from lm.scaling.flops import train_flops
from lm.scaling.plan import Rates, Rules, size

SMALL = ("--tokens-per-parameter", "0.05", "8", "--least-steps", "2")
"""Runs short enough for a corpus of 16 kB."""


@pytest.fixture
def config(workplace, corpus) -> str:
    (workplace / "tiny.py").write_text(
        "import lm\n"
        "experiment = lm.Experiment(\n"
        "    model=lm.ModelConfig(context=16, tied=True, dtype='float32'), train=lm.TrainConfig(eval_tokens=512),\n"
        f"    data=lm.DataConfig(corpus={str(corpus)!r}, tokenizer='chars'))\n"
    )
    return "tiny.py"


def test_a_plan_from_the_command(config, lm, workplace):
    """--json prints the design that --out writes; the table names every model."""
    arguments = ("plan", config, "--flops", "2e10", "--rate", "1e9", *SMALL, "--model.qk-norm", "False")
    status, out, err = lm(*arguments, "--out", "design.json", "--json")
    assert status == 0, err
    design = Design.read(workplace / "design.json")
    assert design.to_json() == json.loads(out)
    assert design.flops <= 2e10 and design.experiment["model"]["qk_norm"] is False
    assert max(row.tokens for row in design.rows) <= design.corpus_tokens < 16_000
    assert design.seconds > design.flops / 1e9  # evaluation comes on top

    status, out, err = lm(*arguments)
    assert status == 0 and "predicted alpha" in out and f"{len(design.rows)} from" in out, err


def test_the_rate_is_measured_at_the_ends(config, lm, monkeypatch):
    """Of the sizes asked for; between them it is interpolated, and the time stays within the budget."""
    asked = []

    def rates(e, sizes, *, display):
        asked.extend(s.width for s in sizes)
        return Rates(tuple(s.params_total for s in sizes), (1e9, 4e9), setup_seconds=1.0)

    monkeypatch.setattr("lm.bench.rates.training_rates", rates)
    sizes = ("--sizes", "8x1", "16x1", "24x1", "32x1")
    status, out, err = lm("plan", config, "--minutes", "0.25", *SMALL, *sizes, "--json")
    assert status == 0, err
    design = json.loads(out)
    assert asked == [8, 32] and 4 < design["seconds"] <= 15
    assert design["flops"] / 4e9 < design["seconds"]


def test_rates_are_of_the_training_step():
    """FLOP/s in a range that every machine is in, at the size asked for."""
    e = Experiment(model=ModelConfig(context=16, vocab=64, tied=True, dtype="float32"))
    rates = training_rates(e, [size(e.model, 16, 1)], seconds=0.05, rounds=1)
    assert rates.params == (float(size(e.model, 16, 1).params_total),) and rates.setup_seconds > 0
    assert 1e5 < rates.at(1e4) < 1e15


def test_rates_of_runs_side_by_side_add_up(monkeypatch):
    """Were every step of a pack to take a second, three runs would make three times the FLOPs of one."""
    made = []

    def program(*runs):
        made.append(len(runs))
        return SimpleNamespace(run=None, compile_seconds=2.0)

    unit = SimpleNamespace(seconds=SimpleNamespace(median=1.0))
    monkeypatch.setattr("lm.bench.rates.Program", program)
    monkeypatch.setattr("lm.bench.rates.compare", lambda contestants, *_, **__: [unit] * len(contestants))
    e = Experiment(model=ModelConfig(context=16, vocab=64, tied=True))
    sizes = [size(e.model, width) for width in (16, 32)]
    alone, three = training_rates(e, sizes), training_rates(e, sizes, runs=3)
    assert made == [1, 1, 3, 3] and three.setup_seconds == alone.setup_seconds == 2.0
    assert three.flops_per_second == pytest.approx([3 * rate for rate in alone.flops_per_second])


def test_sizes_to_measure_span_what_is_affordable(monkeypatch):
    """At a peak of 1e10 FLOP/s, 100 s are 1e12 FLOPs: the largest size's shortest run just fits."""
    monkeypatch.setattr("lm.bench.rates.peak_flops", lambda dtype: (1e10, "measured"))
    e = Experiment(model=ModelConfig(context=128, vocab=257, tied=True))
    found = sizes_to_measure(e, 100.0, Rules())
    assert [s.width for s in found] == [16, 32, 48]
    largest = ModelConfig(context=128, vocab=257, tied=True, layers=2, width=48, heads=3)
    assert found[-1].flops == train_flops(largest)
    assert 15 * found[-1].params_total * found[-1].flops <= 1e12


@pytest.mark.parametrize(
    "arguments, why",
    [
        ((), "which budget?"),
        (("--minuts", "3"), "did you mean minutes?"),
        (("--flops", "1e10", "--sizes", "wide"), "width x layers, such as 64x3"),
        (("--flops", "1e10", "--rate", "0"), "--rate 0"),
        (("--flops", "1e10", "--out", "design.py"), "written as .json"),
        (("--flops", "1e11", "--ratios", "0.3", *SMALL), "tokens per parameter hardly vary"),
        (("--flops", "1e10"), "one epoch of"),
    ],
)
def test_mistakes_are_told_on_one_line(config, lm, arguments, why):
    status, out, err = lm("plan", config, *arguments)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert why in err
