"""The forecast of a training: parameters, FLOPs, memory, and time from a measured rate, before it starts."""

import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from lm import hardware, parallel
from lm.config import Experiment, Steps
from lm.data.supply import open_batches, prepare
from lm.data.tokens import Prepared
from lm.model.api import LanguageModel, build
from lm.model.conventions import conventions, parameters
from lm.training.across import share, sizes
from lm.training.context import stages, training_flops
from lm.training.display import Display
from lm.training.loop import with_vocabulary
from lm.training.memory import readable, tree_bytes
from lm.training.optimizers import optimizer_flops
from lm.training.programs import make_train_steps
from lm.training.resume import describe
from lm.training.start import require_others
from lm.training.step import abstract_state, frozen_shapes, hyperparameters, init_state

MEASURE_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a training would take. Counts are exact; memory is in bytes of one device; the rate was measured just now,
    where the run fits."""

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
    """In whole windows."""
    flops_6nd_per_token: float
    flops_conventions_per_token: dict[str, float]
    """Of training, as papers count it: see lm/model/conventions.py."""
    flops_exact: float
    flops_6nd: float
    memory_parameters: int
    memory_optimizer: int
    memory_activations: int
    """What the step needs beside its state, activations, gradients and temporaries: as XLA plans it, or at least
    where not even that fits."""
    memory_total: int
    devices: int
    """Devices of the mesh: all the memory above is of one of them."""
    flops_per_device_per_step: float
    bytes_sent_per_step: dict[str, int]
    """What each device sends to others, by formula: see lm/training/across.py."""
    memory_available: int | None
    """None where this machine does not say."""
    steps: int
    steps_by_context: dict[int, int]
    """Steps by the tokens of the windows that they read."""
    tokens: int
    epochs: float
    tokens_per_parameter: float
    tokens_per_second: float | None
    """None where the run does not fit."""
    eta_seconds: float | None

    @property
    def fits(self) -> bool:
        """Whether this machine's memory can hold it."""
        return self.memory_available is None or self.memory_total <= self.memory_available

    def table(self) -> str:
        """Lays it out in lines for a person."""
        elementwise = {"elementwise": sum(self.flops_elementwise_per_token.values())}
        sections = {
            "parameters": self.params,
            "parameters by convention": self.params_conventions,
            "forward FLOPs per token": self.flops_forward_per_token | elementwise,
            "training FLOPs per token by convention": self.flops_conventions_per_token,
        }
        memory = "memory" if self.devices == 1 else "memory of a device"
        rows = []
        for title, counts in sections.items():
            rows += [(title, ""), *((f"  {name}", f"{round(count):,}") for name, count in counts.items())]
        rows += [
            ("optimizer's FLOPs per step", f"{self.flops_optimizer_per_step:.3e}"),
            ("training FLOPs in all, exact", f"{self.flops_exact:.3e}"),
            ("training FLOPs in all, 6ND", f"{self.flops_6nd:.3e}"),
            (f"{memory}: parameters", readable(self.memory_parameters)),
            (f"{memory}: optimizer", readable(self.memory_optimizer)),
            (f"{memory}: activations and gradients", readable(self.memory_activations)),
            (f"{memory}: in all", ("" if self.fits else "at least ") + readable(self.memory_total)),
            (f"{memory}: there is", readable(self.memory_available) if self.memory_available else "unknown"),
            ("steps", f"{self.steps:,}"),
            *((f"  in windows of {T:,} tokens", f"{n:,}") for T, n in self.steps_by_context.items()),
            ("tokens", f"{self.tokens:,}"),
            ("epochs", f"{self.epochs:.2f}"),
            ("tokens per parameter", f"{self.tokens_per_parameter:.2f}"),
        ]
        if self.devices > 1:
            rows += [("devices", f"{self.devices:,}")]
            rows += [("FLOPs of a device in a step, by formula", f"{self.flops_per_device_per_step:.3e}")]
            rows += [("bytes sent by a device in a step, by formula", "")]
            rows += [(f"  {name}", readable(count)) for name, count in self.bytes_sent_per_step.items()]
        if self.tokens_per_second is not None:
            rows += [("tokens per second, measured", f"{self.tokens_per_second:,.0f}")]
            rows += [("time to train", _duration(self.eta_seconds))]
        else:
            absent = "does not fit here"
            if self.fits:
                absent = "so many devices are not here: memory is by formula, the least that a step can do with"
            rows += [(f"{absent}; the rate is unknown", "")]
        return "".join(f"{name:<44}{value:>18}".rstrip() + "\n" for name, value in rows)


