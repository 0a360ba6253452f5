"""lens TEXT: how the prediction forms, layer by layer.

The logit lens (nostalgebraist 2020): what a model would predict if it stopped after each layer.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from lm.errors import require
from lm.model.trained import Trained
from lm.probe import anatomy
from lm.probe.attribution import attribute_logits
from lm.probe.drawing import FAMILY, HEAT, canvas, short, token_ticks
from lm.probe.options import InsideOptions, Report
from lm.probe.passes import forward
from lm.probe.rows import encode, labels, rows, score
from lm.tables import table

CHOSEN = "#b5179e"
"""Stands out against every blue."""


@dataclasses.dataclass(frozen=True)
class Options(InsideOptions):
    """What the model would predict after each layer: rank and probability of the token that came, and the likeliest."""

    text: Annotated[str, tyro.conf.Positional]
    """The text to read."""
    answer: str | None = None
    """Also say what each part adds to the logit of this word after the text."""
    other: str | None = None
    """With --answer: against the logit of this word."""

    def check(self) -> None:
        require(self.answer is not None or self.other is None, "--other: against which --answer?")


@dataclasses.dataclass(frozen=True)
class Lens:
    """Predictions after the embedding and after each layer (E = L + 1 entries) at every position of a text."""

    entries: list[str]
    labels: list[str]
    """The text's tokens; position t predicts token t + 1."""
    top: list[list[str]]
    """The token most expected next, [E][T]."""
    top_probability_ET: np.ndarray
    probability_ET: np.ndarray
    """The probability of the token that came next; NaN at the last position, after which nothing came."""
    rank_ET: np.ndarray
    """The rank of the token that came next, 1 is first; 0 at the last position."""
    kl_ET: np.ndarray
    """KL(what the model predicts || what it would here), nats."""


def logit_lens(m: Trained, text: str, *, cached: bool = False) -> Lens:
    """Apply the final norm and the head to the embedding and to what leaves each block."""
    anatomy.predicts_next(m.model)
    tokens = encode(m, text)
    batch, T = rows(m, [tokens]), len(tokens)
    read = jax.device_get(_summaries(m.model, m.params, batch.tokens_BT, cached))
    top_ET, peak_ET, nats_ET, rank_ET, kl_ET = (x[:, 0, :T] for x in read)
    nats_ET = np.concatenate([nats_ET[:, 1:], np.full_like(nats_ET[:, :1], np.nan)], axis=1)
    rank_ET = np.concatenate([rank_ET[:, 1:], 0 * rank_ET[:, :1]], axis=1)
    return Lens(
        entries=["embedding", *(f"layer {layer}" for layer in range(len(top_ET) - 1))], labels=labels(m, tokens),
        top=[labels(m, top_T) for top_T in top_ET], top_probability_ET=peak_ET, probability_ET=np.exp(-nats_ET),
        rank_ET=rank_ET, kl_ET=kl_ET,
    )  # fmt: skip


def lens_logits(m: Trained, tokens_BT, *, cached: bool = False) -> jax.Array:
    """The logits themselves, [E, B, T, V]. The last entry is the model's own."""
    return _logits(m.model, m.params, jnp.asarray(tokens_BT), cached)


def _states(model, params, tokens_BT, cached):
    """Residual streams that the lens looks at, [E, B, T, D]."""
    _, values = forward(model, params, tokens_BT, ("embedding", "residual.after"), cached=cached)
    return jnp.concatenate([values["embedding"][None], values["residual.after"]])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logits(model, params, tokens_BT, cached):
    """Logits of every entry, [E, B, T, V]."""
    return jax.lax.map(functools.partial(model.early_logits, params), _states(model, params, tokens_BT, cached))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _summaries(model, params, tokens_BT, cached):
    """Top token, its probability, nats and rank of the true token (`score`), and KL, each [E, B, T]."""
    states_EBTD = _states(model, params, tokens_BT, cached)
    final_BTV = jax.nn.log_softmax(model.early_logits(params, states_EBTD[-1]))

    def entry(x_BTD):  # one at a time: all entries' logits at once can be more than all else
        logits_BTV = model.early_logits(params, x_BTD)
        here_BTV = jax.nn.log_softmax(logits_BTV)
        kl_BT = jnp.sum(jnp.exp(final_BTV) * (final_BTV - here_BTV), axis=-1)
        return logits_BTV.argmax(-1), jnp.exp(here_BTV.max(-1)), *score(logits_BTV, tokens_BT), kl_BT

    return jax.lax.map(entry, states_EBTD)


