"""Turns command-line arguments into typed values through tyro, and tells every mistake on one line.

Options say by their types what values make sense, as settings do (lm/limits.py); `parse` checks them.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import math
import os
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lm import settings
from lm.config import DataConfig, Experiment, TrainConfig
from lm.errors import UserError, nearest, require, tell
from lm.limits import Count, IsFile
from lm.limits import InputFile as InputFile
from lm.records import RUNS
from lm.typed import Range

PLAIN = (tyro.conf.FlagCreatePairsOff,)


def parse(options: type, arguments: list[str], prog: str) -> Any:
    """A dataclass of options from arguments, every number finite and within its type. tyro prints help and exits."""
    arguments, lists = gather(options, arguments)
    parsed = _one_line(lambda: tyro.cli(options, args=arguments, prog=prog, config=PLAIN))
    parsed = dataclasses.replace(parsed, **lists)
    check(parsed)
    return parsed


def check(options: Any) -> None:
    """Raise UserError for an option that is not finite, or not what its type asks: Count, Positive, InputFile ..."""
    for name, hint in typing.get_type_hints(type(options), include_extras=True).items():
        values = getattr(options, name)
        renamed = [getattr(extra, "name", None) for extra in typing.get_args(hint)]
        named = next((other for other in renamed if isinstance(other, str) and other), name)
        option = name if tyro.conf.Positional in typing.get_args(hint) else f"--{named.replace('_', '-')}"
        for value in values if isinstance(values, tuple) else (values,):
            if dataclasses.is_dataclass(value):
                check(value)
            require(not isinstance(value, float) or math.isfinite(value), f"{option} {value}: not a finite number")
            for rule in _rules(hint) if value is not None else ():
                rule.check(value, option, optional=False)


def _rules(hint: Any) -> list[Range | IsFile]:
    """What an annotation asks of a value, of an optional one, or of each of several."""
    here = [rule for rule in getattr(hint, "__metadata__", ()) if isinstance(rule, Range | IsFile)]
    return here + [rule for part in typing.get_args(hint) for rule in _rules(part)]


def gather(options: type, arguments: list[str]) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """The arguments without the options that take several texts, and the texts of those options.

    An option that is repeated adds to what it has. A text may begin with a dash where it is the first after its option
    and no option itself, or joined to it (--prompt=--help). The same holds for options of a single text.
    """
    hints = typing.get_type_hints(options, include_extras=True)
    several = {name for name, hint in hints.items() if hint == tuple[str, ...]}
    single = {name for name, hint in hints.items() if hint in (str, str | None)}
    parts = {name: part for name, part in typing.get_type_hints(options).items() if dataclasses.is_dataclass(part)}
    inside = [(name, field.name) for name, part in parts.items() for field in dataclasses.fields(part)]
    names = {*hints, *(name for _, name in inside), *(".".join(pair) for pair in inside), "help"}
    rest: list[str] = []
    lists: dict[str, tuple[str, ...]] = {}
    into, empty = None, False  # the option whose texts come next, and whether it waits for the first
    for argument in [*arguments, None]:
        is_text = argument is not None and (argument == "-" or not argument.startswith("-"))
        if into and (is_text or (empty and _only_looks_like_an_option(argument, names))):
            lists[into] += (argument,)
            empty = False
            continue
        if empty:
            name = into.replace("_", "-")
            raise UserError(f"--{name}: no text was given; --{name} TEXT, or --{name}=TEXT where it begins with dashes")
        into = None
        if argument is None:
            break
        awaited = bool(rest) and rest[-1].startswith("--") and rest[-1][2:].replace("-", "_") in single
        if argument.startswith("--") and setting_name(argument) in several:
            into, (_, joined, value) = setting_name(argument), argument.partition("=")
            empty = not joined
            lists[into] = lists.get(into, ()) + ((value,) if joined else ())
        elif awaited and _only_looks_like_an_option(argument, names):
            rest[-1] += f"={argument}"
        else:
            rest.append(argument)
    return rest, lists


def _only_looks_like_an_option(argument: str | None, names: set[str]) -> bool:
    """Whether it begins with a dash and is no option, nor like one that was mistyped."""
    if argument in (None, "-h") or not argument.startswith("-"):
        return False
    key = re.fullmatch(r"--([a-zA-Z][\w.-]*)(=.*)?", argument, re.DOTALL)
    return key is None or not nearest(key[1].replace("-", "_"), names)


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
    on: Literal["here", "slurm"] = "here"
    """slurm: write a script that trains the run, and submit it (docs/clusters.md)."""
    nodes: Count = 1
    """Nodes of the job, with --on slurm."""
    slurm: tuple[str, ...] = ()
    """Options of sbatch for the job: partition=gpu gres=gpu:1."""


def parse_train(arguments: list[str]) -> Train:
    """`CONFIG --model.layers 4 ...`: the experiment of a config file or a run's, with the overrides applied."""
    experiment, folder, rest = Experiment(), RUNS, arguments
    if arguments and not arguments[0].startswith("-"):
        rest = arguments[1:]
        experiment, folder = _experiment(arguments[0], _value(rest, "train.start"))
    elif not {"-h", "--help"} & set(arguments):
        raise UserError("which config? A name in configs/ or a path to a .py file: lm train quickstart")
    hints = settings.annotations(experiment) | {"dry_run": bool, "json": bool, "help": None}
    hints |= {"on": str, "nodes": int, "slurm": tuple}
    changed = [setting_name(argument) for argument in rest if re.match(r"--[a-zA-Z]", argument)]
    for key in changed:
        if key not in hints:
            raise UserError(f"{key}: no such setting{nearest(key, hints)} (`lm train --help` explains them all)")
    spelled = []
    for argument, following in itertools.zip_longest(rest, rest[1:]):
        # A flag without a value reads as true, so that both `--dry-run` and `--model.tied False` work.
        flag = argument.startswith("--") and "=" not in argument and hints.get(setting_name(argument)) is bool
        spelled += [argument, "True"] if flag and following not in ("True", "False") else [argument]
    config, default = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands), Train(experiment, folder)
    options = _one_line(lambda: tyro.cli(Train, args=spelled, prog="lm train CONFIG", default=default, config=config))
    tell_surprises([options.experiment], changed)
    return options


