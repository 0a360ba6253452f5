"""Command-line arguments to typed values through tyro, with every mistake told on one line.

Options say by their types what values make sense, as settings do (lm/limits.py); `parse` checks them.
"""

import contextlib
import dataclasses
import io
import math
import os
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from lm import settings
from lm.config import Experiment
from lm.errors import UserError, nearest, require, tell
from lm.limits import InputFile as InputFile
from lm.limits import IsFile
from lm.records import RUNS
from lm.typed import Range

PLAIN = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)


def parse(options: type, arguments: list[str], prog: str) -> Any:
    """A dataclass of options from arguments, every number finite and within its type. Help and its exit are tyro's."""
    arguments, lists = gather(options, arguments)
    parsed = _one_line(lambda: tyro.cli(options, args=arguments, prog=prog, config=PLAIN))
    parsed = dataclasses.replace(parsed, **lists)
    check(parsed)
    return parsed


def check(options: Any) -> None:
    """Raise UserError for an option that is not finite, or not what its type asks: Count, Positive, InputFile ..."""
    for name, hint in typing.get_type_hints(type(options), include_extras=True).items():
        values, rules = getattr(options, name), _rules(hint)
        option = name if tyro.conf.Positional in typing.get_args(hint) else f"--{name.replace('_', '-')}"
        for value in values if isinstance(values, tuple) else (values,):
            if dataclasses.is_dataclass(value):
                check(value)
            require(not isinstance(value, float) or math.isfinite(value), f"{option} {value}: not a finite number")
            for rule in rules if value is not None else ():
                rule.check(value, option, optional=False)


def _rules(hint: Any) -> list[Range | IsFile]:
    """What an annotation asks of a value, of an optional one, or of each of several."""
    here = [rule for rule in getattr(hint, "__metadata__", ()) if isinstance(rule, Range | IsFile)]
    return here + [rule for part in typing.get_args(hint) for rule in _rules(part)]


