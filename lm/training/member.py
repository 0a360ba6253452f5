"""One run while it trains, alone or in a pack: what belongs to it, and what is written to its directory."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import checkpoints, evaluation, parallel, processes
from lm import tokenizer as tokenizers
from lm.checkpoints import Checkpoints
from lm.config import ONE_DEVICE, Experiment, Steps
from lm.data.batches import Batches, ExampleBatches
from lm.data.supply import held_out, open_batches
from lm.data.tokens import Prepared
from lm.errors import Diverged
from lm.hardware import peak_flops
from lm.model.api import build
from lm.run import Run
from lm.tokenizer import Tokenizer
from lm.training import schedules
from lm.training.context import Stage, flops_per_token, passes, stage_at, stages, training_flops
from lm.training.objectives import FIGURES, LANGUAGE, mean_account
from lm.training.resume import stable_end
from lm.training.rollouts import Rollouts, open_rollouts
from lm.training.start import begin_with, frozen_params
from lm.training.step import (
    TrainState,
    abstract_parts,
    all_finite,
    hyperparameters,
    init_state,
    parts,
    static,
    whole_params,
)
from lm.training.trackers import TRACKERS, Tracker


@dataclasses.dataclass(eq=False)
class Member:
    """A run in training. It only stores; the functions below restore it and write for it."""

    run: Run
    e: Experiment
    steps: Steps
    batches: Batches | ExampleBatches | Rollouts
    validation: dict[str, np.ndarray] | Rollouts
    tokenizer: Tokenizer
    bytes_V: np.ndarray
    eot: int
    stable_end: int | None
    stages: tuple[Stage, ...]
    writer: Checkpoints
    trackers: list[Tracker]
    seconds: float = 0.0
    """Time spent on training this run, as far as it is logged."""
    waited: float = 0.0
    """Of it, the time in which the device had nothing to do because its next batches were not there yet."""
    frozen: dict[str, dict] = dataclasses.field(default_factory=dict)
    """Parameters that it reads and never changes, once it is restored."""
    lost: Diverged | None = None
    """Why the run goes on no more, once it has diverged."""


def make_member(run: Run, data: Prepared, held: contextlib.ExitStack, *, packed: bool = False) -> Member:
    """Makes an open run ready to be trained, until `held` closes its files. packed: its state lies on one device.

    Raises UserError where its checkpoints or its trackers cannot be used.
    """
    e, steps = run.experiment, Steps(**run.record["steps"])
    e = dataclasses.replace(e, parallel=ONE_DEVICE) if packed else e
    stable = stable_end(e, steps)
    writer = Checkpoints(run.checkpoint_folder, e.train.keep, () if stable is None else (stable,))
    held.callback(writer.close)
    if e.train.objective == "policy":
        judge = run.record.get("taken", {}).get("reward")
        batches, validation = (open_rollouts(e, file, data.tokenizer, judge) for file in (data.train, data.validation))
    else:
        batches = open_batches(data.train, e.data, e.model, batch=e.train.batch, seed=e.train.seed)
        validation = held_out(data.validation, e.data, e.model, e.train.eval_tokens)
    return Member(
        run=run, e=e, steps=steps, tokenizer=data.tokenizer, eot=data.tokenizer.eot_token,
        bytes_V=tokenizers.token_bytes(data.tokenizer),
        batches=batches, validation=validation,
        stable_end=stable, stages=stages(e, steps), writer=writer,
        trackers=[TRACKERS[name](run) for name in e.train.trackers if processes.lead()],
    )  # fmt: skip


def restore(member: Member, say: Callable[[str], Any]) -> TrainState:
    """Returns a fresh state, or that of the latest checkpoint, and cuts the metrics back to it."""
    run, kept, e = member.run, member.run.steps(), member.e
    member.frozen = frozen_params(e, run, member.tokenizer)
    if mesh := parallel.mesh_of(e.parallel):
        places = parallel.shardings(mesh, build(e.model), member.frozen, fsdp=e.parallel.fsdp)
        member.frozen = jax.tree.map(parallel.put, member.frozen, places)
    if not kept:
        run.forget_after(-1)
        fresh = init_state(e)
        if e.train.start is None or e.optimizer.lora is not None:
            return fresh
        step = run.record.get("taken", {}).get("start")  # none of a file of vectors
        params, said = begin_with(fresh.params, build(e.model), member.tokenizer, e.train.start, step)
        say(said)
        if parallel.mesh_under(fresh.params) is not None:
            params = jax.tree.map(lambda new, old: parallel.put(new, old.sharding), params, fresh.params)
        return dataclasses.replace(fresh, params=params)
    loaded = checkpoints.load(run.checkpoint_folder, kept[-1], **abstract_parts(member.e))
    run.forget_after(kept[-1])
    for record in run.metrics():
        member.seconds = record.get("seconds", member.seconds)
        member.waited = record.get("data_wait", 0.0) * member.seconds
    return TrainState(loaded["params"], **loaded["training"])


def require_healthy(member: Member, report: dict) -> None:
    """Raises Diverged where the step that was reported last made no sense."""
    if not report["healthy"]:
        raise diverged(member, int(report["step"]), report["loss"], report["gradient_norm"])


def training_figures(member: Member, report: dict, speed: float | None, devices: int = 1) -> dict:
    """Returns what is logged of training: means over the steps since the last log point, as the report sums them up.

    speed: tokens a second over those of them with windows as long as the last's, where it is known. devices: how many
    worked on it.
    """
    e, sums = member.e, report["sums"]
    figures = {
        "loss": float(sums["nats"] / sums["tokens"]),
        "gradient_norm": float(sums["gradient_norm"] / sums["steps"]),
        "learning_rate": float(report["rate"]) * e.optimizer.learning_rate,
    }
    figures |= {name: float(sums[name] / sums["tokens"]) for name in FIGURES[e.train.objective]}
    if speed is not None:
        peak, _ = peak_flops(str(build(e.model).product_dtype))
        spent = speed * passes(e) * flops_per_token(e.model, stage_at(member.stages, int(report["step"]) - 1).context)
        figures |= {"tokens_per_second": speed, "mfu": spent / (devices * peak)}
    return figures


def resumed_report(member: Member, state: TrainState, hyper: dict) -> dict:
    """Returns what of a step's report a record needs, from the state that was saved at that step."""
    rate = schedules.rate(member.e.schedule.name, jnp.float32(int(state.step) - 1), hyper)
    return {"sums": jax.device_get(state.sums), "rate": rate}


