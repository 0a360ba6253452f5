"""The options that say how to read a table of trained models, the same for `lm fit` and `lm plot`."""

import dataclasses
from pathlib import Path
from typing import Literal

from lm.limits import Positive, Whole


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns, conventions and rows."""

    params_column: str | None = None
    """Columns by name where they are not found by themselves."""
    tokens_column: str | None = None
    flops_column: str | None = None
    loss_column: str | None = None
    sd_column: str | None = None
    """Standard deviation of the loss from seed to seed: points are weighted by it."""
    run_column: str | None = None
    """The trunk a point was branched from, for --cluster run."""
    seed_noise: Positive | None = None
    """The same standard deviation for every point, in nats."""
    convention: tuple[Literal["total", "nonembedding", "exact", "6nd"], ...] = ()
    """How parameters (total, nonembedding) and FLOPs (exact, 6nd) are counted, where the table has several."""
    tokens_from: Literal["6nd"] | None = None
    """Derive tokens from FLOPs: D = C / (6 N)."""
    drop_largest_losses: Whole = 0
    """Set aside this many points of the largest loss; what that changed is reported."""
    where: str | None = None
    """Use only these rows: a column, a comparison and a number, joined by `and`: "tokens > 1e9 and params < 1e10"."""

    def read(self, path: Path, *, needs_loss: bool = True):
        """The table's `Points`. Raises UserError on what is missing or cannot be."""
        from lm.errors import require
        from lm.scaling.points import read_points
        from lm.scaling.predictions import matching

        points = read_points(
            path, params_column=self.params_column, tokens_column=self.tokens_column, flops_column=self.flops_column,
            loss_column=self.loss_column, sd_column=self.sd_column, run_column=self.run_column,
            tokens_from=self.tokens_from, conventions=self.convention, drop_largest_losses=self.drop_largest_losses,
            seed_noise=self.seed_noise, needs_loss=needs_loss,
        )  # fmt: skip
        if self.where is None:
            return points
        points = points.where(matching(points, self.where))
        require(len(points) > 0, f"--where {self.where!r}: no row of {path} matches")
        return points
