"""Config files, which are Python: found by name, run, and asked for their experiments and architectures."""

import contextlib
import dataclasses
import os
import runpy
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.architectures import ARCHITECTURES, RUN_AS, ModelBase
from lm.config import Experiment
from lm.errors import UserError, nearest, require, tell
from lm.typed import shown

_KEPT: dict[tuple[str, bytes], tuple[dict[str, Any], dict[str, type]]] = {}
"""The variables and architectures of config files that define some, by path and content: a class is made once."""


class UnknownArchitecture(UserError):
    """An architecture is not known here, and its config file is not where config files are."""


def config_folders() -> list[Path]:
    """Where named configurations are looked for: ./configs, then those that come with lm."""
    house = Path(__file__).resolve().parent
    shipped = house / "configs"  # as it is installed; in the repository they stand beside the package
    return [Path("configs"), shipped if shipped.is_dir() else house.parent / "configs"]


def load_experiment(config: str, start: Callable[[], Experiment] | None = None) -> Experiment:
    """The `experiment` of configs/<config>.py, or of the file at the path `config`; or what its function `after` makes
    of what start() gives, an experiment with the model, tokenizer and template of a run that is there."""
    path, variables = _named(config)
    experiment, after = variables.get("experiment"), variables.get("after")
    if callable(after):
        require(start is not None, f"{path} goes on from another run: give --train.start RUN")
        experiment = _begun(path, after, start())
    require(
        experiment is not None or "experiments" not in variables,
        f"{path} builds a list of experiments; train them all with: lm sweep {config}",
    )
    require(isinstance(experiment, Experiment), f"{path} defines no `experiment = lm.Experiment(...)`")
    if experiment.name != Experiment.name:
        return experiment
    try:
        return dataclasses.replace(experiment, name=path.stem)
    except UserError as error:
        raise UserError(f"{path} names its run: {error}; rename the file or give the experiment a name") from error


def _begun(path: Path, after: Callable[[Experiment], Experiment], start: Experiment) -> Experiment:
    try:
        return after(start)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        said = traceback.format_exception_only(error)[-1].strip()
        raise UserError(f"{path}: its `after` does not run: {said[:200]}") from error


def load_experiments(config: str) -> list[Experiment] | None:
    """The list `experiments` of a config, each with a name of its own; None where it has one `experiment` instead."""
    path, variables = _named(config)
    experiments = variables.get("experiments")
    if experiments is None:
        return None
    is_list = isinstance(experiments, list | tuple) and all(isinstance(e, Experiment) for e in experiments)
    require(is_list and bool(experiments), f"{path}: `experiments` must be a list of at least one lm.Experiment")
    return list(experiments)


def architecture(name: str, file: str | None) -> type[ModelBase]:
    """The configuration class that a run's record names.

    file: the config file that defines it, looked for by its name in `config_folders` (never where the record lies);
    None for an architecture of a package. Raises UnknownArchitecture where the file is missing or nothing has
    registered the name, UserError where the file does not run or does not register it.
    """
    known = ARCHITECTURES.get(name)
    if known is not None and known.architecture_file == file:
        return known
    if file is None:
        raise UnknownArchitecture(f"architecture {shown(name)} is not registered{nearest(str(name), ARCHITECTURES)}")
    require(Path(file).name == file and file.endswith(".py"), f"architecture_file {shown(file)}: not a config's name")
    folders = config_folders()
    path = next((folder / file for folder in folders if (folder / file).is_file()), None)
    if path is None:
        where = " or ".join(str(folder) for folder in folders)
        raise UnknownArchitecture(
            f"its architecture {name} is defined in {file}, which is not in {where}; put it into ./configs"
        )
    _run(path)
    known = ARCHITECTURES.get(name)
    require(known is not None and known.architecture_file == file, f"{path} registers no architecture {shown(name)}")
    return known


def _named(config: str) -> tuple[Path, dict[str, Any]]:
    """The path of a config, given by name or path, and the variables that its file leaves."""
    path = Path(config)
    if path.suffix != ".py":
        named = {file.stem: file for folder in reversed(config_folders()) for file in sorted(folder.glob("*.py"))}
        known = ", ".join(sorted(named)) or "none"
        require(
            config in named,
            f"no config named {shown(config)[1:-1]}{nearest(config, named)} (known: {known}; or a path to a .py)",
        )
        path = named[config]
        shipped = config_folders()[1] / path.name
        if shipped.is_file() and path.read_bytes() != shipped.read_bytes():
            tell(f"this is {path}, not the config {path.stem} that comes with lm")
    what = "is a folder" if os.path.isdir(path) else "is not a file" if os.path.lexists(path) else ""
    require(os.path.isfile(path), f"{path} {what}; a config is a .py file" if what else f"no config file {path}")
    return path, _run(path)


def _run(path: Path) -> dict[str, Any]:
    """The variables that a config file leaves. What it prints goes to standard error: a verb's output is its own."""
    key = (os.path.realpath(path), path.read_bytes())
    before = dict(ARCHITECTURES)
    if key in _KEPT:
        variables, own = _KEPT[key]
        ARCHITECTURES.update(own)
        return variables
    try:
        with contextlib.redirect_stdout(sys.stderr):
            variables = runpy.run_path(str(path), run_name=RUN_AS)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a config is any Python at all: sys.exit, and exceptions of its own
        said = traceback.format_exception_only(error)[-1].strip()  # also where its own text cannot be made
        where = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f"{path} does not run: {said[:200]}{where}") from error
    new = {name: kind for name, kind in ARCHITECTURES.items() if before.get(name) is not kind}
    own = {name: kind for name, kind in new.items() if kind.architecture_file in (None, path.name)}
    if own:
        _make_module(f"configs.{path.stem}", variables)
        for kind in own.values():
            kind.architecture_file = path.name  # also of an architecture that it imports
        _KEPT[key] = variables, own
    return variables


def _make_module(name: str, variables: dict[str, Any]) -> None:
    """Make what a config file left a module, where its classes' annotations and sources are looked up later."""
    for kind in variables.values():
        if isinstance(kind, type) and kind.__module__ == RUN_AS:
            kind.__module__ = name
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(variables | {"__name__": name})