def dry_run(experiment: Experiment, *, display: Display | None = None) -> Forecast:
    """Prepares the data, compiles the step, times it on throwaway parameters, and counts. Writes no run.

    For an experiment that this machine's memory cannot hold nothing is allocated, and no rate is known.
    """
    with display or Display(quiet=True) as display:
        require_others(experiment)
        data = prepare(experiment.data, report=display.stage)
        e = with_vocabulary(experiment, data)
        facts, steps = describe(e, data)
        data_devices, model_devices = sizes(e)
        parallel.require_rows(data_devices, e.train.batch, e.train.accumulation)
        devices = data_devices * model_devices
        here = devices <= jax.device_count()
        part, there = share(e, data_devices, model_devices), hardware.memory() if here else None
        need = part.memory
        beside, seconds = need.gradients + need.activations, None
        if here and (there is None or need.total <= there):
            seconds, beside = _measure(e, steps, data, there, display)
    model, total, tokens = build(e.model), facts["params_total"], steps.total * e.batch_tokens
    cost, exact, six = model.cost(), facts["flops_per_token"], 6.0 * total
    return Forecast(
        params=parts(model), params_total=total, params_nonembedding=facts["params_nonembedding"],
        params_conventions=parameters(model), flops_forward_per_token=dict(cost.products),
        flops_elementwise_per_token=dict(cost.elementwise),
        flops_optimizer_per_step=optimizer_flops(e.optimizer, model),
        flops_exact_per_token=exact, flops_6nd_per_token=six, flops_conventions_per_token=conventions(model),
        flops_exact=training_flops(e, steps, steps.total), flops_6nd=six * tokens,
        memory_parameters=need.parameters, memory_optimizer=need.optimizer, memory_activations=beside,
        devices=devices, bytes_sent_per_step=part.sent,
        flops_per_device_per_step=(exact * e.batch_tokens) / devices,
        memory_total=need.parameters + need.optimizer + beside, memory_available=there,
        steps=steps.total, steps_by_context={stage.context: stage.end - stage.begin for stage in stages(e, steps)},
        tokens=tokens, epochs=tokens / facts["epoch_tokens"], tokens_per_parameter=tokens / total,
        tokens_per_second=seconds and tokens / seconds, eta_seconds=seconds,
    )  # fmt: skip


def _measure(
    e: Experiment, steps: Steps, data: Prepared, there: int | None, display: Display
) -> tuple[float | None, int]:
    """Returns the seconds that all steps take, and the most bytes that XLA plans beside the state, over the stages of
    the context; no seconds where there is less memory than that."""
    seconds, most = 0.0, 0
    for stage in stages(e, steps):
        each, beside = _measure_stage(e, steps, data, there, display, stage.pieces)
        if each is None:
            return None, beside
        seconds, most = seconds + (stage.end - stage.begin) * each, max(most, beside)
    return seconds, most


def _measure_stage(
    e: Experiment, steps: Steps, data: Prepared, there: int | None, display: Display, pieces: int
) -> tuple[float | None, int]:
    """Returns the seconds of a compiled step after the first, and the bytes XLA plans beside the state.

    No seconds, and nothing allocated, where that plan is for more memory than there is.
    """
    mesh, hyper = parallel.mesh_of(e.parallel), hyperparameters(e, steps)
    run, hyper = make_train_steps(e, data.tokenizer.eot_token, pieces=pieces), parallel.place(mesh, hyper)
    if wanted := frozen_shapes(e):
        hyper |= {"frozen": jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), wanted)}
    store = jnp.zeros(max(e.model.context + 1, 1024), jnp.uint16)
    starts = np.zeros((64, pieces * e.train.batch), np.int32)
    if e.train.objective == "policy":  # whose answers take time to draw beside the step that is measured
        store, starts = None, _no_rollouts(e, 64)
    elif e.data.examples is not None:
        columns = open_batches(data.train, e.data, e.model, batch=e.train.batch, seed=0).at(0)
        store = {name: jnp.zeros(column.shape, column.dtype) for name, column in columns.items()}
    store, starts = parallel.place(mesh, store), parallel.place(mesh, starts, axis=1)
    display.stage("compiling the step", 0, None)
    state = abstract_state(e)
    with parallel.using(mesh):
        compiled = run.lower(state, hyper, store, starts, parallel.place(mesh, np.int32(1))).compile()
    memory = compiled.memory_analysis()
    beside = int(memory.temp_size_in_bytes) if memory else 0
    if there is not None and tree_bytes(state) + beside > there:
        return None, beside
    display.stage("measuring the rate", 0, None)
    state = init_state(e)
    state, _ = jax.block_until_ready(compiled(state, hyper, store, starts, parallel.place(mesh, np.int32(1))))
    made, start = 0, time.perf_counter()
    while time.perf_counter() - start < MEASURE_SECONDS:
        n = min(64, 2 * made + 1)
        state, _ = jax.block_until_ready(compiled(state, hyper, store, starts, parallel.place(mesh, np.int32(n))))
        made += n
    return (time.perf_counter() - start) / made, beside


def _no_rollouts(e: Experiment, steps: int) -> dict[str, np.ndarray]:
    """Columns of so many steps of a policy, all zero but the weights."""
    B, T = e.train.batch, e.model.context
    columns = {"tokens_BU": np.zeros((steps, B, T + 1), np.int32), "reward_B": np.zeros((steps, B), np.float32)}
    columns |= {name: np.zeros((steps, B, T), np.float32) for name in ("old_BT", "advantage_BT")}
    return columns | {"weights_BT": np.ones((steps, B, T), np.float32)}


def parts(model: LanguageModel) -> dict[str, int]:
    """Counts parameters by part: by what the tree's top level names, or in stacked layers, by the level below.

    A module that holds nothing but vectors, such as a gain and a bias, is one of the norms.
    """
    shapes = model.shapes()
    paths = [[key.key for key in path] for path, _ in jax.tree.leaves_with_path(shapes)]
    leaves = [
        (path, math.prod(leaf.shape), axes) for path, (leaf, axes) in zip(paths, model.with_axes(shapes), strict=True)
    ]
    others = [path[:-1] for path, _, axes in leaves if len(axes) - ("L" in axes) != 1]
    counts: dict[str, int] = {}
    for path, count, axes in leaves:
        part = path["L" in axes] if path[:-1] in others else "norms"
        counts[part] = counts.get(part, 0) + count
    return counts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
