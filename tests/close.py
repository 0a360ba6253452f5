"""Whether numbers are the same but for rounding, measured against the size of what is compared.

Float32 rounds by 6e-8 of a number's size, and each processor adds up in an order of its own; so a tolerance that holds
everywhere is a share of the largest entry, never an absolute number.
"""

import jax
import numpy as np


def relative_error(a, b) -> float:
    """Largest difference between two trees, over the largest entry of each leaf of the second."""

    def error(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape or y.ndim == 0, f"shapes {x.shape} and {y.shape}"
        if not y.size:
            return 0.0
        assert np.abs(y).max() < 1e6, "masked entries would drown every difference: leave the padding out"
        return np.abs(x - y).max() / (np.abs(y).max() + 1e-12)

    errors = jax.tree.map(error, a, b, is_leaf=lambda x: isinstance(x, list))  # a list of numbers is an array
    return float(np.max(jax.tree.leaves(errors)))  # NaN if any is


def assert_close(actual, expected, *, relative: float, what: object = "") -> None:
    """Fail where an entry of a tree differs by more than `relative` times the largest entry of its leaf."""
    found = relative_error(actual, expected)
    assert found <= relative, f"{what} differs by {found:.1e} of its largest entry, more than {relative:g}".strip()