# --- for the command, and the figure ---------------------------------------------------------------------------------
def run(m: Trained, o: Options) -> Report:
    """Look at the text after every layer; with an answer, also at what adds to its logit."""
    seen = logit_lens(m, o.text, cached=o.cached)
    value = {"tokens": seen.labels, "entries": summary(seen)}
    shown = tables(seen, value["entries"])
    if o.answer is not None:
        adds = attribute_logits(m, o.text, o.answer, o.other, cached=o.cached)
        value["attribution"] = adds.to_json()
        shown += ["", adds.table()]
    return Report(value, shown, lambda out: lens_map(seen, out))


def summary(seen: Lens) -> list[dict]:
    """What each entry expects, and means over positions: loss and KL in nats per token."""
    return [
        {
            "entry": name,
            "loss": float(-np.log(np.maximum(seen.probability_ET[e, :-1], 1e-45)).mean()),
            "kl": float(seen.kl_ET[e].mean()),
            "top": seen.top[e],
            "top_probability": seen.top_probability_ET[e].tolist(),
            "rank": seen.rank_ET[e, :-1].tolist(),
            "probability": seen.probability_ET[e, :-1].tolist(),
        }
        for e, name in enumerate(seen.entries)
    ]


def tables(seen: Lens, entries: list[dict]) -> list:
    """Each position's predictions, and the entries' means."""
    E, last = len(seen.entries), len(seen.labels) - 1
    rows = []
    for t, label in enumerate(seen.labels):
        tops = [seen.top[e][t] + (f" ({seen.rank_ET[e, t]})" if t < last else "") for e in range(E)]
        rows.append((label, *tops, f"{seen.probability_ET[-1, t]:.4f}" if t < last else ""))
    title = "token most expected next, (rank of the one that came); the last row's is not known"
    predictions = table(("after reading", *seen.entries, "p(came)"), rows, title=title, left=1 + E)
    rows = []
    for entry in entries:
        ranks = np.sort(entry["rank"])
        rows.append((entry["entry"], entry["loss"], str(ranks[len(ranks) // 2]), (ranks == 1).mean(), entry["kl"]))
    columns = ("entry", "nats", "median rank", "first", "KL to the model's own, nats")
    return [predictions, "", table(columns, rows, title="mean over positions")]


def lens_map(lens: Lens, out: Path, *, most: int = 24) -> Path:
    """Draw entries down to the embedding, tokens across; each cell names the token expected next, coloured by
    probability.

    Outlined where that is the token that came. most: of a longer text, the last so many positions.
    """
    from matplotlib.patches import Rectangle

    E, T = lens.rank_ET.shape
    shown = slice(max(0, T - most), T)
    top = [row[shown] for row in lens.top][::-1]
    peak_ET, rank_ET = lens.top_probability_ET[::-1, shown], lens.rank_ET[::-1, shown]
    labels = lens.labels[shown]
    width = 0.35 + 0.085 * max(4, np.mean([len(word) for row in top for word in row]))
    size = 1.6 + width * len(labels) + 0.8, 1.4 + 0.45 * E
    with canvas(out, style=HEAT, figsize=size) as axes:
        image = axes.imshow(peak_ET, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (e, t), peak in np.ndenumerate(peak_ET):
            word = short(top[e][t], 12)
            font = min(9.0, 72 * 0.92 * width / max(4, len(word)) / 0.62)
            colour = "white" if peak > 0.55 else "black"
            axes.text(t, e, word, ha="center", va="center", color=colour, fontsize=font, **FAMILY)
            if rank_ET[e, t] == 1:
                box = Rectangle((t - 0.47, e - 0.46), 0.94, 0.92, fill=False, edgecolor=CHOSEN, linewidth=1.4)
                axes.add_patch(box)
        token_ticks(axes.xaxis, labels, 9, rotation=45 if width < 0.8 else 0)
        axes.set_yticks(range(E), lens.entries[::-1])
        axes.set_xlabel("token read; outlined: what the lens expects is what came next")
        axes.figure.colorbar(image, label="probability of the\ntoken in the cell", pad=0.01)
    return out
