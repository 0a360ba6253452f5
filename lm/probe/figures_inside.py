"""Figures of the inside of a model: attention, lens, traces, ablations, facts, losses; as PNG or SVG."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Normalize

from lm.errors import printable
from lm.figures import STYLE, VERBATIM, check_format, save
from lm.probe.attention import Patterns
from lm.probe.interventions import Ablation, Part, Trace
from lm.probe.lens import Lens, TokenLosses

HEAT = STYLE | VERBATIM | {"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True, "font.size": 10}
CHOSEN = "#b5179e"
"""Stands out against every blue."""
FAMILY = {"family": "monospace"}


def attention_grid(
    patterns: Patterns, out: Path, *, layer: int | None = None, head: int | None = None, titles: dict | None = None
) -> Path:
    """Query tokens down, key tokens across, one square a head; rows of squares are layers.

    layer, head: show these alone. titles: {(layer, head): words to put beside its name}.
    """
    L, N, T, _ = patterns.weights_LNTS.shape
    layers, heads = [layer] if layer is not None else range(L), [head] if head is not None else range(N)
    alone = len(layers) * len(heads) == 1
    side = max(4.0, 0.24 * T) if alone else max(2.0, min(3.2, 0.11 * T + 0.6))
    with plt.rc_context(HEAT):
        margin = 0.1 * max(map(len, patterns.labels))
        size = side * len(heads) + margin + 1.2, (side + 0.3) * len(layers) + margin + 0.4
        figure, grid = plt.subplots(len(layers), len(heads), figsize=size, squeeze=False, layout="compressed")
        font = 8 if alone else max(3.5, min(7, 72 * 0.8 * side / T / 1.2))
        for row, this_layer in enumerate(layers):
            for column, this_head in enumerate(heads):
                axes = grid[row, column]
                image = axes.imshow(patterns.weights_LNTS[this_layer, this_head], cmap="Blues", vmin=0, vmax=1)
                extra = (titles or {}).get((this_layer, this_head), "")
                name = f"layer {this_layer} head {this_head}" if N <= 8 or alone else f"{this_layer}.{this_head}"
                axes.set_title(f"{name}  {extra}".strip(), fontsize=11 if alone else 9)
                _token_ticks(axes.xaxis, patterns.labels if row == len(layers) - 1 else [], font, rotation=90)
                _token_ticks(axes.yaxis, patterns.labels if column == 0 else [], font)
        grid[-1, len(heads) // 2].set_xlabel("attended token (key)")
        grid[len(layers) // 2, 0].set_ylabel("attending token (query)")
        figure.colorbar(image, ax=grid, fraction=0.04, pad=0.01, aspect=30, label="attention weight")
        return _saved(figure, out)


def lens_map(lens: Lens, out: Path, *, most: int = 24) -> Path:
    """Entries down to the embedding, tokens across; each cell names the token expected next, coloured by probability.

    Outlined where that is the token that came. most: of a longer text, the last so many positions.
    """
    E, T = lens.rank_ET.shape
    shown = slice(max(0, T - most), T)
    top = [row[shown] for row in lens.top][::-1]
    peak_ET, rank_ET = lens.top_probability_ET[::-1, shown], lens.rank_ET[::-1, shown]
    labels = lens.labels[shown]
    width = 0.35 + 0.085 * max(4, np.mean([len(word) for row in top for word in row]))
    with plt.rc_context(HEAT):
        figure, axes = plt.subplots(figsize=(1.6 + width * len(labels) + 0.8, 1.4 + 0.45 * E), layout="constrained")
        image = axes.imshow(peak_ET, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for e in range(E):
            for t in range(len(labels)):
                colour = "white" if peak_ET[e, t] > 0.55 else "black"
                word = _short(top[e][t], 12)
                size = min(9.0, 72 * 0.92 * width / max(4, len(word)) / 0.62)
                axes.text(t, e, word, ha="center", va="center", color=colour, fontsize=size, **FAMILY)
                if rank_ET[e, t] == 1:
                    box = plt.Rectangle((t - 0.47, e - 0.46), 0.94, 0.92, fill=False, edgecolor=CHOSEN, linewidth=1.4)
                    axes.add_patch(box)
        _token_ticks(axes.xaxis, labels, 9, rotation=45 if width < 0.8 else 0)
        axes.set_yticks(range(E), lens.entries[::-1])
        axes.set_xlabel("token read; outlined: what the lens expects is what came next")
        figure.colorbar(image, label="probability of the\ntoken in the cell", pad=0.01)
        return _saved(figure, out)


KIND_NAMES = {"residual": "residual stream", "mlp": "feed-forward output", "attention": "attention output"}


def trace_maps(
    labels: Sequence[str],
    values: dict[str, np.ndarray],
    out: Path,
    *,
    low: float | None = None,
    high: float | None = None,
    unit: str = "probability of the answer",
    title: str = "",
) -> Path:
    """One panel a kind of state: tokens down, layers across. values: {kind: [rows, T]}; the residual's first row is the
    embedding. low, high: ends of the colours, such as the corrupted and the clean run's probability."""
    low = min(v.min() for v in values.values()) if low is None else low
    high = max(v.max() for v in values.values()) if high is None else high
    with plt.rc_context(HEAT):
        widths = [v.shape[0] for v in values.values()]
        size = 2.6 + max(0.42 * sum(widths), 2.0 * len(values)), max(2.6, 1.3 + 0.26 * len(labels))
        figure, panels = plt.subplots(
            1, len(values), figsize=size, sharey=True, layout="constrained", gridspec_kw={"width_ratios": widths}
        )
        for axes, (kind, value_LT) in zip(np.atleast_1d(panels), values.items(), strict=True):
            image = axes.imshow(value_LT.T, cmap="Blues", aspect="auto", norm=Normalize(low, high))
            rows = value_LT.shape[0]
            names = ["emb", *range(rows - 1)] if kind == "residual" else range(rows)
            every = max(1, rows // 8)
            axes.tick_params(left=False)
            if rows <= 9:
                for (row, t), value in np.ndenumerate(value_LT):
                    colour = "white" if (value - low) > 0.6 * (high - low) else "black"
                    said = f"{round(value, 2) + 0.0:.2f}"  # no -0.00
                    axes.text(row, t, said, ha="center", va="center", fontsize=7, color=colour)
            axes.set_xticks(range(0, rows, every), list(names)[::every])
            axes.set_title(KIND_NAMES[kind], fontsize=10)
            axes.set_xlabel("layer")
        _token_ticks(np.atleast_1d(panels)[0].yaxis, labels, 9)
        figure.colorbar(image, ax=panels, label=unit, aspect=25, pad=0.02)
        figure.suptitle(title, fontsize=11)
        return _saved(figure, out)


def traced(trace: Trace, out: Path) -> Path:
    """The maps of one trace; the subject's tokens are starred."""
    answer = _short(trace.answer, 30)
    starred = [f"{label}*" if star else label for label, star in zip(trace.labels, trace.corrupted_T, strict=True)]
    title = f"P({answer}): {trace.clean:.3f} clean, {trace.corrupted:.3f} with the subject (*) corrupted"
    ends = sorted([trace.corrupted, trace.clean])
    unit = f"P({answer}) with\none state restored"
    return trace_maps(starred, trace.restored, out, low=ends[0], high=ends[1], unit=unit, title=title)


def ablation_bars(ablation: Ablation, out: Path, *, how: str = "zero") -> Path:
    """Loss added by switching off each layer's attention and feed-forward layer, and each head (numbers in squares)."""
    change = {part: loss - ablation.base for part, loss in zip(ablation.parts, ablation.loss_A, strict=True)}
    halves = {part: x for part, x in change.items() if part.kind != "head"}
    heads = {(part.layer, part.head): x for part, x in change.items() if part.kind == "head"}
    L = 1 + max(part.layer for part in change if part.layer is not None)
    N = 1 + max((head for _, head in heads), default=0)
    columns = bool(halves) + bool(heads)
    with plt.rc_context(STYLE | VERBATIM | {"font.size": 11}):
        size = 4.6 * bool(halves) + (1.4 + 0.62 * N + 1.0) * bool(heads) + 0.4, max(3.2, 1.6 + 0.62 * (L + 1))
        figure, panels = plt.subplots(1, columns, figsize=size, layout="constrained", squeeze=False)
        panels = list(panels[0])
        if halves:
            axes = panels.pop(0)
            names = [*range(L), None]
            for shift, kind, colour, name in (
                (-0.2, "attention", "C0", "attention"),
                (0.2, "mlp", "C1", "feed-forward"),
            ):
                values = [halves.get(Part(kind, layer), 0.0) for layer in names]
                bars = axes.barh(np.arange(L + 1) + shift, values, height=0.36, color=colour, label=name)
                axes.bar_label(bars, fmt="%+.2f", padding=3, fontsize=9)
            axes.set_yticks(range(L + 1), [*(f"layer {layer}" for layer in range(L)), "all layers"])
            axes.invert_yaxis()
            axes.margins(x=0.18)
            axes.grid(axis="y", visible=False)
            axes.set_xlabel(f"change of loss, nats per token ({how} ablation)")
            figure.legend(loc="outside upper center", ncols=2)
        if heads:
            _head_squares(figure, panels.pop(0), heads, L, N)
        return _saved(figure, out)


def _head_squares(figure, axes, heads: dict[tuple[int, int], float], L: int, N: int) -> None:
    values_LN = np.full((L, N), np.nan)
    for (layer, head), value in heads.items():
        values_LN[layer, head] = value
    most = np.nanmax(np.abs(values_LN)) or 1.0
    image = axes.imshow(values_LN, cmap="RdBu_r", vmin=-most, vmax=most)
    for (layer, head), value in heads.items():
        colour = "white" if abs(value) > 0.6 * most else "black"
        axes.text(head, layer, f"{round(value, 2) + 0.0:+.2f}", ha="center", va="center", fontsize=8, color=colour)
    axes.grid(visible=False)
    axes.set_xticks(range(N))
    axes.set_yticks(range(L))
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    figure.colorbar(image, ax=axes, shrink=0.8, label="change of loss,\none head off")


def facts_bars(table: Sequence[dict], out: Path) -> Path:
    """Accuracy by relation for phrasings that the corpus has and has not; from `lm.probe.summary`."""
    relations = list(dict.fromkeys(row["relation"] for row in table))
    with plt.rc_context(STYLE | VERBATIM | {"font.size": 11}):
        figure, axes = plt.subplots(figsize=(2.2 + 1.1 * len(relations), 3.6), layout="constrained")
        for shift, seen, colour in ((-0.2, True, "C0"), (0.2, False, "C1")):
            rows = {row["relation"]: row for row in table if row["seen"] == seen}
            if rows:
                at = [relations.index(relation) + shift for relation in rows]
                bars = axes.bar(
                    at, [row["accuracy"] for row in rows.values()], width=0.36, color=colour,
                    label="phrasing in the corpus" if seen else "phrasing not in the corpus",
                )  # fmt: skip
                axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=9)
        axes.set_xticks(range(len(relations)), [printable(relation).replace(" ", "\n") for relation in relations])
        axes.set_ylim(0, 1.08)
        axes.set_ylabel("answers that come first")
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside upper center", ncols=2)
        return _saved(figure, out)


