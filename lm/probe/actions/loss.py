"""loss TEXT: how surprised the model is by each token."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from lm.model.trained import Trained
from lm.probe import anatomy
from lm.probe.drawing import FAMILY, HEAT, canvas
from lm.probe.options import InsideOptions, Report
from lm.probe.passes import forward
from lm.probe.rows import byte_counts, encode, labels, rows, score
from lm.tables import table


@dataclasses.dataclass(frozen=True)
class Options(InsideOptions):
    """How surprised the model is by each token of a text."""

    text: Annotated[str, tyro.conf.Positional]
    """The text to read."""


@dataclasses.dataclass(frozen=True)
class TokenLosses:
    """How surprised the model was by each token of a text that something came before."""

    labels: list[str]
    nats: np.ndarray
    rank: np.ndarray
    expected: list[str]
    """What the model held most likely instead, or as well."""
    expected_probability: np.ndarray
    bytes: np.ndarray
    """Bytes of UTF-8 in each token."""


def token_losses(m: Trained, text: str, *, cached: bool = False) -> TokenLosses:
    """Measure nats, rank and the model's own first choice, token by token."""
    anatomy.predicts_next(m.model)
    tokens = encode(m, text)
    batch, T = rows(m, [tokens]), len(tokens)
    read = jax.device_get(_losses(m.model, m.params, batch.tokens_BT, cached))
    nats_T, rank_T, top_T, peak_T = (x[0, :T] for x in read)
    return TokenLosses(
        labels=labels(m, tokens[1:]), nats=nats_T[1:], rank=rank_T[1:], expected=labels(m, top_T[:-1]),
        expected_probability=peak_T[:-1], bytes=byte_counts(m, tokens[1:]),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 3))
def _losses(model, params, tokens_BT, cached):
    """Nats and rank of each token, the likeliest next token and its probability, each [B, T]."""
    logits_BTV, _ = forward(model, params, tokens_BT, cached=cached)
    peak_BT = jnp.exp(jax.nn.log_softmax(logits_BTV).max(-1))
    return *score(logits_BTV, tokens_BT), logits_BTV.argmax(-1), peak_BT


# --- for the command, and the figure ---------------------------------------------------------------------------------
def run(m: Trained, o: Options) -> Report:
    """Score the text token by token, and as a whole."""
    losses = token_losses(m, o.text, cached=o.cached)
    mean = float(losses.nats.mean())
    bits = float(losses.nats.sum() / math.log(2) / max(1, losses.bytes.sum()))
    value = {
        "loss": mean, "bits_per_byte": bits, "tokens": losses.labels, "nats": losses.nats.tolist(),
        "rank": losses.rank.tolist(), "expected": losses.expected,
        "expected_probability": losses.expected_probability.tolist(),
    }  # fmt: skip
    columns = ("token", "expected", "with p", "nats", "rank")
    peaks, nats, ranks = losses.expected_probability.tolist(), losses.nats.tolist(), map(str, losses.rank)
    shown = table(columns, zip(losses.labels, losses.expected, peaks, nats, ranks, strict=True), left=2)
    line = f"{mean:.4f} nats per token, {bits:.4f} bits per byte, {len(losses.nats)} tokens"
    return Report(value, [shown, line], lambda out: loss_text(losses, out))


def loss_text(losses: TokenLosses, out: Path, *, columns: int = 72) -> Path:
    """Draw the text itself, each token on a ground as dark as it was surprising."""
    import matplotlib as mpl

    boxes, x, y = [], 0, 0
    for label, nats in zip(losses.labels, losses.nats, strict=True):
        if x and x + len(label) > columns:
            x, y = 0, y + 1
        boxes.append((x, y, label, float(nats)))
        x, y = (0, y + 1) if label.endswith("⏎") else (x + len(label), y)
    width, lines = max(x + len(label) for x, _, label, _ in boxes), y + 1
    top = max(float(np.percentile(losses.nats, 95)), 0.1)
    size = 0.082 * max(width, 30) + 1.0, 0.24 * lines + 0.75
    with canvas(out, style=HEAT, figsize=size) as axes:
        colours = mpl.colormaps["Oranges"]
        for x, y, label, nats in boxes:
            shade = min(nats / top, 1)
            axes.add_patch(
                mpl.patches.Rectangle((x, y), len(label), 0.9, facecolor=colours(0.85 * shade), edgecolor="white")
            )
            for place, character in enumerate(label):
                colour = "#aaaaaa" if character in "·⏎" else "white" if shade > 0.75 else "black"
                middle = x + place + 0.5, y + 0.47
                axes.text(*middle, character, ha="center", va="center", color=colour, fontsize=9, **FAMILY)
        axes.set(xlim=(0, max(width, 30)), ylim=(lines, 0))
        axes.axis("off")
        image = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, top / 0.85), colours)
        bar = axes.figure.colorbar(image, ax=axes, label="nats", pad=0.01, fraction=0.03, extend="max")
        bar.ax.set_ylim(0, top)
        axes.set_title(f"{losses.nats.mean():.3f} nats per token", fontsize=10, loc="left")
    return out
