"""Patching everything is the clean run, patching nothing the corrupted; each restored state is a patch by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from inside_cases import HARD, lively

from lm import probe
from lm.errors import UserError
from lm.probe.rows import encode, rows

M = lively(**HARD)
L = 3


PROMPT, OTHER, ANSWER = "the king sat on a", "the fish sat on a", "mat"


close = functools.partial(pytest.approx, rel=5e-3, abs=0)
"""For probabilities, which are small in a model that knows nothing."""


def logp_of_answer(text):
    nats = probe.token_losses(M, f"{text} {ANSWER}").nats
    return -nats[-4:].sum()


def prepared():
    prompt = encode(M, PROMPT)
    batch = rows(M, [encode(M, f"{PROMPT} {ANSWER}")], [len(prompt)])
    corrupted_ZTD = np.asarray(probe.clean_states(M, rows(M, [encode(M, f"{OTHER} {ANSWER}")]))["embedding"])[None]
    return batch, corrupted_ZTD, probe.clean_states(M, batch)


@pytest.mark.parametrize("cached", [False, True])
def test_patching_everything_is_the_clean_run_and_nothing_the_corrupted(cached):
    """Also: the last layer's stream alone, and the embeddings alone, are each everything."""
    batch, corrupted_ZTD, clean = prepared()
    T = batch.tokens_BT.shape[1]
    masks = {"residual": np.zeros((4, L + 1, T), bool)} | {k: np.zeros((4, L, T), bool) for k in ("mlp", "attention")}
    for mask in masks.values():
        mask[1] = True
    masks["residual"][2, 0] = True
    masks["residual"][3, L] = True
    logp_X = probe.patch(M, batch, corrupted_ZTD, clean, masks, cached=cached)[:, 0]
    expected = [logp_of_answer(OTHER), *[logp_of_answer(PROMPT)] * 3]
    assert_close(logp_X, expected, relative=1e-4)
    assert abs(logp_X[0] - logp_X[1]) > 0.1


def test_each_restored_state_is_a_patch_by_hand():
    """`trace` with another subject: every (layer, position) of each kind, against one edited full pass each."""
    _, _, clean = prepared()
    trace = probe.trace(M, PROMPT, "king", ANSWER, other="fish")
    assert trace.clean == close(np.exp(logp_of_answer(PROMPT)))
    assert trace.corrupted == close(np.exp(logp_of_answer(OTHER)))
    assert trace.labels[5:9] == list("king") and trace.corrupted_T.nonzero()[0].tolist() == [5, 6, 7, 8]
    taps = {"residual": "residual.after", "mlp": "mlp.out", "attention": "attention.out"}
    other = encode(M, f"{OTHER} {ANSWER}")
    for kind, layer, t in (("residual", 0, 8), ("residual", 2, 17), ("mlp", 1, 8), ("attention", 1, 17), ("mlp", 0, 2)):

        def edit(value, here, kind=kind, layer=layer, t=t):
            return jnp.where(here == layer, value.at[:, t].set(clean[taps[kind]][layer, t]), value)

        logits_BTV, _ = M.apply([other], edits={taps[kind]: edit})
        logp_TV = np.asarray(jax.nn.log_softmax(logits_BTV))[0]
        expected = np.exp(sum(logp_TV[i - 1, other[i]] for i in range(18, 22)))
        assert trace.restored[kind][layer + (kind == "residual"), t] == close(expected), (kind, layer)
    assert trace.restored["residual"].shape == (L + 1, 18) and trace.restored["mlp"].shape == (L, 18)
    # Before the subject nothing was corrupted: restoring changes nothing.
    assert np.abs(trace.effects("residual")[:, :5]).max() < 1e-3 * trace.clean


def test_noise_falls_on_the_subject_alone_and_is_a_mean_over_samples():
    """A trace of six samples is the mean of six runs whose embeddings are corrupted by the same noise."""
    trace = probe.trace(M, PROMPT, "king", ANSWER, samples=6, noise=2.0, seed=3)
    batch, _, clean = prepared()
    embedding_TD = np.asarray(clean["embedding"])
    noise_ZTD = np.array(jax.random.normal(jax.random.key(3), (6, *embedding_TD.shape)))
    scale = 2.0 * embedding_TD[5:9].std()
    noise_ZTD[:, :5], noise_ZTD[:, 9:] = 0, 0

    def run(value, layer):
        return embedding_TD + scale * noise_ZTD

    logits_BTV, _ = M.apply(np.repeat(batch.tokens_BT, 6, axis=0), edits={"embedding": run})
    logp_ZTV = np.asarray(jax.nn.log_softmax(logits_BTV))
    answers = np.exp([sum(logp_TV[i - 1, batch.tokens_BT[0, i]] for i in range(18, 22)) for logp_TV in logp_ZTV])
    assert trace.corrupted == close(answers.mean())
    assert answers.std() > 1e-2 * answers.mean()
    assert trace.restored["residual"][L, 17] != close(trace.corrupted)


def test_a_window_restores_neighbouring_layers_together():
    masks, shapes = probe.every_state(M, 8, window=3)
    assert shapes == {"residual": (4, 8), "mlp": (3, 8), "attention": (3, 8)}
    assert all(not mask[0].any() for mask in masks.values())
    first_mlp = 1 + 4 * 8
    assert masks["mlp"][first_mlp].nonzero() == (pytest.approx([0, 1]), pytest.approx([0, 0]))
    assert masks["mlp"][first_mlp + 8 + 5].nonzero() == (pytest.approx([0, 1, 2]), pytest.approx([5, 5, 5]))
    assert sum(mask.sum() for mask in masks.values()) == 4 * 8 + 2 * 8 * (2 + 3 + 2)
    assert masks["residual"].sum() == 4 * 8


def test_effects_are_averaged_by_place():
    """Two prompts whose subjects have three tokens and one, by hand; a place that a prompt lacks does not count."""
    subjects = [[0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 0]]
    traces = [
        probe.Trace(["x"] * len(s), "", np.array(s, bool), 0.9, 0.5, dict.fromkeys(
            ("residual", "mlp", "attention"), 0.5 + np.outer([0.01, 0], np.arange(len(s))))
        ) for s in subjects
    ]  # fmt: skip
    effects = probe.average_effects(traces)
    t = [(0 + 0.5) / 2, 1, 2, (3 + 2) / 2, 4.5, (6 + 3) / 2]  # before, first, middle, last, between, the end
    np.testing.assert_allclose(effects["mlp"], [[0.01 * x for x in t], [0] * 6], atol=1e-9)
    assert len(probe.PLACES) == 6
    alone = probe.average_effects(traces[1:])["residual"][0]
    assert np.isnan(alone).tolist() == [False, True, True, False, True, False]


def test_tracing_nonsense_is_refused():
    with pytest.raises(UserError, match="'queen' is not in 'the king sat on a'"):
        probe.trace(M, PROMPT, "queen", ANSWER)
    with pytest.raises(UserError, match="'cat' makes the prompt 17 tokens and 'king' 18"):
        probe.trace(M, PROMPT, "king", ANSWER, other="cat")
    with pytest.raises(UserError, match="samples 0: from 1 to 10,000"):
        probe.trace(M, PROMPT, "king", ANSWER, samples=0)
