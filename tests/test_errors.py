"""Error lines: one, printable, and short, whatever was wrong."""

import pytest

from lm.errors import LONGEST_LINE, nearest, one_line, shorten

LONG = 5000


@pytest.mark.parametrize(
    "given, line",
    [
        ("two\nlines\r\n and\tmore", "two lines and more"),
        ("an \x1b[31m escape, \x00 and \udcff", "an \\x1b[31m escape, \\x00 and \\udcff"),
        ("U+202E \u202e turns text round", "U+202E \\u202e turns text round"),
        ("naïve 王 🙂 d[/x] stay", "naïve 王 🙂 d[/x] stay"),
    ],
)
def test_what_cannot_be_printed_is_escaped(given, line):
    assert one_line(given) == line


@pytest.mark.parametrize(
    "template", ["{}: no such file", "no run {}; did you mean tiny?", "--text '{}': wrong", "got [{}], not a number"]
)
@pytest.mark.parametrize("text", ["a" * LONG, "word " * (LONG // 5), "/".join(["d" * 9] * (LONG // 10)), "\x1b" * LONG])
def test_long_input_is_repeated_in_part(template, text):
    """At most 200 characters of an argument, and the rest of the sentence whole."""
    line = one_line(template.format(text), [text])
    before, after = template.split("{}")
    assert line.startswith(before) and line.endswith(after)
    assert len(line) - len(before) - len(after) <= 200
    assert "…" in line


def test_long_input_that_is_no_argument_is_repeated_in_part():
    """A line of a file, quoted or not."""
    assert len(one_line(f"points.csv: '{'1, ' * LONG}' is no number")) < 250
    assert len(one_line(f"points.csv: {'1,' * LONG} is no number")) < 250
    assert len(one_line("word " * LONG)) <= LONGEST_LINE


def test_shorten_keeps_both_ends():
    assert shorten("abc", 3) == "abc" and shorten("abcdefghij", 6) == "abc…ij"


def test_nothing_is_near_a_very_long_word():
    """difflib would take minutes to find out."""
    assert nearest("a" * 100_000, ["a" * 99_999]) == ""
    assert nearest("layerz", ["model.layers"]) == "; did you mean model.layers?"
