"""The gradient of a step: token weights, accumulation, z-loss, chunks, packing, clipping, dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from lm.config import Experiment, Steps
from lm.model.api import Inputs, build
from lm.model.loss import Batch
from lm.training import optimizers
from lm.training.objectives import account
from lm.training.step import TrainState, gradients, hyperparameters, optimizer_of, train_step

EOT = 20
STEPS = Steps(total=100, warmup=5, decay=20, log_every=7, eval_every=50, checkpoint_every=50)


def experiment(**changes) -> Experiment:
    """Output projections that are not zero, so that every gradient is alive; vocabulary 21 padded to 24."""
    fixed = dict(model__vocab=21, model__zero_init=False, optimizer__name="sgd", optimizer__momentum=0.0)
    return tiny.experiment("unused", **fixed | changes)


def parameters(e: Experiment, seed: int = 0) -> dict:
    """Drawn by NumPy: compiling the model's own initialisation takes seconds."""
    rng = np.random.default_rng(seed)
    draw = lambda s: jnp.asarray(rng.normal(size=s.shape) * (0.3 if len(s.shape) > 1 else 1), jnp.float32)  # noqa: E731
    return jax.tree.map(draw, build(e.model).shapes())


def state(e: Experiment, step: int = 0) -> TrainState:
    params = parameters(e)
    sums = {name: jnp.float32(0) for name in ("nats", "tokens", "gradient_norm", "steps")}
    return TrainState(params, optimizer_of(e).init(params), jnp.int32(step), sums)


def tokens(e: Experiment, seed: int = 0) -> np.ndarray:
    shape = (e.train.batch, e.model.context + 1)
    return np.random.default_rng(seed).integers(0, EOT, shape).astype(np.int32)


@functools.cache
def compiled_gradients(e: Experiment):
    """(params, batch, z_loss, key) -> (gradient of the mean, nats, tokens)."""

    def run(params, batch, z_loss=0.0, key=None):
        grads, sums = gradients(params, batch, e, EOT, {"z_loss": z_loss}, key)
        return grads, sums["nats"], sums["tokens"]

    return jax.jit(run, compiler_options=tiny.QUICK)


@functools.cache
def compiled_step(e: Experiment):
    return jax.jit(functools.partial(train_step, e=e, eot=EOT), compiler_options=tiny.QUICK)


@functools.cache
def log_probabilities(e: Experiment):
    """Plain path: (params, inputs) -> (log-probabilities, log-partition) from the model's logits."""

    def run(params, inputs_BT):
        logits_BTV, _ = build(e.model).apply(params, Inputs(inputs_BT))
        return jax.nn.log_softmax(logits_BTV), jax.nn.logsumexp(logits_BTV, axis=-1)

    return jax.jit(run, compiler_options=tiny.QUICK)


def assert_close(a, b, tolerance=2e-6):
    """Trees equal up to rounding: errors are measured against the largest entry of the whole tree."""
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(b))
    for path, error in jax.tree.leaves_with_path(jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), a, b)):
        assert error <= tolerance * largest, f"{jax.tree_util.keystr(path)} differs by {error}"


