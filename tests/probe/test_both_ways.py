"""Models that read both ways, and those with norms after their halves: what may be asked of them, and what not."""

import dataclasses

import numpy as np
import pytest
from inside_cases import TEXT, lively

from lm.config import Experiment, TrainConfig
from lm.errors import UserError
from lm.model.trained import Trained
from lm.probe import ablate, attention_patterns, attribute_logits, logit_lens, token_losses


@pytest.fixture(scope="module")
def masked() -> Trained:
    m = lively()
    model = dataclasses.replace(m.experiment.model, mask="full", mask_token=True)
    return dataclasses.replace(m, experiment=Experiment(model=model, train=TrainConfig(objective="masked")))


def test_what_asks_for_the_next_token_is_refused(masked):
    for ask in (token_losses, logit_lens, ablate, lambda m, text: attribute_logits(m, text, "a")):
        with pytest.raises(UserError, match="reads both ways: what it says at a place is not the next token"):
            ask(masked, TEXT)


def test_attention_is_shown_with_what_each_place_sees(masked):
    """Later keys get weight, which a causal model of the same parameters gives none."""
    weights = {}
    for name, m in (("masked", masked), ("causal", lively())):
        weights[name] = np.asarray(attention_patterns(m, TEXT).weights_LNTS)
    later = np.triu(np.ones(weights["causal"].shape[-2:]), 1).astype(bool)
    assert (weights["causal"][..., later] == 0).all() and (weights["masked"][..., later] > 0).all()


def test_a_logit_is_no_sum_behind_norms_after_the_halves():
    with pytest.raises(UserError, match="the residual stream is no sum of what the parts give"):
        attribute_logits(lively(norm_place="post"), TEXT, "a")
