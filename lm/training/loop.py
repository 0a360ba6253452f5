"""Training, top to bottom: data, run, state, then dispatch, log, evaluate, save, until the last step."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lm import checkpoints, evaluation, settings
from lm import tokenizer as tokenizers
from lm.checkpoints import Checkpoints
from lm.config import Experiment, Steps
from lm.data.batches import Batches, Feed, validation_windows
from lm.data.tokens import Prepared, prepare
from lm.errors import Diverged, require
from lm.hardware import peak_flops
from lm.model.transformer import compute_dtype, parameter_count
from lm.run import RUNS, Run, open_run
from lm.scaling.flops import train_flops
from lm.training.display import Display
from lm.training.step import TrainState, all_finite, hyperparameters, init_state, make_train_steps
from lm.training.trackers import TRACKERS

DISPATCH_SECONDS = 0.25
"""How long the device works between two looks of the host: long enough to hide Python, short enough to watch."""
MOST_STEPS = 64
"""Most steps in one dispatch."""
STREAMED_BYTES = 64 << 20
"""Most bytes of tokens in one dispatch when they come from the host."""


def train(experiment: Experiment, *, folder: str | Path = RUNS, display: Display | None = None) -> Run:
    """Train an experiment, or resume it where its run directory left off; returns the Run.

    Resumed training is bit-identical to uninterrupted training on a CPU. Ctrl-C and SIGTERM save and return early.
    Raises UserError for bad input or a run of another experiment, Diverged when the loss stops making sense.
    """
    with display or Display(quiet=True) as display, _stop_signals() as stop:
        data = prepare(experiment.data, report=display.stage)
        experiment = with_vocabulary(experiment, data)
        batches = Batches(
            data.train, context=experiment.model.context, batch=experiment.train.batch, seed=experiment.train.seed
        )
        steps = experiment.steps(batches.epoch_tokens)
        facts = dict(
            documents=data.train.documents, train_tokens=data.train.count, epoch_tokens=batches.epoch_tokens,
            params_total=parameter_count(experiment.model)[0], params_nonembedding=parameter_count(experiment.model)[1],
            flops_per_token=train_flops(experiment.model), steps=dataclasses.asdict(steps),
        )  # fmt: skip
        opened = open_run(experiment, data.hashes, data.tokenizer, facts, Path(folder))
        with opened as run, contextlib.closing(Trainer(run, data, batches, steps, display)) as trainer:
            while trainer.step < steps.total and not stop:
                trainer.advance()
            if stop:
                trainer.save(val_loss=None)
                display.say(f"stopped at step {trainer.step} and saved; the same command goes on from there")
    return run


def with_vocabulary(experiment: Experiment, data: Prepared) -> Experiment:
    """The experiment with its vocabulary filled in from the tokenizer, or checked against it."""
    vocab, n = experiment.model.vocab, data.tokenizer.n_vocab
    require(
        vocab in (None, n),
        f"model.vocab {vocab} is not the {n} tokens of tokenizer {data.tokenizer.name}; leave model.vocab out",
    )
    return settings.replace(experiment, {"model.vocab": n})


class Trainer:
    """A run in progress: state on the device, and what is due at which step."""

    def __init__(self, run: Run, data: Prepared, batches: Batches, steps: Steps, display: Display):
        e = self.e = run.experiment
        self.run, self.steps, self.display, self.batches = run, steps, display, batches
        self.eot = data.tokenizer.eot_token
        self.bytes_V = tokenizers.token_bytes(data.tokenizer)
        self.validation = validation_windows(data.validation, e.model.context, e.train.eval_tokens)
        self.hyper = hyperparameters(e, steps)
        self.train_steps = make_train_steps(e, self.eot, resident=batches.resident)
        self.tokens = jnp.asarray(batches.resident_tokens()) if batches.resident else None
        self.feed = None if batches.resident else Feed(batches)
        window_bytes = 4 * e.train.batch * (e.model.context + 1)
        self.most = MOST_STEPS if batches.resident else max(1, min(MOST_STEPS, STREAMED_BYTES // window_bytes))
        self.trackers = [TRACKERS[name](run) for name in e.train.trackers]
        self.writer = Checkpoints(run.checkpoint_folder, e.train.keep)
        self.rate = 0.0  # steps a second in the last dispatch; unknown at first
        self.compiled = False
        self.state, self.step, self.seconds = self._restore()
        self.timer_steps, self.timer = self.step, 0.0
        if self.step == 0 and not run.metrics():
            display.say(_headline(e, run))
            self._record(evaluate_now=True)

    def _restore(self) -> tuple[TrainState, int, float]:
        """A fresh state, or the one of the latest checkpoint with the metrics cut back to it."""
        kept = self.run.steps()
        if not kept:
            self.run.forget_after(-1)
            return init_state(self.e), 0, 0.0
        abstract = jax.eval_shape(lambda: init_state(self.e))
        training = {"optimizer": abstract.optimizer, "step": abstract.step, "sums": abstract.sums}
        parts = checkpoints.load(self.run.checkpoint_folder, kept[-1], params=abstract.params, training=training)
        self.run.forget_after(kept[-1])
        seconds = max((record.get("seconds", 0.0) for record in self.run.metrics()), default=0.0)
        self.display.say(f"resuming {self.run.path} at step {kept[-1]} of {self.steps.total}")
        return TrainState(parts["params"], **parts["training"]), kept[-1], seconds

    def advance(self) -> None:
        """One dispatch of as many steps as fit before something is due, then whatever is due."""
        every = (self.steps.log_every, self.steps.eval_every, self.steps.checkpoint_every)
        due = min(self.steps.total, *((self.step // interval + 1) * interval for interval in every))
        wanted = max(1, round(self.rate * DISPATCH_SECONDS))
        n = min(wanted, self.most, due - self.step)

        start = time.perf_counter()
        if self.feed:
            windows = self.feed(self.step, n, self.most)
        else:
            windows = self.batches.starts(self.step, self.most).astype(np.int32)
        self.state, report = self.train_steps(self.state, self.hyper, self.tokens, windows, n)
        report = jax.device_get(report)
        if not report["healthy"]:
            self._diverged(report)
        seconds = time.perf_counter() - start
        self.step, self.seconds = self.step + n, self.seconds + seconds
        if self.compiled:
            self.rate, self.timer = n / seconds, self.timer + seconds
            self.display.training(self.step, self.steps.total, report, self.e.batch_tokens * n / seconds)
        else:  # the first dispatch compiled, which says nothing of speed
            self.compiled, self.timer_steps = True, self.step

        last = self.step == self.steps.total
        saving = last or self.step % self.steps.checkpoint_every == 0
        evaluating = saving or self.step % self.steps.eval_every == 0
        if evaluating or self.step % self.steps.log_every == 0:
            record = self._record(evaluating, report)
            if saving:
                self.save(record["val_loss"])

    def _record(self, evaluate_now: bool, report: dict | None = None) -> dict:
        """Write down what this step is owed: means since the last log point, the validation loss, or both."""
        record = {"step": self.step, "tokens": self.step * self.e.batch_tokens}
        if report is not None and (self.step % self.steps.log_every == 0 or self.step == self.steps.total):
            sums = report["sums"]
            record |= {
                "loss": float(sums["nats"] / sums["tokens"]),
                "gradient_norm": float(sums["gradient_norm"] / sums["steps"]),
                "learning_rate": float(report["rate"]) * self.e.optimizer.learning_rate,
            }
            if self.timer:
                speed = self.e.batch_tokens * (self.step - self.timer_steps) / self.timer
                peak, _ = peak_flops(str(compute_dtype(self.e.model)))
                record |= {"tokens_per_second": speed, "mfu": speed * train_flops(self.e.model) / peak}
            self.timer_steps, self.timer = self.step, 0.0
        if evaluate_now:
            score = self._validate()
            if not math.isfinite(score.loss):
                self._diverged({"loss": score.loss, "step": self.step, "gradient_norm": float("nan")})
            record |= {"val_loss": score.loss, "val_bits_per_byte": score.bits_per_byte}
        record["seconds"] = self.seconds
        self.run.append(record)
        for track in self.trackers:
            track(record)
        if evaluate_now:
            self.display.evaluated(record, self.steps.total)
        return record

    def _validate(self) -> evaluation.Score:
        """The score on the fixed validation windows."""
        packed = self.eot if self.e.data.packing else None
        batch, chunk = self.e.train.batch // self.e.train.accumulation, self.e.train.loss_chunk
        c, params = self.e.model, self.state.params
        return evaluation.score_windows(c, params, *self.validation, self.bytes_V, eot=packed, batch=batch, chunk=chunk)

    def save(self, val_loss: float | None) -> None:
        """Write a checkpoint, unless a number in it is not finite."""
        if not all_finite(self.state.params):
            self._diverged({"loss": float("nan"), "step": self.step, "gradient_norm": float("nan")})
        s = self.state
        training = {"optimizer": s.optimizer, "step": s.step, "sums": s.sums}
        self.writer.save(self.step, val_loss, params=s.params, training=training)

    def _diverged(self, report: dict) -> None:
        o, kept = self.e.optimizer, self.run.steps()
        saved = f"the last good checkpoint is step {kept[-1]}" if kept else "nothing was saved"
        rates = f"--optimizer.learning-rate (now {o.learning_rate:g})"
        if o.name == "muon":
            rates += f" and --optimizer.matrix-learning-rate (now {o.matrix_learning_rate:g})"
        raise Diverged(
            f"training diverged at step {int(report['step'])}: loss {report['loss']:.4g}, "
            f"gradient norm {report['gradient_norm']:.4g}; {saved}; under another --name try a lower {rates}, "
            f"a longer --schedule.warmup (now {self.e.schedule.warmup}) or --optimizer.clip 1.0 (now {o.clip})"
        )

    def close(self) -> None:
        self.writer.close()
        if self.feed:
            self.feed.close()


def _headline(e: Experiment, run: Run) -> str:
    device = jax.devices()[0]
    return (
        f"{run.path}: {run.record['params_total']:,} parameters, {run.record['steps']['total']:,} steps of "
        f"{e.batch_tokens:,} tokens from {e.data.corpus} ({run.record['train_tokens']:,} tokens), "
        f"on {device.device_kind if device.platform != 'cpu' else 'cpu'} in {compute_dtype(e.model)}"
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
