"""Options of texts: given again they add up, and a text may begin with a dash."""

import dataclasses
from typing import Annotated

import pytest
import tyro

from lm.arguments import parse
from lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class Options:
    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    inner: Annotated[Inner, tyro.conf.arg(name="")]
    prompt: tuple[str, ...] = ("default",)
    stop: tuple[str, ...] = ()
    text: str = ""
    steps: int = 1
    fast: bool = False


@pytest.mark.parametrize(
    ("words", "prompt", "stop"),
    [
        (["a"], ("default",), ()),
        (["a", "--prompt", "x", "y"], ("x", "y"), ()),
        (["a", "--prompt", "x", "--steps", "1", "--prompt", "y", "--prompt=z"], ("x", "y", "z"), ()),
        (["a", "--prompt", "-x", "--stop", "--", "-"], ("-x",), ("--", "-")),
        (["a", "--prompt", "---\ntitle: x", "--stop", "\\n"], ("---\ntitle: x",), ("\\n",)),
        (["a", "--prompt=--steps", "--stop="], ("--steps",), ("",)),
        (["--prompt", "x", "--fast", "a"], ("x",), ()),
    ],
)
def test_texts_add_up_and_may_begin_with_a_dash(words, prompt, stop):
    o = parse(Options, words, "lm")
    assert (o.runs, o.prompt, o.stop, o.steps) == (("a",), prompt, stop, 1)


def test_a_single_text_may_begin_with_a_dash_too():
    assert parse(Options, ["a", "b", "--text", "-x", "--temperature", "2"], "lm").text == "-x"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--prompt", "--steps", "3"], "--prompt: no text was given"),
        (["a", "--prompt"], "--prompt: no text was given"),
        (["a", "--prompt", "--temperatur", "3"], "--prompt: no text was given"),  # mistyped, and no text
        (["a", "--prompt", "x", "-y"], "not understood: -y"),
        (["a", "--prompt", "x", "--stp", "y"], "not understood: --stp"),
    ],
)
def test_options_are_not_taken_for_texts(words, message):
    with pytest.raises(UserError, match=message):
        parse(Options, words, "lm")
