"""Scaling figures: what is drawn is what the law and the points say, and what cannot be drawn says why."""

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from synthetic import HOFFMANN, synthetic

from lm.cli import main
from lm.errors import UserError
from lm.scaling import fit, fit_frontier, make_points, plot
from lm.scaling.law import cost_of

pytestmark = pytest.mark.usefixtures("polished")


@pytest.fixture(scope="module")
def points():
    return dataclasses.replace(synthetic(0.001), conventions={"params": "nonembedding", "loss": "nats per token"})


@pytest.fixture(scope="module")
def law(points):
    return fit(points, bootstraps=0)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def lines(axes, colour=None):
    return [np.asarray(line.get_xydata()) for line in axes.lines if colour in (None, line.get_color())]


def test_valleys_follow_the_law_and_mark_the_bottoms(points, law):
    axes = plot.isoflop(points, law).axes[0]
    assert axes.get_xlabel() == "parameters N (nonembedding)" and axes.get_ylabel() == "loss, nats per token"
    curves = [line for line in lines(axes) if len(line) == 80]
    assert len(curves) == 5
    k, g = cost_of(points)
    for (n, loss), c in zip((curve.T for curve in curves), (1e17, 1e18, 1e19, 1e20, 1e21), strict=True):
        np.testing.assert_allclose(loss, law.predict(n, c / (k * n ** (1 + g))), rtol=1e-9)
    [bottoms] = [line for line in lines(axes, "black") if len(line)]
    total = HOFFMANN["alpha"] + HOFFMANN["beta"]
    scale = (HOFFMANN["alpha"] * HOFFMANN["A"] / (HOFFMANN["beta"] * HOFFMANN["B"])) ** (1 / total)
    truth = scale * (np.array([1e17, 1e18, 1e19, 1e20, 1e21]) / 6) ** (HOFFMANN["beta"] / total)
    assert np.abs(np.log(bottoms[:, 0] / truth)).max() < 0.5


def test_frontier_is_inside_its_band(points, law):
    figure = plot.frontier(points, law)
    for axes, name in zip(figure.axes, ("params", "tokens"), strict=True):
        x, y = lines(axes, "C0")[0].T
        best = law.optimum(x)
        np.testing.assert_allclose(y, best[name], rtol=1e-9)
        [band] = [c for c in axes.collections if c.get_label() == "90% band"]
        edge = band.get_paths()[0].vertices
        for at in (0, 50, 99):
            there = edge[np.isclose(edge[:, 0], x[at], rtol=1e-9), 1]
            assert there.min() < y[at] < there.max()
        assert axes.get_xlabel() == "training FLOPs C (6ND)"
    assert "parameters N (nonembedding)" in figure.axes[0].get_ylabel()


def test_tokens_per_parameter_are_the_optimum(points, law):
    axes = plot.ratio(points, law).axes[0]
    x, y = lines(axes, "C0")[0].T
    best = law.optimum(x)
    np.testing.assert_allclose(y, best["tokens"] / best["params"], rtol=1e-9)
    assert "N: nonembedding" in axes.get_ylabel()


def test_losses_and_residuals(points, law):
    axes = plot.losses(points, law).axes
    x, y = lines(axes[0], "black")[0].T
    np.testing.assert_allclose(y, law.optimum(x)["loss"], rtol=1e-9)
    rest = axes[3].collections[0].get_offsets()
    np.testing.assert_allclose(rest[:, 1], 100 * (points.loss / law.predict(points.params, points.tokens) - 1))
    assert [a.get_xlabel().split(" (")[0] for a in axes[3:6]] == ["training FLOPs C", "parameters N", "tokens D"]


def test_contours_are_levels_of_the_law(points, law):
    axes = plot.isoloss(points, law).axes[0]
    contours = axes.collections[0]
    for level, path in zip(contours.levels, contours.get_paths(), strict=True):
        if len(path.vertices):
            np.testing.assert_allclose(law.predict(*path.vertices.T), level, rtol=2e-3)


def test_recounts_are_every_way_that_the_table_has(points):
    counts = {
        "params_total": 2 * points.params,
        "params_nonembedding": points.params,
        "flops_exact": 1.5 * points.flops,
    }
    several = plot.recounts(dataclasses.replace(points, columns=counts))
    assert set(several) == {f"N {n}, C {c}" for n in ("total", "nonembedding") for c in ("exact", "6ND")}
    there = several["N total, C 6ND"]
    np.testing.assert_allclose(there.flops, 6 * there.params * points.tokens)
    np.testing.assert_allclose(several["N nonembedding, C exact"].flops, 1.5 * points.flops)
    assert list(plot.recounts(points)) == ["N nonembedding, C 6ND"]


def test_forest_shows_each_method(points, law, monkeypatch):
    def refuse(*_):
        raise UserError("no")

    methods = {"isoFLOP": plot.METHODS["isoFLOP, parabola"], "none": refuse}
    monkeypatch.setattr(plot, "METHODS", methods)
    axes = plot.exponents(points, law, bootstraps=20).axes[0]
    expected = fit_frontier(points, "isoflop", valley="quadratic", bootstraps=20).parameters["a"]
    dots = [line.get_xydata()[0, 0] for line in axes.lines if line.get_marker() == "o" and len(line.get_xydata())]
    assert dots == [expected.value]
    assert "not determined" in [text.get_text() for text in axes.texts]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["N nonembedding, C 6ND"]


