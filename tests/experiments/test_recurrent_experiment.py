"""Gradients are products of Jacobians, questions ask for what was shown, a cut gradient is cut, and it draws."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm

SCRIPT = "recurrent"


def small(**changes) -> lm.RecurrentConfig:
    return lm.RecurrentConfig(**dict(layers=1, width=5, context=12, vocab=7, dtype="float32") | changes)


def test_the_gradient_by_distance_is_a_product_of_jacobians(script):
    """Of a tanh RNN of one layer, in float64 by hand: each token between is one more factor diag(1 - h^2) R."""
    model, T = lm.build(small(cell="rnn")), 6
    params = model.init(0)
    block = {name: np.asarray(x[0], np.float64) for name, x in params["blocks"]["input"].items()}
    recurrent_DD = np.asarray(params["blocks"]["recurrent"][0], np.float64)
    tokens_BT = np.random.default_rng(1).integers(7, size=(3, T))
    weights_BD = np.asarray(jax.random.normal(jax.random.key(0), (3, 5)), np.float64)
    squares_T = np.zeros(T)
    for tokens_T, weights_D in zip(tokens_BT, weights_BD, strict=True):
        h_TD = np.zeros((T + 1, 5))
        for t, token in enumerate(tokens_T):
            x_D = np.asarray(params["embedding"], np.float64)[token]
            h_TD[t + 1] = np.tanh(x_D @ block["kernel"] + block["bias"] + h_TD[t] @ recurrent_DD)
        back_D = weights_D
        for k in range(T):
            inside_D = back_D * (1 - h_TD[T - k] ** 2)
            squares_T[k] += np.square(block["kernel"] @ inside_D).sum()
            back_D = recurrent_DD @ inside_D
    found_T = script.gradient_by_distance(model, params, jnp.asarray(tokens_BT))
    np.testing.assert_allclose(found_T, np.sqrt(squares_T / squares_T[0]), rtol=1e-5)


def test_an_open_lstm_differs_in_its_forget_bias_alone(script):
    shape = dict(layers=2, width=4, context=8, vocab=7)
    opened, usual = lm.build(script.OpenLSTM(**shape)).init(3), lm.build(lm.RecurrentConfig(**shape)).init(3)
    bias_LF = usual["blocks"]["input"]["bias"]
    assert (bias_LF[:, 4:8] == 1).all() and bias_LF.sum() == 8
    usual["blocks"]["input"]["bias"] = bias_LF * 0
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), opened, usual))


def test_the_models_are_of_one_size(script):
    counts = [script.build(name, vocab=58).parameter_count()[0] for name in script.MODELS]
    assert max(counts) < 1.03 * min(counts)


def test_a_question_asks_for_the_symbol_before_its_gap(script):
    gap_B, T = np.array([1, 2, 5, 30]), 34
    tokens_BT, right_BT = map(np.asarray, script.questions(jax.random.key(2), jnp.asarray(gap_B), T))
    for tokens_T, right_T, gap in zip(tokens_BT, right_BT, gap_B, strict=True):
        asked = np.flatnonzero(tokens_T == script.ASK)
        assert len(asked) == T // (gap + 2) and asked[-1] == T - 1
        assert (np.flatnonzero(right_T >= 0) == asked).all()
        assert (np.flatnonzero(tokens_T < script.SYMBOLS) == asked - gap - 1).all()
        assert (tokens_T[asked - gap - 1] == right_T[asked]).all()


def test_cutting_the_gradient_changes_no_loss_and_only_its_reach(script):
    """Uncut it is the gradient of the plain loss; cut, what is read reaches no target beyond its chunk."""
    model, T = lm.build(small()), 12
    params, memory = model.init(0), model.state(2, T)
    params["head"] = jax.random.normal(jax.random.key(1), params["head"].shape)
    tokens_BU = np.random.default_rng(0).integers(7, size=(2, T + 1)).astype(np.int32)
    tokens_BU[:, 0], tokens_BU[:, 1:] = 6, tokens_BU[:, 1:] % 6  # token 6 is read first, and never again

    def plain(params):
        logits_BTV, _ = model.apply(params, lm.Inputs(tokens_BU[:, :-1]))
        logp_BTV = jax.nn.log_softmax(logits_BTV)
        return -jnp.mean(jnp.take_along_axis(logp_BTV, tokens_BU[:, 1:, None], axis=-1))

    def cut_at(cut):
        return jax.jit(jax.value_and_grad(lambda p: script.window_nats(model, p, memory, tokens_BU, cut)[0]))(params)

    loss, gradient = jax.jit(jax.value_and_grad(plain))(params)
    cuts = {cut: cut_at(cut) for cut in (1, 4, T)}
    for cut, (nats, _) in cuts.items():
        np.testing.assert_allclose(nats, loss, rtol=1e-6, err_msg=f"cut {cut}")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), cuts[T][1], gradient)

    def first_chunk(params):  # of 4 tokens alone
        logits_BTV, _ = model.apply(params, lm.Inputs(tokens_BU[:, :4]))
        logp_BTV = jax.nn.log_softmax(logits_BTV)
        return -jnp.sum(jnp.take_along_axis(logp_BTV, tokens_BU[:, 1:5, None], axis=-1)) / (2 * T)

    expected_D = jax.grad(first_chunk)(params)["embedding"][6]
    np.testing.assert_allclose(cuts[4][1]["embedding"][6], expected_D, rtol=1e-5, atol=1e-7)
    assert np.abs(expected_D - gradient["embedding"][6]).max() > 1e-4


def test_the_longest_gap_is_that_before_the_first_failure(script):
    assert script.longest([1, 0.95, 0.75, 0.74, 1, 1, 1, 1, 1]) == 4
    assert script.longest([0.5] + [1] * 8) == 0 and script.longest([1] * 9) == 256


def test_what_was_computed_is_not_computed_again(script, tmp_path):
    path, made = tmp_path / "runs" / "results.jsonl", []

    def compute():
        made.append(1)
        return [dict(nats=0.5)]

    for key in (["cut", 1], ["cut", 1], ["cut", 4]):
        assert script.remembered(path, key, compute) == [dict(nats=0.5)]
    assert len(made) == 2


def test_results_are_printed_and_drawn(script, tmp_path):
    curve = dict(parameters=9, step=[0, 2, 4], nats=[4.0, 3.0, 2.0])
    sizes = dict(start=[2.0**-k for k in script.DISTANCES], end=[1.0] * len(script.DISTANCES))
    results = {
        "text": {name: [curve | sizes, curve | sizes | {"nats": [4.0, 3.5, 2.5]}] for name in script.MODELS},
        "recall": {name: [dict(share=[1.0] * 9)] * 2 for name in script.MODELS},
        "time": {name: dict(seconds=0.1, ratio=1.0) for name in script.MODELS},
        "cut": {cut: [dict(nats=1.0), dict(nats=2.0)] for cut in script.CUTS},
    }
    text = script.tables(results)
    assert "| tanh RNN, start | 5.0e-01 |" in text and "2.2500 ± 0.3536" in text and "256, 256" in text
    script.save(script.draw(results), tmp_path / "out.svg")
    assert "gradient by distance, trained on text" in (tmp_path / "out.svg").read_text()


@pytest.mark.slow
def test_a_little_of_it_trains(script, monkeypatch, tmp_path, corpus):
    monkeypatch.setattr(script, "CUTS", (4, 128))
    options = argparse.Namespace(corpus=str(corpus), seeds=[0, 1], steps=8, rounds=1, runs=tmp_path)
    results = script.measure(options)
    assert results == script.measure(options)
    assert results["text"]["transformer"][0]["nats"][-1] < results["text"]["transformer"][0]["nats"][0]
    assert all(np.isfinite(record["nats"]) for records in results["cut"].values() for record in records)
