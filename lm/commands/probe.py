"""lm probe RUN ACTION ...: what a trained model knows. Each action is a module of lm.probe.actions, found by its name.

In the place of a run, probes of words take a file of word vectors.
Such a module's first line is `action ARGUMENTS: what it shows`, its `Options` are the command's, and its
`run(m, options)` returns a `Report`.
"""

import importlib
import os
import pkgutil
from pathlib import Path
from typing import Any

from lm.arguments import parse
from lm.commands.common import prepare_jax, print_json
from lm.config import ParallelConfig
from lm.errors import UserError, nearest, require
from lm.probe import actions
from lm.probe.options import ProbeOptions, WordOptions


def names() -> list[str]:
    """The actions there are, in alphabetical order; none is imported."""
    return [module.name for module in pkgutil.iter_modules(actions.__path__)]


def usage() -> str:
    """How the command is used: the first line of every action's module."""
    lines = ["lm probe RUN ACTION ...: what a trained model knows, beside controls", ""]
    for module in pkgutil.iter_modules(actions.__path__):
        source = module.module_finder.find_spec(module.name).loader.get_source(module.name)
        call, _, about = source.partition("\n")[0].strip('"').partition(": ")
        lines.append(f"  {call:<40} {about.rstrip('.')}")
    lines += ["", "`lm probe RUN ACTION --help` explains each; every one takes --json and --figure."]
    lines += ["Those of words also take, for RUN, vectors of word2vec, GloVe or fastText: .txt, .vec or .bin (.gz)."]
    return "\n".join(lines)


def run(arguments: list[str]) -> None:
    """Run one action on a run: the run comes first, then the action."""
    if not arguments or arguments[0] in ("-h", "--help") or arguments[1:] in (["-h"], ["--help"]):
        print(usage())
        return
    name, *rest = arguments
    known, word = names(), rest[0] if rest else ""
    if name in known and word not in known:
        raise UserError(f"{name}: the run comes first: lm probe RUN {name} ...")
    wrong = f"{word}: no such action{nearest(word, known)}" if word else "no action given"
    require(word in known, f"{wrong} (lm probe RUN {' | '.join(known)})")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before the action imports JAX, which would set it otherwise
    action = importlib.import_module(f"{actions.__name__}.{word}")
    options = parse(action.Options, rest[1:], f"lm probe RUN {word}")
    options.check()
    if options.figure is not None:
        from lm.figures import check_format

        check_format(options.figure, "--figure")
    found = action.run(_subject(name, word, options), options)
    drawn = {} if options.figure is None else {"figure": str(options.figure)}
    if drawn:
        found.draw(options.figure)
    if options.json:
        print_json(found.value | drawn)
    else:
        from lm.tables import show

        show(*found.parts, *drawn.values())


def _subject(name: str, action: str, options: ProbeOptions) -> Any:
    """What is looked at: the model of a run, or a file of word vectors as a Space.

    A run that has the name comes before a file. Raises UserError for vectors where a model is needed.
    """
    prepare_jax()
    from lm.data.vectors import FORMATS, suffix
    from lm.run import exists

    path = Path(name).expanduser()
    if exists(name) or suffix(path) not in FORMATS:
        return load_model(name, options.checkpoint, options.parallel)
    require(path.is_file(), f"{name}: no such run (`lm runs` lists them), and no such file of word vectors")
    inside = not isinstance(options, WordOptions)
    require(not inside, f"{action} looks inside a model, and {name} holds word vectors; give a run")
    options.check_vectors(path)
    from lm.probe.words import space_in

    return space_in(path, restrict=options.restrict)


def load_model(run: str, checkpoint: str, parallel: ParallelConfig):
    """Load the model to look at. Raises UserError for a run that diverged."""
    import jax
    import numpy as np

    from lm.run import load

    m = load(run, checkpoint, parallel=parallel)
    finite = all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(m.params))
    require(finite, f"{run}: parameters of step {m.step} are not finite; choose an earlier --checkpoint")
    return m
