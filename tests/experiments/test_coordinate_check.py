"""The coordinate check, tiny: values move alike at every width and depth with a base, and do not without."""

import numpy as np
import pytest

SCRIPT = "coordinate_check"


def test_slopes_of_powers(script):
    sizes, powers = np.array([2, 4, 8]), np.array([0.5, -1.0])
    np.testing.assert_allclose(script.slopes(sizes, 3 * sizes[:, None] ** powers), powers)


@pytest.mark.parametrize("axis, sizes", [("width", (32, 64, 128)), ("layers", (2, 4, 8))])
def test_with_a_base_values_change_alike(script, corpus, monkeypatch, axis, sizes):
    monkeypatch.setattr(script, "STEPS", (4,))
    largest = {}
    for based in (False, True):
        changes = script.measure("adamw", str(corpus), axis, sizes, 1, based=based)
        largest[based] = max(abs(float(script.slopes(sizes, change_ZS)[0])) for change_ZS in changes.values())
    assert largest[True] < 0.25 and largest[False] > 0.5
