"""Lines of small text files: what ends one, what belongs to none, and what is no text at all."""

import os

import pytest

from lm.errors import UserError
from lm.probe.lines import numbered_lines


@pytest.fixture
def file(tmp_path):
    def write(data: bytes):
        (tmp_path / "lines.txt").write_bytes(data)
        return tmp_path / "lines.txt"

    return write


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_every_system_are_the_same_and_keep_their_numbers(file, end):
    text = end.join(["\ufeffone", "", "  ", "four\u2028still four\x0c\x85", "five"])
    assert list(numbered_lines(file(text.encode()))) == [(1, "one"), (4, "four\u2028still four\x0c\x85"), (5, "five")]
    assert list(numbered_lines(file(b""))) == []


@pytest.mark.parametrize(
    "data, said",
    [
        (b"one\nzw\xf6lf\n", "line 2: not UTF-8 text"),
        (b"one\ntw\0o\n", "line 2: not UTF-8 text"),
        ("one\n".encode("utf-16"), "line 1: not UTF-8 text"),
        (b"one\n\n  # two\n", "line 3: a comment; remove it"),
        (b"one\n" + b"\xff" * 9000, "line 2: not UTF-8 text"),
    ],
)
def test_what_is_no_line_of_text_is_told_by_number_in_few_words(file, data, said):
    with pytest.raises(UserError, match=r"lines\.txt, ") as refusal:
        list(numbered_lines(file(data)))
    assert said in str(refusal.value) and len(str(refusal.value)) < 500


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("pipe", "not a file of text"), (".", "not a file of text"), ("none", "No such file")):
        with pytest.raises(UserError, match=f"cannot read .*{why}"):
            list(numbered_lines(tmp_path / name))
