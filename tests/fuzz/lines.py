"""Command lines over every verb and option: mostly a right one with a mistake or three, sometimes nonsense.

Options come from the dataclasses that the verbs parse, so a new one is tried as soon as it is there. A line nearly
always holds a value that no option of its type takes: what is tried is how lines are refused, not training.
"""

import dataclasses
import importlib
import random
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lm import settings
from lm.commands import probe
from lm.config import Experiment

LONG = "x" * 5000
WRONG = {
    int: ("abc", "1.5", "", "nan", "inf", "9" * 40, "1e3", "-", "--", "[1]", "None None", "\x1b[31m", "0x10", LONG),
    float: ("abc", "", "nan", "inf", "-inf", "1e999", "--", "1,5", "[/x]", "0x1p3", "\udcff", LONG),
    Path: (
        "none/here", "~nobody/x", "d[/x]", "", ".", "/", "/dev/null", "folder", "pipe", "x" * 300, "y/" * 2000 + "z",
        "a\0b", "a\nb", "\udcff\udcfe", "\x1b[31m", "-", "https://example.com/x", "text.txt/x", "broken-link",
        "unreadable",
    ),
    str: (
        "", "\udcff", "a\0b", LONG, "[/x]", "[bold]", ":smile:", "\x1b[2J", "\r\n\u2028\u2029", "-1", "--", "²", "'\"",
        "%s", "{}", "~nobody/x", "../..", "/", "\u202e", "e\u0301", "🙂" * 500, "none", "None", "=", "a=b=c", "nan",
        "1e999", "word " * 1000,
    ),
    bool: ("maybe", "", "2"),
}  # fmt: skip
RIGHT = {
    int: ("0", "1", "2", "7"),
    float: ("0.5", "1", "0", "2e-3"),
    str: ("the king", "E=1.5", "input", "64x2"),
    Path: (),
}
FILES = (
    "text.txt", "points.csv", "suite.txt", "groups.txt", "facts.jsonl", "similarity.txt", "tokenizer.json", "demo.py",
    "design.json", "prediction.json", "records.jsonl", "broken.py", "exits.py", "list.py", "runs/tiny",
)  # fmt: skip
SLOW_TO_BE_RIGHT = {"sample", "eval", "train", "bench", "plan", "sweep", "probe", "fit", "plot"}
"""Verbs that load a model, compile, train or draw once their line is right."""


@dataclasses.dataclass(frozen=True)
class Verb:
    """Words of a verb, the dataclass of its options, and what makes its positional arguments."""

    words: tuple[str, ...]
    options: type
    positional: Callable[[random.Random], list[str]] = lambda rng: []


def _options(module: str, name: str) -> type:
    return getattr(importlib.import_module(f"lm.commands.{module}"), name)


def verbs() -> list[Verb]:
    """Every verb and action with options of its own; `train` is apart."""
    run = lambda rng: [rng.choice(("tiny", "runs/tiny", "tinny", "folder", "damaged"))]  # noqa: E731
    config = lambda rng: [rng.choice(("demo", "demo.py", "quickstrat", "broken.py", "exits.py", "list.py", "text.txt"))]  # noqa: E731
    corpus = lambda rng: [rng.choice(("text.txt", "stdlb", "records.jsonl", "folder", "*.txt", "*.nothing"))]  # noqa: E731
    points = lambda rng: [rng.choice(("points.csv", "points.csv", "text.txt", "none.csv"))]  # noqa: E731
    listed = [
        Verb(("sample",), _options("sample", "Options"), run),
        Verb(("eval",), _options("evaluate", "Options"), run),
        Verb(("runs",), _options("runs", "Options")),
        Verb(("plot",), _options("plot", "Options"), run),
        Verb(("plot",), _options("plot", "ScalingOptions"), points),
        Verb(("fit",), _options("fit", "Options"), points),
        Verb(("data", "list"), _options("data", "ListOptions")),
        Verb(("data", "prepare"), _options("data", "PrepareOptions"), corpus),
        Verb(("data", "kingdom"), _options("data", "KingdomOptions")),
        Verb(("tokenizer", "train"), _options("tokenizer", "TrainOptions"), corpus),
        Verb(("tokenizer", "show"), _options("tokenizer", "ShowOptions"), lambda rng: [rng.choice(("bytes", *FILES))]),
        Verb(("bench", "train"), _options("bench", "TrainOptions"), config),
        Verb(("bench", "decode"), _options("bench", "DecodeOptions"), config),
        Verb(("plan",), _options("plan", "Options"), config),
        Verb(("sweep",), _options("sweep", "Options"), config),
    ]
    words = (
        "king",
        "queen",
        "man",
        "Ω",
        "",
        "[/x]",
        "suite.txt",
        "groups.txt",
        "facts.jsonl",
        "similarity.txt",
        "clusters",
        "map",
    )

    def some(rng: random.Random) -> list[str]:
        return [rng.choice(words) for _ in range(rng.randrange(4))]

    for action in probe.names():
        options = importlib.import_module(f"lm.probe.actions.{action}").Options
        listed.append(Verb(("probe", "RUN", action), options, some))
    return listed


