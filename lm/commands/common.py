"""What several verbs share."""

import json
import logging
import os
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from lm.errors import UserError, nearest

RunName = Annotated[str, tyro.conf.Positional]
"""A run's directory, or its name under runs/."""
Json = Annotated[bool, tyro.conf.arg(help="One JSON object on standard output, nothing else there.")]
Checkpoint = Annotated[str, tyro.conf.arg(help="latest, best (by validation loss), or a step.")]


def print_json(value: dict[str, Any]) -> None:
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


def prepare_jax() -> None:
    """Keep compiled programs between processes, and keep libraries from narrating."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from lm.data.corpora import cache_folder
    from lm.hardware import keep_compiled_programs

    keep_compiled_programs(cache_folder() / "programs")
    import absl.logging

    absl.logging.set_verbosity(absl.logging.FATAL)  # orbax logs every save, and each failure several times over
    logging.getLogger("jax").setLevel(logging.ERROR)
