"""What a batch says is learnt, and what the objectives make of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from model_cases import library, lively, small, some_tokens
from scipy.stats import chisquare

from lm.config import EncoderConfig
from lm.model.api import Inputs, build
from lm.model.loss import CHANGED, HIDDEN, MASKED, Batch, corrupt, masked, next_token, token_nats

B, T = 3, 8
START, COUNT = np.array([0, 3, 5], np.int32), np.array([8, 5, 6], np.int32)


def plain_nats(c, params, inputs: Inputs, targets_BT) -> np.ndarray:
    logits_BTV, _ = build(c).apply(params, inputs)
    logprobs_BTV = jax.nn.log_softmax(logits_BTV[..., : c.vocab])
    return -np.take_along_axis(np.asarray(logprobs_BTV), targets_BT[..., None], axis=-1)[..., 0]


# --- what is learnt --------------------------------------------------------------------------------------------------
def test_targets_are_the_next_tokens_and_count_from_start_to_count():
    c = small()
    params, tokens_BU = lively(c), some_tokens(c, B, T + 1)
    learnt = next_token(build(c), params, Batch(tokens_BU, start_B=START, count_B=COUNT))
    np.testing.assert_array_equal(learnt.targets_BT, tokens_BU[:, 1:])
    index_T = np.arange(T)
    expected_BT = (index_T >= START[:, None]) & (index_T < COUNT[:, None])
    np.testing.assert_array_equal(learnt.weights_BT, expected_BT)
    nats_BT = plain_nats(c, params, Inputs(tokens_BU[:, :-1]), tokens_BU[:, 1:])
    assert_close(learnt.nats.target, nats_BT, relative=1e-5)


def test_the_gradient_reaches_the_logits_of_the_answer_alone():
    """Token by token: the first of the answer is learnt, no token of the prompt is, nor padding."""
    c = small()
    m, params, tokens_BU = build(c), lively(c), some_tokens(c, B, T + 1)
    batch = Batch(tokens_BU, start_B=START, count_B=COUNT)
    h_BTD, _ = m.hidden(params, Inputs(tokens_BU[:, :-1]))

    def loss(h_BTD):
        return jnp.sum(token_nats(m, params, h_BTD, tokens_BU[:, 1:]).target * batch.weights())

    reached_BT = np.abs(jax.grad(loss)(h_BTD)).sum(-1) > 0
    np.testing.assert_array_equal(reached_BT, batch.weights() > 0)


@pytest.mark.parametrize("changes", [dict(), dict(encoder=EncoderConfig(layers=1, width=8, heads=2, context=5))])
def test_padding_changes_neither_loss_nor_gradient(changes):
    """Other tokens behind what is real, in rows and sources: exactly the same numbers."""
    c = small(**changes)
    params, source_count_B = lively(c), np.array([5, 2, 3], np.int32)

    def loss_and_gradient(fill: int):
        rows_BU, sources_BS = some_tokens(c, B, T + 1), some_tokens(c, B, 5, seed=1)
        rows_BU = np.where(np.arange(T + 1) <= COUNT[:, None], rows_BU, fill)
        beside = {}
        if c.encoder:
            sources_BS = np.where(np.arange(5) < source_count_B[:, None], sources_BS, fill)
            beside = dict(source_BS=sources_BS, source_count_B=source_count_B)
        batch = Batch(jnp.asarray(rows_BU), start_B=START, count_B=COUNT, **beside)

        def loss(params):
            learnt = next_token(build(c), params, batch)
            return jnp.sum(learnt.nats.target * learnt.weights_BT)

        return jax.value_and_grad(loss)(params)

    one, other = loss_and_gradient(3), loss_and_gradient(17)
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- label smoothing -------------------------------------------------------------------------------------------------
@pytest.mark.parity
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_torchs(smoothing):
    """Over the real entries of the vocabulary alone: the padding has no share."""
    torch, c = library("torch"), small()
    params, tokens_BU = lively(c), some_tokens(c, B, T + 1)
    logits_BTV, _ = build(c).apply(params, Inputs(tokens_BU[:, :-1]))
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(np.asarray(logits_BTV[..., : c.vocab])).flatten(0, 1),
        torch.tensor(tokens_BU[:, 1:]).long().flatten(), reduction="none", label_smoothing=smoothing,
    )  # fmt: skip
    nats = next_token(build(c), params, Batch(tokens_BU)).nats
    ours_BT = (1 - smoothing) * nats.target + smoothing * nats.even
    assert c.V > c.vocab
    assert_close(ours_BT.reshape(-1), theirs.numpy(), relative=1e-5)


# --- the masked objective --------------------------------------------------------------------------------------------
def test_corruption_has_the_rates_it_says():
    """Chosen, hidden, changed and kept, and which tokens the changed became, by chi-square over 200,000 tokens."""
    vocab = 29
    tokens_BT = np.tile(np.arange(vocab, dtype=np.int32), (200, 35))[:, :1000]
    read_BT, chosen_BT = map(np.asarray, corrupt(jax.random.key(3), jnp.asarray(tokens_BT), vocab))
    assert (read_BT[~chosen_BT] == tokens_BT[~chosen_BT]).all()
    chosen, count = int(chosen_BT.sum()), tokens_BT.size
    assert chisquare([chosen, count - chosen], [MASKED * count, (1 - MASKED) * count]).pvalue > 0.001
    hidden = int((read_BT == vocab).sum())
    same = int((read_BT == tokens_BT)[chosen_BT].sum())
    by_chance = CHANGED / vocab  # a token at random is the token itself now and then
    shares = np.array([HIDDEN, CHANGED - by_chance, 1 - HIDDEN - CHANGED + by_chance])
    assert chisquare([hidden, chosen - hidden - same, same], shares * chosen).pvalue > 0.001
    became = read_BT[chosen_BT & (read_BT != vocab) & (read_BT != tokens_BT)]
    assert chisquare(np.bincount(became, minlength=vocab)).pvalue > 0.001
    by_place_T = chosen_BT.reshape(-1, 10, 100).sum((0, 2))
    assert chisquare(by_place_T).pvalue > 0.001  # no stretch of a row is preferred


def test_the_masked_objective_asks_for_what_it_hid_and_for_no_padding():
    c = small(mask="full", mask_token=True)
    m, params, tokens_BU = build(c), lively(c), jnp.asarray(some_tokens(c, 16, T + 1))
    count_B = np.arange(16, dtype=np.int32) % (T + 1)
    key = jax.random.key(5)
    learnt = masked(m, params, Batch(tokens_BU, count_B=count_B), key=key)
    read_BT, chosen_BT = corrupt(key, tokens_BU[:, :-1], c.vocab)
    np.testing.assert_array_equal(learnt.targets_BT, tokens_BU[:, :-1])  # nothing is shifted
    np.testing.assert_array_equal(learnt.weights_BT, chosen_BT & (np.arange(T) < count_B[:, None]))
    assert learnt.weights_BT.sum() > 5
    expected_BT = plain_nats(c, params, Inputs(read_BT, count_B=count_B), np.asarray(tokens_BU[:, :-1]))
    real_BT = np.arange(T) < count_B[:, None]
    assert_close(np.asarray(learnt.nats.target)[real_BT], expected_BT[real_BT], relative=1e-5)


def test_the_mask_token_is_an_entry_of_its_own_and_never_predicted():
    """Where the vocabulary fills its multiple, one more multiple is there."""
    c = small(vocab=32, mask="full", mask_token=True)
    assert (c.V, small(vocab=32).V) == (40, 32)
    logits_BTV, _ = build(c).apply(lively(c), Inputs(np.full((1, T), 32, np.int32)))
    assert (np.asarray(logits_BTV)[..., 32:] < -1e29).all() and (np.asarray(logits_BTV)[..., :32] > -1e3).all()


def test_a_seed_and_a_step_decide_what_is_hidden():
    tokens_BT = jnp.asarray(some_tokens(small(), 4, 100))
    one, same, other = (corrupt(jax.random.key(seed), tokens_BT, 29)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
