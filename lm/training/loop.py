"""Training, top to bottom: data, run directories, state, then dispatch, log, evaluate, save, until the last step."""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from lm import checkpoints, parallel, processes, settings
from lm import tokenizer as tokenizers
from lm.config import Experiment, Steps
from lm.data.batches import Feed
from lm.data.supply import prepare
from lm.data.tokens import Prepared
from lm.errors import Diverged, Stopped, require
from lm.model.api import build
from lm.run import RUNS, Run
from lm.training.context import stage_at
from lm.training.display import Display
from lm.training.member import (
    Member,
    make_member,
    require_healthy,
    restore,
    resumed_report,
    save,
    training_figures,
    validation_figures,
    write_record,
)  # fmt: skip
from lm.training.memory import require_memory
from lm.training.pack import Pack, make_pack, resolve
from lm.training.resume import open_runs, require_own
from lm.training.start import require_others
from lm.training.step import abstract_parts, hyperparameters, whole_params
from lm.training.stopping import stop_signals

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
    """Trains an experiment, or resumes it where its run directory left off; returns the Run.

    display: False shows nothing; a Display of one's own shows what it likes. Of several processes (lm.processes) each
    calls this, and all return; the first alone shows and writes.
    Resumed training is bit-identical to uninterrupted training on a CPU; so is a run made longer, which goes on from
    where its learning rates would have been the same. Ctrl-C and SIGTERM save and return early: run.finished is False;
    or, where the first program still compiles after 5 seconds, SIGTERM ends the process with status 75.
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
    """Trains experiments side by side, or resumes them; returns their Runs in order.

    They may differ in name, seed and what is traced (settings.PACKABLE), and each is trained as if alone: same
    directory, same records, same numbers; on one CPU to the bit, but for how="vmap" (see lm.training.pack). The seconds
    of a run are its share of the pack's, so the runs' sum is the pack's. Those that lag behind are first brought level.
    A run that diverges stops, leaving what it would have left alone; the others go on to the end, then Diverged names
    it. until: the step to save at and return, instead of the last. Otherwise as `train`: Ctrl-C and SIGTERM save every
    run and return early.
    """
    settings.require_packable(experiments)
    resolve(how)
    require(
        len(experiments) == 1 or processes.count() == 1,
        f"{len(experiments)} runs side by side train in one process, not {processes.count()}; one run takes several",
    )
    if display is None or isinstance(display, bool) or not processes.lead():
        display = Display(quiet=not display or not processes.lead())
    with display, stop_signals() as stop, contextlib.ExitStack() as held:
        # --- 1. The experiments and their data -----------------------------------------------------------------------
        for experiment in experiments:
            require_own(experiment, Path(folder))
            require_others(experiment)
        data = processes.lead_first("data", lambda: prepare(experiments[0].data, report=display.stage))
        experiments = [with_vocabulary(e, data) for e in experiments]
        e = experiments[0]  # stands for all below: they share the data, the shapes, and when something is due
        if len(experiments) == 1:
            parallel.require_divisible(parallel.mesh_of(e.parallel), e.train.batch, e.train.accumulation)
        require_memory(e, len(experiments))

        # --- 2. Run directories: made, or opened where they left off -------------------------------------------------
        runs = open_runs(experiments, data, Path(folder), held, display.say)
        for run in runs:
            if run.finished:  # nothing to train: is what it has whole?
                checkpoints.load(run.checkpoint_folder, run.reached, **abstract_parts(run.experiment))
        steps = Steps(**runs[0].record["steps"])
        end = steps.total if until is None else min(until, steps.total)
        members = [make_member(run, data, held, packed=len(runs) > 1) for run in runs if run.reached < end]

        # Runs of a pack that was killed while it was saved may lag behind: they first train to where the others are.
        for step, goal in itertools.pairwise([*sorted({member.run.reached for member in members}), end]):
            if stop:
                break
            stop.unsaved = False
            # --- 3. State: fresh, or restored ------------------------------------------------------------------------
            group = [member for member in members if member.run.reached == step and not member.lost]
            first, resumed = group[0], bool(group[0].run.steps())
            states = [restore(member, display.say) for member in group]
            hypers = [hyperparameters(member.e, member.steps) | frozen(member) for member in group]
            resident = first.batches.resident
            pack = make_pack(states, hypers, first.e, first.eot, how=how, devices=e.parallel.data)
            store = pack.place(first.batches.store()) if resident else None
            del states  # the first dispatch overwrites them
            if resumed:
                display.say(f"resuming {names(group)} at step {step} of {steps.total}")
            if step == 0 and lacking_records(group, 0):
                display.say(headline(e, group, pack.devices))
            # Told to stop while it was evaluated, a run was saved without the record that was due: it is made up for.
            logging, evaluating, _ = due_at(steps, step)
            lacking = processes.leads("records", functools.partial(lacking_records, group, step))
            if lacking and (logging or evaluating) and not stop:
                means = {}
                if logging:
                    reports = {p: resumed_report(group[p], pack.state(p), hypers[p]) for p in lacking}
                    means = {p: training_figures(group[p], reports[p], None) for p in lacking}
                with contextlib.suppress(Stopped):
                    scored = pack if evaluating else None
                    write_down(group, lacking, step, display, means=means, scored=scored, look=stop.look)
            window_bytes = 4 * len(group) * e.train.batch * (e.model.context + 1)
            most = MOST_STEPS if resident else max(1, min(MOST_STEPS, STREAMED_BYTES // window_bytes))
            drawn = e.train.objective == "policy"  # what a step learns from is drawn by the parameters that it changes
            most = e.feedback.updates if drawn else most
            feed = held.enter_context(Feed(functools.partial(read_windows, group, most)))
            rate = None  # steps a second of each run in the last dispatch, known after the second
            since, timed = step, 0.0  # where the speed that is logged is measured from, and a run's seconds since then

            while alive(group) and step < goal and not stop:
                # --- 4. Dispatch: n steps of every run, as many as fit before something is due -----------------------
                start, sharing, stage = time.perf_counter(), len(alive(group)), stage_at(first.stages, step)
                if pack.read_in(stage.pieces):
                    rate = None  # another program, to be compiled
                    display.say(f"windows of {stage.context} tokens from step {step} on")
                if drawn:
                    n, windows = most, draw(group, pack, step)
                else:
                    n, windows = feed(step, dispatch_length(group, step, goal, rate or 0.0, most))
                waited = time.perf_counter() - start
                if step + n < goal and not drawn:  # what comes next is read while the device works
                    feed.ahead(step + n, dispatch_length(group, step + n, goal, rate or 0.0, most))
                reports = pack.advance(store, windows, [0 if member.lost else n for member in group])
                stop.unsaved = True
                seconds = time.perf_counter() - start
                step += n
                for p in alive(group):
                    with losing(group, p, display):
                        require_healthy(group[p], reports[p])
                        group[p].seconds += seconds / sharing
                        group[p].waited += waited / sharing
                if not (going := alive(group)):
                    break
                if rate is not None:
                    rate, timed = processes.agree(n / seconds)[0], timed + seconds / sharing
                    loss = sum(float(reports[p]["loss"]) for p in going) / len(going)
                    display.training(step, steps.total, {"loss": loss}, e.batch_tokens * n * sharing / seconds)
                else:  # the first dispatch of a program compiled it, which says nothing of speed
                    rate, since, timed = 0.0, step, 0.0

                # --- 5. Log, evaluate, save --------------------------------------------------------------------------
                # In this order: a checkpoint keeps its validation loss, and a run that is killed in between forgets
                # what it logged since its last checkpoint and makes those steps again; it never lacks a record.
                logging, evaluating, saving = due_at(steps, step)
                if logging or evaluating:
                    speed = e.batch_tokens * (step - since) / timed if timed else None
                    means = {p: training_figures(group[p], reports[p], speed, pack.devices) for p in going if logging}
                    look = stop.look if step < goal else None  # whoever has come to the end takes the time for it
                    try:
                        scored = pack if evaluating else None
                        records = write_down(group, going, step, display, means=means, scored=scored, look=look)
                    except Stopped:
                        break
                if logging:
                    since, timed = step, 0.0
                for p in alive(group):
                    if saving or step == group[p].stable_end:
                        with losing(group, p, display):
                            save(group[p], pack.state(p), records[p]["val_loss"] if saving else None)

            # --- 6. Close: save what is not saved yet; the directories are let go when `held` is ---------------------
            stop.unsaved = True
            for p in alive(group) if stop or goal < steps.total else ():
                with losing(group, p, display):
                    save(group[p], pack.state(p))
            feed.close()
        if stop and (going := [member.run.reached for member in members if not member.lost]) and min(going) < end:
            display.say(f"stopped at step {min(going)} and saved; the same command goes on from there")
    if lost := {member.run: member.lost for member in members if member.lost}:
        raise all_diverged(lost, len(runs))
    return runs


def branch(trunk: Run, experiment: Experiment, step: int, *, folder: str | Path = RUNS) -> Run:
    """Begins an experiment's run with another's state at a step, for which that has a checkpoint; `train` goes on.

    It is the run that would be had from scratch where both are the same up to that step: settings, seed, and the
    learning rate at every step before. A run that has begun is left as it is.
    """
    data = prepare(experiment.data)
    with contextlib.ExitStack() as held:
        [run] = open_runs([with_vocabulary(experiment, data)], data, Path(folder), held)
        if not run.steps():
            run.begin_from(trunk, step, **abstract_parts(run.experiment))
    return run


def with_vocabulary(experiment: Experiment, data: Prepared) -> Experiment:
    """Returns the experiment with its vocabulary filled in from the tokenizer, or checked against it, and the text of
    the template that wrote its chats."""
    vocab, n = experiment.model.vocab, data.tokenizer.n_vocab
    require(
        vocab is None or tokenizers.serves(data.tokenizer, vocab),
        f"model.vocab {vocab} is not the {n} tokens of tokenizer {data.tokenizer.name}; leave model.vocab out",
    )
    require_kind(experiment, data)
    return settings.replace(experiment, {"model.vocab": vocab or n, "data.template": data.template})


def require_kind(e: Experiment, data: Prepared) -> None:
    """Raises UserError where the examples are of another kind than the objective learns from."""
    kind, objective = getattr(data.train, "kind", None), e.train.objective
    pairs = objective in ("preference", "reward")
    wanted = "examples with chosen and rejected answers" if pairs else "prompts with one answer each, or preferences"
    learns = f"train.objective {objective}: learns from {wanted}; {e.data.learnt} holds {kind}"
    if objective == "policy":
        read = ("prompt/completion", "chosen/rejected", "messages")
        require(kind in read or data.template is not None, f"{learns}: data.template plain makes chats of them")
    else:
        preferences = kind == "chosen/rejected"
        require(preferences or not pairs, learns)
        require(pairs or not preferences, f"{e.data.learnt} holds {kind}: give train.objective preference or reward")


# --- when, and how much at once --------------------------------------------------------------------------------------
def dispatch_length(group: Sequence[Member], step: int, goal: int, rate: float, most: int) -> int:
    """Returns how many steps to make at once from `step` on, as fast as they go at present."""
    steps, going = group[0].steps, alive(group)
    ends = [end for p in going if (end := group[p].stable_end) is not None and end > step]
    ends.append(stage_at(group[0].stages, step).end)
    every = (steps.log_every, steps.eval_every, steps.checkpoint_every)
    due = min(goal, *ends, *((step // interval + 1) * interval for interval in every))
    wanted = round(rate * DISPATCH_SECONDS * min(len(going), MOST_PATIENCE))
    least = max(1, min(FEWEST_STEPS, int(rate * LONGEST_SECONDS)))
    return min(max(wanted, least), most, due - step)


def due_at(steps: Steps, step: int) -> tuple[bool, bool, bool]:
    """Tells whether training is to be logged at a step, the parameters evaluated, and saved."""
    if step == 0:  # nothing to log or save; where the end alone is evaluated, the beginning is not
        return False, steps.eval_every < steps.total, False
    last = step == steps.total
    logging, saving = (last or step % every == 0 for every in (steps.log_every, steps.checkpoint_every))
    return logging, saving or step % steps.eval_every == 0, saving


def read_windows(group: Sequence[Member], most: int, step: int, n: int) -> list[Any]:
    """Returns what each run reads in the n steps from `step`: see Batches.dispatch."""
    pieces = stage_at(group[0].stages, step).pieces
    batches = [m.batches if pieces == 1 else dataclasses.replace(m.batches, pieces=pieces) for m in group]
    return [read.dispatch(step, n, most) for read in batches]


def draw(group: Sequence[Member], pack: Pack, step: int) -> list[Any]:
    """Returns what each run learns from in its next steps, which its policy draws now; see lm.training.rollouts."""
    drawn: list[Any] = []
    for p, member in enumerate(group):
        if member.lost:  # its place is kept, and nothing is made of it
            drawn.append(None)
            continue
        params = whole_params(member.e, pack.state(p).params, member.frozen)
        columns = member.batches.dispatch(step, params, member.frozen["reference"])
        drawn.append({name: column for name, column in columns.items() if name != "divergence_B"})
    known = next(columns for columns in drawn if columns is not None)
    return [known if columns is None else columns for columns in drawn]


def frozen(member: Member) -> dict[str, Any]:
    """Returns what a step's numbers are completed by, where parameters are read and never changed."""
    return {"frozen": member.frozen} if member.frozen else {}


