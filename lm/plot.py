"""Loss curves of runs."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from lm.errors import UserError, printable
from lm.figures import STYLE, check_format, save
from lm.listing import grouped, scale_of, text_of
from lm.run import Run

LABELS = {"step": "optimizer step", "tokens": "tokens trained on", "seconds": "seconds of training"}


def loss_curves(runs: Sequence[Run], out: Path, *, x: str = "step", bits_per_byte: bool = False) -> Path:
    """Training loss (thin) and validation loss (marked) of each run, written to `out` (.png, .svg or .pdf).

    Losses are in nats per token; bits_per_byte shows validation alone, in the unit that compares tokenizers. Losses
    that do not compare (other validation texts, nats of other tokenizers) are drawn in separate panels. Raises
    UserError where no losses are logged or the file cannot be written.
    """
    check_format(out)
    groups = incomparable(runs, bits_per_byte)
    names = _names(runs)
    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name in a script that the font lacks
        width, height = plt.rcParams["figure.figsize"]
        figure, panels = plt.subplots(
            len(groups), 1, figsize=(width, height * len(groups)), sharex=True, squeeze=False, layout="constrained"
        )
        drawn = [_panel(axes, group, names, x, bits_per_byte) for axes, group in zip(panels[:, 0], groups, strict=True)]
        if not any(map(len, drawn)):
            plt.close(figure)
            raise UserError(f"{', '.join(str(run.path) for run in runs)}: no losses logged yet")
        if len(groups) > 1:
            for axes, group in zip(panels[:, 0], groups, strict=True):
                axes.set_title(_literal(_measured_on(group[0], bits_per_byte)), fontsize="medium")
        panels[-1, 0].set_xlabel(LABELS[x])
        save(figure, out)
    return out


def incomparable(runs: Sequence[Run], bits_per_byte: bool) -> list[list[Run]]:
    """The runs in groups whose validation losses compare, in nats per token or in bits per byte."""
    return grouped(runs, text_of if bits_per_byte else scale_of)


def _measured_on(run: Run, bits_per_byte: bool) -> str:
    data = run.experiment.data
    text = f"validation text of {Path(data.validation_corpus or data.learnt).name} ({text_of(run)})"
    return text if bits_per_byte else f"{text}, tokenizer {data.tokenizer} ({run.record['hashes']['tokenizer'][:8]})"


def _names(runs: Sequence[Run]) -> dict[Run, str]:
    """What the legend calls each run: its name, or its path where several have that name."""
    names = [run.name for run in runs]
    return {run: run.name if names.count(run.name) == 1 else str(run.path) for run in runs}


def _literal(text: str) -> str:
    """The text with dollars escaped, which would begin a formula in a figure."""
    return printable(text).replace("$", r"\$")


def _panel(axes, runs: Sequence[Run], names: dict[Run, str], x: str, bits_per_byte: bool) -> np.ndarray:
    """Draw runs whose losses compare; returns the losses drawn."""
    curves = [_draw(axes, run, _literal(names[run]), x, bits_per_byte, f"C{i}") for i, run in enumerate(runs)]
    drawn = np.concatenate(curves)
    axes.set_ylabel("validation, bits per byte" if bits_per_byte else "loss, nats per token")
    axes.legend(title=None if bits_per_byte else "marked: validation, thin: training", alignment="left")
    if len(drawn):
        low, high = drawn.min(), np.percentile(drawn, 98)
        if low < high:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    return drawn


def _draw(axes, run: Run, name: str, x: str, bits_per_byte: bool, colour: str) -> np.ndarray:
    """Draw one run's curves; returns the losses drawn."""
    records = run.metrics()

    def points(key: str) -> np.ndarray:
        found = [(r[x], r[key]) for r in records if x in r and np.isfinite(r.get(key, np.nan))]
        return np.array(found, float).reshape(-1, 2)

    train, validation = points("loss"), points("val_bits_per_byte" if bits_per_byte else "val_loss")
    if not bits_per_byte:
        axes.plot(*train.T, color=colour, alpha=0.45, linewidth=1.2)
    axes.plot(*validation.T, color=colour, marker="o", markersize=4, label=name)
    return validation[:, 1] if bits_per_byte else np.concatenate([train[:, 1], validation[:, 1]])
