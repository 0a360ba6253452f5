"""Loss curves of runs."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lm.errors import UserError
from lm.figures import STYLE, check_format, save
from lm.run import Run

LABELS = {"step": "optimizer step", "tokens": "tokens trained on", "seconds": "seconds of training"}


def loss_curves(runs: Sequence[Run], out: Path, *, x: str = "step", bits_per_byte: bool = False) -> Path:
    """Training loss (thin) and validation loss (marked) of each run, written to `out` (.png, .svg or .pdf).

    Nats per token; bits_per_byte shows validation alone, in the unit that compares tokenizers.
    """
    check_format(out)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        drawn = np.concatenate([_draw(axes, run, x, bits_per_byte, colour=f"C{i}") for i, run in enumerate(runs)])
        if not len(drawn):
            plt.close(figure)
            raise UserError(f"{', '.join(str(run.path) for run in runs)}: no losses logged yet")
        axes.set_xlabel(LABELS[x])
        axes.set_ylabel("validation, bits per byte" if bits_per_byte else "loss, nats per token")
        axes.legend(title=None if bits_per_byte else "marked: validation, thin: training", alignment="left")
        low, high = drawn.min(), np.percentile(drawn, 98)
        if low < high:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        save(figure, out)
    return out


def _draw(axes, run: Run, x: str, bits_per_byte: bool, colour: str) -> np.ndarray:
    """One run's curves; returns the losses drawn."""
    key = "val_bits_per_byte" if bits_per_byte else "val_loss"
    points = lambda name: np.array([(r[x], r[name]) for r in run.metrics() if name in r]).reshape(-1, 2)  # noqa: E731
    train, validation = points("loss"), points(key)
    if not bits_per_byte:
        axes.plot(*train.T, color=colour, alpha=0.45, linewidth=1.2)
    axes.plot(*validation.T, color=colour, marker="o", markersize=4, label=run.name)
    return validation[:, 1] if bits_per_byte else np.concatenate([train[:, 1], validation[:, 1]])
