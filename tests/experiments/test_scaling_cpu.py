"""The whole study on losses made up from a known law: what it plans, foretells, and finds again."""

import csv
import functools
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lm.scaling.chinchilla import Chinchilla
from lm.scaling.points import make_points, read_points
from lm.sweep.design import Design
from lm.sweep.planning import size
from lm.sweep.running import COLUMNS

SCRIPT = "scaling_cpu"
pytestmark = pytest.mark.slow
TRUTH = Chinchilla(E=0.7, A=18.0, B=60.0, alpha=0.35, beta=0.33)
NOISE = 5e-4
BEST = (0.05, 0.4)
"""k and p of the best learning rate, k width^-p."""


@pytest.fixture(scope="module")
def report(script):
    return sys.modules[script.show.__module__]


def made_up(jobs, folder, **_):
    """points.csv as a sweep leaves it, of the law's losses: worse away from the best rate, and noisy."""
    rows = []
    for job in jobs:
        e, tokens = job.experiment, job.steps.total * job.experiment.batch_tokens
        off = math.log(e.optimizer.learning_rate / (BEST[0] * e.model.width ** -BEST[1]))
        noise = np.random.default_rng([e.train.seed, job.steps.total, e.model.width]).normal()
        loss = TRUTH.loss(job.params_total, tokens) * (1 + 0.05 * off**2) * math.exp(NOISE * noise)
        known = dict(
            name=job.name, params_nonembedding=job.params_nonembedding, params_total=job.params_total, tokens=tokens,
            flops_6nd=6 * job.params_total * tokens, flops_exact=job.flops, loss=loss, seed=e.train.seed,
            run=job.name.rsplit("-", 2)[0] + str(e.train.seed), steps=job.steps.total, layers=e.model.layers,
            learning_rate=e.optimizer.learning_rate, width=e.model.width,
        )  # fmt: skip
        rows.append(dict.fromkeys(COLUMNS, 0) | known)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "points.csv").open("w") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return SimpleNamespace(points=folder / "points.csv", stopped=False, failed={})


def call(script, monkeypatch, folder, text, *more):
    arguments = ["--runs", str(folder), "--corpus", str(text), "--rate", "5e10", "--figure", str(folder / "f.svg")]
    monkeypatch.setattr(sys, "argv", ["scaling_cpu.py", *arguments, *more])
    monkeypatch.setattr(script, "keep_compiled_programs", lambda folder: None)
    script.main(script.CPU, script.__doc__)


@pytest.fixture(scope="module")
def done(script, report, tmp_path_factory):
    """A study from beginning to end, and which files were there when its runs were trained. For reading only."""
    monkeypatch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("study")
    text, there = folder / "text.txt", {}
    text.write_text("to be or not to be, that is the question; " * 280_000)

    def watched(jobs, where, **more):
        there[where.name] = {path.name for path in folder.iterdir()}
        return made_up(jobs, where, **more)

    monkeypatch.setattr(script, "sweep", watched)
    monkeypatch.setattr(report, "BOOTSTRAPS", 100)
    law_of = functools.cache(report.law_of)  # the same fits are asked for many times
    monkeypatch.setattr(script, "law_of", law_of)
    monkeypatch.setattr(report, "law_of", law_of)
    monkeypatch.setattr(report, "fitted", functools.cache(report.fitted))
    call(script, monkeypatch, folder, text)
    yield SimpleNamespace(folder=folder, text=text, there=there)
    monkeypatch.undo()


def test_the_design_keeps_to_the_rules(done, script):
    """At least 400 steps, no text twice, five sizes around a valley, within the time of 20 minutes at the rate."""
    design = Design.read(done.folder / "design.json")
    points = read_points(done.folder / "sweep" / "points.csv")
    assert points.column("steps").min() >= 400 and points.tokens.max() <= done.text.stat().st_size
    assert len(np.unique(points.params)) >= 5 and len(points) == 2 * len(design.rows)
    spent = 2 * design.flops + read_points(done.folder / "held-out" / "points.csv").flops.sum()
    spent += read_points(done.folder / "pilot" / "points.csv").flops.sum()
    assert 0.5 < spent / (20 * 60 * 5e10) < 1.05
    embedding = 1 - points.column("params_nonembedding") / points.params
    assert embedding.max() < 0.5


def test_the_pilot_finds_the_rate_and_all_runs_take_it(done, report):
    pilot = read_points(done.folder / "pilot" / "points.csv")
    assert report.rule(pilot) == pytest.approx(BEST, rel=0.2)  # noise moves a parabola's bottom
    k, p = report.rule(pilot)
    for name in ("sweep", "held-out"):
        points = read_points(done.folder / name / "points.csv")
        assert points.column("learning_rate") == pytest.approx(k * points.column("width") ** -p, rel=5e-3)


@pytest.mark.parametrize("p, kept", [(0.4, 0.4), (-0.5, 0.0), (1.5, 1.0)])
def test_the_rule_is_the_power_law_of_exact_parabolas(report, p, kept):
    """Four rates a width, a factor 2 apart, none of them the best; exponents beyond 0 and 1 are not believed."""
    widths, rates = np.repeat([24.0, 32.0, 128 / 3], 4), np.tile([0.004, 0.008, 0.016, 0.032], 3)
    loss = 2 + 0.1 * np.log(rates / (0.0125 * (widths / 32) ** -p)) ** 2
    pilot = make_points(np.full(12, 1e5), np.full(12, 1e6), loss, columns={"width": widths, "learning_rate": rates})
    k, found = report.rule(pilot)
    assert found == pytest.approx(kept) and k * 32**-found == pytest.approx(0.0125)


