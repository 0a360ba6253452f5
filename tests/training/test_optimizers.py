"""Optimizers against closed forms in NumPy, and which parameters get what."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from close import assert_close, relative_error

from lm.config import ModelConfig, OptimizerConfig
from lm.model.api import build
from lm.training import optimizers

FULL = ModelConfig(
    layers=2, width=8, heads=2, context=6, feedforward=24, vocab=10, norm="layernorm", bias=True, positions="learned",
    activation="swiglu", value_residual=True,
)  # fmt: skip
"""Every kind of parameter: biases, both norms, learned positions, weights of values, a gate, an untied head."""
HIDDEN = {
    "blocks.attention.query.kernel", "blocks.attention.key.kernel", "blocks.attention.value.kernel",
    "blocks.attention.out.kernel", "blocks.feedforward.gate.kernel", "blocks.feedforward.inner.kernel",
    "blocks.feedforward.outer.kernel",
}  # fmt: skip
H = dict(learning_rate=0.01, matrix_learning_rate=0.1, weight_decay=0.5)
RATE = 0.25


def names(tree) -> dict:
    """{"blocks.attention.query.kernel": leaf}."""
    return {".".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def random_like(c: ModelConfig, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), build(c).shapes())


def updates(
    o: OptimizerConfig, params: dict, gradients: list[dict], c: ModelConfig = FULL, **h
) -> dict[str, np.ndarray]:
    """The parameters after one update for each gradient, by name."""
    axes = {key: value for key, value in build(FULL).axes().items() if key in params}
    model = SimpleNamespace(config=c, axes=lambda: axes)  # those of the parameters at hand
    transform = optimizers.direction(o, model)
    h = {name: jnp.float32(value) for name, value in (H | h).items()}

    @functools.partial(jax.jit, compiler_options=tiny.QUICK)
    def update(params, memory, gradient):
        directions, memory = transform.update(gradient, memory, params)
        return optimizers.apply(o, model, params, directions, jnp.float32(RATE), h), memory

    made, memory = [params], transform.init(params)
    for gradient in gradients:
        params, memory = update(params, memory, gradient)
        made.append(params)
    return [{name: np.asarray(leaf) for name, leaf in names(tree).items()} for tree in made]


HEAD = {"head": jnp.asarray(np.random.default_rng(1).normal(size=(8, 16)), jnp.float32)}
GRADIENTS = [{"head": jnp.asarray(np.random.default_rng(i).normal(size=(8, 16)), jnp.float32)} for i in (2, 3)]
G1, G2 = (np.asarray(g["head"], np.float64) for g in GRADIENTS)
P0 = np.asarray(HEAD["head"], np.float64)


def decayed(p, direction):
    """One step by hand: decoupled decay, times the same rate as the direction."""
    return p - RATE * H["learning_rate"] * (direction + H["weight_decay"] * p)


# --- closed forms ----------------------------------------------------------------------------------------------------
def test_adamw_equals_its_formula():
    """Two steps: bias-corrected moments (Kingma and Ba 2015), decay outside of them (Loshchilov and Hutter 2019)."""
    o = OptimizerConfig(name="adamw", beta1=0.8, beta2=0.9, epsilon=1e-3)
    m1, v1 = 0.2 * G1, 0.1 * G1**2
    p1 = decayed(P0, (m1 / 0.2) / (np.sqrt(v1 / 0.1) + 1e-3))
    m2, v2 = 0.8 * m1 + 0.2 * G2, 0.9 * v1 + 0.1 * G2**2
    p2 = decayed(p1, (m2 / (1 - 0.8**2)) / (np.sqrt(v2 / (1 - 0.9**2)) + 1e-3))
    made = updates(o, HEAD, GRADIENTS)
    assert_close(made[1]["head"], p1, relative=1e-6)
    assert_close(made[2]["head"], p2, relative=1e-6)


def test_lion_equals_its_formula():
    """The sign of a mixture; beta1 makes the mixture, beta2 the momentum (Chen et al. 2023, algorithm 2)."""
    o = OptimizerConfig(name="lion", beta1=0.8, beta2=0.6)
    p1 = decayed(P0, np.sign(0.2 * G1))
    m1 = 0.4 * G1
    p2 = decayed(p1, np.sign(0.8 * m1 + 0.2 * G2))
    assert_close(updates(o, HEAD, GRADIENTS)[-1]["head"], p2, relative=1e-6)


def test_sgd_equals_its_formula():
    o = OptimizerConfig(name="sgd", momentum=0.7)
    p1 = decayed(P0, G1)
    p2 = decayed(p1, G2 + 0.7 * G1)
    assert_close(updates(o, HEAD, GRADIENTS)[-1]["head"], p2, relative=1e-6)


# --- Muon ------------------------------------------------------------------------------------------------------------
def last_direction(o: OptimizerConfig, gradients: list[dict]) -> dict[str, np.ndarray]:
    """What the last of several updates subtracts, before rates and without decay."""
    zero = jax.tree.map(jnp.zeros_like, gradients[0])
    peaks = dict(learning_rate=1 / RATE, matrix_learning_rate=1 / RATE, weight_decay=0.0)
    *_, before, after = updates(o, zero, gradients, **peaks)
    return {name: before[name] - after[name] for name in after}


@pytest.fixture(scope="module")
def muon():
    """Directions after two gradients of the full model."""
    gradients = [random_like(FULL, seed) for seed in (1, 2)]
    return gradients, last_direction(OptimizerConfig(name="muon"), gradients)


def test_muon_moves_hidden_matrices_by_orthogonal_steps_of_the_right_size(muon):
    """Singular values near one (Newton-Schulz leaves them between .6 and 1.3), times sqrt(max(1, columns / rows))."""
    for name in HIDDEN:
        for layer in muon[1][name]:
            rows, columns = layer.shape
            values = np.linalg.svd(layer, compute_uv=False) / max(1, columns / rows) ** 0.5
            assert 0.6 < values.min() and values.max() < 1.3, f"{name} [{rows}, {columns}]: {values}"


def test_muons_step_is_the_nearest_orthogonal_matrix_to_nesterov_momentum(muon):
    """Same singular vectors as momentum * m + gradient: the product with the polar factor is nearly diagonal."""
    gradients, made = muon
    name, beta = "blocks.feedforward.inner.kernel", OptimizerConfig().momentum
    g1, g2 = (np.asarray(names(g)[name][1], np.float64) for g in gradients)
    m2 = (beta * (1 - beta) * g1 + (1 - beta) * g2) / (1 - beta**3)  # bias-corrected, one step ahead
    ahead = beta * m2 + (1 - beta) / (1 - beta**2) * g2
    u, _, vt = np.linalg.svd(ahead, full_matrices=False)
    between = u.T @ made[name][1] @ vt.T / 3**0.5
    assert_close(between, np.diag(np.diag(between)), relative=0.02)
    assert (np.diag(between) > 0.6).all()


def test_fewer_iterations_reach_the_same_directions_from_a_closer_start(muon):
    """Of three, for a matrix of any scale: the singular vectors of five, and singular values of the same order."""
    gradients, made = muon
    name = "blocks.feedforward.inner.kernel"
    for scale in (1e-3, 1.0):
        scaled = jax.tree.map(lambda g, scale=scale: scale * g, gradients)
        three = last_direction(OptimizerConfig(name="muon", newton_schulz=3), scaled)[name][1]
        u, values, vt = np.linalg.svd(three / 3**0.5, full_matrices=False)
        between = u.T @ made[name][1] @ vt.T / 3**0.5
        assert_close(between, np.diag(np.diag(between)), relative=0.02)
        assert 0.5 < values.min() and values.max() < 1.3


def test_muon_treats_each_stacked_layer_on_its_own(muon):
    """The direction of layer 1 of a stack equals that of the layer by itself."""
    gradients, made = muon
    one = lambda tree: {"blocks": jax.tree.map(lambda leaf: leaf[1:], tree["blocks"])}  # noqa: E731
    alone = last_direction(OptimizerConfig(name="muon"), [one(g) for g in gradients])
    for name, direction in alone.items():
        assert np.allclose(made[name][1:], direction, atol=2e-5), name  # of size 1, being orthogonal


def test_layers_one_by_one_or_side_by_side_are_the_same_to_muon(muon, monkeypatch):
    """Directions, which are orthogonal and so of size 1, and the memory's tree, which checkpoints hold."""
    gradients, made = muon
    o, params = OptimizerConfig(name="muon"), build(FULL).shapes()
    shapes = lambda: jax.eval_shape(  # noqa: E731
        lambda g: optimizers.direction(o, build(FULL)).update(g, optimizers.direction(o, build(FULL)).init(g)), params
    )
    one_by_one = shapes()
    monkeypatch.setattr(optimizers, "FEW_LAYERS", 0)
    assert jax.tree.structure(shapes()) == jax.tree.structure(one_by_one)
    for name, direction in last_direction(o, gradients).items():
        assert np.allclose(made[name], direction, atol=2e-5), name