def validation_figures(member: Member, step: int, params: dict, look: Callable[[int], None] | None = None) -> dict:
    """Scores the parameters on the fixed validation set. Raises Diverged where that is not a number.

    params: as they are trained. look: called after each batch with the bytes scored so far; what it raises ends the
    evaluation.
    """
    e, validation = member.e, member.validation
    params = whole_params(e, params, member.frozen)
    if e.train.objective not in LANGUAGE:
        if isinstance(validation, Rollouts):
            most = max(1, e.train.eval_tokens // e.model.context)
            figures = validation.score(params, member.frozen["reference"], most)
        else:
            hyper = hyperparameters(e, member.steps) | {"frozen": member.frozen}
            figures = mean_account(params, validation, static(e), member.eot, hyper)
        if not math.isfinite(figures["val_loss"]):
            raise diverged(member, step, figures["val_loss"])
        return figures
    score = evaluation.score_columns(
        build(e.model), params, validation, member.bytes_V, objective=e.train.objective,
        eot=member.eot if e.data.packing else None, batch=e.train.batch // e.train.accumulation,
        chunk=e.train.loss_chunk, report=look,
    )  # fmt: skip
    if not math.isfinite(score.loss):
        raise diverged(member, step, score.loss)
    return {"val_loss": score.loss, "val_bits_per_byte": score.bits_per_byte}


def write_record(member: Member, step: int, figures: dict) -> dict:
    """Writes a step's figures to metrics.jsonl and to the trackers. Returns the record."""
    waited = member.waited / member.seconds if member.seconds else 0.0
    record = spent_until(member, step) | figures | {"seconds": member.seconds, "data_wait": waited}
    member.run.append(record)
    for track in member.trackers:
        track(record)
    return record


def spent_until(member: Member, step: int) -> dict:
    """Returns what every record begins with: a step, and what has been read and computed up to there."""
    flops = training_flops(member.e, member.steps, step)
    return {"step": step, "tokens": step * member.e.batch_tokens, "flops": flops}


def save(member: Member, state: TrainState, val_loss: float | None = None) -> None:
    """Writes a checkpoint. Raises Diverged, having written none, where a parameter is not finite."""
    step = int(state.step)
    if not all_finite(state.params):
        raise diverged(member, step)
    member.run.require_there()
    member.writer.save(step, val_loss, **parts(state))
    member.run.require_there(saved=step)


def diverged(member: Member, step: int, loss: float = math.nan, gradient_norm: float = math.nan) -> Diverged:
    """Notes in the run's records that it diverged. Returns the error that says where, and what to try."""
    e, o, kept = member.e, member.e.optimizer, member.run.steps()
    member.run.append(spent_until(member, step) | {"diverged": 1, "seconds": member.seconds})
    saved = f"the last good checkpoint is step {kept[-1]}" if kept else "nothing was saved"
    rates = f"--optimizer.learning-rate (now {o.learning_rate:g})"
    if o.name == "muon":
        rates += f" and --optimizer.matrix-learning-rate (now {o.matrix_learning_rate:g})"
    return Diverged(
        f"training diverged at step {step}: loss {loss:.4g}, gradient norm {gradient_norm:.4g}; {saved}; under another "
        f"--name try a lower {rates}, a longer --schedule.warmup (now {e.schedule.warmup}) or --optimizer.clip 1.0 "
        f"(now {o.clip})"
    )
