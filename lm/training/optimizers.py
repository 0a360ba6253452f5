"""Optimizers: optax turns gradients into directions; one function here turns directions into updates.

Rates and weight decay are traced numbers applied in `apply`, so that sweeping them compiles nothing. Which leaf is a
hidden matrix, and which decays, is read from the parameters' axes, never from their number of dimensions.
lm/model/parametrization.py says what a model with a base shape multiplies them by.
"""

import math

import jax
import jax.numpy as jnp
import optax

from lm import parallel
from lm.config import OptimizerConfig
from lm.model.api import LanguageModel
from lm.model.parametrization import is_hidden_matrix, is_matrix, multipliers

FEW_LAYERS = 8
"""Layers whose matrices Muon takes one by one on a CPU: 0.93 of a step's time at 6 layers of D=192."""
UPDATE = {"adamw": 20, "lion": 15, "sgd": 10}
"""Operations a parameter: gradient's scale and norm, clipping, moments, direction, decay and update."""


def direction(c: OptimizerConfig, model: LanguageModel) -> optax.GradientTransformation:
    """Gradient to direction of descent, before rate and decay."""
    transform = _direction(c, model.axes())
    epsilon = tree_map_axes(lambda a: multipliers(model.config, c.name, a).epsilon, model.axes())

    def update(gradients, memory, params=None):
        # m / (sqrt(v) + s epsilon) of gradients g is m / (sqrt(v) + epsilon) of g / s.
        divided = jax.tree.map(lambda g, s: g if s == 1 else g / s, gradients, epsilon)
        return transform.update(divided, memory, params)

    return optax.GradientTransformation(transform.init, update)


def _direction(c: OptimizerConfig, axes: dict) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(c.beta1, c.beta2, c.epsilon)
    if c.name == "adamw":
        return adam
    if c.name == "lion":
        return optax.scale_by_lion(c.beta1, c.beta2)
    if c.name == "sgd":
        return optax.trace(c.momentum)

    def rows_to_columns(updates):  # every matrix maps its last axis but one to its last; L is a batch axis
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), updates)

    def scale_by_shape(updates, _):  # a wider output is moved further: sqrt(columns / rows), at least 1
        return jax.tree.map(lambda u: u * max(1.0, u.shape[-1] / u.shape[-2]) ** 0.5, updates)

    # The Schatten-4 norm is the tighter bound on the largest singular value: the iteration starts closer to its end.
    start = "frobenius" if c.newton_schulz >= 5 else "schatten"
    how = dict(beta=c.momentum, ns_steps=c.newton_schulz, preconditioning=start)
    muon = optax.chain(
        optax.contrib.scale_by_muon(**how, weight_dimension_numbers=rows_to_columns),
        optax.stateless(scale_by_shape),
    )

    def over_layers(updates, memory, params=None):
        if jax.default_backend() == "cpu" and parallel.sizes_now() is None:
            return by_layer(updates, memory)
        # each device of a mesh orthogonalises its share of the layers
        return muon.update(jax.tree.map(parallel.over_layers, updates), memory, params)

    def by_layer(updates, memory):  # a CPU multiplies a few matrices faster one by one than side by side
        few = jax.tree.map(lambda x: tuple(x) if x.ndim == 3 and len(x) <= FEW_LAYERS else x, (updates, memory))
        made = muon.update(*few)
        return jax.tree.map(lambda _, x: jnp.stack(x) if isinstance(x, tuple) else x, (updates, memory), made)

    labels = tree_map_axes(lambda a: "muon" if is_hidden_matrix(a) else "adam", axes)
    return optax.partition({"muon": optax.GradientTransformation(muon.init, over_layers), "adam": adam}, labels)


def apply(c: OptimizerConfig, model: LanguageModel, params: dict, directions: dict, rate: jax.Array, h: dict) -> dict:
    """params - rate * (direction + decay * params): decoupled weight decay (Loshchilov and Hutter 2019).

    rate: fraction of the peak. h: traced learning_rate, matrix_learning_rate and weight_decay.
    """

    def leaf(a, p, d):
        s = multipliers(model.config, c.name, a)
        muon = c.name == "muon" and is_hidden_matrix(a)
        peak = s.rate * (h["matrix_learning_rate"] if muon else h["learning_rate"])
        decay = s.decay * h["weight_decay"] if is_matrix(a) else 0.0
        return p - rate * peak * (d + decay * p)

    return tree_map_axes(leaf, model.axes(), params, directions)


def clip(gradients: dict, limit: jax.Array) -> tuple[dict, jax.Array]:
    """Scales all gradients so that their global norm is at most `limit`. Returns them and the norm before."""
    norm = optax.tree.norm(gradients)
    return jax.tree.map(lambda g: g * jnp.minimum(1.0, limit / (norm + 1e-9)), gradients), norm


def optimizer_flops(c: OptimizerConfig, model: LanguageModel) -> float:
    """FLOPs of the optimizer per step (not per token): an update of every parameter, and Muon's matrix products.

    Muon orthogonalises each m x n matrix of a block, m <= n, by rounds of three products: X X^T, its square, and
    their sum with X (Jordan et al. 2024).
    """
    total = model.parameter_count()[0]
    if c.name != "muon":
        return UPDATE[c.name] * total
    products = 0.0
    for leaf, axes in model.with_axes(model.shapes()):
        if is_hidden_matrix(axes):
            *layers, rows, columns = leaf.shape
            m, n = sorted((rows, columns))
            products += math.prod(layers) * (4 * m * m * n + 2 * m**3)
    return UPDATE["adamw"] * total + c.newton_schulz * products


def tree_map_axes(f, axes: dict, *trees):
    """Maps f over a tree of axes, whose leaves are tuples, and trees like the parameters."""
    return jax.tree.map(f, axes, *trees, is_leaf=lambda a: isinstance(a, tuple))
