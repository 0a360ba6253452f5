"""One run while it trains, alone or in a pack: its numbers, its batches, and what it writes to its directory."""

import math

import jax
import jax.numpy as jnp

from lm import checkpoints, evaluation
from lm import tokenizer as tokenizers
from lm.checkpoints import Checkpoints
from lm.config import Steps
from lm.data.batches import Batches, validation_windows
from lm.data.tokens import Prepared
from lm.errors import Diverged
from lm.hardware import peak_flops
from lm.model.transformer import compute_dtype
from lm.run import Run
from lm.scaling.flops import train_flops
from lm.training.resume import stable_end
from lm.training.step import TrainState, abstract_parts, all_finite, hyperparameters, init_state, parts
from lm.training.trackers import TRACKERS


class Member:
    """A run's bookkeeping; what is computed for it is the Trainer's."""

    def __init__(self, run: Run, data: Prepared):
        e = self.e = run.experiment
        self.run, self.steps = run, Steps(**run.record["steps"])
        self.eot = data.tokenizer.eot_token
        self.bytes_V = tokenizers.token_bytes(data.tokenizer)
        self.validation = validation_windows(data.validation, e.model.context, e.train.eval_tokens)
        self.hyper = hyperparameters(e, self.steps)
        self.batches = Batches(data.train, context=e.model.context, batch=e.train.batch, seed=e.train.seed)
        self.trackers = [TRACKERS[name](run) for name in e.train.trackers]
        self.stable_end = stable_end(e, self.steps)
        always = () if self.stable_end is None else (self.stable_end,)
        self.writer = Checkpoints(run.checkpoint_folder, e.train.keep, always)
        self.seconds = 0.0
        """Time spent on training this run, as far as it is logged."""
        self.waited = 0.0
        """Of it, time in which the device had nothing to do because its next batches were not there yet."""

    def restore(self) -> TrainState:
        """A fresh state, or the one of the latest checkpoint with the metrics cut back to it.

        By way of the host: what orbax puts on a device is tied to it, and for such arguments JAX compiles anew.
        """
        kept = self.run.steps()
        if not kept:
            self.run.forget_after(-1)
            return init_state(self.e)
        loaded = checkpoints.load(self.run.checkpoint_folder, kept[-1], **abstract_parts(self.e))
        self.run.forget_after(kept[-1])
        for record in self.run.metrics():
            self.seconds = record.get("seconds", self.seconds)
            self.waited = record.get("data_wait", 0.0) * self.seconds
        return jax.tree.map(jnp.array, jax.device_get(TrainState(loaded["params"], **loaded["training"])))

    def record(self, step: int, report: dict | None, speed: float | None, params: dict | None) -> dict:
        """Write down what this step is owed: means since the last log point, or the validation loss of params, or both.

        report: of this step, None at the first. speed: tokens a second since the last log point, where it is known.
        """
        record = {"step": step, "tokens": step * self.e.batch_tokens}
        if report is not None and (step % self.steps.log_every == 0 or step == self.steps.total):
            sums = report["sums"]
            record |= {
                "loss": float(sums["nats"] / sums["tokens"]),
                "gradient_norm": float(sums["gradient_norm"] / sums["steps"]),
                "learning_rate": float(report["rate"]) * self.e.optimizer.learning_rate,
            }
            if speed is not None:
                peak, _ = peak_flops(str(compute_dtype(self.e.model)))
                record |= {"tokens_per_second": speed, "mfu": speed * train_flops(self.e.model) / peak}
        if params is not None:
            score = self._validate(params)
            if not math.isfinite(score.loss):
                raise self.diverged({"loss": score.loss, "step": step, "gradient_norm": float("nan")})
            record |= {"val_loss": score.loss, "val_bits_per_byte": score.bits_per_byte}
        record |= {"seconds": self.seconds, "data_wait": self.waited / self.seconds if self.seconds else 0.0}
        self.run.append(record)
        for track in self.trackers:
            track(record)
        return record

    def _validate(self, params: dict) -> evaluation.Score:
        """The score on the fixed validation windows."""
        packed = self.eot if self.e.data.packing else None
        batch, chunk = self.e.train.batch // self.e.train.accumulation, self.e.train.loss_chunk
        c = self.e.model
        return evaluation.score_windows(c, params, *self.validation, self.bytes_V, eot=packed, batch=batch, chunk=chunk)

    def save(self, state: TrainState, val_loss: float | None) -> None:
        """Write a checkpoint, unless a number in it is not finite."""
        step = int(state.step)
        if not all_finite(state.params):
            raise self.diverged({"loss": float("nan"), "step": step, "gradient_norm": float("nan")})
        self.run.require_there()
        self.writer.save(step, val_loss, **parts(state))
        self.run.require_there(saved=step)

    def diverged(self, report: dict) -> Diverged:
        """Note in the run's records that it diverged; returns the error that says where and what to try."""
        o, kept, step = self.e.optimizer, self.run.steps(), int(report["step"])
        self.run.append({"step": step, "tokens": step * self.e.batch_tokens, "diverged": 1, "seconds": self.seconds})
        saved = f"the last good checkpoint is step {kept[-1]}" if kept else "nothing was saved"
        rates = f"--optimizer.learning-rate (now {o.learning_rate:g})"
        if o.name == "muon":
            rates += f" and --optimizer.matrix-learning-rate (now {o.matrix_learning_rate:g})"
        return Diverged(
            f"training diverged at step {step}: loss {report['loss']:.4g}, "
            f"gradient norm {report['gradient_norm']:.4g}; {saved}; under another --name try a lower {rates}, "
            f"a longer --schedule.warmup (now {self.e.schedule.warmup}) or --optimizer.clip 1.0 (now {o.clip})"
        )

    def close(self) -> None:
        """Finish writing."""
        self.writer.close()