def test_under_muon_everything_else_gets_adam(muon):
    """Embeddings, positions, the head, norms and biases: the same direction as under adamw."""
    gradients, made = muon
    adam = last_direction(OptimizerConfig(name="adamw"), gradients)
    same = {name for name in made if relative_error(made[name], adam[name]) < 1e-6}
    assert same == set(made) - HIDDEN


def test_the_two_rates_of_muon(muon):
    """matrix_learning_rate moves the hidden matrices, learning_rate the rest."""
    gradients, made = muon
    zero = jax.tree.map(jnp.zeros_like, gradients[0])
    *_, before, after = updates(OptimizerConfig(name="muon"), zero, gradients, weight_decay=0.0)
    for name, direction in made.items():
        peak = H["matrix_learning_rate"] if name in HIDDEN else H["learning_rate"]
        assert_close(before[name] - after[name], RATE * peak * direction, relative=1e-5, what=name)


# --- which leaf decays -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "sgd"])
@pytest.mark.parametrize("tied", [False, True])
def test_decay_is_of_matrices_alone(optimizer, tied):
    """Without any gradient, exactly the hidden matrices and an untied head shrink; by their own rate times the decay.

    Not embeddings (so not a tied head), positions, norms, biases, though stacked norms have two dimensions.
    """
    c = ModelConfig(**{f: getattr(FULL, f) for f in FULL.__dataclass_fields__} | {"tied": tied})
    params = random_like(c, 0)
    directions = jax.tree.map(jnp.zeros_like, params)
    o, h = OptimizerConfig(name=optimizer), {name: jnp.float32(value) for name, value in H.items()}
    after = names(optimizers.apply(o, build(c), params, directions, jnp.float32(RATE), h))
    factors = {}
    for name, before in names(params).items():
        factor = np.unique(np.round(np.asarray(after[name] / before), 5))
        assert len(factor) == 1, name
        if factor[0] != 1:
            factors[name] = float(factor[0])
    matrix_rate = H["matrix_learning_rate"] if optimizer == "muon" else H["learning_rate"]
    expected = dict.fromkeys(HIDDEN, 1 - RATE * matrix_rate * H["weight_decay"])
    expected |= {} if tied else {"head": 1 - RATE * H["learning_rate"] * H["weight_decay"]}
    assert factors == pytest.approx(expected, abs=2e-5)


def test_norms_without_biases_and_query_norms_do_not_decay_either():
    """The default model: axes ("L", "H") and ("L", "D") are stacked scales, not matrices."""
    c = ModelConfig(layers=2, width=8, heads=2, context=6, vocab=10)
    is_axes = lambda a: isinstance(a, tuple)  # noqa: E731
    flat = jax.tree.leaves_with_path(build(c).axes(), is_leaf=is_axes)
    decaying = {".".join(key.key for key in path) for path, axes in flat if optimizers.is_matrix(axes)}
    assert decaying == (HIDDEN - {"blocks.feedforward.gate.kernel"}) | {"head"}
