"""Tables of trained models: columns found and named, conventions switched, bad input told in words."""

import numpy as np
import pytest
from synthetic import synthetic

from lm.errors import UserError
from lm.scaling.points import make_points, read_points

SWEEP = """name,params_nonembedding,params_total,tokens,flops_6nd,flops_exact,loss,seed,run
a,1000,2000,1e6,1.2e10,2e10,3.0,0,t1
b,1000,2000,2e6,2.4e10,4e10,2.9,0,t1
c,4000,6000,1e6,3.6e10,5e10,2.8,0,t2
d,4000,6000,1e6,3.6e10,5e10,2.82,1,t3
"""


@pytest.fixture
def table(tmp_path):
    def write(text: str = SWEEP):
        path = tmp_path / "points.csv"
        path.write_text(text)
        return path

    return write


def test_a_sweep_is_read_without_flags(table):
    points = read_points(table())
    assert points.params.tolist() == [2000, 2000, 6000, 6000]
    assert points.flops.tolist() == [2e10, 4e10, 5e10, 5e10]
    assert points.run.tolist() == ["t1", "t1", "t2", "t3"]
    assert points.columns["seed"].tolist() == [0, 0, 0, 1]
    assert points.conventions["params"].startswith("total") and points.conventions["flops"].startswith("exact")
    assert points.replicate_sd() == pytest.approx(np.log(2.82 / 2.8) / np.sqrt(2))


def test_conventions_switch(table):
    points = read_points(table(), conventions=("nonembedding", "6nd"))
    assert points.params.tolist() == [1000, 1000, 4000, 4000]
    assert points.flops.tolist() == (6 * points.params * points.tokens).tolist()
    assert points.conventions["params"].startswith("nonembedding") and points.conventions["flops"] == "6ND"
    with pytest.raises(UserError, match="did you mean nonembedding"):
        read_points(table(), conventions=("non-embedding",))


def test_named_columns_and_tokens_from_flops(table):
    path = table("size,C,loss value\n1e6,6e14,3.5\n2e6,2.4e15,3.2\n")
    points = read_points(path, params_column="size", flops_column="C", loss_column="loss value")
    assert points.tokens.tolist() == [1e8, 2e8]
    assert points.conventions["tokens"] == "from FLOPs, D = C/(6N)"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (SWEEP, {"params_column": "params_totel"}, "did you mean params_total"),
        (SWEEP.replace(",loss,", ",lozz,"), {}, "no column for loss"),
        ("params,loss\n1,2\n", {}, "neither tokens nor FLOPs"),
        (SWEEP.replace("2.9,", "-2.9,"), {}, "row 2: loss is -2.9"),
        (SWEEP.replace("2.9,", "nan,"), {}, "row 2: loss is nan"),
        (SWEEP.replace("2.9,", ","), {}, "row 2: loss is nan"),
        (SWEEP.replace("2.9,", "good,"), {}, "row 2: 'good' is not a number"),
        (SWEEP.replace("6000", "0"), {}, "row 3: params is 0"),
        ("params,tokens,loss\n1,2\n", {}, "row 1 has 2 cells, the header 3"),
        ("", {}, "at least one row"),
        (SWEEP, {"drop_largest_losses": 4}, "of 4"),
    ],
)
def test_bad_tables_are_refused_in_words(table, text, options, message):
    with pytest.raises(UserError, match=message):
        read_points(table(text), **options)


def test_the_largest_losses_are_set_aside_and_remembered(table):
    points = read_points(table(), drop_largest_losses=1)
    assert points.loss.max() == 2.9
    assert points.dropped.loss.tolist() == [3.0]
    assert sorted(points.with_dropped().loss) == sorted(read_points(table()).loss)


def test_points_survive_a_file(tmp_path):
    points = synthetic(0.01)
    again = read_points(points.write(tmp_path / "p.csv"))
    assert again.sha256() == points.sha256()
    assert make_points(points.params, points.tokens, points.loss * (1 + 1e-15)).sha256() != points.sha256()
