"""Options say by their types which values make sense; one validator refuses the others."""

import dataclasses
from typing import Annotated

import pytest
import tyro

from lm import arguments, limits
from lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    sd: limits.Positive | None = None


@dataclasses.dataclass(frozen=True)
class Options:
    """Of every type."""

    file: Annotated[arguments.InputFile, tyro.conf.Positional]
    inner: Annotated[Inner, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Inner)
    count: limits.Count = 1
    whole: limits.Whole = 0
    seed: limits.Seed = 0
    share: limits.Fraction = 0.5
    level: limits.Level = 0.9
    least: limits.NotNegative = 0.0
    several: tuple[limits.Count, ...] = ()
    pair: tuple[float, float] = (1.0, 2.0)


GOOD = [
    "--count 2147483647", "--whole 0", "--seed 4294967295", "--share 0", "--share 1", "--level 0.5", "--least 0",
    "--several 1 2", "--several", "--pair -1 0", "--sd 1e-9", "--sd None",
]  # fmt: skip
BAD = [
    "--count 0", "--count -1", "--count 2147483648", "--count 1.5", "--whole -1", "--seed -1", "--seed 4294967296",
    "--share 1.1", "--level 0", "--level 1", "--least -0.1", "--least inf", "--several 1 0", "--pair 1 nan",
    "--pair inf 1", "--sd 0", "--sd nan", "--sd inf",
]  # fmt: skip


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a.csv").write_text("")
    return str(tmp_path / "a.csv")


@pytest.mark.parametrize("option", GOOD)
def test_values_that_make_sense_are_taken(file, option):
    arguments.parse(Options, [file, *option.split()], "lm test")


@pytest.mark.parametrize("option", BAD)
def test_values_that_do_not_are_refused_with_the_option(file, option):
    with pytest.raises(UserError, match=option.split()[0].lstrip("-")):
        arguments.parse(Options, [file, *option.split()], "lm test")


@pytest.mark.parametrize(
    "path, said", [(".", "is a folder"), ("/dev/null", "is no regular file"), ("no", "no such file")]
)
def test_an_input_is_a_regular_file(path, said):
    with pytest.raises(UserError, match=f"file {path}: {said}"):
        arguments.parse(Options, [path], "lm test")
