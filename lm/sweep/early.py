"""Early stopping of mistuned runs: who is compared when, and who is stopped.

At about a quarter and half of their steps, runs that differ only in what a pack's runs may (rates, decay, schedule,
seed) are compared by their validation losses at that step. Those worse than the best by more than a margin are stopped.
The rule sees nothing but what the runs' own records say, so that a sweep that is resumed decides the same again. Before
its rate falls a run at a high rate looks worse than it will end: the margin is to be well above what that gains.
"""

import math
from collections.abc import Mapping

PLACES = (0.25, 0.5)
"""Parts of a run after which it is compared: at the first evaluation from there on."""


def check_steps(total: int, eval_every: int) -> list[int]:
    """Steps before the last at which a run is evaluated and compared."""
    steps = {math.ceil(place * total / eval_every) * eval_every for place in PLACES}
    return sorted(step for step in steps if step < total)


def worse(losses: Mapping[str, float], margin: float, step: int) -> dict[str, str]:
    """The runs to stop and why, of validation losses by name, in nats a token."""
    if not losses:
        return {}
    best = min(losses, key=losses.__getitem__)
    return {
        name: f"validation {loss:.4f} at step {step}, {loss - losses[best]:.3f} above {best}; the margin is {margin:g}"
        for name, loss in losses.items()
        if loss > losses[best] + margin
    }
