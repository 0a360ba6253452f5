"""Training, top to bottom: data, runs, state, then dispatch, log, evaluate, save, until the last step."""

import contextlib
import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lm import checkpoints, settings
from lm.config import Experiment
from lm.data.batches import Batches, Feed
from lm.data.tokens import Prepared, prepare
from lm.errors import Diverged, require
from lm.model.transformer import compute_dtype, parameter_count
from lm.run import RUNS, Run, open_run
from lm.scaling.flops import train_flops
from lm.training import resume
from lm.training.display import Display
from lm.training.member import Member
from lm.training.memory import require_memory
from lm.training.pack import make_pack, resolve
from lm.training.step import abstract_parts

DISPATCH_SECONDS = 0.25
"""How long the device works between two looks of the host: long enough to hide Python, short enough to watch."""
MOST_PATIENCE = 8
"""A pack works longer between two looks, in proportion to its runs, up to this many times as long."""
FEWEST_STEPS = 4
"""Steps in a dispatch of a large model, as long as they take at most LONGEST_SECONDS: each dispatch allocates its
temporaries anew, which cost a CPU 15% of the time when every step did (6 layers, D=384, T=256)."""
LONGEST_SECONDS = 8.0
MOST_STEPS = 64
"""Most steps in one dispatch."""
STREAMED_BYTES = 64 << 20
"""Most bytes of tokens in one dispatch when they come from the host."""


def train(experiment: Experiment, *, folder: str | Path = RUNS, display: Display | bool | None = True) -> Run:
    """Train an experiment, or resume it where its run directory left off; returns the Run.

    display: False shows nothing; a Display of one's own shows what it likes.
    Resumed training is bit-identical to uninterrupted training on a CPU; so is a run made longer, which goes on from
    where its learning rates would have been the same. Ctrl-C and SIGTERM save and return early: run.finished is False.
    Raises UserError for bad input, a run of another experiment, one whose folder is taken away, and a length that the
    run cannot be given; Diverged when the loss stops making sense.
    """
    return train_pack([experiment], folder=folder, display=display)[0]


def train_pack(
    experiments: Sequence[Experiment],
    *,
    folder: str | Path = RUNS,
    display: Display | bool | None = True,
    how: str = "auto",
    until: int | None = None,
) -> list[Run]:
    """Train experiments side by side, or resume them; returns their Runs in order.

    They may differ in name, seed and what is traced (settings.PACKABLE), and each is trained as if alone: same
    directory, same records, same numbers; on a CPU to the bit, but for how="vmap" (see lm.training.pack). The seconds
    of a run are its share of the pack's, so the runs' sum is the pack's. Those that lag behind are first brought level.
    A run that diverges stops, leaving what it would have left alone; the others go on to the end, then Diverged names
    it. until: the step to save at and return, instead of the last. Otherwise as `train`: Ctrl-C and SIGTERM save every
    run and return early.
    """
    settings.require_packable(experiments)
    resolve(how)
    if display is None or isinstance(display, bool):
        display = Display(quiet=not display)
    with display, _stop_signals() as stop, contextlib.ExitStack() as held:
        data = prepare(experiments[0].data, report=display.stage)
        runs = _open(experiments, data, Path(folder), held, display.say)
        total = runs[0].record["steps"]["total"]
        end = total if until is None else min(until, total)
        lost: dict[Run, Diverged] = {}
        for run in runs:
            if run.finished:  # nothing to train: is what it has whole?
                checkpoints.load(run.checkpoint_folder, run.reached, **abstract_parts(run.experiment))
        behind = [run for run in runs if run.reached < end]
        while behind:
            level = sorted({run.reached for run in behind})
            group, level_end = [run for run in behind if run.reached == level[0]], (*level[1:], end)[0]
            with contextlib.closing(Trainer(group, data, level_end, display, how)) as trainer:
                while trainer.alive and trainer.step < level_end and not stop:
                    trainer.advance()
                if stop or level_end < total:
                    trainer.save()
                if stop and trainer.alive and trainer.step < total:
                    display.say(f"stopped at step {trainer.step} and saved; the same command goes on from there")
            lost |= trainer.lost
            behind = [] if stop or level_end == end else [run for run in behind if run not in lost]
    if lost:
        raise _all_diverged(lost, len(runs))
    return runs


def branch(trunk: Run, experiment: Experiment, step: int, *, folder: str | Path = RUNS) -> Run:
    """Begin an experiment's run with another's state at a step, for which that has a checkpoint; `train` goes on.

    It is the run that would be had from scratch where both are the same up to that step: settings, seed, and the
    learning rate at every step before. A run that has begun is left as it is.
    """
    with contextlib.ExitStack() as held:
        [run] = _open([experiment], prepare(experiment.data), Path(folder), held)
        if not run.steps():
            run.begin_from(trunk, step, **abstract_parts(run.experiment))
    return run


