"""A trained model refuses what is no token of it."""

import jax
import pytest

from lm.errors import UserError
from lm.model.trained import _tokens


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[0, 23]], "token 23: must be at least 0 and below the vocabulary's 23"),
        ([[0, -1]], "token -1: must be"),
        ([[2**40, 0]], "token 1099511627776: must be"),
        ([0, 1], r"tokens of shape \[2\]: must be \[batch, positions\]"),
        ([[0.0, 1.0]], "tokens of type float64: must be whole numbers"),
        ([[True]], "tokens of type bool"),
        ([[0], [0, 1]], "rows of different lengths"),
    ],
)
def test_apply_refuses_what_is_no_token_of_the_model(tokens, message):
    with pytest.raises(UserError, match=message):
        _tokens(tokens, 23)


def test_tokens_that_are_being_traced_pass():
    traced = jax.eval_shape(lambda tokens_BT: _tokens(tokens_BT, 23), jax.ShapeDtypeStruct((2, 3), "int32"))
    assert traced.shape == (2, 3)
