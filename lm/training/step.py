"""One training step, a pure function, and K of them in one compiled program."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.config import Experiment, Steps
from lm.model import transformer
from lm.model.loss import window_nats
from lm.training import optimizers, schedules


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training carries from step to step, and all that a checkpoint holds.

    sums: nats, tokens and gradient norm added up since the last log point, so that what a resumed run logs does not
    depend on where it was cut.
    """

    params: dict
    optimizer: optax.OptState
    step: jax.Array
    sums: dict


def parts(state: TrainState) -> dict:
    """A state as a checkpoint holds it: the parameters, and apart from them what only training needs."""
    return {
        "params": state.params,
        "training": {"optimizer": state.optimizer, "step": state.step, "sums": state.sums},
    }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """tokens: [B, T+1] integers, inputs and targets one apart. weights: [B, T], 0 for targets not to learn; None: 1."""

    tokens: jax.Array
    weights: jax.Array | None = None


def hyperparameters(e: Experiment, steps: Steps) -> dict:
    """Everything traced: changing any of it compiles nothing. Of the seed, the 32 bits that make a key."""
    o = e.optimizer
    values = dict(
        learning_rate=o.learning_rate, matrix_learning_rate=o.matrix_learning_rate, weight_decay=o.weight_decay,
        clip=jnp.inf if o.clip is None else o.clip, z_loss=e.train.z_loss, final=e.schedule.final,
        total=steps.total, warmup=steps.warmup, decay=steps.decay,
        loss_limit=e.train.diverged * math.log(e.model.vocab),
    )  # fmt: skip
    hyper = {name: np.float32(value) for name, value in values.items()}
    hyper |= {"log_every": np.int32(steps.log_every), "seed": np.uint32(e.train.seed % 2**32)}
    return jax.tree.map(jnp.asarray, hyper)


def init_state(e: Experiment) -> TrainState:
    """A fresh state: the same for the same experiment anywhere."""
    params = transformer.init(e.model, e.train.seed)
    optimizer = jax.jit(optimizer_of(e).init)(params)  # one program: leaf by leaf it would be a dozen
    return TrainState(params, optimizer, jnp.int32(0), _no_sums())


def abstract_parts(e: Experiment) -> dict:
    """The parts of an experiment's checkpoints as trees of shapes and types."""
    return parts(jax.eval_shape(lambda: init_state(e)))


def optimizer_of(e: Experiment) -> optax.GradientTransformation:
    return optimizers.direction(e.optimizer, transformer.axes(e.model), e.model)


def _no_sums() -> dict:
    return {name: jnp.float32(0) for name in ("nats", "tokens", "gradient_norm", "steps")}


def loss_sums(params, batch: Batch, e: Experiment, eot: int | None, z_loss, key):
    """Summed loss to differentiate, and (nats, tokens) without the z-loss (Chowdhery et al. 2022, section 5)."""
    weights_BT = jnp.ones(batch.tokens[:, 1:].shape, jnp.float32) if batch.weights is None else batch.weights
    packed = eot if e.data.packing else None
    model = transformer.bind(e.model, params)
    nats_BT, log_z_BT = window_nats(model, batch.tokens, eot=packed, chunk=e.train.loss_chunk, key=key)
    nats = jnp.sum(weights_BT * nats_BT)
    return nats + z_loss * jnp.sum(weights_BT * log_z_BT**2), (nats, jnp.sum(weights_BT))


def gradients(params, batch: Batch, e: Experiment, eot: int | None, z_loss, key):
    """Gradient of the mean loss over the batch's tokens, with its nats and tokens.

    Accumulation adds up sums over the parts and divides once by all tokens: the mean over tokens, not of means.
    """
    of = jax.value_and_grad(functools.partial(loss_sums, e=e, eot=eot, z_loss=z_loss), has_aux=True)
    parts = e.train.accumulation
    if parts == 1:
        (_, (nats, tokens)), grads = of(params, batch, key=key)
    else:

        def add(total, numbered):
            i, part = numbered
            (_, counts), grads = of(params, part, key=None if key is None else jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, total, (counts, grads)), None

        split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        zero = ((jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, params))
        ((nats, tokens), grads), _ = jax.lax.scan(add, zero, (jnp.arange(parts), split))
    scale = 1 / jnp.maximum(tokens, 1)
    return jax.tree.map(lambda g: g * scale, grads), nats, tokens


