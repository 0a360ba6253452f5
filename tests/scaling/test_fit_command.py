"""`lm fit` as people use it."""

import json

import pytest
from synthetic import HOFFMANN, chinchilla_loss, synthetic

from lm.scaling import make_points

pytestmark = pytest.mark.usefixtures("polished", "workplace")
KEYS = {
    "law", "parameters", "objective", "points", "dropped", "conventions", "identifiable", "warnings", "derived",
}  # fmt: skip


@pytest.fixture
def table(workplace):
    return synthetic(0.002).write(workplace / "points.csv")


def test_json_has_the_promised_keys(lm, table):
    status, out, err = lm("fit", table, "--bootstraps", 50, "--json")
    assert status == 0, err
    answer = json.loads(out)
    assert answer.keys() >= KEYS and answer["points"] == 45 and answer["law"] == "chinchilla"
    for name, value in HOFFMANN.items():
        estimate = answer["parameters"][name]
        assert set(estimate) == {"value", "se", "low", "high"}
        assert abs(estimate["value"] - value) < 4 * estimate["se"]


def test_words_name_the_law_its_intervals_and_conventions(lm, table):
    status, out, _ = lm("fit", table, "--bootstraps", 0, "--drop-largest-losses", 2)
    assert status == 0
    for text in ("L = E + A / N^alpha", "Hoffmann", "90% interval", "alpha", "params:", "with the 2 dropped points"):
        assert text in out


def test_predict_first_then_score(lm, table, workplace):
    status, out, err = lm("fit", table, "--bootstraps", 50, "--write-prediction", "p.json", "--at", "1e9,2e10")
    assert status == 0, err
    make_points([1e9], [2e10], [chinchilla_loss(1e9, 2e10)]).write(workplace / "run.csv")
    status, out, err = lm("fit", "run.csv", "--score", "p.json", "--json")
    assert status == 0, err
    [row] = json.loads(out)["scores"]
    assert row["inside"] and abs(row["error"]) < 0.01


def test_at_predicts_and_warns_far_out(lm, table):
    status, out, err = lm("fit", table, "--bootstraps", 0, "--at", "1e9,2e10", "1e11,2e12")
    assert status == 0, err
    assert out.count("not yet") == 2 and "1.2e+03 times the largest fitted compute" in out
    status, out, err = lm("fit", table, "--bootstraps", 0, "--at", "1e9,2e10", "--json")
    [row] = json.loads(out)["predictions"]
    assert row["low"] < row["predicted"] < row["high"] and "times the largest" not in out


def test_isoflop_and_hold_out(lm, table):
    status, out, err = lm("fit", table, "--law", "isoflop", "--bootstraps", 50)
    assert status == 0, err
    assert "a by other valleys" in out
    status, out, err = lm("fit", table, "--hold-out", "flops > 5e19", "--bootstraps", 50)
    assert status == 0, err
    assert "inside their interval" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--law", "chinchila"), "did you mean chinchilla"),
        (("--loss-column", "lost"), "no column 'lost'"),
        (("--hold-out", "flops > 1e99"), "leaves out 0 of 45"),
        (("--law", "isoflop", "--hold-out", "flops > 1e19"), "predicts no losses"),
        (("--fix", "E"), "NAME=NUMBER"),
        (("--write-prediction", "p.json"), "of which models"),
        (("--write-prediction", "p.json", "--at", "1e9"), "write N,D"),
        (("--score", "none.json"), "no file none.json"),
        (("--fix", "E=1", "E=2"), "E is fixed twice"),
        (("--fix", "E=inf"), "--fix E=inf: must be a finite number"),
        (("--law", "isoflop", "--fix", "a=0.5"), "holds no parameter"),
        (("--at", "inf,1"), "both must be positive and finite"),
        (("--bootstraps", "1"), "--bootstraps 1: 0 for asymptotic errors"),
        (("--bootstraps", "-5"), "--bootstraps -5"),
        (("--seed", "-1"), "--seed -1"),
        (("--seed-noise", "0"), "--seed-noise 0"),
        (("--where", "flops < 2e17 and params < 1e7"), "points cannot determine"),
    ],
)
def test_mistakes_are_one_line(lm, table, workplace, arguments, message):
    status, out, err = lm("fit", table, "--bootstraps", 0, *arguments)
    assert status == 2 and message in err and err.count("\n") == 1 and out == ""
    assert not (workplace / "p.json").exists()


def test_a_prediction_of_held_out_rows_has_the_columns_its_law_reads(lm, table, workplace):
    arguments = ("--law", "power", "--hold-out", "flops > 5e20", "--write-prediction", "p.json", "--bootstraps", 0)
    status, _, err = lm("fit", table, *arguments)
    assert status == 0, err
    assert "flops" in json.loads((workplace / "p.json").read_text())["predictions"][0]


def test_a_table_with_copies_is_warned_of_by_fit_and_plot(lm, table, workplace):
    rows = table.read_text().splitlines()
    (workplace / "twice.csv").write_text("\n".join(rows + rows[1:]))
    said = "45 rows repeat another in every column; each is counted once"
    status, out, err = lm("fit", "twice.csv", "--bootstraps", 0)
    assert status == 0 and said in out, err
    status, out, err = lm("plot", "twice.csv", "--figures", "isoflop", "--bootstraps", 0)
    assert status == 0 and said in out, err
    status, out, err = lm("plot", "twice.csv", "--bootstraps", 1)
    assert status == 2 and "--bootstraps 1" in err
