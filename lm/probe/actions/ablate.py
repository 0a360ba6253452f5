"""ablate TEXT | --facts FILE: how much worse the model gets with a part switched off.

Which part is data, not program: all of them run through one compiled program, many at a time.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from lm.errors import require
from lm.model.trained import Trained
from lm.probe import anatomy
from lm.probe.actions.facts import fact_rows, read_facts
from lm.probe.drawing import BARS, canvas
from lm.probe.options import InsideOptions, Report
from lm.probe.passes import TOKENS, forward
from lm.probe.rows import CHUNK, TokenRows, encode, rows, score
from lm.tables import table


@dataclasses.dataclass(frozen=True)
class Options(InsideOptions):
    """How much worse the model gets with a head, an attention or a feed-forward layer switched off."""

    text: Annotated[str, tyro.conf.Positional] = ""
    """The text whose tokens are scored; or --facts."""
    facts: Path | None = None
    """Score the answers to these facts instead."""
    how: Literal["zero", "mean"] = "zero"
    """What stands in for the output: nothing, or its mean over the same tokens."""
    parts: Literal["all", "layers", "heads"] = "all"
    """What to switch off, one at a time."""

    def check(self) -> None:
        require(bool(self.text) != (self.facts is not None), "ablate what? A TEXT, or --facts FILE")
        if self.facts is not None:
            read_facts(self.facts)


@dataclasses.dataclass(frozen=True)
class Part:
    """What to switch off: a head, one layer's attention or feed-forward layer, or (layer None) those of all layers."""

    kind: Literal["head", "attention", "mlp"]
    layer: int | None
    head: int | None = None

    def __str__(self) -> str:
        if self.layer is None:
            return "all attention" if self.kind == "attention" else "all feed-forward"
        what = {"head": f"head {self.head}", "mlp": "feed-forward"}.get(self.kind, self.kind)
        return f"layer {self.layer} {what}"


def every_part(m: Trained) -> list[Part]:
    """List all heads, all layers' attention and feed-forward, and each of these two kinds in all layers at once."""
    model = m.model
    heads = [Part("head", layer, head) for layer in range(model.config.layers) for head in range(anatomy.heads(model))]
    layers = [Part(kind, layer) for kind in ("attention", "mlp") for layer in (*range(model.config.layers), None)]
    return heads + layers


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Tokens' losses with each part off; A counts the parts."""

    parts: list[Part]
    rows: TokenRows
    """The texts."""
    base_nats_BT: np.ndarray
    base_rank_BT: np.ndarray
    nats_ABT: np.ndarray
    rank_ABT: np.ndarray

    @property
    def base(self) -> float:
        """Nats per scored token of the whole model."""
        return float(self.base_nats_BT[self.rows.scored_BT].mean())

    @property
    def loss_A(self) -> np.ndarray:
        """Nats per scored token with each part off."""
        return self.nats_ABT[:, self.rows.scored_BT].mean(-1)

    @property
    def base_accuracy(self) -> float:
        """Share of scored tokens that the whole model holds most likely."""
        return float((self.base_rank_BT[self.rows.scored_BT] == 1).mean())

    @property
    def accuracy_A(self) -> np.ndarray:
        """Share of scored tokens that are held most likely with each part off."""
        return (self.rank_ABT[:, self.rows.scored_BT] == 1).mean(-1)


def ablate(
    m: Trained,
    text: str | TokenRows,
    parts: Sequence[Part] | None = None,
    *,
    how: Literal["zero", "mean"] = "zero",
    cached: bool = False,
) -> Ablation:
    """Measure losses with each part's output replaced: by zero, or by its mean over the tokens of these same texts.

    parts: `every_part` by default. Each is switched off alone.
    """
    require(how in ("zero", "mean"), f"how {how!r}: one of zero, mean")
    model = m.model
    anatomy.predicts_next(model)
    batch = text if isinstance(text, TokenRows) else rows(m, [encode(m, text)])
    parts = every_part(m) if parts is None else list(parts)
    require(bool(parts), "no parts to ablate")
    each = [_off(model, part) for part in (None, *parts)]  # the first is the whole model
    off = {kind: np.stack([one[kind] for one in each]) for kind in ABLATED}
    sums = [_sums(model, m.params, chunk.tokens_BT, chunk.held_BT) for chunk in batch.chunks(CHUNK)]
    scale = 0 if how == "zero" else 1 / batch.held_BT.sum()
    instead = jax.tree.map(lambda *sums: scale * sum(sums), *sums)
    read = [_ablated(model, m.params, chunk.tokens_BT, off, instead, cached) for chunk in batch.chunks(CHUNK)]
    nats_ABT, rank_ABT = (np.concatenate(x, axis=1)[:, : len(batch.length_B)] for x in zip(*read, strict=True))
    return Ablation(
        parts=parts, rows=batch, base_nats_BT=nats_ABT[0], base_rank_BT=rank_ABT[0], nats_ABT=nats_ABT[1:],
        rank_ABT=rank_ABT[1:],
    )  # fmt: skip


ABLATED = {"head": "attention.heads", "attention": "attention.out", "mlp": "mlp.out"}
"""Kind -> the tap that carries its output."""


