"""attention TEXT: where each head looks; scores of every head, or one head's pattern.

Patterns of attention on a text, and how much each head is one of the kinds that are known.
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
from lm.limits import Seed, Whole
from lm.model.trained import Trained
from lm.probe import anatomy
from lm.probe.drawing import HEAT, canvas, token_ticks
from lm.probe.options import InsideOptions, Report
from lm.probe.passes import forward
from lm.probe.rows import beginning, encode, labels, rows, score
from lm.tables import table

KINDS = ("previous", "first", "diagonal", "induction")
"""What a head may attend to: the token before, the first, itself, the one that came next before."""


@dataclasses.dataclass(frozen=True)
class Options(InsideOptions):
    """Where each head looks on a text: scores of every head, or one head's pattern."""

    text: Annotated[str, tyro.conf.Positional]
    """The text to read."""
    layer: Whole | None = None
    """Show this layer alone."""
    head: Whole | None = None
    """Show this head alone."""
    seed: Seed = 0
    """Seed of the random tokens of the induction score."""


@dataclasses.dataclass(frozen=True)
class Patterns:
    """The attention of one text."""

    labels: list[str]
    """Its tokens."""
    weights_LNTS: np.ndarray
    """[layer, head, query, key], summing to one over the keys."""


def attention_patterns(m: Trained, text: str, *, cached: bool = False) -> Patterns:
    """Read the weights of every layer and head on a text. Raises UserError for a model that does not attend."""
    anatomy.transformer(m.model, "attention")
    tokens = encode(m, text)
    batch, T = rows(m, [tokens]), len(tokens)
    weights_LBNTS, _ = _weights(m.model, m.params, batch.tokens_BT, cached)
    return Patterns(labels(m, tokens), np.asarray(weights_LBNTS[:, 0, :, :T, :T]))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _weights(model, params, tokens_BT, cached):
    """Weights [L, B, N, T, T], and nats of every token [B, T]."""
    logits_BTV, values = forward(model, params, tokens_BT, ("attention.weights",), cached=cached)
    return values["attention.weights"], score(logits_BTV, tokens_BT)[0]


def head_scores(weights_LNTS: np.ndarray) -> dict[str, np.ndarray]:
    """Score heads: {previous, first, diagonal, entropy}, each [L, N], means over all queries but the first.

    The first query has no choice. previous, first, diagonal: weight on the token before, on the first token, on the
    token itself, between 0 and 1. entropy: of the weights, in nats.
    """
    T = weights_LNTS.shape[-1]
    require(T >= 2, "one token attends to itself alone: give a longer text")
    t = np.arange(1, T)
    w = np.where(weights_LNTS > 0, weights_LNTS, 1)
    picked = {"previous": t - 1, "first": 0 * t, "diagonal": t}
    scores = {name: weights_LNTS[..., t, s].mean(-1) for name, s in picked.items()}
    return scores | {"entropy": -np.sum(w * np.log(w), axis=-1)[..., 1:].mean(-1)}


def uniform_weights(m: Trained, T: int) -> np.ndarray:
    """Attention that prefers nothing it can see, [L, 1, T, T]: the baseline of every score."""
    mask_LTT = anatomy.visible_keys(m.model, T).astype(float)
    return (mask_LTT / mask_LTT.sum(-1, keepdims=True))[:, None]


@dataclasses.dataclass(frozen=True)
class Induction:
    """What a model does when random tokens come a second time (Olsson et al. 2022)."""

    scores_LN: np.ndarray
    """Mean weight, in the second copy, on the token that followed the same token in the first."""
    uniform_L: np.ndarray
    """The score of attention that prefers nothing."""
    first_nats: float
    second_nats: float
    """Loss on the first copy and on the second, nats per token; the second but for its first token, which comes new."""
    length: int
    """Tokens in a copy."""


