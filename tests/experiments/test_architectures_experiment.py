"""The two architectures are of one size, and are compared on the same tokens."""

import dataclasses
import sys

import pytest

import lm

SCRIPT = "architectures"


def test_the_configurations_differ_in_the_model_alone(script):
    one, other = (lm.replace(lm.load_experiment(name), {"model.vocab": 66}) for name in script.CONFIGS.values())
    sizes = [lm.build(e.model).parameter_count()[0] for e in (one, other)]
    assert abs(sizes[0] - sizes[1]) < 0.005 * sizes[0]
    assert dataclasses.replace(one, model=other.model, name=other.name) == other
    assert one.model.context == other.model.context


@pytest.mark.slow
def test_a_little_of_it_trains_and_draws(script, monkeypatch, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the king sat on a mat and his queen ran to the river.\n" * 400)
    arguments = ["--corpus", str(text), "--steps", "60", "--seeds", "0", "1", "--runs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments, "--figure", str(tmp_path / "out.svg")])
    script.main()
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].startswith("| transformer |") and rows[3].startswith("| LSTM |") and "nan" not in rows[2] + rows[3]
    assert (tmp_path / "out.svg").read_text().count("seconds of training") == 1
