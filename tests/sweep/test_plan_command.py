"""lm plan: options to a design, a rate that is measured, and what is refused."""

import json
import shlex
from types import SimpleNamespace

import pytest

from lm.bench.rates import sizes_to_measure, training_rates
from lm.commands.sweep import Options, _experiments
from lm.config import Experiment, ModelConfig
from lm.model.api import build
from lm.sweep.design import Design
from lm.sweep.planning import Rates, Rules, size

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
    assert found[-1].flops == build(largest).cost().training_flops
    assert 15 * found[-1].params_total * found[-1].flops <= 1e12


@pytest.fixture
def unmeasured(monkeypatch):
    """A machine that must not be measured."""

    def refuse(*_, **__):
        raise AssertionError("measured")

    monkeypatch.setattr("lm.bench.rates.training_rates", refuse)


@pytest.mark.parametrize(
    "arguments, why",
    [
        ((), "which budget?"),
        (("--minuts", "3"), "did you mean minutes?"),
        (("--flops", "1e10", "--sizes", "wide"), "width x layers, such as 64x3"),
        (("--minutes", "1", "--sizes", "99999x2"), "at most 65536 wide"),
        (("--minutes", "1", "--sizes", "99999999999x2"), "width x layers"),
        (("--minutes", "1", "--sizes", "16x2", "16x2"), "--sizes 16x2 is given twice"),
        (("--flops", "1e10", "--rate", "0"), "--rate 0"),
        (("--minutes", "1", "--rate", "inf"), "--rate inf"),
        (("--minutes", "nan"), "--minutes nan"),
        (("--minutes", "1e308"), "--minutes 1e+308"),
        (("--minutes", "1", "--noise", "nan"), "--noise nan"),
        (("--minutes", "1", "--target", "-1"), "--target -1"),
        (("--minutes", "1", "--shared-noise", "1"), "--shared-noise 1"),
        (("--minutes", "1", "--tokens-per-parameter", "1", "inf"), "--tokens-per-parameter inf: not a finite number"),
        (("--minutes", "1", "--ratios", "inf"), "--ratios inf: not a finite number"),
        (("--flops", "-1"), "--flops -1"),
        (("--flops", "1e10", "--out", "design.py"), "written as .json"),
        (("--minutes", "1", "--out", "tiny.py/design.json"), "cannot write to"),
        (("--minutes", "1", "--out", "other.json"), "other.json is not a design"),
        (("--minutes", "1", "--pilot", "points.csv"), "--pilot points.csv: no such file"),
        (
            ("--minutes", "1", "--schedule.context-start", "8"),
            "schedule.context_start 8: a plan counts on whole windows",
        ),
        (("--minutes", "1", "--train.accumulation", "2", "--train.batch", "4"), "give --train.accumulation 1"),
        (("--minutes", "1", "--data.tokenizer", "bpe"), "a vocabulary of 4,096 is too large"),
        (("--minutes", "1", "--schedule.warmup", "999", *SMALL), "give a shorter --schedule.warmup"),
        (("--minutes", "1e-9"), "determines the law"),
        (("--flops", "1e11", "--ratios", "0.3", *SMALL), "tokens per parameter hardly vary"),
        (("--flops", "1e10"), "one epoch of"),
    ],
)
def test_mistakes_are_told_on_one_line_before_anything_is_measured(config, lm, workplace, unmeasured, arguments, why):
    (workplace / "other.json").write_text("{}")
    status, out, err = lm("plan", config, *arguments)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert why in err
    assert (workplace / "other.json").read_text() == "{}" and not (workplace / "runs").exists()


def test_which_configurations_can_be_planned_is_said(lm, workplace):
    """Those of the project, and why the others are not taken; a name that is not is refused with the list."""
    status, out, err = lm("plan")
    assert (status, out) == (2, "") and err.count("\n") == 1
    takes, refused = err.split("; not ")
    assert "transfer" in takes and "quickstart (a vocabulary of 2,048" in refused and "gpt2 (train.accum" in refused
    status, out, err = lm("plan", "quickstart", "--minutes", "1")
    assert status == 2 and "vocabulary of 2,048" in err and "it takes " in err and "transfer" in err