def induction(m: Trained, *, length: int = 24, batch: int = 16, seed: int = 0, pool=None, cached=False) -> Induction:
    """Score heads on `batch` rows of `length` random tokens, each row twice; shorter if the context is.

    pool: tokens to draw from, by default all but the end of text. Those that training never showed say little.
    """
    model = m.model
    pool = np.setdiff1d(np.arange(model.config.vocab), m.tokenizer.eot_token) if pool is None else np.asarray(pool)
    start = beginning(m)
    length = min(length, (model.config.context - len(start)) // 2)
    require(length >= 2, f"a context of {model.config.context} tokens has no room for tokens that come twice")
    once_BT = np.random.default_rng(seed).choice(pool, (batch, length))
    tokens_BT = np.concatenate([np.tile(start, (batch, 1)).reshape(batch, -1), once_BT, once_BT], axis=1)
    weights_LBNTS, nats_BT = jax.device_get(_weights(model, m.params, jnp.asarray(tokens_BT, jnp.int32), cached))

    nats_BT = nats_BT[:, len(start) :]
    first, second = nats_BT[:, 1:length], nats_BT[:, length + 1 :]
    uniform_L1NTS = uniform_weights(m, tokens_BT.shape[1])[:, None]
    return Induction(
        scores_LN=induction_scores(weights_LBNTS, length), uniform_L=induction_scores(uniform_L1NTS, length)[:, 0],
        first_nats=float(first.mean()), second_nats=float(second.mean()), length=length,
    )  # fmt: skip


def induction_scores(weights_LBNTS: np.ndarray, length: int) -> np.ndarray:
    """Score heads [L, N] on rows whose last 2 x length tokens are a stretch twice: the mean weight of the second copy's
    tokens on the one that came next in the first."""
    T = weights_LBNTS.shape[-1]
    queries = np.arange(T - length, T)
    return weights_LBNTS[..., queries, queries - length + 1].mean((1, 3))


# --- for the command, and the figure ---------------------------------------------------------------------------------
def run(m: Trained, o: Options) -> Report:
    """Score the heads asked for, beside attention that prefers nothing."""
    L, N = m.model.config.layers, anatomy.heads(m.model)
    require(o.layer is None or o.layer < L, f"--layer {o.layer}: the model has layers 0 to {L - 1}")
    require(o.head is None or o.head < N, f"--head {o.head}: the model has heads 0 to {N - 1}")
    patterns = attention_patterns(m, o.text, cached=o.cached)
    twice = induction(m, seed=o.seed, cached=o.cached)
    scores = head_scores(patterns.weights_LNTS) | {"induction": twice.scores_LN}
    uniform = head_scores(uniform_weights(m, len(patterns.labels))) | {"induction": twice.uniform_L[:, None]}
    layers = range(L) if o.layer is None else [o.layer]
    heads = range(N) if o.head is None else [o.head]
    chosen = [(layer, head) for layer in layers for head in heads]
    names = (*KINDS, "entropy")

    def numbers(some, layer, head):
        return {name: float(some[name][layer, head]) for name in names}

    value = {
        "tokens": patterns.labels,
        "heads": [{"layer": layer, "head": head} | numbers(scores, layer, head) for layer, head in chosen],
        "uniform": [{"layer": layer} | numbers(uniform, layer, 0) for layer in range(L)],
        "induction": {"length": twice.length, "first_nats": twice.first_nats, "second_nats": twice.second_nats},
    }
    if o.layer is not None:
        value["weights"] = [patterns.weights_LNTS[place].tolist() for place in chosen]
    rows = [(f"{layer}.{head}", *numbers(scores, layer, head).values()) for layer, head in chosen]
    rows += [(f"{layer}, if uniform", *numbers(uniform, layer, 0).values()) for layer in layers]
    title = "mean attention weight on the token before, the first, itself; entropy in nats"
    shown = [
        table(("head", "previous", "first", "itself", "induction", "entropy"), rows, title=title),
        f"{twice.length} random tokens twice: {twice.first_nats:.3f} nats per token the first time,"
        f" {twice.second_nats:.3f} the second",
    ]
    if len(chosen) == 1:
        shown.append(_looks(patterns.labels, patterns.weights_LNTS[chosen[0]]))
    titles = _kinds(scores, uniform, chosen)
    return Report(value, shown, lambda out: attention_grid(patterns, out, layer=o.layer, head=o.head, titles=titles))


def _looks(labels: list[str], weights_TS: np.ndarray):
    """A table of the three tokens that each token looks at most."""
    rows = []
    for t, weights_S in enumerate(weights_TS):
        order = weights_S[: t + 1].argsort()[::-1][:3]
        looks = [cell for s in order for cell in (labels[s], f"{weights_S[s]:.3f}")]
        rows.append([labels[t], *looks, *[""] * (6 - len(looks))])
    return table(("token", "most", "", "then", "", "then", ""), rows, title="where each token looks", left=7)


def _kinds(scores: dict, uniform: dict, chosen: list[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """What a head is, where it is clearly something: half its weight or more, and twice what chance gives."""
    kinds = {}
    for layer, head in chosen:
        best = max(KINDS, key=lambda kind: scores[kind][layer, head])
        weight = scores[best][layer, head]
        if weight >= 0.5 and weight >= 2 * uniform[best][layer, 0]:
            kinds[layer, head] = f"{best} {weight:.2f}"
    return kinds


def attention_grid(
    patterns: Patterns, out: Path, *, layer: int | None = None, head: int | None = None, titles: dict | None = None
) -> Path:
    """Draw a square for each head, query tokens down and key tokens across; rows of squares are layers.

    layer, head: show these alone. titles: {(layer, head): words to put beside its name}.
    """
    L, N, T, _ = patterns.weights_LNTS.shape
    layers, heads = [layer] if layer is not None else range(L), [head] if head is not None else range(N)
    alone = len(layers) * len(heads) == 1
    side = max(4.0, 0.24 * T) if alone else max(2.0, min(3.2, 0.11 * T + 0.6))
    margin = 0.1 * max(map(len, patterns.labels))
    size = side * len(heads) + margin + 1.2, (side + 0.3) * len(layers) + margin + 0.4
    options = dict(figsize=size, squeeze=False, layout="compressed")
    font = 8 if alone else max(3.5, min(7, 72 * 0.8 * side / T / 1.2))
    with canvas(out, len(layers), len(heads), style=HEAT, **options) as grid:
        for (row, column), axes in np.ndenumerate(grid):
            place = layers[row], heads[column]
            image = axes.imshow(patterns.weights_LNTS[place], cmap="Blues", vmin=0, vmax=1)
            name = "layer {} head {}".format(*place) if N <= 8 or alone else "{}.{}".format(*place)
            axes.set_title(f"{name}  {(titles or {}).get(place, '')}".strip(), fontsize=11 if alone else 9)
            token_ticks(axes.xaxis, patterns.labels if row == len(layers) - 1 else [], font, rotation=90)
            token_ticks(axes.yaxis, patterns.labels if column == 0 else [], font)
        grid[-1, len(heads) // 2].set_xlabel("attended token (key)")
        grid[len(layers) // 2, 0].set_ylabel("attending token (query)")
        bar = dict(fraction=0.04, pad=0.01, aspect=30, label="attention weight")
        axes.figure.colorbar(image, ax=grid, **bar)
    return out
