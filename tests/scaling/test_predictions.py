"""Conditions are read, not run; predictions are sealed before and scored after."""

import hashlib
import json

import numpy as np
import pytest
from synthetic import chinchilla_loss, synthetic

from lm.errors import UserError
from lm.scaling import fit, make_points, score_prediction, write_prediction
from lm.scaling.predictions import matching, predict_at
from lm.scaling.report import describe_scores

pytestmark = pytest.mark.usefixtures("polished")


def test_conditions_select_rows():
    points = synthetic()
    assert matching(points, "flops > 1e19").tolist() == (points.flops > 1e19).tolist()
    both = matching(points, "params >= 1e8 and tokens<1e10")
    assert both.tolist() == ((points.params >= 1e8) & (points.tokens < 1e10)).tolist()


@pytest.mark.parametrize(
    "expression",
    ["flops", "flops > ", "flops > big", "__import__('os').getcwd() > 1", "flops > 1e18 or loss < 2", "> 3"],
)
def test_anything_but_conditions_is_refused(expression):
    with pytest.raises(UserError):
        matching(synthetic(), expression)


def test_a_misspelt_column_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean tokens"):
        matching(synthetic(), "token > 3")


@pytest.fixture
def sealed(tmp_path):
    law = fit(synthetic(0.002), bootstraps=100)
    path = write_prediction(
        law, tmp_path / "p.json", [{"params": 3e9, "tokens": 6e10}, {"params": 1e9, "tokens": 1e12}]
    )
    return law, path


def test_a_sealed_prediction_is_scored_when_the_run_exists(sealed):
    law, path = sealed
    loss = chinchilla_loss(3e9, 6e10)
    rows = score_prediction(path, make_points([3.001e9], [6.01e10], [loss]))
    assert rows[0]["actual"] == loss and rows[0]["inside"]
    assert rows[0]["error"] == pytest.approx(float(law.predict(3e9, 6e10)) / loss - 1)
    assert "actual" not in rows[1]
    assert json.loads(path.read_text())["points_sha256"] == law.data.sha256()


def test_both_intervals_are_sealed_and_an_older_seal_has_one(sealed, tmp_path):
    _, path = sealed
    body = json.loads(path.read_text())
    [row, _] = body["predictions"]
    assert row["calibrated_low"] <= row["low"] < row["predicted"] < row["high"] <= row["calibrated_high"]
    assert body["hold_outs"]["cuts"] and row["flops"] == pytest.approx(6 * 3e9 * 6e10)
    loss = (row["high"] + row["calibrated_high"]) / 2
    unseen = make_points([3e9], [6e10], [loss])
    [scored, _] = score_prediction(path, unseen)
    assert scored["inside_calibrated"] and not scored["inside"]
    assert "outside the first" in describe_scores([scored]) and "1 of 1 by hold-outs" in describe_scores([scored])
    for row in body["predictions"]:  # as they were written before there were hold-outs
        del row["calibrated_low"], row["calibrated_high"], row["flops"]
    del body["hold_outs"], body["sha256"]
    seal = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    older = tmp_path / "older.json"
    older.write_text(json.dumps(body | {"sha256": seal}))
    [scored, _] = score_prediction(older, unseen)
    assert "inside_calibrated" not in scored and describe_scores([scored]).count("outside") == 1


def test_a_changed_prediction_is_refused_and_none_is_overwritten(sealed):
    law, path = sealed
    with pytest.raises(UserError, match="not written twice"):
        write_prediction(law, path, [{"params": 1e9, "tokens": 1e10}])
    body = json.loads(path.read_text())
    body["predictions"][0]["predicted"] += 1e-6
    path.write_text(json.dumps(body))
    with pytest.raises(UserError, match="SHA-256"):
        score_prediction(path, synthetic())


@pytest.mark.parametrize(
    "content", ["[]", "7", "{}", "[" * 100_000, "\xff"], ids=["list", "number", "empty", "deep", "odd"]
)
def test_a_damaged_prediction_is_refused(sealed, tmp_path, content):
    (tmp_path / "damaged.json").write_bytes(content.encode("latin1"))
    with pytest.raises(UserError, match=r"damaged\.json is not a prediction"):
        score_prediction(tmp_path / "damaged.json", sealed[0].data)


def test_a_prediction_of_nothing_there_is_refused(sealed):
    with pytest.raises(UserError, match="nothing that these points have"):
        score_prediction(sealed[1], synthetic())


def test_a_prediction_far_out_is_warned_of_with_the_factor():
    """Largest fitted: 1e21 FLOPs."""
    law = fit(synthetic(0.002), bootstraps=50)
    rows, said = predict_at(law, [{"params": 1e9, "tokens": 1e12}, {"params": 1e10, "tokens": 1e12}])
    assert [row["predicted"] for row in rows] == [float(law.predict(1e9, 1e12)), float(law.predict(1e10, 1e12))]
    assert len(said) == 1 and "params 1e+10, tokens 1e+12 has 60 times the largest fitted compute (1e+21" in said[0]
    assert predict_at(law, [{"params": 1e9, "tokens": 1e12}])[1] == []
    points = synthetic(0.002)
    assert any("has 1e+03 times" in text for text in fit(points, bootstraps=0, hold_out=points.flops > 2e18).warnings)


def test_intervals_widen_with_distance_and_with_scatter():
    law = fit(synthetic(0.005, seed=1), bootstraps=200)
    widths = [np.ptp(law.predict_interval(n, 20 * n, scatter=False)) for n in (1e9, 1e11, 1e13)]
    assert widths[0] < widths[1] < widths[2]
    assert np.ptp(law.predict_interval(1e9, 2e10)) > 2 * widths[0]
