"""What a training would cost, before it starts: parameters, FLOPs, memory and time from a measured rate."""

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Experiment
from lm.data.batches import Batches
from lm.data.tokens import prepare
from lm.model.transformer import parameter_count, shapes
from lm.scaling.conventions import conventions, parameters
from lm.scaling.flops import elementwise_flops, forward_flops, optimizer_flops, train_flops, train_flops_6n
from lm.training.display import Display
from lm.training.loop import with_vocabulary
from lm.training.step import hyperparameters, init_state, make_train_steps

MEASURE_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """Counts are exact; memory is of one device in bytes; the rate was measured here just now."""

    params: dict[str, int]
    params_total: int
    params_nonembedding: int
    params_conventions: dict[str, int]
    flops_forward_per_token: dict[str, float]
    """Matrix products, by part."""
    flops_elementwise_per_token: dict[str, float]
    """Everything else in the forward pass and the loss, by part."""
    flops_optimizer_per_step: float
    flops_exact_per_token: float
    flops_6nd_per_token: float
    flops_conventions_per_token: dict[str, float]
    """Of training, as papers count it: see lm/scaling/conventions.py."""
    flops_exact: float
    flops_6nd: float
    memory_parameters: int
    memory_optimizer: int
    memory_activations: int
    """What the compiled step needs beside its state: activations, gradients and temporaries, as XLA plans it."""
    steps: int
    tokens: int
    epochs: float
    tokens_per_parameter: float
    tokens_per_second: float
    eta_seconds: float

    def table(self) -> str:
        """Lines for a person."""
        rows = [("parameters", "")]
        rows += [(f"  {part}", f"{count:,}") for part, count in self.params.items()]
        rows += [("parameters by convention", "")]
        rows += [(f"  {name}", f"{count:,}") for name, count in self.params_conventions.items()]
        rows += [("forward FLOPs per token", "")]
        rows += [(f"  {part}", f"{count:,.0f}") for part, count in self.flops_forward_per_token.items()]
        rows += [("  elementwise", f"{sum(self.flops_elementwise_per_token.values()):,.0f}")]
        rows += [("training FLOPs per token by convention", "")]
        rows += [(f"  {name}", f"{count:,.0f}") for name, count in self.flops_conventions_per_token.items()]
        rows += [
            ("optimizer's FLOPs per step", f"{self.flops_optimizer_per_step:.3e}"),
            ("training FLOPs in all, exact", f"{self.flops_exact:.3e}"),
            ("training FLOPs in all, 6ND", f"{self.flops_6nd:.3e}"),
            ("memory: parameters", _megabytes(self.memory_parameters)),
            ("memory: optimizer", _megabytes(self.memory_optimizer)),
            ("memory: activations and gradients", _megabytes(self.memory_activations)),
            ("steps", f"{self.steps:,}"),
            ("tokens", f"{self.tokens:,}"),
            ("epochs", f"{self.epochs:.2f}"),
            ("tokens per parameter", f"{self.tokens_per_parameter:.2f}"),
            ("tokens per second, measured", f"{self.tokens_per_second:,.0f}"),
            ("time to train", _duration(self.eta_seconds)),
        ]
        return "".join(f"{name:<40}{value:>18}\n" for name, value in rows)


def dry_run(experiment: Experiment, *, display: Display | None = None) -> Cost:
    """Prepare the data, compile the step, time it on throwaway parameters, and count. Writes no run."""
    with display or Display(quiet=True) as display:
        data = prepare(experiment.data, report=display.stage)
        e = with_vocabulary(experiment, data)
        c = e.model
        batches = Batches(data.train, context=c.context, batch=e.train.batch, seed=e.train.seed)
        steps = e.steps(batches.epoch_tokens)
        display.stage("measuring the rate", 0, None)
        rate, activations = _measure(e, batches, data.tokenizer.eot_token)
    total, nonembedding = parameter_count(c)
    state = jax.eval_shape(lambda: init_state(e))
    tokens = steps.total * e.batch_tokens
    exact, six = train_flops(c), train_flops_6n(c)
    return Cost(
        params=_parts(shapes(c)), params_total=total, params_nonembedding=nonembedding,
        params_conventions=parameters(c), flops_forward_per_token=forward_flops(c),
        flops_elementwise_per_token=elementwise_flops(c), flops_optimizer_per_step=optimizer_flops(e.optimizer, c),
        flops_exact_per_token=exact, flops_6nd_per_token=six, flops_conventions_per_token=conventions(c),
        flops_exact=exact * tokens, flops_6nd=six * tokens,
        memory_parameters=_bytes(state.params), memory_optimizer=_bytes(state.optimizer),
        memory_activations=activations,
        steps=steps.total, tokens=tokens, epochs=tokens / batches.epoch_tokens, tokens_per_parameter=tokens / total,
        tokens_per_second=rate, eta_seconds=tokens / rate,
    )  # fmt: skip


def _measure(e: Experiment, batches: Batches, eot: int) -> tuple[float, int]:
    """Tokens a second of the compiled step after its first call, and the bytes XLA plans beside the state."""
    steps = e.steps(batches.epoch_tokens)
    run = make_train_steps(e, eot, resident=True)
    tokens = jnp.zeros(max(batches.context + 1, 1024), jnp.uint16)
    starts = np.zeros((64, e.train.batch), np.int32)
    state, hyper = init_state(e), hyperparameters(e, steps)
    compiled = run.lower(state, hyper, tokens, starts, 1).compile()
    memory = compiled.memory_analysis()
    state, _ = jax.block_until_ready(compiled(state, hyper, tokens, starts, np.int32(1)))
    made, start = 0, time.perf_counter()
    while time.perf_counter() - start < MEASURE_SECONDS:
        n = min(64, 2 * made + 1)
        state, _ = jax.block_until_ready(compiled(state, hyper, tokens, starts, np.int32(n)))
        made += n
    seconds = time.perf_counter() - start
    return made * e.batch_tokens / seconds, int(memory.temp_size_in_bytes) if memory else 0


def _parts(tree: dict) -> dict[str, int]:
    """Parameters by part: embedding, attention, feed-forward, norms, head."""
    parts: dict[str, int] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        keys = [key.key for key in path]
        part = next((key for key in keys if key.endswith("norm")), None)
        part = "norms" if part else keys[1] if keys[0] == "blocks" else keys[0]
        parts[part] = parts.get(part, 0) + math.prod(leaf.shape)
    return parts


def _bytes(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
