"""lm bench as people type it."""

import json
import shutil

import pytest

from lm.cli import main

CONFIG = """
import lm
experiment = lm.Experiment(
    model=lm.ModelConfig(layers=1, width=16, heads=2, context=24),
    data=lm.DataConfig(corpus="nowhere.txt"),
    train=lm.TrainConfig(batch=2),
)
"""
QUICK = ("--rounds", "1", "--seconds", "0.01", "--no-peers")
KEYS = {"tokens_per_second", "flops_per_second", "peak_flops_per_second", "utilization", "peers", "absent"}


@pytest.fixture
def place(workplace, tiny_run):
    """configs/little.py, whose corpus does not exist, and a trained run."""
    (workplace / "configs").mkdir()
    (workplace / "configs" / "little.py").write_text(CONFIG)
    shutil.copytree(tiny_run.path, workplace / "runs" / "tiny")
    return workplace


@pytest.mark.parametrize("verb", ["train", "decode"])
def test_a_config_is_benched_without_its_corpus_or_a_run(place, capsys, verb):
    before = sorted(place.rglob("*"))
    assert main(["bench", verb, "little", *QUICK, "--json", "--model.layers", "2"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    assert out.count("\n") == 1 and set(found) >= KEYS
    assert found["what"].split(", ")[1].startswith("2 layers") and "V=264" in found["what"]
    assert found["peers"] == found["absent"] == []
    assert sorted(place.rglob("*")) == before


def test_a_run_is_benched_as_it_is(place, capsys):
    assert main(["bench", "decode", "tiny", *QUICK, "--prompt-tokens", "4", "--tokens=3"]) == 0
    out = capsys.readouterr().out
    assert "2 layers, D=16" in out and "3 tokens after 4" in out and "tokens/s" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no action given (lm bench train | decode"),
        (["trian"], "trian: no such action; did you mean train?"),
        (["train"], "which config?"),
        (["decode", "--json"], "which config?"),
        (["train", "litle"], "no config named litle; did you mean little?"),
        (["train", "little", "--model.layerz", "4"], "model.layerz: no such setting; did you mean model.layers?"),
        (["train", "little", "--round", "4"], "round: no such setting; did you mean rounds?"),
        (["train", "little", "--batch", "4"], "batch: no such setting; did you mean train.batch?"),
        (["train", "little", "again"], "again: not understood"),
        (["train", "little", "--rounds", "0"], "--rounds 0: must be at least 1"),
        (["train", "little", "--seconds", "soon"], "soon"),
        (["train", "little", "--model.heads", "3"], "model.width 16 is not a multiple of model.heads 3"),
        (["decode", "little", "--tokens", "99"], "--tokens 99: must be between 1 and 8"),
        (["train", "little", "--no-peers", "--profile", "configs/little.py"], "--profile configs/little.py"),
    ],
)
def test_mistakes_are_told_on_one_line(place, capsys, arguments, said):
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lm: ") and err.count("\n") == 1 and said in err, err


@pytest.mark.parametrize("verb", ["train", "decode"])
def test_help_explains_the_options(capsys, verb, workplace):
    with pytest.raises(SystemExit) as end:
        main(["bench", verb, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and "--json" in out and "--no-peers" in out and "--model.layers" in out
