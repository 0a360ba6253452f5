"""Whether points identify a parameter: one definition for every law and approach, and for plans.

A parameter is identified ("yes") when all of this holds, and otherwise the verdict says "no" or "weakly" and why:
  1. the law, where the fit put it, explains the points better than one number for all would;
  2. value, standard error and both ends of its interval are finite, and the ends are less than a factor of UNBOUNDED
     away from a positive value: further out an end bounds nothing;
  3. the interval is narrow: a positive parameter's ends are less than a factor of WIDE apart, another's less than its
     value;
  4. resamples do not scatter far beyond the interval.
Points whose Jacobian has a condition number of COLLINEAR or more identify nothing: the fit is refused.
"""

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lm.scaling.law import Estimate  # imports JAX, which a plan's condition number does not need

DEFINITION = """identified: better than one constant, condition number below 2e4, an interval that is finite, narrow
(a factor of 20; of an exponent, its own size) and not contradicted by resamples"""
"""In the report's words."""
COLLINEAR = 2e4
"""Condition number from which a fit is refused: good designs have some hundreds, constant D/N 1e5 and more."""
COLLINEAR_CENTRED = 2e3
"""The same limit for a plan, which counts N and D in units of their geometric means: then ln N is as often negative as
positive, so that A/N^alpha and its derivative by alpha are not nearly parallel, and numbers are ten times smaller: 40
to 400 for good designs. A fit has no such freedom, as its parameters are those of N and D as counted."""
PARALLEL = 0.9999
"""Correlation from which columns of logarithms, such as ln N and ln D, count as one."""
UNBOUNDED = 1e6
WIDE = 20.0
DISAGREE = 3.0
"""Times by which a standard error and an interval may differ before they contradict each other."""


def condition_number(J_nP: np.ndarray) -> float:
    """Condition number of a Jacobian with its columns made equally long; infinite where one of them is zero.

    How nearly one parameter can stand in for the others, without what their units alone would do.
    """
    length_P = np.linalg.norm(J_nP, axis=0)
    return float(np.linalg.cond(J_nP / length_P)) if length_P.all() else np.inf


def verdict(e: "Estimate", *, positive: bool, scattered: bool = False) -> str:
    """ "yes", or "weakly" or "no" with the reason. scattered: whether resamples went far beyond the interval."""
    if not math.isfinite(e.value) or math.isnan(e.low) or math.isnan(e.high):
        return "no: not a finite number"
    sides = [
        side for side, end in (("below", e.low), ("above", e.high))
        if not math.isfinite(end) or (positive and end <= 0)
    ]  # fmt: skip
    if sides:
        return f"no: not bounded {' or '.join(sides)}"
    if positive and e.high / e.low >= WIDE:
        return f"weakly: the interval spans a factor of {e.high / e.low:.3g}"
    if not positive and e.high - e.low > abs(e.value):
        return f"weakly: the interval [{e.low:.3g}, {e.high:.3g}] is wider than the value"
    if scattered:
        return "weakly: resamples scatter far beyond the interval"
    return "yes"


def bounded(e: "Estimate", *, positive: bool) -> "Estimate":
    """The estimate with ends that are too far from a positive value to bound it at 0 or infinity."""
    if not positive:
        return e
    low = e.low if e.low * UNBOUNDED > e.value else 0.0
    high = e.high if e.high < e.value * UNBOUNDED else math.inf
    return dataclasses.replace(e, low=low, high=high)


def scatters_beyond(e: "Estimate", level: float) -> bool:
    """Whether the standard error is far larger than the interval allows."""
    return e.se is not None and not e.se <= DISAGREE * _implied_se(e, level) + 1e-9 * abs(e.value)


def consistent(e: "Estimate", level: float) -> "Estimate":
    """The estimate without a standard error that its interval contradicts, either way, or that is not finite."""
    if e.se is None or e.low is None:
        return e
    implied, least = _implied_se(e, level), 1e-9 * abs(e.value)
    agrees = implied / DISAGREE - least <= e.se <= DISAGREE * implied + least and math.isfinite(e.se)
    return e if agrees else dataclasses.replace(e, se=None)


def _implied_se(e: "Estimate", level: float) -> float:
    """The standard error for which the interval would be the normal one."""
    from scipy.special import ndtri  # slow to import, and no plan needs it

    return (e.high - e.low) / (2 * float(ndtri((1 + level) / 2)))
