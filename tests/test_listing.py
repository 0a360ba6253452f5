"""The runs listed, grouped by what compares, sorted, filtered and compared; a damaged one hides no other."""

import fcntl
import json
import os
from pathlib import Path

import pytest
import tiny

from lm import settings
from lm.errors import UserError
from lm.listing import listed, ordered, where
from lm.plot import incomparable, loss_curves
from lm.run import Run
from lm.table import runs_table


def make(folder: Path, *, corpus="a" * 64, tokens="t" * 64, losses=(3.0, 2.0, 2.5), made=60, diverged=False, **changes):
    """A run's directory as training leaves it, without parameters."""
    e = tiny.experiment("text.txt", model__vocab=20, name=folder.name, **changes)
    hashes = {"corpus": corpus, "tokenizer": tokens, "validation": (corpus[:4] + tokens[:4]) * 8}
    record = {
        "experiment": settings.to_dict(e), "fingerprint": settings.fingerprint(e, hashes), "hashes": hashes,
        "documents": 1, "train_tokens": 9999, "epoch_tokens": 9984, "params_total": 1234, "params_nonembedding": 1000,
        "flops_per_token": 100.0,
        "steps": dict(total=60, warmup=5, decay=24, log_every=7, eval_every=20, checkpoint_every=15),
    }  # fmt: skip
    (folder / "checkpoints").mkdir(parents=True)
    if made:
        (folder / "checkpoints" / str(made)).mkdir()
    (folder / "experiment.json").write_text(json.dumps(record))
    records = [
        dict(step=s, tokens=64 * s, loss=x + 0.5, val_loss=x, val_bits_per_byte=x / 2, seconds=s / 10)
        for s, x in zip((20, 40, made or 60), losses, strict=True)
    ]
    records += [dict(step=50, tokens=3200, diverged=1, seconds=5.0)] if diverged else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def runs(workplace) -> Path:
    """Three runs on one text, one of them by other tokens, and one on another text."""
    folder = Path("runs")
    make(folder / "a")
    make(folder / "b", train__seed=7, optimizer__name="muon", losses=(3.0, 1.5, 1.75), made=45)
    make(folder / "bytes", tokens="u" * 64, data__tokenizer="bytes")
    make(folder / "group" / "other", corpus="c" * 64, train__steps="5k tokens", losses=(9, 9, 9))
    return folder


# --- the table -------------------------------------------------------------------------------------------------------
def test_rows_say_what_runs_are_and_how_far_they_came(runs, lm):
    status, out, _ = lm("runs", "--json")
    rows = {row["run"]: row for row in json.loads(out)["runs"]}
    assert status == 0 and list(rows) == ["runs/a", "runs/b", "runs/bytes", "runs/group/other"]
    b = rows["runs/b"]
    assert (b["state"], b["step"], b["steps"], b["seed"], b["optimizer"]) == ("stopped", 45, 60, 7, "muon")
    assert (b["learning_rate"], b["matrix_learning_rate"], rows["runs/a"]["matrix_learning_rate"]) == (3e-3, 0.02, None)
    assert (b["val_loss"], b["best_val_loss"], b["best_loss"], b["val_bits_per_byte"]) == (1.75, 1.5, 2.0, 0.875)
    assert b["tokens"] == 2880 and b["flops"] == 288000 and b["date"][:2] == "20"
    assert rows["runs/a"]["state"] == "finished"


