"""One training step, a pure function of state, batch and traced numbers."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm import parallel, settings
from lm.config import ONE_DEVICE, Experiment, Steps
from lm.model.adapters import Adapters
from lm.model.api import LanguageModel, build
from lm.model.loss import Batch
from lm.training import optimizers, schedules
from lm.training.objectives import FIGURES, MEASURED, account

TRACED_OR_UNUSED = frozenset(
    {key for key in settings.settings() if key.startswith("data.") and key not in ("data.packing", "data.examples")}
    | settings.PACKABLE
    | settings.STAGED
    | settings.FREE - settings.COMPILED
)
"""Settings that no compiled program depends on: programs trace them, or never ask for them."""
NAMES = ("train.start", "feedback.reference", "feedback.reward")
"""Settings of which programs know only that they are there."""


def static(e: Experiment) -> Experiment:
    """Returns the experiment with every setting of TRACED_OR_UNUSED at its default, and each of NAMES the same: equal
    for all that one program serves."""
    values, defaults = (settings.flatten(settings.to_dict(one)) for one in (e, Experiment()))
    named = {key: None if values[key] is None else "there" for key in NAMES}
    return settings.replace(e, {key: defaults[key] for key in TRACED_OR_UNUSED} | named)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that training carries from step to step, and that a checkpoint holds.

    params: the model's, or where it trains adapters, these alone. sums: what the objective counts, gradient norms and
    steps added up since the last log point. They are saved as well, so what a resumed run logs does not depend on where
    it was cut.
    """

    params: dict
    optimizer: optax.OptState
    step: jax.Array
    sums: dict


def parts(state: TrainState) -> dict:
    """The parts of a checkpoint: the parameters, and apart from them what only training needs."""
    return {
        "params": state.params,
        "training": {"optimizer": state.optimizer, "step": state.step, "sums": state.sums},
    }


def hyperparameters(e: Experiment, steps: Steps) -> dict:
    """Returns every number that programs trace, so that changing it compiles nothing.

    The seed is given by the 32 bits of it that JAX makes a key of. Beside them training puts "frozen", parameters that
    programs read and never change, where there are any (lm/training/frozen.py).
    """
    o = e.optimizer
    values = dict(
        learning_rate=o.learning_rate, matrix_learning_rate=o.matrix_learning_rate, weight_decay=o.weight_decay,
        clip=jnp.inf if o.clip is None else o.clip, z_loss=e.train.z_loss, final=e.schedule.final,
        total=steps.total, warmup=steps.warmup, decay=steps.decay, beta=e.feedback.beta,
        loss_limit=e.train.diverged * math.log(e.model.vocab),
    )  # fmt: skip
    hyper = {name: np.float32(value) for name, value in values.items()}
    hyper |= {"log_every": np.int32(steps.log_every), "seed": np.uint32(e.train.seed % 2**32)}
    return jax.tree.map(jnp.asarray, hyper)


def learner(e: Experiment) -> LanguageModel | Adapters:
    """Returns what is trained: the model, or adapters of it."""
    model, rank = build(e.model), e.optimizer.lora
    return model if rank is None else Adapters(model, rank, e.optimizer.lora_alpha)


def frozen_shapes(e: Experiment) -> dict[str, dict]:
    """Returns the shapes of the parameters that programs read and never change, by what for."""
    wanted = {"reference": e.train.objective in MEASURED, "base": e.optimizer.lora is not None}
    return {name: build(e.model).shapes() for name, is_read in wanted.items() if is_read}


def whole_params(e: Experiment, params: dict, frozen: dict | None) -> dict:
    """Returns the model's parameters, of those that are trained and those that are not."""
    return params if e.optimizer.lora is None else learner(e).merged(frozen["base"], params)


def init_state(e: Experiment) -> TrainState:
    """Returns a fresh state, which is the same for the same experiment anywhere: on a mesh, each device makes what it
    holds."""
    if parallel.mesh_of(e.parallel) is not None:
        return _sharded_init(static(e))(np.uint32(e.train.seed % 2**32))
    params = learner(e).init(e.train.seed)
    return TrainState(params, _optimizer_init(static(e))(params), jnp.int32(0), _no_sums(e))


@functools.lru_cache
def _sharded_init(e: Experiment) -> Callable[[jax.Array], TrainState]:
    """Compiles the making of a fresh state on a mesh from the seed's 32 bits."""

    def make(seed) -> TrainState:
        params = learner(e).init(seed)
        return TrainState(params, optimizer_of(e).init(params), jnp.int32(0), _no_sums(e))

    abstract = jax.eval_shape(make, np.uint32(0))
    return jax.jit(make, out_shardings=state_shardings(e, abstract))


