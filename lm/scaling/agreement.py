"""Whether approaches that should find the same exponent a of N* ~ C^a do."""

import math

from lm.errors import UserError
from lm.scaling.isoflop import fit_frontier
from lm.scaling.law import Estimate, Law, cost_of


def against_valleys(law: Law) -> list[str]:
    """A warning where approach 2, fitted to the law's points, finds another exponent than the law."""
    if "a" not in law.derived:
        return []
    try:
        valleys = fit_frontier(law.data, "isoflop", bootstraps=0, level=law.level)
    except UserError:
        return []
    return disagreement(law, valleys)


def disagreement(law: Law, valleys: Law) -> list[str]:
    """A warning where the exponents of approaches 3 and 2 differ by more than their intervals together allow.

    The half-widths that face each other are added as squares, as independent errors are. Both exponents are those of
    the FLOPs that the points count.
    """
    three = law.derived["a"] if cost_of(law.data)[1] == 0 else law.exponents()["a"]
    two = valleys.exponents()["a"]
    lower, upper = sorted((three, two), key=lambda e: e.value)
    if upper.value - lower.value <= math.hypot(lower.high - lower.value, upper.value - upper.low):
        return []
    return [
        f"approaches disagree: a = {_shown(three)} by the law (approach 3), {_shown(two)} by the valleys of equal "
        "budgets (approach 2); the points follow no law of this form, or one of the two is misled"
    ]


def _shown(e: Estimate) -> str:
    return f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"
