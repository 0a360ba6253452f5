"""The study of preparing: its text, its formats and its table; at its smallest, all of it."""

import sys

import pytest

from lm.data.readers import read

SCRIPT = "prepare_speed"


def test_every_format_holds_the_same_documents(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "documents", lambda size: iter(["0\nalpha", "1\nbeta\n", "2\ngamma"]))
    options = dict(separator=script.SEPARATOR, text_field="text")
    for name in ("many.jsonl", "many.txt", "many.jsonl.gz", "files"):
        path = script.write(tmp_path / name, 20)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        assert [text for file in files for text, _ in read(file, **options)] == ["0\nalpha", "1\nbeta\n", "2\ngamma"]
    assert len(list(read(script.write(tmp_path / "one.txt", 20), **options))) == 1


def test_documents_are_numbered_and_as_much_as_asked_for(script):
    texts = list(script.documents(100_000))
    assert [text.partition("\n")[0] for text in texts] == [str(number) for number in range(len(texts))]
    assert sum(map(len, texts[:-1])) < 100_000 + 8 * len(texts) and sum(map(len, texts)) > 100_000


def test_the_table_tells_the_command_from_its_workers(script):
    row = script.Measured("2 workers", 20_000_000, 4.0, (150_000_000, 90_000_000, 110_000_000), ("a", "b"))
    assert script.table([row]).splitlines()[-1] == "| 2 workers | 20 | 4.0 | 5.0 | 150 | 110 |"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")
def test_the_smallest_of_it_measures_and_draws(script, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    script.main(["--megabytes", "2", "--out", str(tmp_path / "speed.svg")])
    assert "with a tokenizer of its own" in capsys.readouterr().out and (tmp_path / "speed.svg").is_file()
