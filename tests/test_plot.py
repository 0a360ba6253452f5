"""Loss curves: each format, the same file every time, and refusals that leave nothing behind."""

import json
import shutil

import matplotlib.pyplot as plt
import pytest

from lm.errors import UserError
from lm.plot import loss_curves
from lm.run import Run

BEGINS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.fixture
def copy(tiny_run, tmp_path) -> Run:
    """A copy of the tiny run without its checkpoints, whose log may be changed."""
    shutil.copytree(tiny_run.path, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    return Run(tmp_path / "copy")


@pytest.mark.parametrize("suffix", BEGINS)
def test_each_format_is_written_and_is_the_same_file_again(tiny_run, tmp_path, suffix):
    one, two = (loss_curves([tiny_run], tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
    assert one.startswith(BEGINS[suffix])
    assert one == two
    assert not plt.get_fignums(), "figures are closed"


def test_the_figure_shows_the_logged_losses(tiny_run, tmp_path, monkeypatch):
    """Training and validation of each run, with axes that say what they are."""
    shown = {}

    def remember(figure, *_, **__):
        [axes] = figure.axes
        shown["lines"] = [line.get_xydata().tolist() for line in axes.lines]
        shown["legend"] = [text.get_text() for text in axes.get_legend().get_texts()]
        shown["axes"] = axes.get_xlabel(), axes.get_ylabel()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", remember)
    records = tiny_run.metrics()
    loss_curves([tiny_run], tmp_path / "a.png", x="tokens")
    assert shown["axes"] == ("tokens trained on", "loss, nats per token")
    assert shown["legend"] == ["tiny"]
    assert shown["lines"] == [
        [[r["tokens"], r["loss"]] for r in records if "loss" in r],
        [[r["tokens"], r["val_loss"]] for r in records if "val_loss" in r],
    ]
    shown.clear()
    loss_curves([tiny_run], tmp_path / "a.png", bits_per_byte=True)
    assert shown["axes"] == ("optimizer step", "validation, bits per byte")
    assert shown["lines"] == [[[r["step"], r["val_bits_per_byte"]] for r in records if "val_loss" in r]]


@pytest.mark.parametrize("name", ["a.gif", "a", "a.PNG.txt"])
def test_other_formats_are_refused(tiny_run, tmp_path, name):
    with pytest.raises(UserError, match=r"write a \.png, \.svg, \.pdf"):
        loss_curves([tiny_run], tmp_path / "figures" / name)
    assert not (tmp_path / "figures").exists()


def test_a_run_without_losses_is_refused(copy, tmp_path):
    (copy.path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="no losses logged yet"):
        loss_curves([copy], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists() and not plt.get_fignums()


@pytest.mark.filterwarnings("error")
def test_a_run_that_has_only_begun_is_drawn(copy, tmp_path):
    """One point, the evaluation before the first step, without a warning."""
    (copy.path / "metrics.jsonl").write_text(json.dumps(copy.metrics()[0]) + "\n")
    assert loss_curves([copy], tmp_path / "a.png").stat().st_size > 1000


def test_a_place_that_cannot_be_written_is_told(tiny_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*a\.png: "):
        loss_curves([tiny_run], tmp_path / "file" / "a.png")