def test_exponents_are_those_of_the_optimum_in_the_points_own_flops(law):
    """C = 6 N^1.2 D: by hand a = beta / (alpha + 1.2 beta), not beta / (alpha + beta)."""
    points = synthetic(0.001)
    costly = dataclasses.replace(points, flops=6 * points.params**1.2 * points.tokens)
    p, own = law.values(), plot.METHODS["law, Huber"](costly, 0.9, 0).exponents()
    a = p["beta"] / (p["alpha"] + 1.2 * p["beta"])
    assert own["a"].value == pytest.approx(a, rel=1e-4) and own["a"].low < a < own["a"].high
    assert own["b"].value == pytest.approx(1 - 1.2 * a, rel=1e-4)
    assert law.exponents()["a"].value == pytest.approx(law.derived["a"].value, rel=1e-6)


def test_learning_rates_by_width_with_the_lowest_marked():
    rate, width = np.tile([1e-3, 2e-3, 4e-3], 2), np.repeat([64.0, 128.0], 3)
    loss = np.array([3.2, 3.0, 3.1, 2.9, 2.95, 3.3])
    swept = make_points(12 * width**2, np.full(6, 1e6), loss, columns={"learning_rate": rate, "width": width})
    axes = plot.learning_rates(swept, None).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["64: 0.0022", "128: at most 0.001"]
    assert [line.tolist() for line in lines(axes) if len(line) == 1] == [[[2e-3, 3.0]], [[1e-3, 2.9]]]


def test_the_best_rate_is_the_bottom_of_a_parabola():
    rate = np.geomspace(1e-3, 1e-1, 7)
    assert plot.best_rate(rate, 3 + np.log(rate / 0.013) ** 2) == pytest.approx(0.013)
    assert plot.best_rate(rate, -rate) is None


def test_each_base_shape_has_its_panel():
    rate, base = np.tile([1e-3, 2e-3, 4e-3], 2), np.repeat([np.nan, 32], 3)
    loss = np.array([3.2, 3.0, 3.1, 2.9, 2.95, 3.3])
    columns = {"learning_rate": rate, "width": np.full(6, 64.0), "base_width": base}
    figure = plot.learning_rates(make_points(np.full(6, 1e5), np.full(6, 1e6), loss, columns=columns), None)
    assert [axes.get_title() for axes in figure.axes] == ["standard", "base width 32"]
    assert [lines(axes)[0][:, 1].tolist() for axes in figure.axes] == [loss[:3].tolist(), loss[3:].tolist()]


@pytest.mark.parametrize("low, high", [(9e-4, 1.2e-2), (2e-3, 7e-3), (8.0, 300.0), (1e6, 4e6), (1e17, 1e22)])
def test_a_logarithmic_axis_has_some_labels_and_no_more(low, high):
    _, axes = plt.subplots()
    axes.plot([low, high], [low, high])
    axes.set(xlim=(low, high), ylim=(low, high))
    plot.finish(axes, "x", "y", "xy")
    axes.set(xlim=(low, high))
    axes.figure.canvas.draw()
    shown = [text for text in axes.get_xticklabels(which="both") if text.get_text()]
    boxes = [text.get_window_extent() for text in shown if low <= text.get_position()[0] <= high]
    assert 3 <= len(boxes) <= 9
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


def test_what_cannot_be_drawn_says_why(points, tmp_path):
    random = np.random.default_rng(0)
    scattered = make_points(*np.exp(random.uniform(14, 20, (2, 12))), np.linspace(3, 4, 12))
    names = ("isoflop", "frontier", "learning_rates")
    written, skipped = plot.draw(scattered, None, tmp_path / "figures", only=names)
    assert written == [] and not (tmp_path / "figures").exists() and not plt.get_fignums()
    assert "no equal budgets" in skipped["isoflop"]
    assert skipped["frontier"] == "there is no fitted law" and skipped["learning_rates"] == "no learning_rate column"
    with pytest.raises(UserError, match="isoflop does not predict losses"):
        plot.losses(points, fit_frontier(points, bootstraps=0))


def test_the_command_writes_both_formats_and_says_what_it_left_out(points, workplace, capsys):
    table = str(points.write(workplace / "points.csv"))
    arguments = ["plot", table, "--law", "isoflop", "--bootstraps", "20", "--out", "f", "--json"]
    assert main([*arguments, "--figures", "isoflop", "ratio", "learning_rates"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["figures"] == ["f/isoflop.png", "f/isoflop.svg", "f/ratio.png", "f/ratio.svg"]
    assert answer["skipped"] == {"learning_rates": "no learning_rate column"}
    assert (workplace / "f/isoflop.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--law", "chinchila"), "did you mean chinchilla"),
        (("--law", "batch"), "predicts batch_tokens"),
        (("--figures", "isoflops"), "did you mean isoflop"),
        (("--loss-column", "lost"), "no column 'lost'"),
        (("--where", "flops > 1e99"), "no row of"),
        (("--where", "flops < 2e17 and params < 1e7", "--figures", "frontier"), "chinchilla was not fitted"),
    ],
)
def test_mistakes_are_one_line(points, workplace, capsys, arguments, message):
    table = str(points.write(workplace / "points.csv"))
    assert main(["plot", table, "--law", "chinchilla", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""
