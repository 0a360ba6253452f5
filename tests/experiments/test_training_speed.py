"""experiments/training_speed.py: two checkouts take turns, and what is none is refused."""

from pathlib import Path

import pytest

SCRIPT = "training_speed"
ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_without_the_package_is_refused(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["training_speed.py", "--against", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2 and f"--against {tmp_path}: no checkout of lm" in capsys.readouterr().err


def test_a_checkout_is_about_as_fast_as_itself(script, monkeypatch, capsys):
    shape = "GPT-2, L=4 D=128 T=64 B=12"
    words = ["--against", str(ROOT), "--rounds", "2", "--seconds", "0.3", "--shapes", shape]
    monkeypatch.setattr("sys.argv", ["training_speed.py", *words])
    script.main()
    row = capsys.readouterr().out.strip().splitlines()[-1]
    assert row.startswith(f"| {shape} | ")
    assert 0.1 < float(row.split("|")[4].split()[0]) < 10
