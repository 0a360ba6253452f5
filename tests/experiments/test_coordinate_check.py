"""The coordinate check, tiny: values move alike at every width and depth with a base, and do not without."""

import numpy as np
import pytest

SCRIPT = "coordinate_check"


def test_slopes_of_powers(script):
    sizes, powers = np.array([2, 4, 8]), np.array([0.5, -1.0])
    np.testing.assert_allclose(script.slopes(sizes, 3 * sizes[:, None] ** powers), powers)


@pytest.mark.slow
@pytest.mark.parametrize("axis, sizes, based", [("width", (32, 128), True), ("width", (32, 128), False),
                                                ("layers", (4, 16), True)])  # fmt: skip
def test_with_a_base_values_change_alike(script, corpus, monkeypatch, axis, sizes, based):
    monkeypatch.setattr(script, "STEPS", (3,))
    changes = script.measure("adamw", str(corpus), axis, sizes, 1, based=based)
    steepest = max(abs(float(script.slopes(sizes, change_ZS)[0])) for change_ZS in changes.values())
    assert steepest < 0.2 if based else steepest > 0.8
