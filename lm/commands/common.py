"""What several verbs share."""

import dataclasses
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from lm import processes
from lm.arguments import setting_name
from lm.errors import UserError, nearest, require, tell
from lm.settings import settings, settings_of

RunName = Annotated[str, tyro.conf.Positional]
"""A run's directory, or its name under runs/."""
Json = Annotated[bool, tyro.conf.arg(help="One JSON object on standard output, nothing else there.")]
Checkpoint = Annotated[str, tyro.conf.arg(help="latest, best (by validation loss), or a step.")]


def print_json(value: dict[str, Any]) -> None:
    """Print the one object that --json asks for."""
    print(json.dumps(value))


def action(verb: str, arguments: list[str], actions: dict[str, Callable[[list[str]], None]]) -> None:
    """Run the action that a verb's second word names."""
    usage = f"lm {verb} {' | '.join(actions)}; `lm {verb} ACTION --help` explains each"
    word = arguments[0] if arguments else ""
    if word in ("-h", "--help"):
        print(usage)
    elif word in actions:
        actions[word](arguments[1:])
    else:
        wrong = f"{word}: no such action{nearest(word, actions)}" if word else "no action given"
        raise UserError(f"{wrong} ({usage})")


def split(verb: str, options: type, arguments: list[str]) -> tuple[str, list[str], list[str]]:
    """CONFIG, the arguments that are the verb's own, and those that are the experiment's. UserError for a typo."""
    if {"-h", "--help"} & set(arguments):
        return "", ["--help"], []
    require(
        bool(arguments) and not arguments[0].startswith("-"),
        f"which config? A name in configs/ or a path to a .py file: lm {verb} quickstart",
    )
    names = {f.name for f in dataclasses.fields(options)} | {"no_peers"}
    own, rest, known = [], [], settings()
    into: list[str] | None = None
    for argument in arguments[1:]:
        if argument.startswith("--"):
            key = setting_name(argument)
            if key not in (*names, *known):
                known = settings_of(arguments[0])  # of another architecture, perhaps
            if key not in (*names, *known):
                meant = nearest(key, [*names, *known])
                raise UserError(f"{key}: no such setting{meant} (`lm {verb} --help`, `lm train --help`)")
            into = own if key in names else rest
        require(into is not None, f"{argument}: not understood; settings are given as --model.layers 4")
        into.append(argument)
    return arguments[0], own, rest


def without(arguments: list[str], names: set[str]) -> list[str]:
    """The arguments without some options and their values; CONFIG is the first of them."""
    kept, dropping = [], False
    for argument in arguments:
        if argument.startswith("--"):
            dropping = setting_name(argument) in names
        if not dropping:
            kept.append(argument)
    return kept


def prepare_jax(*, several: bool = False) -> None:
    """Start JAX, keep compiled programs between processes, and keep libraries from narrating.

    several: whether this may be one of several processes, which are then waited for.
    Raises UserError where JAX_PLATFORMS asks for a device that is not there, and for several processes of what is done
    in one.
    """
    if not several:
        alike = (processes.asked() or {}).get("num_processes", 1)
        require(alike == 1, f"{alike} processes of a command that runs in one: start several for lm train alone")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import absl.logging
    import jax

    absl.logging.set_verbosity(absl.logging.FATAL)  # orbax logs every save, and each failure several times over
    logging.getLogger("jax").setLevel(logging.ERROR)
    if several:
        processes.start()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter, without words, where no such plugin is installed
        asked, why = os.environ.get("JAX_PLATFORMS"), str(error) or "there is no such device"
        raise UserError(f"JAX_PLATFORMS={asked}: {why}; unset it, or say JAX_PLATFORMS=cpu") from error
    _keep_compiled_programs()


ROOM = 64 * 2**20
"""Free bytes below which compiled programs are not kept: those of one training take a few million."""


def _keep_compiled_programs() -> None:
    """Keep compiled programs between processes where there is room; otherwise say on one line that they are not."""
    from lm.data.corpora import cache_folder
    from lm.hardware import keep_compiled_programs

    folder = cache_folder() / "programs"
    # What JAX itself says when the folder fills up is a warning for every program.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
        reason = f"{free / 1e6:.1f} MB free" if free < ROOM else None
    except OSError as error:
        reason = error.strerror
    if reason is None:
        keep_compiled_programs(folder)
    else:
        tell(f"compiled programs are not kept in {folder}: {reason}; set LM_CACHE to a folder with room")
