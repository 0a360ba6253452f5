"""Rows that are kept from run to run, the table and the figure made of them; on work that nobody does."""

import dataclasses
import json
import sys

import pytest

import lm
from lm import config
from lm.bench import Spread, Timing

SCRIPT = "bench_peers"


def row(script, name, peer, ratio):
    work = script.WORKS[name]
    return script.Row(
        name=name, work=work.words, shape=work.shape, peer=peer, ratio=Spread(ratio, 0.9 * ratio, 1.1 * ratio),
        ours=1000.0 * ratio, theirs=1000.0, unit="tokens/s", rounds=7, seconds=2.0, date="2026-11-28",
        hardware="2 cores", command="python experiments/bench_peers.py",
    )  # fmt: skip


def test_a_row_that_is_measured_again_takes_its_place(script, tmp_path, monkeypatch, capsys):
    """The others stay as they were, in the order of WORKS; the printed table is the file's, and so is the figure."""
    figure = tmp_path / "figures" / "peers.svg"

    def run(*names, ratio):
        monkeypatch.setattr(script, "measured", lambda name, rounds, seconds: [row(script, name, "llama.cpp", ratio)])
        monkeypatch.setattr(sys, "argv", ["bench_peers.py", "--rows", *names, "--figure", str(figure)])
        script.main()
        return capsys.readouterr().out, json.loads(figure.with_suffix(".json").read_text()), figure.read_text()

    run("decode-16", "train-tiny", ratio=2.0)
    out, kept, drawn = run("decode-16", ratio=0.5)
    assert [(one["name"], one["ratio"]["median"]) for one in kept] == [("train-tiny", 2.0), ("decode-16", 0.5)]
    assert "| train GPT-2, 0.1M parameters, 128 bytes | L=2 D=64 N=2 T=128 V=256 B=32 | llama.cpp | 2.00 (" in out
    assert "**0.50** (0.45 to 0.55)" in out  # one that loses stands out
    assert run(ratio=9.0) == (out, kept, drawn)  # none: from what was measured


def test_a_work_without_peers_leaves_its_rows(script):
    rows = [row(script, "decode-1", "llama.cpp", 0.5)]
    assert script.merged(rows, "decode-1", []) == rows


def test_the_figure_shows_the_faster_pytorch(script):
    peers = {"PyTorch, eager": 1.5, "PyTorch, torch.compile": 1.2, "llama.cpp": 0.8}
    rows = [row(script, "train-tiny", peer, ratio) for peer, ratio in peers.items()]
    assert [one.peer for one in script.shown(rows)] == ["PyTorch, torch.compile", "llama.cpp"]


def test_rows_are_read_as_they_were_written(script, tmp_path):
    rows = [row(script, "decode-1", "llama.cpp", 0.5)]
    (tmp_path / "rows.json").write_text(json.dumps([dataclasses.asdict(one) for one in rows]))
    assert script.read(tmp_path / "rows.json") == rows


def test_the_recipe_s_steps_are_all_of_4096_tokens_by_adamw(script):
    for name, work in script.WORKS.items():
        if name.startswith("recipe"):
            assert work.experiment.batch_tokens == 4096 and work.experiment.optimizer.name == "adamw"
            assert work.model.activation == "swiglu" and work.model.embedding_norm and work.model.qk_norm
    assert script.WORKS["recipe-192-bfloat16"].model.dtype == "bfloat16_products"


def test_what_was_measured_becomes_rows(script, monkeypatch):
    found = [Timing("lm", Spread(2, 2, 2), Spread(1, 1, 1), 1), Timing("PyTorch", Spread(5, 5, 5), Spread(3, 2, 4), 1)]
    monkeypatch.setattr(script, "start_up", lambda work: found)
    [made] = script.measured("start-up", 7, 2.0)
    assert (made.peer, made.ratio, made.ours, made.theirs) == ("PyTorch", Spread(3, 2, 4), 2, 5)
    experiment = script.WORKS["start-up"].experiment
    assert eval(repr(experiment), vars(config)) == experiment  # as its processes make it
    assert made.unit == "seconds" and "5 starts" in made.markdown() and "jax" in made.hardware


@pytest.mark.slow
def test_the_smallest_of_it_is_measured(script, monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    tiny = lm.ModelConfig.gpt2("124M", layers=1, width=16, heads=2, context=8, vocab=9)
    monkeypatch.setitem(script.WORKS, "train-tiny", script.Work("train", "train", tiny, 2, "8 bytes"))
    how = ["--rows", "train-tiny", "--rounds", "1", "--seconds", "0.01", "--figure", str(tmp_path / "peers.svg")]
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", *how])
    script.main()
    assert "PyTorch, eager" in capsys.readouterr().out
