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

FEEDBACK = {
    ("chosen", "rejected"): "log-ratio or reward of answers",
    ("right",): "pairs in the right order",
    ("reward",): "reward of a text",
    ("divergence",): "KL from the reference, nats a text",
}
"""Figures that are drawn below the loss of runs that learn from feedback, in panels of their own, and their labels."""
LABELS = {"step": "optimizer step", "tokens": "tokens trained on", "seconds": "seconds of training"}


def loss_curves(runs: Sequence[Run], out: Path, *, x: str = "step", bits_per_byte: bool = False) -> Path:
    """Training loss (thin) and validation loss (marked) of each run, written to `out` (.png, .svg or .pdf).

    Losses are in nats per token; bits_per_byte shows validation alone, in the unit that compares tokenizers. Losses
    that do not compare (other validation texts, objectives, nats of other tokenizers) are drawn in separate panels, and
    so is what runs log that learn from feedback. Raises UserError where no losses are logged or the file cannot be
    written.
    """
    check_format(out)
    groups = incomparable(runs, bits_per_byte)
    names = _names(runs)
    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name in a script that the font lacks
        width, height = plt.rcParams["figure.figsize"]
        below = [] if bits_per_byte else [(group, keys) for group in groups for keys in FEEDBACK if _log(group, keys)]
        rows = len(groups) + len(below)
        figure, panels = plt.subplots(
            rows, 1, figsize=(width, height * rows), sharex=True, squeeze=False, layout="constrained"
        )
        losses = zip(panels[:, 0], groups, strict=False)
        drawn = [_panel(axes, group, names, x, bits_per_byte) for axes, group in losses]
        for axes, (group, keys) in zip(panels[len(groups) :, 0], below, strict=True):
            _feedback(axes, group, names, x, keys)
        if not any(map(len, drawn)):
            plt.close(figure)
            raise UserError(f"{', '.join(str(run.path) for run in runs)}: no losses logged yet")
        if len(groups) > 1:
            for axes, group in zip(panels[:, 0], groups, strict=False):
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
    unit = (
        "loss" if runs[0].experiment.train.objective in ("preference", "reward", "policy") else "loss, nats per token"
    )
    axes.set_ylabel("validation, bits per byte" if bits_per_byte else unit)
    axes.legend(title=None if bits_per_byte else "marked: validation, thin: training", alignment="left")
    if len(drawn):
        low, high = drawn.min(), np.percentile(drawn, 98)
        if low < high:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    return drawn


def _log(runs: Sequence[Run], keys: tuple[str, ...]) -> bool:
    return any(key in record for run in runs for record in run.metrics() for key in keys)


def _feedback(axes, runs: Sequence[Run], names: dict[Run, str], x: str, keys: tuple[str, ...]) -> None:
    """Draw what runs log of feedback: of training thin, of validation marked, the second of two figures dashed."""
    for i, run in enumerate(runs):
        for key, line in zip(keys, ("-", "--"), strict=False):
            label = _literal(names[run]) + (f", {key}" if len(keys) > 1 else "")
            axes.plot(*_points(run, x, key).T, line, color=f"C{i}", alpha=0.45, linewidth=1.2)
            axes.plot(*_points(run, x, f"val_{key}").T, line, color=f"C{i}", marker="o", markersize=4, label=label)
    axes.set_ylabel(FEEDBACK[keys])
    axes.legend(title="marked: validation, thin: training", alignment="left")


def _points(run: Run, x: str, key: str) -> np.ndarray:
    """(x, value) of every record that has both, [records, 2]."""
    found = [(r[x], r[key]) for r in run.metrics() if x in r and np.isfinite(r.get(key, np.nan))]
    return np.array(found, float).reshape(-1, 2)


def _draw(axes, run: Run, name: str, x: str, bits_per_byte: bool, colour: str) -> np.ndarray:
    """Draw one run's curves; returns the losses drawn."""
    train, validation = _points(run, x, "loss"), _points(run, x, "val_bits_per_byte" if bits_per_byte else "val_loss")
    if not bits_per_byte:
        axes.plot(*train.T, color=colour, alpha=0.45, linewidth=1.2)
    axes.plot(*validation.T, color=colour, marker="o", markersize=4, label=name)
    return validation[:, 1] if bits_per_byte else np.concatenate([train[:, 1], validation[:, 1]])
