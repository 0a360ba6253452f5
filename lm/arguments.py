"""Command-line arguments to typed values through tyro, with every mistake told on one line."""

import contextlib
import dataclasses
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from lm import settings
from lm.config import Experiment
from lm.errors import UserError, nearest

RUNS = Path("runs")
PLAIN = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)


def parse(options: type, arguments: list[str], prog: str) -> Any:
    """A dataclass of options from arguments. Help and its exit are tyro's."""
    return _one_line(lambda: tyro.cli(options, args=arguments, prog=prog, config=PLAIN))


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
    return _one_line(
        lambda: tyro.cli(
            Train,
            args=rest,
            prog="lm train CONFIG",
            default=Train(experiment, folder),
            config=(tyro.conf.FlagConversionOff,),
        )
    )


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
        if re.match(r"--[a-zA-Z]", argument):
            key = argument[2:].split("=")[0].replace("-", "_")
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