def _open(
    experiments: Sequence[Experiment],
    data: Prepared,
    folder: Path,
    held: contextlib.ExitStack,
    say: Callable[[str], Any] = lambda _: None,
) -> list[Run]:
    """Make or open again every run's directory, and hold them. All that are there already are looked at before any is
    changed, and opened first: a refusal makes no other."""
    plans = []
    for e in experiments:
        e = with_vocabulary(e, data)
        require_memory(e, len(experiments))
        batches = Batches(data.train, context=e.model.context, batch=e.train.batch, seed=e.train.seed)
        total, nonembedding = parameter_count(e.model)
        steps, path = e.steps(batches.epoch_tokens), folder / e.name
        facts = dict(
            documents=data.train.documents, train_tokens=data.train.count, epoch_tokens=batches.epoch_tokens,
            params_total=total, params_nonembedding=nonembedding, flops_per_token=train_flops(e.model),
            steps=dataclasses.asdict(steps),
        )  # fmt: skip
        there = (path / "experiment.json").is_file()
        if there:
            resume.resume_step(Run(path), e, data.hashes, steps)
        take_up = functools.partial(resume.take_up, experiment=e, hashes=data.hashes, steps=steps, say=say)
        plans.append((not there, e, facts, take_up))
    opened = {}
    for _, e, facts, take_up in sorted(plans, key=itemgetter(0)):
        opened[e.name] = held.enter_context(open_run(e, data.hashes, data.tokenizer, facts, folder, take_up))
    return [opened[e.name] for e in experiments]


def _all_diverged(lost: dict[Run, Diverged], runs: int) -> Diverged:
    why = {run.name: str(error) for run, error in lost.items()}
    if runs == 1:
        return Diverged(*why.values(), why)
    each = "; ".join(f"{run.path}: {error}" for run, error in lost.items())
    return Diverged(f"{len(lost)} of {runs} runs diverged, the others went on: {each}", why)


def with_vocabulary(experiment: Experiment, data: Prepared) -> Experiment:
    """The experiment with its vocabulary filled in from the tokenizer, or checked against it."""
    vocab, n = experiment.model.vocab, data.tokenizer.n_vocab
    require(
        vocab in (None, n),
        f"model.vocab {vocab} is not the {n} tokens of tokenizer {data.tokenizer.name}; leave model.vocab out",
    )
    return settings.replace(experiment, {"model.vocab": n})