def train_step(state: TrainState, batch: Batch, hyper: dict, e: Experiment, eot: int | None = None):
    """(state, batch, hyper) -> (state, metrics of this step). Dropout's key is a function of (seed, step) alone."""
    key = jax.random.fold_in(jax.random.key(hyper["seed"]), state.step) if e.model.dropout else None
    grads, nats, tokens = gradients(state.params, batch, e, eot, hyper["z_loss"], key)
    grads, norm = optimizers.clip(grads, hyper["clip"])
    directions, optimizer = optimizer_of(e).update(grads, state.optimizer, state.params)
    rate = schedules.rate(e.schedule.name, state.step.astype(jnp.float32), hyper)
    axes = transformer.axes(e.model)
    params = optimizers.apply(e.optimizer, axes, state.params, directions, rate, hyper, e.model)

    fresh = state.step % hyper["log_every"] == 0
    new = {"nats": nats, "tokens": tokens, "gradient_norm": norm, "steps": jnp.float32(1)}
    sums = {name: jnp.where(fresh, 0, state.sums[name]) + value for name, value in new.items()}
    loss = nats / jnp.maximum(tokens, 1)
    healthy = jnp.isfinite(loss) & jnp.isfinite(norm) & (loss < hyper["loss_limit"])
    metrics = {"loss": loss, "gradient_norm": norm, "healthy": healthy, "rate": rate}
    return TrainState(params, optimizer, state.step + 1, sums), metrics


def batch_at(i, windows, tokens, e: Experiment, *, resident: bool) -> Batch:
    """Batch i of the windows: resident, they are [K, B] places in the tokens; otherwise [K, B, T+1] tokens."""
    window = jax.lax.dynamic_index_in_dim(windows, i, keepdims=False)
    if resident:
        places = window[:, None] + jnp.arange(e.model.context + 1, dtype=window.dtype)
        window = tokens[places % tokens.shape[0]]
    return Batch(window.astype(jnp.int32))


def no_metrics() -> dict:
    """What a step reports, before the first."""
    return {name: jnp.float32(0) for name in ("loss", "gradient_norm", "rate")} | {"healthy": jnp.bool_(True)}


def many_steps(e: Experiment, eot: int | None, *, resident: bool):
    """train_steps(state, hyper, tokens, windows, n) -> (state, report), for any n up to len(windows).

    resident: tokens is the whole token file on the device and windows holds [K, B] positions to gather at; otherwise
    tokens is None and windows holds the [K, B, T+1] tokens themselves. n is traced, so however a run is cut into
    dispatches the same program makes every step, bit for bit. It stops early at a step that is not healthy.
    report: step, loss, gradient_norm, healthy, rate of the last step, and the sums since the last log point.
    """

    def train_steps(state, hyper, tokens, windows, n):
        def go_on(carry):
            i, _, metrics = carry
            return (i < n) & metrics["healthy"]

        def one(carry):
            i, state, _ = carry
            return i + 1, *train_step(state, batch_at(i, windows, tokens, e, resident=resident), hyper, e, eot)

        _, state, metrics = jax.lax.while_loop(go_on, one, (jnp.int32(0), state, no_metrics()))
        return state, metrics | {"step": state.step, "sums": state.sums}

    return train_steps


def make_train_steps(e: Experiment, eot: int | None, *, resident: bool):
    """many_steps, compiled once; the state it is given is overwritten."""
    return jax.jit(many_steps(e, eot, resident=resident), donate_argnums=0)


@jax.jit
def all_finite(params: dict) -> jax.Array:
    """Whether every number in the tree is finite: asked before anything is saved."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
