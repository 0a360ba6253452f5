"""Tables show values as a person reads them, and names as they are."""

import dataclasses

import pytest

from lm.console import as_text
from lm.tables import cell, records_table, show, table


@pytest.mark.parametrize(
    "value, written",
    [
        (None, "-"),
        (0.12345, "0.123"),
        (12345, "12,345"),
        ((0.1, 0.9), "0.100 to 0.900"),
        ("a", "a"),
        (float("nan"), "nan"),
    ],
)
def test_cells(value, written):
    assert cell(value) == written


def test_words_are_left_and_numbers_right(capsys):
    show(table(("word", "score"), [("king", 0.5), ("a", 12.25)], title="nearest [bold]"), "", "a line of [/x] \x1b[31m")
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "nearest [bold]", "word   score", "king   0.500", "a     12.250", "", "a line of [/x] \\x1b[31m",
    ]  # fmt: skip


def test_long_words_fold_and_long_lines_do_not(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    show(table(("word", "score"), [("x" * 30, 0.5)]), "y" * 30)
    _, first, *rest, line = capsys.readouterr().out.splitlines()
    assert first.endswith("0.500") and "".join([first, *rest]).count("x") == 30 and line == "y" * 30


def test_records_by_their_attributes():
    @dataclasses.dataclass
    class Row:
        name: str
        share: float | None

    made = records_table({"share": "of all", "name": "who"}, [Row("a[/b]", None), Row("c", 1.0)], left=0)
    assert as_text(made, width=40) == "of all    who\n     -  a[/b]\n 1.000      c\n"