class Trainer:
    """Runs in progress, all at one step: their state on the device, and what is due at which step."""

    def __init__(self, runs: Sequence[Run], data: Prepared, until: int, display: Display, how: str = "auto"):
        self.members = [Member(run, data) for run in runs]
        self.until, self.display = until, display
        first, count = self.members[0], len(runs)
        e, resident = first.e, first.batches.resident
        self.e, self.steps = e, first.steps  # a pack's runs are due at the same steps
        self.alive = list(range(count))
        self.lost: dict[Run, Diverged] = {}
        self.tokens = jnp.asarray(first.batches.resident_tokens()) if resident else None
        window_bytes = 4 * count * e.train.batch * (e.model.context + 1)
        self.most = MOST_STEPS if resident else max(1, min(MOST_STEPS, STREAMED_BYTES // window_bytes))
        self.feed = Feed(lambda step, n: [member.batches.dispatch(step, n, self.most) for member in self.members])
        self.rate = 0.0  # steps a second in the last dispatch; unknown at first
        self.compiled = False
        resumed = bool(runs[0].steps())
        states, hypers = [member.restore() for member in self.members], [member.hyper for member in self.members]
        self.pack = make_pack(states, hypers, e, first.eot, resident=resident, how=how)
        self.step = runs[0].reached
        self.timer_steps, self.timer = self.step, 0.0
        if resumed:
            display.say(f"resuming {_names(runs)} at step {self.step} of {self.steps.total}")
        fresh = [p for p, run in enumerate(runs) if self.step == 0 and not run.metrics()]
        if fresh:
            display.say(_headline(e, runs))
            if self.steps.eval_every < self.steps.total:  # else the end alone is evaluated
                self._record(fresh, evaluating=True)

    def advance(self) -> None:
        """One dispatch of as many steps as fit before something is due, then whatever is due."""
        start = time.perf_counter()
        n, windows = self.feed(self.step, self._length(self.step))
        waited = (time.perf_counter() - start) / len(self.alive)
        if self.step + n < self.until:
            self.feed.ahead(self.step + n, self._length(self.step + n))
        reports = self.pack.advance(self.tokens, windows, [n * (p in self.alive) for p in range(len(windows))])
        seconds = (time.perf_counter() - start) / len(self.alive)
        for p in list(self.alive):
            if not reports[p]["healthy"]:
                self._lose(p, self.members[p].diverged(reports[p]))
        if not self.alive:
            return
        self.step += n
        for p in self.alive:
            self.members[p].seconds += seconds
            self.members[p].waited += waited
        if self.compiled:
            self.rate, self.timer = n / seconds / len(self.alive), self.timer + seconds
            loss = sum(float(reports[p]["loss"]) for p in self.alive) / len(self.alive)
            self.display.training(self.step, self.steps.total, {"loss": loss}, self.e.batch_tokens * n / seconds)
        else:  # the first dispatch compiled, which says nothing of speed
            self.compiled, self.timer_steps = True, self.step

        last = self.step == self.steps.total
        saving = last or self.step % self.steps.checkpoint_every == 0
        evaluating = saving or self.step % self.steps.eval_every == 0
        if evaluating or self.step % self.steps.log_every == 0:
            records = self._record(self.alive, evaluating, reports)
            if saving:
                self.save({p: record["val_loss"] for p, record in records.items()})
        if not saving:
            self.save(which=[p for p in self.alive if self.members[p].stable_end == self.step])

    def _length(self, step: int) -> int:
        """Steps to make at once from `step` on, as fast as they go at present."""
        every = (self.steps.log_every, self.steps.eval_every, self.steps.checkpoint_every)
        ends = [end for p in self.alive if (end := self.members[p].stable_end) is not None and end > step]
        due = min(self.until, *ends, *((step // interval + 1) * interval for interval in every))
        wanted = round(self.rate * DISPATCH_SECONDS * min(len(self.alive), MOST_PATIENCE))
        least = max(1, min(FEWEST_STEPS, int(self.rate * LONGEST_SECONDS)))
        return min(max(wanted, least), self.most, due - step)

    def _record(self, which: list[int], evaluating: bool, reports: list[dict] | None = None) -> dict[int, dict]:
        """Write down what these runs are owed at this step; returns each record."""
        made = self.step - self.timer_steps
        speed = self.e.batch_tokens * made / self.timer if self.timer else None

        def write(p: int) -> dict:
            params = self.pack.state(p).params if evaluating else None
            return self.members[p].record(self.step, reports and reports[p], speed, params)

        records = self._each(which, write)
        if reports is not None and (self.step % self.steps.log_every == 0 or self.step == self.steps.total):
            self.timer_steps, self.timer = self.step, 0.0
        if evaluating and len(self.members) == 1 and records:
            self.display.evaluated(records[0], self.steps.total)
        elif evaluating and records:
            self.display.say(_summary(records, self.members, self.steps.total))
        return records

    def save(self, val_losses: dict[int, float] | None = None, which: list[int] | None = None) -> None:
        """Write a checkpoint of every run, or of these."""

        def write(p: int) -> None:
            self.members[p].save(self.pack.state(p), (val_losses or {}).get(p))

        self._each(self.alive if which is None else which, write)

    def _each(self, which: list[int], act: Callable[[int], Any]) -> dict[int, Any]:
        """act(p) for each of these runs; one that turns out to have diverged is lost."""
        made = {}
        for p in list(which):
            try:
                made[p] = act(p)
            except Diverged as error:
                self._lose(p, error)
        return made

    def _lose(self, p: int, error: Diverged) -> None:
        run = self.members[p].run
        self.alive.remove(p)
        self.lost[run] = error
        if len(self.members) > 1:
            self.display.say(f"{run.path}: {error}")

    def close(self) -> None:
        self.feed.close()
        for member in self.members:
            member.close()


def _headline(e: Experiment, runs: Sequence[Run]) -> str:
    device, first = jax.devices()[0], runs[0].record
    return (
        f"{_names(runs)}: {first['params_total']:,} parameters, {first['steps']['total']:,} steps of "
        f"{e.batch_tokens:,} tokens from {e.data.corpus} ({first['train_tokens']:,} tokens), "
        f"on {device.device_kind if device.platform != 'cpu' else 'cpu'} in {compute_dtype(e.model)}"
    )


def _names(runs: Sequence[Run]) -> str:
    return str(runs[0].path) if len(runs) == 1 else f"{len(runs)} runs side by side, {runs[0].path} to {runs[-1].path}"


def _summary(records: dict[int, dict], members: Sequence[Member], total: int) -> str:
    """One line for an evaluation of many runs."""
    losses = {p: record["val_loss"] for p, record in records.items()}
    best = min(losses, key=losses.__getitem__)
    step = f"{records[best]['step']:>{len(str(total))}}"
    return (
        f"step {step}/{total}  {len(losses)} runs  validation {losses[best]:.4f} ({members[best].run.name}) "
        f"to {max(losses.values()):.4f} nats/token"
    )


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one acts as usual. Main thread only."""
    received: list[int] = []

    def note(number, _):
        received.append(number)
        signal.signal(number, previous[number])

    previous = {}
    with contextlib.suppress(ValueError):  # signals belong to the main thread; elsewhere the caller has them
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
