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
        (SWEEP, {"drop_largest_losses": -1}, "of 4"),
        (SWEEP, {"seed_noise": float("nan")}, "--seed-noise nan"),
        (SWEEP, {"sd_column": "name"}, "column 'name', row 1: 'a' is not a number"),
        (SWEEP.replace("seed", "loss"), {}, "two columns are named 'loss'"),
        (SWEEP.replace("seed", " loss "), {}, "two columns are named 'loss'"),
        (SWEEP.replace("2.9,", '"2.9,'), {}, "row that begins at line 3 cannot be read: a quote that is not closed"),
        (SWEEP.replace("t2", "x" * 200_000), {}, "row that begins at line 4 cannot be read: field larger than"),
        (SWEEP.replace("t2", "t\0"), {}, "line 4 has a NUL byte"),
        (SWEEP.replace("2.9,", "inf,"), {}, "row 2: loss is inf"),
        (SWEEP.replace("2e6", "1e400"), {}, "row 2: tokens is inf"),
        (SWEEP.replace("2e6", '"2,000,000"'), {}, "'2,000,000' is not a number; write 2000000"),
        (SWEEP.replace("2e6", "2\u2028e6"), {}, r"'2\\u2028e6' is not a number"),
        ("params,tokens,loss\n", {}, "at least one row"),
        ("\ufeff", {}, "at least one row"),
    ],
)
def test_bad_tables_are_refused_in_words(table, text, options, message):
    with pytest.raises(UserError, match=message) as refused:
        read_points(table(text), **options)
    assert len(str(refused.value).splitlines()) == 1 and len(str(refused.value)) < 600


def test_a_table_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "latin.csv").write_bytes(SWEEP.replace("t3", "é").encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_points(tmp_path / "latin.csv")
    with pytest.raises(UserError, match="no file"):
        read_points(tmp_path)


OTHERS = {
    "byte-order mark": "\ufeff" + SWEEP,
    "spaces": SWEEP.replace(",", " ,\t "),
    "CRLF": SWEEP.replace("\n", "\r\n"),
    "empty rows": SWEEP.replace("\n", "\n\n,,,,,,,,\n"),
    "quotes": '"' + SWEEP.strip().replace(",", '", "').replace("\n", '"\n"') + '"',
    "columns without a name": "".join(f"{i or ''},{line},\n" for i, line in enumerate(SWEEP.splitlines())),
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_tables_as_other_programs_write_them(table, text):
    points = read_points(table())
    again = read_points(table(text))
    assert again.sha256() == points.sha256() and again.run.tolist() == points.run.tolist()
    assert again.columns.keys() == points.columns.keys()


def test_copies_of_a_row_count_once_and_replicates_do_not(table):
    rows = SWEEP.splitlines()
    points = read_points(table("\n".join([*rows, *rows[1:], rows[1]])))
    assert points.sha256() == read_points(table()).sha256() and points.copies == 5
    assert points.doubts() == ["5 rows repeat another in every column; each is counted once"]
    renamed = read_points(table(SWEEP + rows[1].replace("a,", "e,", 1)))
    assert len(renamed) == 5 and "no seed tells them apart" in renamed.doubts()[0]
    seeds = read_points(table(SWEEP + rows[1].replace(",0,t1", ",7,t1").replace("a,", "e,", 1)))
    assert len(seeds) == 5 and seeds.doubts() == []


def test_seed_noise_is_of_runs_that_differ_in_nothing_else():
    """Two rates and two FLOPs at the same N and D, two seeds each: the rates' differences are no noise."""
    n = np.full(8, 1e6)
    rate = np.repeat([0.1, 0.2], 4)
    flops = np.tile([1e14, 1e14, 2e14, 2e14], 2)
    loss = 3 + 10 * rate + flops / 1e14 + np.tile([0.0, 0.01], 4)
    more = {
        "rate": rate,
        "seed": np.tile([1.0, 2.0], 4),
        "seconds": np.repeat([5.0, 6.0, 7.0, 7.5], 2),
        "name": np.arange(8),
    }
    found = make_points(n, 10 * n, loss, flops, columns=more).replicate_sd()
    pairs = np.log(loss).reshape(4, 2)
    assert found == pytest.approx(np.sqrt(np.mean((pairs[:, 1] - pairs[:, 0]) ** 2 / 2)))
    assert make_points(n[:4], 10 * n[:4], loss[:4], flops[:4] * [1, 2, 3, 4]).replicate_sd() is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([1e6, 2e6], [1e7, 2e7], [3.0]), "params has 2 values, loss 1"),
        ((1e6, 1e7, 3.0), "one row of numbers"),
        ((["a"], [1e7], [3.0]), "numbers are needed"),
        (([1e6], [1e7], [-3.0]), "row 1: loss is -3"),
    ],
)
def test_arrays_are_checked_like_tables(arrays, message):
    with pytest.raises(UserError, match=message):
        make_points(*arrays)


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