def tell_surprises(experiments: Sequence[Experiment], changed: Sequence[str]) -> None:
    """One line on standard error for each thing that an override leaves alone, or does nothing to."""
    for e in experiments:
        for surprise in settings.surprises(e, changed):
            tell(surprise)


def setting_name(argument: str) -> str:
    """The dotted setting that an option names."""
    return argument[2:].split("=")[0].replace("-", "_")


def _value(arguments: list[str], key: str) -> str | None:
    """The value that arguments give a setting, the last one."""
    found = None
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        if argument.startswith("--") and setting_name(argument) == key:
            found = argument.partition("=")[2] if "=" in argument else following
    return found


def _begun_by(start: str) -> Experiment:
    """An experiment with the model, the tokenizer and the template of a run, and otherwise as it comes."""
    from lm.run import Run, exists

    require(exists(start), f"train.start {start}: no such run (`lm runs` lists them)")
    run = Run(start)
    data = DataConfig(tokenizer=str(run.path / "tokenizer.json"), template=run.experiment.data.template)
    return Experiment(model=run.experiment.model, data=data, train=TrainConfig(start=start))


def _experiment(config: str, start: str | None) -> tuple[Experiment, Path]:
    """The experiment that CONFIG stands for, and the folder of its run. start: the run that train.start names.

    A directory with an experiment.json is a run, and so is meant by any other path; a bare name is a config's.
    """
    path = Path(config)
    there = (path / "experiment.json").is_file()
    if there or (os.sep in config and path.suffix != ".py"):
        from lm.run import Run  # JAX, for which a mistyped setting should not wait

        run = Run(path)
        return dataclasses.replace(run.experiment, name=run.name), run.folder
    try:
        return settings.load_experiment(config, functools.partial(_begun_by, start) if start else None), RUNS
    except UserError as error:
        if not (RUNS / config / "experiment.json").is_file():
            raise
        raise UserError(f"{error}; the run {RUNS / config} goes on with: lm train {RUNS / config}") from error


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
