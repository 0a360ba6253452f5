"""lm bench train | decode: throughput, what limits it, and peers."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from lm.arguments import parse, parse_train
from lm.commands.common import Json, action, prepare_jax, print_json, split
from lm.config import Experiment
from lm.limits import Count, Positive


def run(arguments: list[str]) -> None:
    action("bench", arguments, {"train": train, "decode": decode})


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Time the training program of a CONFIG, and any of its settings: lm bench train CONFIG --model.layers 4 ..."""

    rounds: Count = 5
    """Turns of every contestant, in alternation."""
    seconds: Positive = 2.0
    """Length of a turn."""
    peers: bool = True
    """Also time what is installed of the extra `bench`: PyTorch trains the same architecture, and those that decode
    are GPT-2s of the same shape."""
    profile: Path | None = None
    """A folder for a trace of one more turn; its costliest operations are listed."""
    json: Json = False


@dataclasses.dataclass(frozen=True)
class DecodeOptions(TrainOptions):
    """Time generation with a RUN, or a CONFIG's random weights: lm bench decode RUN | CONFIG --model.layers 4 ..."""

    batch: Count = 1
    """Rows made at once."""
    tokens: Count | None = None
    """To make in each row: 256, or what the context holds, by default."""
    prompt_tokens: Count = 16
    """In each row's prompt."""


def train(arguments: list[str]) -> None:
    word, own, rest = split("bench train", TrainOptions, arguments)
    o = parse(TrainOptions, own, "lm bench train CONFIG")
    _show(o, "train", lambda: _experiment(word, rest))


def decode(arguments: list[str]) -> None:
    word, own, rest = split("bench decode", DecodeOptions, arguments)
    o = parse(DecodeOptions, own, "lm bench decode CONFIG|RUN")
    _show(o, "decode", lambda: _experiment(word, rest) if rest else _run_or_experiment(word))


def _show(o: TrainOptions, verb: str, subject: Callable[[], object]) -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave the peers some of a GPU's memory
    benched = subject()
    prepare_jax()
    import jax

    jax.config.update("jax_compilation_cache_dir", None)  # compile afresh: how long that takes is measured too
    from lm import bench
    from lm.training.display import Display

    settings = {f.name: getattr(o, f.name) for f in dataclasses.fields(o) if f.name != "json"}
    result = getattr(bench, verb)(benched, **settings, display=Display())
    if o.json:
        print_json(dataclasses.asdict(result))
    else:
        print(result.table(), end="")


def _experiment(config: str, rest: list[str]) -> Experiment:
    return parse_train([config, *rest]).experiment


def _run_or_experiment(word: str):
    from lm.run import exists, load

    return load(word) if exists(word) else _experiment(word, [])
