"""The rank-one edit maps its key to its value exactly, at the least cost to other keys; the model takes it in."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from close import assert_close
from inside_cases import HARD, TEXT, lively

from lm import probe
from lm.errors import UserError
from lm.probe.rows import encode, rows

M = lively(**HARD)
RNG = np.random.default_rng(0)
F, D = 6, 4
W, KEY, VALUE, A = (RNG.normal(size=shape) for shape in ((F, D), F, D, (F, F)))
C = A @ A.T


def test_the_key_gets_its_value_exactly():
    np.testing.assert_allclose(KEY @ probe.rank_one(W, KEY, VALUE, C), VALUE, rtol=1e-12)
    assert np.linalg.matrix_rank(probe.rank_one(W, KEY, VALUE, C) - W) == 1


def test_no_matrix_that_does_changes_other_keys_less():
    """Against SciPy's constrained minimum of tr(dW^T C dW), and against any step along the constraint."""

    def cost(change):
        return np.trace(change.T @ C @ change)

    mine = probe.rank_one(W, KEY, VALUE, C) - W
    constraint = {"type": "eq", "fun": lambda x: KEY @ x.reshape(F, D) - (VALUE - KEY @ W)}
    found = scipy.optimize.minimize(
        lambda x: cost(x.reshape(F, D)), np.zeros(F * D), jac=lambda x: (2 * C @ x.reshape(F, D)).ravel(),
        constraints=constraint, method="SLSQP", options=dict(ftol=1e-14, maxiter=500),
    )  # fmt: skip
    assert_close(mine, found.x.reshape(F, D), relative=1e-4)
    for seed in range(5):
        step = np.random.default_rng(seed).normal(size=(F, D))
        step -= np.outer(KEY, KEY @ step) / (KEY @ KEY)  # keeps the key's value
        assert cost(mine + 1e-3 * step) > cost(mine)


def test_with_white_keys_the_change_lies_along_the_key():
    change = probe.rank_one(W, KEY, VALUE, np.eye(F)) - W
    np.testing.assert_allclose(change, np.outer(KEY, VALUE - KEY @ W) / (KEY @ KEY), rtol=1e-12)


def test_a_key_that_is_nothing_is_refused():
    with pytest.raises(UserError, match="key is zero"):
        probe.rank_one(W, 0 * KEY, VALUE, C)