def test_states(runs):
    """Running while its lock is held, and again what it was when that is let go; diverged as its records say."""
    make(runs / "wild", made=0, diverged=True)

    def states():
        return [one.row["state"] for one in listed(runs)]

    assert states() == ["finished", "stopped", "finished", "finished", "diverged"]
    with (runs / "b" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert states()[1] == "running"
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert states()[1] == "stopped"
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # looking did not keep it


def test_runs_that_compare_stand_together(runs):
    """By validation text and tokens; other tokens of one text stand next to each other, and the heading says so."""
    blocks = runs_table(listed(runs), 150).split("\n\n")
    assert [[line.split()[0] for line in block.splitlines()[2:]] for block in blocks] == [
        ["runs/a", "runs/b"], ["runs/bytes"], ["runs/group/other"],
    ]  # fmt: skip
    headings = [block.splitlines()[0] for block in blocks]
    assert "text.txt (validation text aaaaaaaa/0.1), tokenizer chars (tttttttt)" in headings[0]
    assert headings[1].endswith("tokenizer bytes (uuuuuuuu): the same text, bits/byte compare")
    assert headings[2].endswith("another text, losses do not compare")


@pytest.mark.parametrize("width", [40, 60, 80, 110, 150])
def test_the_table_fits_the_terminal(runs, width):
    """No line is longer; the run, its state and best loss are always there; what has no room is named."""
    make(runs / ("long-name-" * 8))
    text = runs_table(listed(runs), width)
    table = text[: text.find("not shown")] if "not shown" in text else text
    assert all(len(line) <= width for line in table.splitlines() if "validation text" not in line)
    shown = table.splitlines()[1].split()
    assert shown[:2] == ["run", "state"] and "best" in shown
    if width >= 80:
        assert {"optimizer", "rate", "seed", "date"} <= set(shown)
        assert "0.003/0.02" in table and "muon" in table
    for title in {"step", "loss", "minutes", "seed", "date"} - set(shown):
        assert title in text.splitlines()[-1]


def test_sorting_and_conditions(runs, lm):

    def names(*arguments):
        return [row["run"][5:] for row in json.loads(lm("runs", "--json", *arguments)[1])["runs"]]

    assert names("--sort", "best") == ["b", "a", "bytes", "group/other"]
    assert names("--sort", "train.seed", "--reverse") == ["b", "a", "bytes", "group/other"]
    assert names("--where", "train.seed=0") == ["a", "bytes", "group/other"]
    assert names("--where", "train.seed!=0") == ["b"]
    assert names("--where", "train.seed>=0", "best<2") == ["b"]
    assert names("--where", "optimizer.learning-rate <= 3e-3", "state=finished") == ["a", "bytes", "group/other"]
    assert names("--where", "model.kv_heads=None", "data.tokenizer=chars") == ["a", "b", "group/other"]
    assert names("--where", "train.steps>59") == ["a", "b", "bytes"], "durations compare in one unit"
    assert names("--where", "train.steps=5000 tokens") == ["group/other"]
    assert names("--where", "date>2000", "run<runs/b") == ["a"]
    assert names("--where", "matrix_learning_rate>0") == ["b"]
    assert ordered(listed(runs), "matrix_learning_rate")[0].row["run"] == "runs/b", "what has none comes last"
    assert "none of the 4 runs in runs is such" in lm("runs", "--where", "train.seed=99")[1]


@pytest.mark.parametrize(
    "condition, said",
    [
        ("train.sed=0", "--where train.sed: no such column or setting; did you mean train.seed?"),
        ("train.seed", "--where train.seed: a column or setting, one of = != < <= > >=, and a value"),
        ("train.seed=x", "train.seed 'x': expected int"),
        ("model.tied=3", "model.tied 3: expected bool"),
        ("optimizer.name=adam", "one of adamw, muon, lion, sgd; did you mean adamw?"),
        ("best<low", "--where best<low: best is 2.0 in runs/a, which does not compare with that"),
    ],
)
def test_conditions_that_mean_nothing_are_refused(runs, condition, said):
    with pytest.raises(UserError) as refusal:
        where(listed(runs), [condition])
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


# --- damage ----------------------------------------------------------------------------------------------------------
DAMAGE = {
    "cut": lambda run: (run / "experiment.json").write_text("{"),
    "no object": lambda run: (run / "experiment.json").write_text("[]"),
    "not UTF-8": lambda run: (run / "experiment.json").write_bytes(b"\xff\xfe"),
    "a folder": lambda run: [(run / "experiment.json").unlink(), (run / "experiment.json").mkdir()],
    "a loop": lambda run: [(run / "experiment.json").unlink(), (run / "experiment.json").symlink_to("experiment.json")],
    "a pipe": lambda run: [(run / "experiment.json").unlink(), os.mkfifo(run / "experiment.json")],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_is_listed_with_the_reason_beside_the_others(runs, lm, kind):
    DAMAGE[kind](runs / "b")
    rows = {row["run"]: row for row in json.loads(lm("runs", "--json")[1])["runs"]}
    assert len(rows) == 4 and rows["runs/b"]["state"] == "damaged" and rows["runs/b"]["reason"]
    status, out, err = lm("runs")
    assert (status, err) == (0, "") and "damaged  runs/b: " in out and "runs/a" in out
    assert lm("runs", "a", "b")[0] == 2
    assert len(json.loads(lm("runs", "--json", "--where", "state=damaged")[1])["runs"]) == 1


def test_a_folder_that_cannot_be_read_is_listed(runs, monkeypatch):
    """As its owner would see it; the tests may run as root, whom nothing is forbidden."""
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("bytes"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    rows = {one.row["run"]: one.row for one in listed(runs)}
    assert len(rows) == 4 and rows["runs/bytes"]["reason"] == "Permission denied"


def test_links_are_followed_once_and_nowhere_is_said(runs, tmp_path, lm):
    """To a run elsewhere; not in circles, nor out of the folder to what it lies in."""
    make(tmp_path / "elsewhere" / "far")
    for name, target in {
        "far": tmp_path / "elsewhere" / "far",
        "up": "..",
        "me": "me",
        "again": "a",
        "gone": "/no",
    }.items():
        (runs / name).symlink_to(target)
    rows = {one.row["run"]: one.row["state"] for one in listed(runs)}
    assert set(rows) == {f"runs/{name}" for name in ("a", "b", "bytes", "far", "gone", "group/other", "me")}
    assert rows["runs/gone"] == rows["runs/me"] == "damaged"
    assert lm("plot", "me")[0] == lm("runs", "me")[0] == 2


def test_names_that_a_terminal_would_obey_are_escaped(runs, lm, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    name = "red\x1b[31m\a[bold]"
    os.rename(runs / "a", runs / name)
    status, out, _ = lm("runs")
    assert status == 0 and "\x1b" not in out and "\a" not in out
    assert r"runs/red\x1b[31m\x07[bold]" in out
    status, out, err = lm("runs", f"runs/{name}", "b")
    assert status == 0 and "\x1b" not in out and not err


def test_nothing_there_is_one_line(workplace, lm):
    (workplace / "empty").mkdir()
    assert lm("runs", "--folder", "empty") == (0, "no runs in empty yet; start with: lm train quickstart\n", "")
    assert json.loads(lm("runs", "--folder", "empty", "--json")[1]) == {"runs": []}
    assert lm("runs", "--folder", "nowhere")[0] == 2


# --- compared --------------------------------------------------------------------------------------------------------
def test_two_runs_beside_each_other(runs, lm, monkeypatch):
    """Settings that differ and no others, final and best losses, cost, and curves; as text and as JSON."""
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = lm("runs", "a", "b", "--figure", "both.svg")
    assert (status, err) == (0, "") and all(len(line) <= 80 for line in out.splitlines())
    lines = {line[:20].strip(): line.split() for line in out.splitlines()}
    assert lines["train.seed"][-2:] == ["0", "7"] and lines["optimizer.name"][-2:] == ["adamw", "muon"]
    assert "model.layers" not in out
    assert lines["validation"][-2:] == ["2.5000", "1.7500"] and lines["validation, best"][-2:] == ["2.0000", "1.5000"]
    assert "training loss 2.0000 to" in out and Path("both.svg").stat().st_size > 1000
    made = json.loads(lm("runs", "a", "b", "--json")[1])
    assert made["differences"] == {"optimizer.name": ["adamw", "muon"], "train.seed": [0, 7]}
    assert made["comparable"] == "nats" and made["curves"]["val_loss"]["runs/b"] == [[20, 3.0], [40, 1.5], [45, 1.75]]
    assert json.loads(lm("runs", "a", "bytes", "--json")[1])["comparable"] == "bits_per_byte"
    assert json.loads(lm("runs", "a", "group/other", "--json")[1])["comparable"] is None
    assert "bits/byte compare, nats per token do not" in lm("runs", "a", "b", "bytes")[1]
    monkeypatch.setenv("COLUMNS", "40")
    narrow = lm("runs", "a", "b", "group/other")[1].splitlines()
    assert all(len(line) <= 40 for line in narrow if "compare" not in line and " over " not in line)


def test_figures_keep_apart_what_does_not_compare(runs, lm, monkeypatch):
    """A panel for each set of runs that compare, named; one line on standard error says so."""
    three = [Run(name) for name in ("a", "b", "bytes")]
    assert [[run.path.name for run in group] for group in incomparable(three, False)] == [["a", "b"], ["bytes"]]
    assert len(incomparable(three, True)) == 1 and len(incomparable([*three, Run("group/other")], True)) == 2
    shown = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: shown.append(figure.axes))
    loss_curves(three, Path("a.png"))
    [panels] = shown
    assert [len(axes.get_legend().get_texts()) for axes in panels] == [2, 1]
    assert ["chars (tttttttt)" in panels[0].get_title(), "bytes (uuuuuuuu)" in panels[1].get_title()] == [True, True]
    status, _, err = lm("plot", "a", "bytes")
    assert status == 0 and err.startswith("lm: these runs differ in validation text or tokenizer: 2 panels")
    assert lm("plot", "a", "b")[2] == lm("plot", "a", "bytes", "--bits-per-byte")[2] == ""
