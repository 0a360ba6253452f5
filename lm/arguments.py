"""Command-line arguments to typed values through tyro, with every mistake told on one line."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from lm import settings
from lm.config import Experiment
from lm.errors import UserError, nearest

PLAIN = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)


def parse(options: type, arguments: list[str], prog: str) -> Any:
    """A dataclass of options from arguments. Help and its exit are tyro's."""
    return _one_line(lambda: tyro.cli(options, args=arguments, prog=prog, config=PLAIN))


@dataclasses.dataclass(frozen=True)
class Train:
    """Train an experiment, or resume it where it left off. CONFIG: a name in configs/ or a path to a .py file."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Show parameters, FLOPs, memory, tokens per parameter and ETA from a measured rate; train nothing."""
    json: bool = False
    """One JSON object on standard output, nothing else there."""


def parse_train(arguments: list[str]) -> Train:
    """`CONFIG --model.layers 4 ...`: the config file's experiment with the overrides applied."""
    if arguments and not arguments[0].startswith("-"):
        experiment, rest = settings.load_experiment(arguments[0]), arguments[1:]
    elif {"-h", "--help"} & set(arguments):
        experiment, rest = Experiment(), arguments
    else:
        raise UserError("which config? A name in configs/ or a path to a .py file: lm train quickstart")
    _refuse_typos(rest)
    # A flag without a value reads as true, so that both `--dry-run` and `--model.tied False` work.
    rest = [piece for i, arg in enumerate(rest) for piece in _with_value(arg, rest[i + 1 : i + 2])]
    options = _one_line(
        lambda: tyro.cli(
            Train, args=rest, prog="lm train CONFIG", default=Train(experiment), config=(tyro.conf.FlagConversionOff,)
        )
    )
    tell_surprises([options.experiment], [_key(argument) for argument in rest if _is_option(argument)])
    return options


def tell_surprises(experiments: Sequence[Experiment], changed: Sequence[str]) -> None:
    """One line on standard error for each thing that an override leaves alone, or does nothing to."""
    for surprise in dict.fromkeys(told for e in experiments for told in settings.surprises(e, changed)):
        print(f"lm: {surprise}", file=sys.stderr)


def _is_option(argument: str) -> bool:
    return bool(re.match(r"--[a-zA-Z]", argument))


def _key(argument: str) -> str:
    """The dotted setting that an option names."""
    return argument[2:].split("=")[0].replace("-", "_")


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
