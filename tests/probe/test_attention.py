"""Heads planted to be of one kind score 1 as that kind; attention that prefers nothing scores what counting says."""

import functools

import numpy as np
import pytest
from close import assert_close
from inside_cases import HARD, TEXT, lively, planted

from lm import probe
from lm.errors import UserError
from lm.probe.actions.attention import induction_scores


@functools.cache
def planted_scores():
    patterns = probe.attention_patterns(planted(), "somenewwords")
    return patterns, probe.head_scores(patterns.weights_LNTS)


@pytest.mark.parametrize("head, kind", [(0, "previous"), (1, "first"), (2, "diagonal")])
def test_a_planted_head_scores_one(head, kind):
    """And next to nothing as another kind, but that the token before the second is the first."""
    _, scores = planted_scores()
    assert scores[kind][0, head] == pytest.approx(1, abs=1e-5)
    assert scores["entropy"][0, head] == pytest.approx(0, abs=1e-3)
    others = {"previous", "first", "diagonal"} - {kind}
    assert all(scores[other][0, head] <= 1 / 12 + 1e-5 for other in others)


def test_a_head_that_prefers_nothing_scores_as_counted():
    """Means of 1 / (t + 1) over queries t = 1 to 12, and of ln(t + 1)."""
    _, scores = planted_scores()
    t = np.arange(1, 13)
    for kind in ("previous", "first", "diagonal"):
        assert scores[kind][0, 3] == pytest.approx(np.mean(1 / (t + 1)), abs=1e-5)
    assert scores["entropy"][0, 3] == pytest.approx(np.log(t + 1).mean(), abs=1e-5)
    uniform = probe.head_scores(probe.uniform_weights(planted(), 13))
    assert uniform["previous"][0, 0] == pytest.approx(scores["previous"][0, 3], abs=1e-5)


def test_labels_and_rows_fit_the_text():
    patterns, _ = planted_scores()
    assert patterns.labels == ["<eot>", *"somenewwords"]
    assert_close(patterns.weights_LNTS.sum(-1), 1, relative=1e-5)


def test_the_planted_induction_head_finds_what_came_next():
    """Seven different tokens twice: weight 1 on the one after, in layer 1 head 0 alone."""
    m = planted()
    once_T = np.random.default_rng(0).permutation(28)[:7]
    tokens_T = [m.tokenizer.eot_token, *once_T, *once_T]
    _, values = probe.apply(m, [tokens_T], taps=("attention.weights",))
    scores_LN = induction_scores(np.asarray(values["attention.weights"]), 7)
    assert scores_LN[1, 0] == pytest.approx(1, abs=1e-5)
    assert np.delete(scores_LN.ravel(), 4).max() < 0.2
    read = probe.induction(m, length=7, batch=32)
    assert read.length == 7 and read.scores_LN[1, 0] > 0.85  # a token that comes twice in a copy has two successors
    assert read.uniform_L[0] == pytest.approx(np.mean(1 / np.arange(9, 16)), abs=1e-6)
    assert read.scores_LN[0, 3] == pytest.approx(read.uniform_L[0], abs=1e-5)


def test_repeated_tokens_are_shortened_to_the_context_and_losses_are_those_of_the_copies():
    m = lively(**HARD)
    read = probe.induction(m, length=999, batch=2, pool=[3, 4, 5])
    assert read.length == 15
    tokens_BT = np.random.default_rng(0).choice([3, 4, 5], (2, 15))
    tokens_BT = np.concatenate([np.full((2, 1), m.tokenizer.eot_token), tokens_BT, tokens_BT], axis=1)
    logits_BTV = np.asarray(m.apply(tokens_BT)[0], np.float64)
    logp_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    nats_BT = -np.take_along_axis(logp_BTV[:, :-1], tokens_BT[:, 1:, None], -1)[..., 0]
    assert read.first_nats == pytest.approx(nats_BT[:, 1:15].mean(), rel=1e-4)
    assert read.second_nats == pytest.approx(nats_BT[:, 16:30].mean(), rel=1e-4)


def test_patterns_are_the_same_while_decoding():
    """Grouped queries and windows; and what a window hides has no weight."""
    m = lively(**HARD)
    by_pass, by_cache = (probe.attention_patterns(m, TEXT, cached=cached).weights_LNTS for cached in (False, True))
    assert_close(by_cache, by_pass, relative=1e-4)
    t, s = np.indices((22, 22))
    assert (by_pass[0][:, t - s >= 5] == 0).all() and (by_pass[1][:, t - s >= 5] > 0).any()
    assert (probe.uniform_weights(m, 22)[0, 0, 10, 6:11] == 0.2).all()


def test_a_text_that_is_too_long_or_empty_is_refused():
    with pytest.raises(UserError, match="44 tokens, the model's context holds 32"):
        probe.attention_patterns(lively(), TEXT + " " + TEXT)
    with pytest.raises(UserError, match="empty"):
        probe.attention_patterns(lively(), "")