# --- runs of a pack, by their places in it ---------------------------------------------------------------------------
def alive(group: Sequence[Member]) -> list[int]:
    """Returns the places of the runs that have not diverged."""
    return [p for p, member in enumerate(group) if not member.lost]


def lacking_records(group: Sequence[Member], step: int) -> list[int]:
    """Returns the places of the runs without a record of a step, to which restoring has cut their metrics back."""
    return [p for p in alive(group) if not any(record["step"] == step for record in group[p].run.metrics())]


@contextlib.contextmanager
def losing(group: Sequence[Member], p: int, display: Display) -> Iterator[None]:
    """Takes a run that turns out to have diverged out of the pack, where the others go on."""
    try:
        yield
    except Diverged as error:
        group[p].lost = error
        if len(group) > 1:
            display.say(f"{group[p].run.path}: {error}")


def all_diverged(lost: dict[Run, Diverged], runs: int) -> Diverged:
    """Returns one error for all runs that diverged, of so many."""
    why = {run.name: str(error) for run, error in lost.items()}
    if runs == 1:
        return Diverged(*why.values(), why)
    each = "; ".join(f"{run.path}: {error}" for run, error in lost.items())
    return Diverged(f"{len(lost)} of {runs} runs diverged, the others went on: {each}", why)


def write_down(
    group: Sequence[Member],
    places: Sequence[int],
    step: int,
    display: Display,
    *,
    means: dict[int, dict] | None = None,
    scored: Pack | None = None,
    look: Callable[[int], None] | None = None,
) -> dict[int, dict]:
    """Writes the records of the runs at these places, and shows what was evaluated. Returns the records by place.

    means: of training, by place, where they are due. scored: the pack, where its parameters are to be evaluated.
    look: called between batches of an evaluation, which it may end by an exception: no record is written of that run.
    """
    records = {}
    for p in places:
        with losing(group, p, display):
            figures = means[p] if means else {}
            if scored:
                figures |= validation_figures(group[p], step, scored.state(p).params, look)
            records[p] = write_record(group[p], step, figures)
    if scored and records:
        display.evaluated({group[p].run.name: record for p, record in records.items()}, group[0].steps.total)
    return records


def names(group: Sequence[Member]) -> str:
    """Names the run, or the runs, that train."""
    first, last = group[0].run.path, group[-1].run.path
    return str(first) if len(group) == 1 else f"{len(group)} runs side by side, {first} to {last}"


def headline(e: Experiment, group: Sequence[Member], devices: int) -> str:
    """Says what is about to be trained, on what and where."""
    device, record = jax.local_devices()[0], group[0].run.record
    several = f" in {processes.count()} processes" if processes.count() > 1 else ""
    side_by_side = "" if devices == 1 else f" ({devices} devices{several})"
    return (
        f"{names(group)}: {record['params_total']:,} parameters, {record['steps']['total']:,} steps of "
        f"{e.batch_tokens:,} tokens from {e.data.learnt} ({record['train_tokens']:,} tokens), "
        f"on {device.device_kind if device.platform != 'cpu' else 'cpu'}{side_by_side} in {build(e.model).precision}"
    )