def test_what_a_plan_says_to_type_next_works(config, lm, workplace):
    """With a blank in its name, from the plan that is only shown to the sweep of the one that is kept."""
    _, out, _ = lm("plan", config, "--flops", "2e10", *SMALL)
    keep = next(line for line in out.splitlines() if line.startswith("  lm plan")).split("    ")[0]
    words = shlex.split(keep)[1:]
    words[-1] = "a design.json"
    status, out, err = lm(*words)
    assert status == 0, err
    commands = [line.strip().split("    ")[0] for line in out.splitlines() if line.startswith("  lm sweep")]
    assert commands == ["lm sweep 'a design.json' --dry-run", "lm sweep 'a design.json'"]
    name, experiments = _experiments(shlex.split(commands[1])[2], Options(), [])
    design = Design.read(workplace / "a design.json")
    assert name == "a design" and [e.name for e in experiments] == [row.name for row in design.rows]


def damaged(design: dict) -> dict[str, bytes]:
    """A design's JSON, spoilt in many ways, by what should be said."""
    first, text = design["rows"][0], json.dumps(design)

    def changed(**changes) -> bytes:
        """With another first row; a value of None is left out."""
        row = {key: value for key, value in (first | changes).items() if key not in changes or value is not None}
        return json.dumps(design | {"rows": [row]}).encode()

    without = {key: value for key, value in design.items() if key not in ("law", "rows")}
    return {
        "recursion": b"[" * 200_000,
        "utf-8": b'{"rows": "\xe9"}',
        "a JSON object": b"[1]",
        "Unterminated": text[: text.rindex('": ')].encode(),
        "Expecting value": b"",
        "no law, rows": json.dumps(without).encode(),
        "no rows": json.dumps(design | {"rows": []}).encode(),
        "no noise": text.replace('"noise"', '"noize"').encode(),
        "unexpected": json.dumps(design | {"unknown": 1}).encode(),
        "NaN is no number": changed(flops=float("nan")),
        "flops is not a positive": changed(flops=-1.0),
        "steps is not a whole": changed(steps="9" * 500),
        "batch is not a whole": changed(batch=True),
        "are not": changed(branch_step=first["branch_step"] + 1),
        "'trunk'": changed(trunk=None),
        "E inf": text.replace('"E": 0.7', '"E": 1e999').encode(),
    }


def test_damaged_designs_are_one_line(config, lm, workplace):
    """Whatever is wrong with the file; and a byte-order mark is nothing wrong."""
    status, _, err = lm("plan", config, "--flops", "2e10", *SMALL, "--out", "design.json")
    assert status == 0, err
    design = json.loads((workplace / "design.json").read_text())
    for said, content in damaged(design).items():
        (workplace / "bad.json").write_bytes(content)
        status, out, err = lm("sweep", "bad.json")
        assert (status, out) == (2, "") and err.count("\n") == 1 and len(err) < 400, said
        assert "bad.json is not a design" in err and said in err, (said, err)
    (workplace / "marked.json").write_text(json.dumps(design), encoding="utf-8-sig")
    assert Design.read(workplace / "marked.json") == Design.read(workplace / "design.json")


def test_a_design_that_cannot_be_written_leaves_the_old_one(config, lm, workplace, monkeypatch):
    status, _, err = lm("plan", config, "--flops", "2e10", *SMALL, "--out", "design.json")
    before = (workplace / "design.json").read_bytes()
    design = Design.read(workplace / "design.json")
    monkeypatch.setattr(Design, "to_json", lambda self: {"rows": object()})
    with pytest.raises(TypeError):
        design.write(workplace / "design.json")
    assert (workplace / "design.json").read_bytes() == before and status == 0, err
    assert sorted(path.name for path in workplace.iterdir()) == ["design.json", "tiny.py"]
