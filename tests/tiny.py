"""A tiny experiment that trains in a moment, and a text for it: shared by the tests of training, runs and the command.

Every test that trains uses the same shapes wherever it can, because most of a test's time is compilation and the
session keeps compiled programs.
"""

import random
from pathlib import Path

import jax
import numpy as np

from lm import settings
from lm.config import DataConfig, Experiment, ModelConfig, ScheduleConfig, TrainConfig

WORDS = ("the", "king", "sat", "on", "a", "mat", "and", "his", "queen", "ran", "to", "river", "where", "old", "fish")
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiler options for programs that run once: the same arithmetic, compiled in a fraction of the time."""


def text(words: int = 4000, seed: int = 0) -> str:
    """Sentences of random words, line by line: one document of about four characters a word."""
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) + (".\n" if rng.random() < 0.1 else " ") for _ in range(words))


def experiment(corpus: Path | str, **changes) -> Experiment:
    """L=2, D=16, T=16, characters, 60 steps of 4 x 16 tokens. Keyword a__b changes the setting a.b."""
    base = Experiment(
        name="tiny",
        model=ModelConfig(layers=2, width=16, heads=2, context=16, feedforward=32, dtype="float32", unroll=1),
        data=DataConfig(corpus=str(corpus), tokenizer="chars"),
        schedule=ScheduleConfig(warmup=5),
        train=TrainConfig(steps=60, batch=4, log_every=7, eval_every=20, checkpoint_every=15, eval_tokens=512),
    )
    return replaced(base, **changes)


def replaced(e: Experiment, **changes) -> Experiment:
    """A copy with settings changed: a__b stands for a.b."""
    return settings.replace(e, {key.replace("__", "."): value for key, value in changes.items()})


def same_bits(a, b) -> bool:
    """Whether two trees of arrays are the same in structure, types and every bit (NaN equals itself).

    To be asked of copies, and of what one program made of the same numbers in the same shapes: a processor repeats
    itself, but two programs may add up in different orders (see close.py).
    """

    def bits(x):
        return np.asarray(x).dtype, np.asarray(x).shape, np.asarray(x).tobytes()

    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.map(bits, a) == jax.tree.map(bits, b)


TIMINGS = {"seconds", "data_wait", "tokens_per_second", "mfu"}
"""Figures of a record that depend on the clock."""


def logged(run) -> list[dict]:
    """A run's records without what depends on the clock."""
    return [{key: value for key, value in record.items() if key not in TIMINGS} for record in run.metrics()]
