"""What the parts add to a logit sums to the logit; a silenced part adds nothing, and no other's share moves by it."""

import numpy as np
import pytest
from inside_cases import HARD, lively

from lm import probe
from lm.errors import UserError

TEXT = "bob lives in"


def logits(m, text):
    return np.asarray(m.apply([[m.tokenizer.eot_token, *m.tokenizer.encode_ordinary(text)]])[0], np.float64)[0, -1]


@pytest.mark.parametrize("changes", [{}, dict(norm="layernorm", bias=True), dict(tied=True)])
@pytest.mark.parametrize("cached", [False, True])
def test_parts_add_up_to_the_logits(changes, cached):
    """For a letter, whose answer begins with a space: the logit of the space, and of it against nothing else."""
    m = lively(**HARD, **changes)
    parts = probe.attribute_logits(m, TEXT, "rome", cached=cached)
    total = parts.embedding + parts.heads_LN.sum() + parts.mlp_L.sum() + parts.biases
    assert parts.heads_LN.shape == (3, 4) and parts.mlp_L.shape == (3,)
    assert total == pytest.approx(parts.total, rel=1e-3, abs=1e-3)
    assert parts.total == pytest.approx(logits(m, TEXT)[0], rel=1e-3, abs=1e-3)  # token 0 is the space


def test_answers_that_begin_alike_are_refused():
    with pytest.raises(UserError, match="begin with the same token"):
        probe.attribute_logits(lively(), TEXT, "rome", "oslo")
