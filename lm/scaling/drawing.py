"""What figures of scaling share: labels that name a convention, colours, and axes that can be read."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.ticker import FixedLocator, NullLocator

from lm.scaling.points import Points

COLOURS = ListedColormap(plt.get_cmap("viridis")(np.linspace(0, 0.88, 256)))
"""Without the yellow that white paper swallows."""
QUANTITIES = {"flops": "training FLOPs C", "params": "parameters N", "tokens": "tokens D"}
LOSS = "loss, nats per token"
ABOVE = dict(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
"""A legend that hides no curve."""
FAR = 30.0


def label(points: Points, quantity: str) -> str:
    """A quantity's name with the convention it was counted by."""
    said = counted_by(points, quantity)
    return QUANTITIES[quantity] + ("" if said == "as given" else f" ({said})")


def counted_by(points: Points, quantity: str) -> str:
    """How a quantity was counted. FLOPs that are 6ND are called so, whatever the column was."""
    if quantity == "flops" and np.allclose(points.flops, 6 * points.params * points.tokens, rtol=1e-3):
        return "6ND"
    return points.conventions.get(quantity, "as given").split(" (column")[0]


def reach(values: np.ndarray, beyond: float = 1.0) -> np.ndarray:
    """100 values over the range of these and a factor beyond it."""
    return np.geomspace(values.min() / min(beyond, 1.5), values.max() * beyond, 100)


def norm_of(values: np.ndarray) -> LogNorm:
    """The logarithmic scale of colours for these values."""
    low, high = float(values.min()), float(values.max())
    return LogNorm(low, high if high > low else 1.01 * low)


def colourbar(figure, axes, norm: LogNorm, said: str, side: str = "right") -> None:
    """Add the scale of colours, with ticks that can be read."""
    bar = figure.colorbar(plt.cm.ScalarMappable(norm, COLOURS), ax=axes, label=said, location=side)
    _ticks(bar.ax.yaxis if side == "right" else bar.ax.xaxis, norm.vmin, norm.vmax)


def window(axes, loss: np.ndarray) -> None:
    """Show the range of the losses but for the few that diverged."""
    low, high = loss.min(), np.percentile(loss, 98)
    if low < high:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.1 * (high - low))


def finish(axes, x: str, y: str, logs: str = "", near: np.ndarray | None = None) -> None:
    """Set labels and logarithmic axes with ticks that can be read.

    near: a curve from which y goes no further than a factor of FAR, as a band that the points do not bound would hide
    the rest.
    """
    axes.set(xlabel=x, ylabel=y)
    for name in logs:
        getattr(axes, f"set_{name}scale")("log")
    if near is not None:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, near.min() / FAR), min(high, near.max() * FAR))
    for name in logs:
        _ticks(getattr(axes, f"{name}axis"), *getattr(axes, f"get_{name}lim")())


def _ticks(axis, low: float, high: float) -> None:
    """Label powers of ten, or as many numbers between them as it takes to read a short axis, and no more."""
    for subs in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5), (1, 1.5, 2, 3, 5, 7)):
        tens = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
        ticks = np.outer(tens, subs).ravel()
        ticks = ticks[(low <= ticks) & (ticks <= high)]
        if len(ticks) >= 3:
            break
    if len(subs) > 1:
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(lambda x, _: _plain(x))
        axis.set_minor_locator(NullLocator())


def _plain(x: float) -> str:
    """A number as one writes it, with a power of ten where it is very large or small."""
    if 1e-4 <= x < 1e5:
        return f"{x:.6g}"
    power = int(np.floor(np.log10(x) + 1e-9))
    digits = f"{x / 10.0**power:.2g}"
    return rf"$10^{{{power}}}$" if digits == "1" else rf"${digits}\times10^{{{power}}}$"