def _off(model, part: Part | None) -> dict[str, np.ndarray]:
    """What to switch off as {kind: booleans}, [L, N] for heads and [L] for the others."""
    layers, heads = model.config.layers, anatomy.heads(model)
    off = {"head": np.zeros((layers, heads), bool)} | {kind: np.zeros(layers, bool) for kind in ("attention", "mlp")}
    if part is not None:
        known = part.kind in off and (part.layer is None or 0 <= part.layer < layers)
        known &= part.kind != "head" or (part.layer is not None and part.head in range(heads))
        require(known, f"no {part}: the model has layers 0 to {layers - 1} of heads 0 to {heads - 1}")
        layer = slice(None) if part.layer is None else part.layer
        off[part.kind][(layer, part.head) if part.kind == "head" else layer] = True
    return off


@functools.partial(jax.jit, static_argnums=0)
def _sums(model, params, tokens_BT, held_BT):
    """Every layer's output summed over tokens, {kind: [L, N, H] for heads and [L, D] for the others}."""
    _, values = forward(model, params, tokens_BT, ABLATED.values(), cached=False)
    return {
        kind: jnp.einsum("LBT...,BT->L...", values[tap], held_BT, preferred_element_type=jnp.float32)
        for kind, tap in ABLATED.items()
    }


@functools.partial(jax.jit, static_argnums=(0, 5))
def _ablated(model, params, tokens_BT, off, instead, cached):
    """Nats and ranks (`score`), [A, B, T]. off: {kind: [A, L] or [A, L, N] booleans}; instead: {kind: [L, ...]}."""

    def one(off):
        def switch(kind):
            def edit(value, layer, start):
                here = off[kind][layer][..., None]  # [N, 1] for heads, [1] else
                return jnp.where(here, instead[kind][layer].astype(value.dtype), value)

            return edit

        logits_BTV, _ = forward(
            model, params, tokens_BT, edits={ABLATED[kind]: switch(kind) for kind in off}, cached=cached
        )
        return score(logits_BTV, tokens_BT)

    return jax.lax.map(one, off, batch_size=max(1, TOKENS // tokens_BT.size))


# --- for the command, and the figure ---------------------------------------------------------------------------------
def run(m: Trained, o: Options) -> Report:
    """Switch the parts off one at a time."""
    parts = [part for part in every_part(m) if o.parts == "all" or (part.kind == "head") == (o.parts == "heads")]
    text = o.text if o.facts is None else fact_rows(m, read_facts(o.facts))
    ablation = ablate(m, text, parts, how=o.how, cached=o.cached)
    what = "the tokens" if o.facts is None else "the answers' tokens"
    cells = [("nothing", f"{ablation.base:.4f}", "", ablation.base_accuracy)]
    listed = []
    for part, loss, accuracy in zip(parts, ablation.loss_A.tolist(), ablation.accuracy_A.tolist(), strict=True):
        change = loss - ablation.base
        cells.append((part, f"{loss:.4f}", f"{change:+.4f}", accuracy))
        listed.append(dataclasses.asdict(part) | {"loss": loss, "change": change, "accuracy": accuracy})
    title = f"loss on {what} with a part off ({o.how} ablation), nats per token"
    value = {"loss": ablation.base, "accuracy": ablation.base_accuracy, "how": o.how, "parts": listed}
    shown = table(("off", "loss", "change", "first"), cells, title=title)
    return Report(value, [shown], lambda out: ablation_bars(ablation, out, how=o.how))


def ablation_bars(ablation: Ablation, out: Path, *, how: str = "zero") -> Path:
    """Draw the loss that each layer's attention and feed-forward layer saves, and each head (numbers in squares)."""
    change = {part: loss - ablation.base for part, loss in zip(ablation.parts, ablation.loss_A, strict=True)}
    halves = {part: x for part, x in change.items() if part.kind != "head"}
    heads = {(part.layer, part.head): x for part, x in change.items() if part.kind == "head"}
    L = 1 + max(part.layer for part in change if part.layer is not None)
    N = 1 + max((head for _, head in heads), default=0)
    size = 4.6 * bool(halves) + (1.4 + 0.62 * N + 1.0) * bool(heads) + 0.4, max(3.2, 1.6 + 0.62 * (L + 1))
    with canvas(out, 1, bool(halves) + bool(heads), style=BARS, figsize=size, squeeze=False) as panels:
        if halves:
            _half_bars(panels[0, 0], halves, L, how)
        if heads:
            _head_squares(panels[0, -1], heads, L, N)
    return out


def _half_bars(axes, halves: dict[Part, float], L: int, how: str) -> None:
    """Draw two bars a layer: attention and feed-forward."""
    for shift, kind, colour, name in ((-0.2, "attention", "C0", "attention"), (0.2, "mlp", "C1", "feed-forward")):
        values = [halves.get(Part(kind, layer), 0.0) for layer in (*range(L), None)]
        bars = axes.barh(np.arange(L + 1) + shift, values, height=0.36, color=colour, label=name)
        axes.bar_label(bars, fmt="%+.2f", padding=3, fontsize=9)
    axes.set_yticks(range(L + 1), [*(f"layer {layer}" for layer in range(L)), "all layers"])
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"change of loss, nats per token ({how} ablation)")
    axes.figure.legend(loc="outside upper center", ncols=2)


def _head_squares(axes, heads: dict[tuple[int, int], float], L: int, N: int) -> None:
    """Draw the change of loss without each head as a square."""
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
    axes.figure.colorbar(image, ax=axes, shrink=0.8, label="change of loss,\none head off")