def test_covariance_is_the_mean_product_of_keys_over_all_tokens():
    """Two texts of different length, padding left out; the ridge is a share of the diagonal's mean."""
    texts = [TEXT, "a cat"]
    batch = rows(M, [encode(M, text) for text in texts])
    covariance_LFF = probe.key_covariance(M, batch, ridge=0.5)
    keys_LXF = np.concatenate(
        [M.apply([encode(M, text)], taps=("mlp.hidden",))[1]["mlp.hidden"][:, 0] for text in texts], axis=1
    )
    expected_LFF = np.einsum("LXF,LXG->LFG", keys_LXF, keys_LXF) / keys_LXF.shape[1]
    for covariance_FF, expected_FF in zip(covariance_LFF, expected_LFF, strict=True):
        expected_FF = expected_FF + 0.5 * np.trace(expected_FF) / 24 * np.eye(24)
        assert_close(covariance_FF, expected_FF, relative=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_an_edit_changes_one_matrix_and_makes_the_answer_likely(bias):
    """In layer 0 of a model with grouped queries and windows; m is as it was, and the edit does what it optimised."""
    m = lively(**HARD, **({"norm": "layernorm", "bias": True} if bias else {}))
    before = jax.tree.map(np.array, m.params)
    covariance_LFF = probe.key_covariance(m, rows(m, [encode(m, TEXT)]))
    edit = probe.edit_fact(
        m, "bob lives in", "bob", "q", layer=0, covariance_FF=covariance_LFF[0], steps=30, rate=0.3, decay=0.02
    )
    jax.tree.map(np.testing.assert_array_equal, m.params, before)
    changed = jax.tree.map(lambda x, y: not np.array_equal(x, y), edit.model.params, before)
    assert [jax.tree_util.keystr(path) for path, one in jax.tree.leaves_with_path(changed) if one] == [
        "['blocks']['feedforward']['outer']['kernel']"
    ]
    kernel_LFD, old_LFD = (p["blocks"]["feedforward"]["outer"]["kernel"] for p in (edit.model.params, before))
    np.testing.assert_array_equal(kernel_LFD[1:], old_LFD[1:])
    expected_FD = probe.rank_one(old_LFD[0], edit.key_F, edit.new_value_D, covariance_LFF[0])
    assert_close(kernel_LFD[0], expected_FD, relative=1e-5)

    # The key is what the layer sees at the subject's last letter, and there the layer adds what was optimised.
    tokens = [encode(m, "bob lives in")]
    old, new = (model.apply(tokens, taps=("mlp.hidden", "mlp.out"))[1] for model in (m, edit.model))
    assert_close(edit.key_F, old["mlp.hidden"][0, 0, 3], relative=1e-4)
    step_D = edit.new_value_D - edit.old_value_D
    assert_close(new["mlp.out"][0, 0, 3] - old["mlp.out"][0, 0, 3], step_D, relative=1e-2)  # a difference of two passes

    # What it optimised, by hand: the loss with this step added there and nowhere else, less than without it.
    whole = [encode(m, "bob lives in q")]

    def add(value, here, scale):
        return jnp.where(here == 0, value.at[:, 3].add(scale * step_D.astype(np.float32)), value)

    nats = []
    for scale in (0, 1):
        logits_BTV, _ = m.apply(whole, edits={"mlp.out": functools.partial(add, scale=scale)})
        logp_TV = np.asarray(jax.nn.log_softmax(logits_BTV))[0]
        nats.append(-sum(logp_TV[t - 1, whole[0][t]] for t in (13, 14)))
    assert edit.answer_nats == pytest.approx(nats[1], rel=1e-2) and nats[1] < nats[0] - 0.5


def test_the_key_can_be_the_last_tokens():
    """`at` last: the key of the prompt's last token, whose answer needs no attention after it."""
    covariance_FF = probe.key_covariance(M, rows(M, [encode(M, TEXT)]))[2]
    edit = probe.edit_fact(
        M, ["bob lives in", "a bob is from"], "bob", "q", layer=2, at="last", covariance_FF=covariance_FF
    )
    keys = [
        M.apply([encode(M, text)], taps=("mlp.hidden",))[1]["mlp.hidden"][2, 0, -1]
        for text in ("bob lives in", "a bob is from")
    ]
    assert_close(edit.key_F, np.mean(keys, axis=0), relative=1e-4)


def test_the_value_follows_from_the_prompts_gradient():
    """A single step of Adam moves every entry by the rate times the old value's length, against the gradient."""
    covariance_FF = np.eye(24)
    edit = probe.edit_fact(M, "bob lives in", "bob", "q", layer=0, covariance_FF=covariance_FF, steps=1, rate=0.01)
    step_D = edit.new_value_D - edit.old_value_D
    length = np.linalg.norm(M.apply([encode(M, "bob lives in")], taps=("mlp.out",))[1]["mlp.out"][0, 0, 3])
    assert_close(np.abs(step_D), 0.01 * length, relative=1e-2)  # but for Adam's epsilon


def test_nonsense_is_refused():
    with pytest.raises(UserError, match="layer 3: the model has layers 0 to 2"):
        probe.edit_fact(M, "bob lives in", "bob", "q", layer=3, covariance_FF=np.eye(24))
    with pytest.raises(UserError, match="'anna' is not in"):
        probe.edit_fact(M, "bob lives in", "anna", "q", layer=0, covariance_FF=np.eye(24))
    with pytest.raises(UserError, match="nothing that layer 1 adds there reaches the answer"):  # a window hides it
        probe.edit_fact(M, "bob lives in", "bob", "q", layer=1, covariance_FF=np.eye(24))