def loss_text(losses: TokenLosses, out: Path, *, columns: int = 72) -> Path:
    """The text itself, each token on a ground as dark as it was surprising."""
    boxes, x, y = [], 0, 0
    for label, nats in zip(losses.labels, losses.nats, strict=True):
        if x and x + len(label) > columns:
            x, y = 0, y + 1
        boxes.append((x, y, label, float(nats)))
        x, y = (0, y + 1) if label.endswith("⏎") else (x + len(label), y)
    width, lines = max(x + len(label) for x, _, label, _ in boxes), y + 1
    top = max(float(np.percentile(losses.nats, 95)), 0.1)
    with plt.rc_context(HEAT):
        figure, axes = plt.subplots(figsize=(0.082 * max(width, 30) + 1.0, 0.24 * lines + 0.75), layout="constrained")
        colours = plt.get_cmap("Oranges")
        for x, y, label, nats in boxes:
            shade = min(nats / top, 1)
            axes.add_patch(plt.Rectangle((x, y), len(label), 0.9, facecolor=colours(0.85 * shade), edgecolor="white"))
            for place, character in enumerate(label):
                colour = "#aaaaaa" if character in "·⏎" else "white" if shade > 0.75 else "black"
                axes.text(
                    x + place + 0.5, y + 0.47, character, ha="center", va="center", color=colour, fontsize=9, **FAMILY
                )
        axes.set(xlim=(0, max(width, 30)), ylim=(lines, 0))
        axes.axis("off")
        image = plt.cm.ScalarMappable(Normalize(0, top / 0.85), colours)
        bar = figure.colorbar(image, ax=axes, label="nats", pad=0.01, fraction=0.03, extend="max")
        bar.ax.set_ylim(0, top)
        axes.set_title(f"{losses.nats.mean():.3f} nats per token", fontsize=10, loc="left")
        return _saved(figure, out)


def _token_ticks(axis, labels: Sequence[str], size: float, rotation: float = 0) -> None:
    axis.set_ticks(
        range(len(labels)), [_short(label, 18) for label in labels], fontsize=size, rotation=rotation, **FAMILY
    )
    axis.set_tick_params(length=0)


def _short(word: str, most: int) -> str:
    """At most so many characters."""
    word = printable(word)
    return word if len(word) <= most else word[: most - 1] + "…"


def _saved(figure, out: Path) -> Path:
    check_format(out, "--figure")
    save(figure, out)
    return out