def uneven_weights(e: Experiment) -> np.ndarray:
    """The first half of the batch has a few targets, the second almost all."""
    weights = np.zeros((e.train.batch, e.model.context), np.float32)
    weights[: e.train.batch // 2, :3] = 1
    weights[e.train.batch // 2 :, 1:] = 1
    return weights


# --- averaging over tokens -------------------------------------------------------------------------------------------
def test_accumulated_step_equals_the_whole_batch():
    """Two passes of unequal token counts give the gradient, loss and update of one pass: a mean over tokens."""
    whole, parts = experiment(), experiment(train__accumulation=2)
    batch = Batch(tokens(whole), uneven_weights(whole))
    hyper = hyperparameters(whole, STEPS) | {"learning_rate": jnp.float32(1)}  # a move that rounding does not drown
    a, of_a = compiled_step(whole)(state(whole, step=50), batch, hyper)
    b, of_b = compiled_step(parts)(state(parts, step=50), batch, hyper)

    moved = lambda s: jax.tree.map(jnp.subtract, s.params, parameters(whole))  # noqa: E731
    assert_close(moved(a), moved(b), 1e-5)
    assert np.isclose(of_a["loss"], of_b["loss"], rtol=1e-6)
    assert float(a.sums["tokens"]) == float(b.sums["tokens"]) == uneven_weights(whole).sum()

    # The mean of the two parts' means is something else, so the test above can fail.
    halves = [np.where(np.arange(4)[:, None] // 2 == half, batch.weights_BT, 0) for half in (0, 1)]
    of = [compiled_gradients(whole)(parameters(whole), Batch(batch.tokens_BU, half))[0] for half in halves]
    mean_of_means = jax.tree.map(lambda x, y: (x + y) / 2, *of)
    mean = compiled_gradients(whole)(parameters(whole), batch)[0]
    with pytest.raises(AssertionError):
        assert_close(mean_of_means, mean, 0.05)


def test_targets_of_weight_zero_have_no_influence():
    """Changing tokens that only unweighted targets depend on changes neither the loss nor any gradient."""
    e = experiment()
    weights = np.ones((4, 16), np.float32)
    weights[0, 5:], weights[2, :] = 0, 0
    one = tokens(e)
    other = one.copy()
    other[0, 6:], other[2] = (one[0, 6:] + 7) % EOT, (one[2] + 3) % EOT
    of = compiled_gradients(e)
    (ga, nats_a, count_a), (gb, nats_b, count_b) = (of(parameters(e), Batch(t, weights)) for t in (one, other))
    # Exact: one program, the same shapes, and a weight of zero makes each of the others' terms zero.
    assert float(nats_a) == float(nats_b)
    assert float(count_a) == float(count_b) == weights.sum()
    assert jax.tree.all(jax.tree.map(np.array_equal, ga, gb))
    assert not np.isclose(nats_a, of(parameters(e), Batch(other))[1]), "with all weights one they do matter"


def test_loss_is_the_weighted_mean_of_the_models_own_log_probabilities():
    e, weights = experiment(), uneven_weights(experiment())
    batch = Batch(tokens(e), weights)
    logp_BTV, _ = log_probabilities(e)(parameters(e), batch.tokens_BU[:, :-1])
    nats_BT = -np.take_along_axis(np.asarray(logp_BTV), batch.tokens_BU[:, 1:, None], -1)[..., 0]
    _, metrics = compiled_step(e)(state(e), batch, hyperparameters(e, STEPS))
    assert np.isclose(metrics["loss"], (nats_BT * weights).sum() / weights.sum(), rtol=1e-5)


def test_a_batch_without_any_target_changes_nothing():
    """No division by zero: without targets and decay the step is the identity on the parameters."""
    e = experiment(optimizer__weight_decay=0.0)
    nothing = Batch(tokens(e), np.zeros((4, 16), np.float32))
    after, metrics = compiled_step(e)(state(e), nothing, hyperparameters(e, STEPS))
    assert tiny.same_bits(after.params, parameters(e))
    assert float(metrics["loss"]) == 0


# --- parts of the loss -----------------------------------------------------------------------------------------------
def test_z_loss_is_the_squared_log_partition_and_stays_out_of_the_reported_loss():
    e, z, weights = experiment(), 0.37, uneven_weights(experiment())
    batch = Batch(tokens(e), weights)
    total = jax.jit(lambda p, z: account(p, batch, e, EOT, {"z_loss": z}, None), compiler_options=tiny.QUICK)
    with_z, sums = total(parameters(e), z)
    without, same = total(parameters(e), 0.0)
    _, log_z_BT = log_probabilities(e)(parameters(e), batch.tokens_BU[:, :-1])
    assert np.isclose(with_z - without, z * (weights * np.asarray(log_z_BT) ** 2).sum(), rtol=1e-4)
    assert float(sums["nats"]) == float(same["nats"]) == float(without)

    steps = [compiled_step(e)(state(e), batch, hyperparameters(e, STEPS) | {"z_loss": jnp.float32(c)}) for c in (0, z)]
    assert float(steps[0][1]["loss"]) == float(steps[1][1]["loss"])
    assert not tiny.same_bits(steps[0][0].params, steps[1][0].params), "but it does reach the gradient"


def test_chunked_loss_equals_the_whole():
    """64 positions in chunks of 7: values and gradients, z-loss included."""
    whole, chunked = experiment(), experiment(train__loss_chunk=7)
    batch = Batch(tokens(whole), uneven_weights(whole))
    a, nats_a, _ = compiled_gradients(whole)(parameters(whole), batch, 0.1)
    b, nats_b, _ = compiled_gradients(chunked)(parameters(whole), batch, 0.1)
    assert np.isclose(nats_a, nats_b, rtol=1e-6)
    assert_close(b, a)


def test_packed_documents_are_trained_as_if_alone():
    """A row of two documents costs what each costs by itself, and only unpacked does the first sway the second."""
    packed, plain = experiment(data__packing=True), experiment()
    row = tokens(packed)[:1]
    row[0, 0] = row[0, 7] = EOT  # documents of 6 and 9 tokens, each after its end-of-text token
    first, second = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32)
    first[0, :7], second[0, 7:] = 1, 1  # the end of a document is predicted from inside it
    nats = lambda e, row, w: float(compiled_gradients(e)(parameters(e), Batch(row, w))[1])  # noqa: E731

    alone = np.full_like(row, 3)
    alone[0, :10] = row[0, 7:]
    weights = np.zeros((1, 16), np.float32)
    weights[0, :9] = 1
    assert np.isclose(nats(packed, row, second), nats(plain, alone, weights), rtol=1e-5)
    assert np.isclose(nats(packed, row, first), nats(plain, row, first), rtol=1e-5)

    changed = row.copy()
    changed[0, 1:7] = (row[0, 1:7] + 5) % EOT
    assert nats(packed, row, second) == nats(packed, changed, second)
    assert not np.isclose(nats(plain, row, second), nats(plain, changed, second), rtol=1e-3)


# --- clipping and dropout --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("limit", [0.5, 5.0, 50.0, np.inf])
def test_clipping_scales_all_gradients_to_the_limit(limit):
    """Global norm 13 of (3, 4, 12): scaled together where it is above the limit, else left as it is."""
    gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([[12.0]])}
    clipped, norm = optimizers.clip(gradients, jnp.float32(limit))
    assert np.isclose(norm, 13)
    factor = min(1, limit / 13)
    assert np.allclose(clipped["a"], [3 * factor, 4 * factor]) and np.allclose(clipped["b"], 12 * factor)


def test_the_step_moves_by_the_clipped_gradient_and_reports_the_norm_before():
    e = experiment(optimizer__clip=0.01, optimizer__weight_decay=0.0, optimizer__learning_rate=1.0)
    batch = Batch(tokens(e))
    grads, _, _ = compiled_gradients(e)(parameters(e), batch)
    # Update number 5 is the first at the peak rate.
    after, metrics = compiled_step(e)(state(e, step=5), batch, hyperparameters(e, STEPS))
    assert np.isclose(metrics["gradient_norm"], optax.tree.norm(grads), rtol=1e-5)
    moved = jax.tree.map(jnp.subtract, after.params, parameters(e))
    assert float(optax.tree.norm(grads)) > 0.02, "or nothing would be clipped"
    assert np.isclose(optax.tree.norm(moved), 0.01, rtol=1e-3)


def test_dropout_is_a_function_of_seed_and_step_alone():
    """Not of what was trained before, nor of the optimizer's memory; other seeds and steps drop other values."""
    e = experiment(model__dropout=0.5)
    loss = lambda e, s: float(compiled_step(e)(s, Batch(tokens(e)), hyperparameters(e, STEPS))[1]["loss"])  # noqa: E731
    other = experiment(model__dropout=0.5, train__seed=1)
    grown = TrainState(parameters(e), jax.tree.map(lambda x: x + 1, state(e).optimizer), jnp.int32(3), state(e).sums)
    assert loss(e, state(e, step=3)) == loss(e, state(e, step=3)) == loss(e, grown)
    assert len({loss(e, state(e, step=3)), loss(e, state(e, step=4)), loss(other, state(e, step=3))}) == 3


def test_accumulated_parts_drop_different_values():
    """Two equal halves of a batch would get the same mask, and so equal losses, if their keys were the same."""
    e = experiment(model__dropout=0.5, train__accumulation=2)
    twice = np.tile(tokens(e)[:2], (2, 1))
    first, second = (np.repeat([[a], [b]], 2, 0) * np.ones((4, 16), np.float32) for a, b in ((1, 0), (0, 1)))
    nats = lambda w: float(compiled_gradients(e)(parameters(e), Batch(twice, w), 0.0, jax.random.key(0))[1])  # noqa: E731
    assert nats(first) != nats(second)