def test_a_best_rate_at_the_end_of_the_grid_is_that_end(report):
    rates = np.array([0.004, 0.008, 0.016])
    pilot = make_points(np.full(3, 1e5), np.full(3, 1e6), [2.0, 2.1, 2.3], columns={"learning_rate": rates})
    assert report.best_rate(pilot) == pytest.approx(0.004)


def test_the_prediction_is_sealed_before_the_held_out_run_and_comes_true(done, report):
    assert set(report.SEALED.values()) <= done.there["held-out"] and not done.there["pilot"] & {"sweep", "held-out"}
    swept, unseen = (read_points(done.folder / name / "points.csv") for name in ("sweep", "held-out"))
    assert 4 <= unseen.flops.min() / swept.flops.max() < 4.3 and len(unseen) == 2
    assert unseen.tokens.max() <= done.text.stat().st_size
    sealed = json.loads((done.folder / report.SEALED[report.EXACT]).read_text())
    enough = swept.where(swept.tokens >= report.FEWEST * swept.params)
    assert sealed["points_sha256"] == enough.sha256() and sealed["points"] == len(enough) < len(swept)
    [row] = report.score_prediction(done.folder / report.SEALED[report.EXACT], unseen)
    assert row["actual"] == pytest.approx(unseen.loss.mean()) and abs(row["error"]) < 5e-3 and row["inside"]


def test_valleys_and_law_find_the_exponents_in_every_count(done, report):
    """Beside what the known law gives at the same budgets, by brute force over sizes between the trained ones.

    The envelope of so few sizes is a stair with no slope to compare; tests/scaling has one of many.
    """
    swept = done.folder / "sweep" / "points.csv"
    design = Design.read(done.folder / "design.json")
    base = report.lm.settings.from_dict(design.experiment).model
    points = read_points(swept)
    ends = [size(base, width) for width in (24, 32, 40, 48, 56, 64, 80)]
    total = np.geomspace(ends[0].params_total, ends[-1].params_total, 4000)
    of = lambda values: np.exp(np.interp(np.log(total), np.log([s.params_total for s in ends]), np.log(values)))  # noqa: E731
    nonembedding, exact = of([s.params_nonembedding for s in ends]), of([s.flops for s in ends])
    counted = dict(
        zip(report.COUNTS, ((total, exact), (total, 6 * total), (nonembedding, 6 * nonembedding)), strict=True)
    )
    for count, laws in ((count, report.fitted(swept, count)) for count in report.COUNTS):
        n, per_token = counted[count]
        budgets = np.geomspace(points.flops.max() / 8, points.flops.max(), 8) * (per_token / exact).mean()
        best = [n[np.argmin(TRUTH.loss(total, budget / per_token))] for budget in budgets]
        expected = np.polyfit(np.log(budgets), np.log(best), 1)[0]
        for name in report.APPROACHES[1:]:
            assert report.exponent(laws[name]).value == pytest.approx(expected, abs=0.06), (count, name, expected)
    total, kaplan = (
        report.exponent(report.fitted(swept, c)["3 law"]).value for c in (report.CHINCHILLA, report.KAPLAN)
    )
    assert kaplan > total + 0.02


def test_slices_of_the_exact_count_are_the_designs_own_points(done, report):
    mean = report.mean_of_seeds(read_points(done.folder / "sweep" / "points.csv"))
    lines = report.sliced(mean)
    assert len(lines) == len(mean)
    order = lambda p: np.lexsort((np.round(np.log(p.flops), 1), p.params))  # noqa: E731
    assert lines.loss[order(lines)] == pytest.approx(mean.loss[order(mean)], rel=1e-3)


def test_a_study_that_is_done_trains_and_plans_nothing(done, script, monkeypatch, capsys):
    """--show, without even the text; then the study again, whose runs the sweep knows to be there."""

    def refuse(*_, **__):
        raise AssertionError("again")

    for name in ("plan", "write_prediction", "trunk_rows"):
        monkeypatch.setattr(script, name, refuse)
    seals = [(done.folder / name).read_bytes() for name in ("prediction-total.json", "held-out.json")]
    call(script, monkeypatch, done.folder, done.text)
    first = capsys.readouterr().out
    assert seals == [(done.folder / name).read_bytes() for name in ("prediction-total.json", "held-out.json")]
    monkeypatch.setattr(script, "sweep", refuse)
    call(script, monkeypatch, done.folder, "nowhere", "--show")
    shown = capsys.readouterr().out
    assert shown in first and "Held out, 4.1" in shown and (done.folder / "f.svg").read_text().startswith("<?xml")


def test_too_little_time_or_text_is_said(done, script, monkeypatch, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("to be or not to be " * 20_000)
    for text, minutes in ((done.text, "0.01"), (short, "20")):
        with pytest.raises(SystemExit, match=r"scaling_cpu.py: .*(minutes|steps)"):
            call(script, monkeypatch, tmp_path / "runs", text, "--minutes", minutes)