def lines(seed: int, count: int) -> list[list[str]]:
    """`count` command lines, the same for the same seed and options."""
    rng, known = random.Random(seed), verbs()
    makers = [lambda verb=verb: _line(verb, rng) for verb in known]
    makers += 4 * [lambda: _train(rng)] + [lambda: _nonsense(rng)]
    return [makers[number % len(makers)]() for number in range(count)]


def _line(verb: Verb, rng: random.Random) -> list[str]:
    words = [rng.choice(("tiny", "tiny", "tinny", "folder")) if word == "RUN" else word for word in verb.words]
    positional = verb.positional(rng) if rng.random() < 0.9 else [rng.choice(WRONG[Path])]
    fields = list(flat_fields(verb.options))
    chosen = rng.sample(fields, min(len(fields), rng.choice((1, 1, 2, 3))))
    refused = verb.words[0] in SLOW_TO_BE_RIGHT or rng.random() < 0.7
    given = [piece for number, (name, hint) in enumerate(chosen)
             for piece in _option(name, hint, rng, wrong=(number == 0 and refused) or rng.random() < 0.2)]  # fmt: skip
    line = [*words, *positional, *given]
    if rng.random() < 0.08:
        line.insert(rng.randrange(len(line) + 1), rng.choice(WRONG[str]))
    if rng.random() < 0.03:
        del line[rng.randrange(1, len(line))]
    return line


def _train(rng: random.Random) -> list[str]:
    """A training whose settings are wrong, or whose steps are none."""
    config = rng.choice(
        ("demo", "demo", "demo.py", "demmo", "broken.py", "exits.py", "list.py", "damaged.py", *WRONG[Path])
    )
    hints = {key: type(value) for key, value in settings.flatten(settings.to_dict(Experiment())).items()}
    chosen = rng.sample(list(hints), rng.choice((1, 1, 2, 3)))
    given = []
    for number, key in enumerate(chosen):
        kind = hints[key] if hints[key] in WRONG else str
        given += _option(key, kind, rng, wrong=number == 0 or rng.random() < 0.3)
    if rng.random() < 0.3:
        given += ["--data.corpus", rng.choice(FILES)]
    return ["train", config, "--name", "new", *given, "--train.steps", "nothing" if rng.random() < 0.9 else "0"]


def _nonsense(rng: random.Random) -> list[str]:
    """Words from everywhere."""
    pool = [word for words in WRONG.values() for word in words]
    pool += [
        "train",
        "fit",
        "probe",
        "tiny",
        "--json",
        "-h",
        "--help",
        "--version",
        "--seed",
        "--text",
        "-",
        "--model.layers",
    ]
    return [rng.choice(pool) for _ in range(rng.randrange(5))]


def flat_fields(options: type):
    """(name, annotation) of every option, those of nested dataclasses as well."""
    for name, hint in typing.get_type_hints(options, include_extras=True).items():
        if dataclasses.is_dataclass(bare(hint)):
            yield from flat_fields(bare(hint))
        elif tyro.conf.Positional not in typing.get_args(hint):
            yield name.replace("_", "-"), hint


def bare(hint: Any) -> Any:
    """An annotation without what is said beside the type, and without None."""
    if typing.get_origin(hint) is Annotated:
        return bare(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return bare(next(part for part in typing.get_args(hint) if part is not type(None)))
    return hint


def _option(name: str, hint: Any, rng: random.Random, wrong: bool) -> list[str]:
    kind, several = bare(hint), 1
    if typing.get_origin(kind) is tuple:
        kind, several = bare(typing.get_args(kind)[0]), rng.randrange(4)
    if kind is bool:
        return [f"--{name}", *([rng.choice(WRONG[bool])] if wrong else [])]
    if typing.get_origin(kind) is Literal:
        right, kind = tuple(map(str, typing.get_args(kind))), str
    else:
        right = FILES if kind is Path else RIGHT.get(kind, RIGHT[str])
    values = [rng.choice(WRONG.get(kind, WRONG[str]) if wrong else right) for _ in range(several)]
    if len(values) == 1 and rng.random() < 0.2:
        return [f"--{name}={values[0]}"]
    return [f"--{name}", *values]
