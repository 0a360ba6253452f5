"""The lens's last entry is the model itself, its first sees a bigram; losses by token add up to the loss."""

import numpy as np
import pytest
from close import assert_close
from inside_cases import HARD, TEXT, lively

import lm
from lm import probe

M = lively(**HARD)
TOKENS = np.array([[M.tokenizer.eot_token, *M.tokenizer.encode_ordinary(TEXT)]])
V = M.experiment.model.vocab


def softmax(logits):
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    return np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)


@pytest.mark.parametrize("changes", [{}, dict(tied=True), dict(norm="layernorm", bias=True, logit_softcap=5.0)])
def test_the_last_entry_is_the_models_logits(changes):
    m = lively(**HARD, **changes)
    logits_BTV, _ = m.apply(TOKENS)
    entries_EBTV = probe.lens_logits(m, TOKENS)
    assert entries_EBTV.shape[0] == 4
    assert_close(entries_EBTV[-1, ..., :V], logits_BTV[..., :V], relative=1e-4)
    assert np.abs(entries_EBTV[-2] - logits_BTV).max() > 1e-2


def test_the_first_entry_is_the_embedding_through_the_head():
    """Written out: RMS-normalised, scaled, projected."""
    x_TD = np.asarray(M.params["embedding"])[TOKENS[0]]
    x_TD = x_TD / np.sqrt((x_TD**2).mean(-1, keepdims=True) + 1e-5) * np.asarray(M.params["final_norm"]["scale"])
    expected_TV = x_TD @ np.asarray(M.params["head"])
    assert_close(probe.lens_logits(M, TOKENS)[0, 0, :, :V], expected_TV[:, :V], relative=1e-4)


@pytest.mark.parametrize("cached", [False, True])
def test_the_summary_is_that_of_the_logits(cached):
    """Top token, probability, rank and KL by plain NumPy; the last position has no true token."""
    lens = probe.logit_lens(M, TEXT, cached=cached)
    p_ETV = softmax(probe.lens_logits(M, TOKENS)[:, 0, :, :V])
    T = TOKENS.shape[1]
    assert lens.entries == ["embedding", "layer 0", "layer 1", "layer 2"] and len(lens.labels) == T
    for e, p_TV in enumerate(p_ETV):
        assert lens.top[e] == [
            M.tokenizer.decode([t]).replace(" ", "·") if t < 28 else "<eot>" for t in p_TV.argmax(-1)
        ]
        true_T = p_TV[np.arange(T - 1), TOKENS[0, 1:]]
        np.testing.assert_allclose(lens.probability_ET[e, :-1], true_T, rtol=1e-3)
        np.testing.assert_allclose(lens.top_probability_ET[e], p_TV.max(-1), rtol=1e-3)
        assert (lens.rank_ET[e, :-1] == 1 + (p_TV[:-1] > true_T[:, None]).sum(-1)).all()
    assert_close(lens.kl_ET, (p_ETV[-1] * np.log(p_ETV[-1] / p_ETV)).sum(-1), relative=1e-4)
    assert np.isnan(lens.probability_ET[:, -1]).all() and (lens.rank_ET[:, -1] == 0).all()


def test_losses_by_token_add_up_to_the_loss():
    losses = probe.token_losses(M, TEXT)
    score = lm.evaluate(M, TEXT)
    assert losses.nats.sum() == pytest.approx(score.nats, rel=1e-4)
    assert losses.bytes.sum() == score.bytes and len(losses.nats) == score.tokens == len(TEXT)
    assert losses.labels == list(TEXT.replace(" ", "·"))
    assert losses.expected == probe.logit_lens(M, TEXT).top[-1][:-1]
    assert ((losses.rank == 1) == [a == b for a, b in zip(losses.expected, losses.labels, strict=True)]).all()
    assert_close(probe.token_losses(M, TEXT, cached=True).nats, losses.nats, relative=1e-4)
