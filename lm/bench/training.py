"""How fast training goes: the program that `lm train` runs, on random tokens, beside the machine's limits and peers."""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lm import settings
from lm.bench import machine
from lm.bench.peers import gather, training_peers
from lm.bench.profile import make_folder
from lm.bench.profile import profile as profiled
from lm.bench.results import TrainBench, describe, peers_of
from lm.bench.rounds import Contestant, check_turns, compare
from lm.config import ONE_DEVICE, Experiment
from lm.errors import require
from lm.model.api import build
from lm.training.display import Display
from lm.training.loop import MOST_STEPS
from lm.training.memory import require_memory
from lm.training.pack import make_pack
from lm.training.step import hyperparameters, init_state

TOKENS = 1 << 20
"""Random tokens to train on."""
TRACED = 2
"""Dispatches in a profile: of a small model a turn has hundreds, whose trace would take a minute to read."""
VOCABULARY = {"bytes": 257, "chars": 65}
"""Entries where neither the model nor the data says: bytes and end of text; Shakespeare's characters."""
PUBLISHED = 50257
"""GPT-2's vocabulary, for any other tokenizer."""
PEERS = "; peers train the same architecture with the same optimizer"
"""Said where there are any."""


def with_random_vocabulary(e: Experiment) -> Experiment:
    """The experiment with a vocabulary, since no tokenizer is built to ask."""
    built = e.data.vocab if e.data.tokenizer in ("words", "bpe") else PUBLISHED
    vocab = e.model.vocab or VOCABULARY.get(e.data.tokenizer, built)
    return settings.replace(e, {"model.vocab": vocab})


def train(
    experiment: Experiment,
    *,
    rounds: int = 5,
    seconds: float = 2.0,
    peers: bool = True,
    profile: Path | None = None,
    display: Display | None = None,
) -> TrainBench:
    """Time an experiment's training steps in `rounds` turns of `seconds`, and in the same rounds what limits them.

    peers: also time PyTorch, eager and compiled, where it is installed, training the same architecture in the same way.
    profile: a folder for a trace of a few dispatches, whose costliest operations the result then lists.
    No corpus is read and no run is made.
    """
    e = with_random_vocabulary(experiment)
    model = build(e.model)
    check_turns(rounds, seconds)
    if profile:
        make_folder(profile)
    with display or Display(quiet=True) as display:
        display.stage("compiling", 0, None)
        program = Program(e)
        limits, copying = machine.matmul_limits(str(model.product_dtype)), machine.copy_limit()
        others, absent = gather(training_peers(e), display) if peers else ([], [])
        contestants = [Contestant("lm", program.run), *others, *(x.contestant for x in (*limits, copying))]
        timings = compare(contestants, seconds, rounds, report=lambda done, total: display.stage("timing", done, total))
        traced = min(timings[0].units, TRACED * program.dispatch)
        operations = profiled(lambda: program.run(traced), profile) if profile else []
    rates = timings[0].seconds.per(e.batch_tokens)
    flops_per_token = model.cost().training_flops
    said = PEERS if others else ""
    flops, peak = rates.median * flops_per_token, machine.fastest(limits, timings)
    return TrainBench(
        what=f"training, {describe(e.model, f'batch {e.train.batch}, {e.optimizer.name}')}{said}",
        tokens_per_second=rates.median, quartiles=(rates.low, rates.high), rounds=rounds,
        flops_per_token=flops_per_token, flops_per_second=flops, peak_flops_per_second=peak,
        utilization=flops / peak, copied_bytes_per_second=machine.fastest([copying], timings),
        steps_per_second=1 / timings[0].seconds.median, compile_seconds=program.compile_seconds,
        memory_bytes=program.memory_bytes, memory_peak_bytes=machine.peak_memory(),
        peers=peers_of([one.name for one in others], timings, e.batch_tokens), absent=absent, operations=operations,
    )  # fmt: skip


class Program:
    """The compiled training program of a run, or of a pack of them (see lm/training/pack.py), with what it works on.

    A unit of work is an optimizer step of every run. dispatch: most steps in one call, and each call is waited for.
    pieces: how many each window is read in, by a schedule of context.
    """

    def __init__(self, *runs: Experiment, how: str = "auto", dispatch: int = MOST_STEPS, pieces: int = 1):
        e, self.dispatch = runs[0], dispatch
        require_memory(e, len(runs))
        self.tokens, starts = _random_data(e, dispatch, pieces * e.train.batch)
        self.starts = [starts] * len(runs)
        hypers = [hyperparameters(run, run.steps(self.tokens.size)) for run in runs]
        states = [init_state(dataclasses.replace(run, parallel=ONE_DEVICE) if len(runs) > 1 else run) for run in runs]
        self.pack = make_pack(states, hypers, e, e.model.vocab - 1, how=how, devices=e.parallel.data)
        self.pack.read_in(pieces)
        self.tokens = self.pack.place(self.tokens)
        start = time.perf_counter()
        self.pack.compile(self.tokens, self.starts, [1] * len(runs))
        self.compile_seconds = time.perf_counter() - start
        memory = self.pack.compiled.memory_analysis()
        self.memory_bytes = memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else None
        self.run(1)

    def run(self, n: int) -> None:
        """n steps, in dispatches as long as training's own unless told otherwise."""
        for done in range(0, n, self.dispatch):
            count = min(self.dispatch, n - done)
            reports = self.pack.advance(self.tokens, self.starts, [count] * len(self.starts))
            bad = next((report for report in reports if not report["healthy"]), None)
            require(bad is None, f"training on random tokens diverged at step {bad and bad['step']}")


def _random_data(e: Experiment, steps: int, rows: int) -> tuple[jax.Array, np.ndarray]:
    """Tokens on the device, and where the windows of `steps` batches of so many rows start in them."""
    rng, n = np.random.default_rng(0), max(TOKENS, e.model.context + 1)
    tokens = jnp.asarray(rng.integers(e.model.vocab, size=n, dtype=np.uint32))
    if e.model.vocab <= 1 << 16:
        tokens = tokens.astype(jnp.uint16)
    return tokens, rng.integers(n, size=(steps, rows), dtype=np.int32)
