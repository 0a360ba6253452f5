"""Sampler: how the next token is chosen. Imports neither JAX nor NumPy, so the command's help stays instant."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lm.errors import require
from lm.typed import check_types

if TYPE_CHECKING:
    import numpy as np

GREEDY = 1e-6
"""Temperatures below this count as zero: float32 could not divide by much less."""


class Settings(NamedTuple):
    """A Sampler as numbers alone, a pytree: traced, so that no change of them compiles anything."""

    temperature: "np.ndarray"
    top_k: "np.ndarray"
    top_p: "np.ndarray"
    min_p: "np.ndarray"
    repetition_penalty: "np.ndarray"


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen; applied in the order penalty, temperature, top-k, top-p, min-p."""

    temperature: float = 1.0
    """Divides the logits: below 1 is surer, above 1 more varied, 0 always takes the likeliest (greedy)."""
    top_k: int | None = None
    """Choose among the k likeliest only; None is all."""
    top_p: float | None = None
    """Nucleus: choose among the fewest tokens that together have at least this probability; None is all."""
    min_p: float | None = None
    """Leave out tokens less likely than this fraction of the likeliest one's probability; None is none."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens already in the row; 1 does nothing."""

    def __post_init__(self):
        check_types(self, "")
        t, k, p, m, r = self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty
        require(
            0 <= t <= 1e6, f"temperature {t}: must be 0 (greedy) or a positive number up to a million; 1 is the model's"
        )
        require(k is None or k >= 1, f"top_k {k}: must be at least 1; leave it out (None) to keep every token")
        require(p is None or 0 < p <= 1, f"top_p {p}: must be above 0 and at most 1; leave it out to keep every token")
        require(m is None or 0 <= m <= 1, f"min_p {m}: must be between 0 and 1; 0.05 is usual, 0 keeps every token")
        require(0.01 <= r <= 100, f"repetition_penalty {r}: must be between 0.01 and 100; 1 does nothing, 1.2 is usual")

    def settings(self) -> Settings:
        """The same as numbers, "off" being a value too: greedy is top-k with k = 1, which the rest needs not know."""
        import numpy as np

        greedy = self.temperature < GREEDY
        most = np.iinfo(np.int32).max
        return Settings(
            temperature=np.float32(1 if greedy else self.temperature),
            top_k=np.int32(1 if greedy else min(self.top_k or most, most)),
            top_p=np.float32(1 if self.top_p is None else self.top_p),
            min_p=np.float32(self.min_p or 0),
            repetition_penalty=np.float32(self.repetition_penalty),
        )