def gather(options: type, arguments: list[str]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """The arguments without the options that take several texts, and what these were given.

    Given again, such an option adds to what it has. Text may begin with a dash: where it is the first after its option
    and no option itself, or joined to it (--prompt=--help). The same holds for options of a single text.
    """
    hints = typing.get_type_hints(options, include_extras=True)
    several = {name for name, hint in hints.items() if hint == tuple[str, ...]}
    single = {name for name, hint in hints.items() if hint in (str, str | None)}
    inner = [
        field.name for part in hints.values() if dataclasses.is_dataclass(part) for field in dataclasses.fields(part)
    ]
    names = {*hints, *inner, "help"}
    rest: list[str] = []
    lists: dict[str, tuple[str, ...]] = {}
    into, empty = None, False  # the option whose texts come next, and whether it waits for the first
    for argument in arguments:
        key, joined, value = argument.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if into and (_is_text(argument) or (empty and _only_looks_like_an_option(argument, names))):
            lists[into] += (argument,)
            empty = False
            continue
        _refuse_none(into, empty)
        into, empty = None, False
        if argument.startswith("--") and key in several:
            into, empty = key, not joined
            lists[key] = lists.get(key, ()) + ((value,) if joined else ())
        elif rest and _wants_text(rest[-1], single) and _only_looks_like_an_option(argument, names):
            rest[-1] += f"={argument}"
        else:
            rest.append(argument)
    _refuse_none(into, empty)
    return rest, lists


def _refuse_none(option: str | None, empty: bool) -> None:
    if option and empty:
        name = option.replace("_", "-")
        raise UserError(f"--{name}: no text was given; --{name} TEXT, or --{name}=TEXT where it begins with dashes")


def _is_text(argument: str) -> bool:
    return argument == "-" or not argument.startswith("-")


def _only_looks_like_an_option(argument: str, names: set[str]) -> bool:
    """Whether it begins with a dash and is no option, nor like one that was mistyped."""
    if argument == "-h" or not argument.startswith("-"):
        return False
    key = re.fullmatch(r"--([a-zA-Z][\w.-]*)(=.*)?", argument, re.DOTALL)
    return key is None or not nearest(key[1].replace("-", "_"), names)


def _wants_text(option: str, single: set[str]) -> bool:
    return option.startswith("--") and option[2:].replace("-", "_") in single


@dataclasses.dataclass(frozen=True)
class Train:
    """Train an experiment, or resume it where it left off. CONFIG: a name in configs/, a path to a .py file, or the
    directory of a run, which goes on as it was recorded."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    folder: tyro.conf.Suppress[Path] = RUNS
    """Where the run's directory is, or will be."""
    dry_run: bool = False
    """Show parameters, FLOPs, memory, tokens per parameter and ETA from a measured rate; train nothing."""
    json: bool = False
    """One JSON object on standard output, nothing else there."""


def parse_train(arguments: list[str]) -> Train:
    """`CONFIG --model.layers 4 ...`: the experiment of a config file or a run's, with the overrides applied."""
    folder = RUNS
    if arguments and not arguments[0].startswith("-"):
        (experiment, folder), rest = _experiment(arguments[0]), arguments[1:]
    elif {"-h", "--help"} & set(arguments):
        experiment, rest = Experiment(), arguments
    else:
        raise UserError("which config? A name in configs/ or a path to a .py file: lm train quickstart")
    _refuse_typos(rest)
    # A flag without a value reads as true, so that both `--dry-run` and `--model.tied False` work.
    rest = [piece for i, arg in enumerate(rest) for piece in _with_value(arg, rest[i + 1 : i + 2])]
    options = _one_line(
        lambda: tyro.cli(
            Train,
            args=rest,
            prog="lm train CONFIG",
            default=Train(experiment, folder),
            config=(tyro.conf.FlagConversionOff,),
        )
    )
    tell_surprises([options.experiment], [_key(argument) for argument in rest if _is_option(argument)])
    return options


def tell_surprises(experiments: Sequence[Experiment], changed: Sequence[str]) -> None:
    """One line on standard error for each thing that an override leaves alone, or does nothing to."""
    for e in experiments:
        for surprise in settings.surprises(e, changed):
            tell(surprise)


def _is_option(argument: str) -> bool:
    return bool(re.match(r"--[a-zA-Z]", argument))


def _key(argument: str) -> str:
    """The dotted setting that an option names."""
    return argument[2:].split("=")[0].replace("-", "_")


def _experiment(config: str) -> tuple[Experiment, Path]:
    """The experiment that CONFIG stands for, and the folder of its run.

    A directory with an experiment.json is a run, and so is meant by any other path; a bare name is a config's.
    """
    path = Path(config)
    there = (path / "experiment.json").is_file()
    if there or (os.sep in config and path.suffix != ".py"):
        from lm.run import Run  # JAX, for which a mistyped setting should not wait

        run = Run(path)
        return dataclasses.replace(run.experiment, name=run.name), run.folder
    try:
        return settings.load_experiment(config), RUNS
    except UserError as error:
        if not (RUNS / config / "experiment.json").is_file():
            raise
        raise UserError(f"{error}; the run {RUNS / config} goes on with: lm train {RUNS / config}") from error


_FLAGS = {"dry_run", "json"} | {key for key, value in settings.flatten(settings.to_dict(Experiment())).items()
                                if isinstance(value, bool)}  # fmt: skip


def _with_value(argument: str, after: list[str]) -> list[str]:
    flag = argument.lstrip("-").replace("-", "_") in _FLAGS and argument.startswith("--")
    return [argument, "True"] if flag and after not in (["True"], ["False"]) else [argument]


def _refuse_typos(arguments: list[str]) -> None:
    known = [*settings.settings(), "dry_run", "json", "help"]
    for argument in arguments:
        if _is_option(argument):
            key = _key(argument)
            if key not in known:
                raise UserError(f"{key}: no such setting{nearest(key, known)} (`lm train --help` explains them all)")


def _one_line(parser: Callable[[], Any]) -> Any:
    """Run a parser; turn the box it draws around an error into one sentence."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return parser()
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(_sentence(shown.getvalue())) from None


def _sentence(box: str) -> str:
    """What tyro's box says, without its frame (drawn, or in ASCII), title and help."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    text = re.sub(r"╭─.*─╮|\A\s*[\w ]+\n\s*-{8,}|-{8,}|[╰╯│─]+", " ", text)
    text = re.split(r"Argument helptext:|For full helptext|\(required\)|Got errors:", " ".join(text.split()))[0]
    text = re.sub(r"^Error parsing (?:[\w.]+: |--)", "", text).replace("Unrecognized options: ", "not understood: ")
    if meant := re.search(r"Perhaps you meant: (--\S+)", text):
        text = f"{text[: meant.start()].strip()}; did you mean {meant[1]}?"
    return text.strip() or "arguments not understood; see --help"
