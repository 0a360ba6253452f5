"""The study of kills: what it counts as unfinished, what it compares, and two kills of a sweep and a preparation."""

import random

import pytest

SCRIPT = "kill_resume"


def test_unfinished_is_what_is_on_its_way_to_a_name(script, tmp_path):
    """A save, a table and a folder of tokens; not what is whole, nor a lock, nor what lies within one of them."""
    for name in (
        "runs/a/checkpoints/10/params",
        "runs/a/checkpoints/20.orbax-tmp",
        "cache/tokens/.x1",
        "cache/programs",
    ):
        (tmp_path / name).mkdir(parents=True)
    for name in ("runs/a/.lock", "runs/.points.csv.x", "cache/tokens/.x1/.inner", "cache/programs/.atime"):
        (tmp_path / name).write_text("")
    found = {str(path.relative_to(tmp_path)) for path in script.unfinished(tmp_path)}
    assert found == {"runs/a/checkpoints/20.orbax-tmp", "runs/.points.csv.x", "cache/tokens/.x1"}


def test_whatever_differs_is_named(script, tmp_path):
    for place, content in (("a", b"same"), ("b", b"same"), ("c", b"else")):
        (tmp_path / place / "cache/tokens/t").mkdir(parents=True)
        (tmp_path / place / "cache/tokens/t/train.bin").write_bytes(content)
    data = script.kinds()["data"]
    assert script.compare(data, tmp_path / "a", tmp_path / "b") == []
    assert script.compare(data, tmp_path / "a", tmp_path / "c") == ["train.bin"]
    (tmp_path / "d").mkdir()
    assert script.compare(data, tmp_path / "a", tmp_path / "d") == ["train.bin"]
    assert script.compare(data, tmp_path / "d", tmp_path / "d") == ["nothing was made"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sweep", "data"])
def test_two_kills(script, tmp_path, kind):
    script.write_text(tmp_path / "text", 1_000_000)
    outcome = script.try_kind(
        script.kinds()[kind], tmp_path / "work", tmp_path / "text", 2, random.Random(0), lambda: None
    )
    assert len(outcome.kills) == 2 and outcome.differences == []
    assert kind == "data" or outcome.left == []
    script.draw({kind: outcome}, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 1000