def state_shardings(e: Experiment, tree: Any) -> Any:
    """Returns where each leaf of a state, or of its parts, lies; None for one device."""
    mesh = parallel.mesh_of(e.parallel)
    return None if mesh is None else parallel.shardings(mesh, learner(e), tree, fsdp=e.parallel.fsdp)


def abstract_state(e: Experiment) -> TrainState:
    """Returns a state's shapes and types, and on a mesh where each leaf lies. Allocates nothing."""
    abstract = jax.eval_shape(lambda: init_state(dataclasses.replace(e, parallel=ONE_DEVICE)))
    if parallel.mesh_of(e.parallel) is None:
        return abstract
    return parallel.on_mesh(abstract, state_shardings(e, abstract))


def abstract_parts(e: Experiment) -> dict:
    """Returns the parts of an experiment's checkpoints as trees of shapes, types and places."""
    return parts(abstract_state(e))


def optimizer_of(e: Experiment) -> optax.GradientTransformation:
    """Returns what turns gradients into directions of descent, before rate and decay."""
    return optimizers.direction(e.optimizer, learner(e))


@functools.lru_cache
def _optimizer_init(e: Experiment) -> Callable[[dict], optax.OptState]:
    """Compiles the optimizer's start into one program; leaf by leaf it would be a dozen."""
    return jax.jit(optimizer_of(e).init)


def _no_sums(e: Experiment) -> dict:
    return {name: jnp.float32(0) for name in (*_counted(e), "gradient_norm", "steps")}


def _counted(e: Experiment) -> tuple[str, ...]:
    """Returns the names of what the experiment's objective sums up."""
    return ("nats", "tokens", *FIGURES[e.train.objective])


def gradients(params, batch: Batch, e: Experiment, eot: int | None, hyper: dict, key):
    """Returns the gradient of the mean loss over what the objective counts in the batch, and the objective's sums.

    Accumulation adds up sums over the parts and divides once by all tokens, which is the mean over tokens and not a
    mean of means.
    """

    def of_part(params, batch: Batch, key):
        return account(whole_params(e, params, hyper.get("frozen")), batch, e, eot, hyper, key)

    differentiate = jax.value_and_grad(of_part, has_aux=True)
    parts = e.train.accumulation
    if parts == 1:
        (_, sums), grads = differentiate(params, batch, key)
    else:

        def add(total, numbered):
            i, part = numbered
            (_, sums), grads = differentiate(params, part, None if key is None else jax.random.fold_in(key, i))
            return jax.tree.map(jnp.add, total, (sums, grads)), None

        def spread(x):  # on a mesh each part lies on all devices
            return parallel.rows(x.reshape(parts, -1, *x.shape[1:]), axis=1)

        split = jax.tree.map(spread, batch)
        zero = ({name: jnp.float32(0) for name in _counted(e)}, jax.tree.map(jnp.zeros_like, params))
        (sums, grads), _ = jax.lax.scan(add, zero, (jnp.arange(parts), split))
    scale = 1 / jnp.maximum(sums["tokens"], 1)
    return jax.tree.map(lambda g: g * scale, grads), sums


def train_step(state: TrainState, batch: Batch, hyper: dict, e: Experiment, eot: int | None = None):
    """Makes one update: returns the next state and this step's metrics. A pure function.

    hyper: the traced numbers (see hyperparameters). e, eot: static. What is random depends on (seed, step) alone.
    metrics: loss in nats per token, gradient_norm before clipping, healthy, and rate as a fraction of its peak.
    """
    random = e.model.dropout or e.train.objective == "masked"
    key = jax.random.fold_in(jax.random.key(hyper["seed"]), state.step) if random else None
    grads, counted = gradients(state.params, batch, e, eot, hyper, key)
    grads, norm = optimizers.clip(grads, hyper["clip"])
    directions, optimizer = optimizer_of(e).update(grads, state.optimizer, state.params)
    rate = schedules.rate(e.schedule.name, state.step.astype(jnp.float32), hyper)
    params = optimizers.apply(e.optimizer, learner(e), state.params, directions, rate, hyper)

    fresh = state.step % hyper["log_every"] == 0
    new = counted | {"gradient_norm": norm, "steps": jnp.float32(1)}
    sums = {name: jnp.where(fresh, 0, state.sums[name]) + value for name, value in new.items()}
    loss = counted["nats"] / jnp.maximum(counted["tokens"], 1)
    healthy = jnp.isfinite(loss) & jnp.isfinite(norm) & (loss < hyper["loss_limit"])
    metrics = {"loss": loss, "gradient_norm": norm, "healthy": healthy, "rate": rate}
    return TrainState(params, optimizer, state.step + 1, sums), metrics


@jax.jit
def all_finite(params: dict) -> jax.Array:
    """Tells whether every number in the tree is finite, which is asked before anything is saved."""
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
