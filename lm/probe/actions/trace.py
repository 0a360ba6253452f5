"""trace TEXT --subject WORDS --answer WORD: where a corrupted subject's answer comes back.

Causal tracing (Meng et al. 2022): put clean states back into a corrupted run. Which state is data, not program: all of
them run through one compiled program, many at a time.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from lm.errors import require
from lm.limits import Count, Positive, Seed
from lm.model.trained import Trained
from lm.probe import anatomy
from lm.probe.drawing import HEAT, canvas, short, token_ticks
from lm.probe.options import InsideOptions, Report
from lm.probe.passes import TOKENS, forward, part
from lm.probe.rows import TokenRows, continuation, encode, labels, places, rows, score, whole_words
from lm.tables import table

MOST_SAMPLES, MOST_NOISE = 10_000, 1_000
"""Bounds of a trace's noise: what fits in memory, and in float32 with room to add up."""
KIND_NAMES = {"residual": "the residual stream", "mlp": "the feed-forward output", "attention": "the attention output"}


@dataclasses.dataclass(frozen=True)
class Options(InsideOptions):
    """Corrupt the subject, restore one state at a time, and see where the answer comes back (Meng et al. 2022)."""

    text: Annotated[str, tyro.conf.Positional]
    """A prompt that the answer completes."""
    subject: str
    """Words of the prompt whose embeddings are corrupted."""
    answer: str
    other: str | None = None
    """Corrupt by putting in this other subject, of as many tokens, instead of noise."""
    noise: Positive = 3.0
    """In standard deviations of the subject's embeddings."""
    samples: Count = 10
    """Draws of noise to average over."""
    window: Count = 1
    """Layers of attention or feed-forward output restored together."""
    seed: Seed = 0


RESTORED = {"residual": "residual.after", "mlp": "mlp.out", "attention": "attention.out"}
"""Each kind of state and its tap. Row 0 of the residual kind is the embedding, row e is what leaves layer e - 1."""


@dataclasses.dataclass(frozen=True)
class Trace:
    """Probability of an answer with one clean state put back into a corrupted run (Meng et al. 2022, section 2)."""

    labels: list[str]
    """Tokens of the prompt."""
    answer: str
    corrupted_T: np.ndarray
    """Which tokens of the prompt were corrupted."""
    clean: float
    corrupted: float
    """Probability of the answer in either run, the corrupted one's a mean over its samples."""
    restored: dict[str, np.ndarray]
    """Probabilities {residual: [L + 1, T], mlp: [L, T], attention: [L, T]}, means over samples; T is the prompt's."""

    @property
    def starred(self) -> list[str]:
        """The labels, those of corrupted tokens with a star."""
        return [f"{label}*" if star else label for label, star in zip(self.labels, self.corrupted_T, strict=True)]

    def effects(self, kind: str) -> np.ndarray:
        """What restoring a state gives back (Meng's indirect effect): restored minus corrupted probability."""
        return self.restored[kind] - self.corrupted


def trace(
    m: Trained,
    text: str,
    subject: str,
    answer: str,
    *,
    other: str | None = None,
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    window: int = 1,
    cached: bool = False,
) -> Trace:
    """Corrupt the subject's embeddings, restore one clean state at a time, and see the answer come back.

    noise: standard deviation of what is added, in standard deviations of the subject's embeddings (Meng et al.: 3).
    other: instead of noise, the embeddings of this other subject, of as many tokens (Zhang and Nanda 2023 advise it).
    window: layers whose mlp or attention output is restored together, centred on the one named (Meng et al.: 10).
    """
    anatomy.transformer(m.model, "attention and feed-forward layers to restore")
    anatomy.predicts_next(m.model)
    require(1 <= samples <= MOST_SAMPLES, f"samples {samples}: from 1 to {MOST_SAMPLES:,} draws of noise")
    require(0 < noise <= MOST_NOISE, f"noise {noise}: above 0, up to {MOST_NOISE} standard deviations")
    require(window >= 1, f"window {window}: at least one layer")
    require(seed >= 0, f"seed {seed}: not negative")
    require(other is None or other.strip() != subject.strip(), f"other {other!r}: the subject itself corrupts nothing")
    text = text.rstrip()
    prompt, ending = encode(m, text), continuation(m, answer)
    subject_T = places(m, text, subject)
    batch = rows(m, [prompt + ending], [len(prompt)])
    corrupt_T = np.pad(subject_T, (0, batch.tokens_BT.shape[1] - len(prompt)))
    clean, clean_logp = _clean(m.model, m.params, batch.tokens_BT, batch.scored_BT, cached)
    embedding_TD = clean["embedding"]
    if other is None:
        scale = noise * jnp.std(embedding_TD[np.flatnonzero(corrupt_T)].astype(jnp.float32))
        drawn_ZTD = jax.random.normal(jax.random.key(seed), (samples, *embedding_TD.shape)) * scale
        corrupted_ZTD = embedding_TD + (drawn_ZTD * corrupt_T[:, None]).astype(embedding_TD.dtype)
    else:
        corrupted_ZTD = _embedding_of(m, text, subject, other, batch, len(prompt))

    masks, shapes = every_state(m, batch.tokens_BT.shape[1], window)
    logp_AZ = patch(m, batch, corrupted_ZTD, clean, masks, cached=cached)
    probability_A = np.exp(logp_AZ).mean(-1)
    restored, start = {}, 1  # the first mask restores nothing
    for kind, (layers, T) in shapes.items():
        end = start + layers * T
        restored[kind] = probability_A[start:end].reshape(layers, T)[:, : len(prompt)]
        start = end
    return Trace(
        labels=labels(m, prompt), answer=answer, corrupted_T=subject_T, clean=float(np.exp(clean_logp)),
        corrupted=float(probability_A[0]), restored=restored,
    )  # fmt: skip


PLACES = ("before the subject", "subject, first", "subject, middle", "subject, last", "between", "last token")
"""Where a token of a prompt stands, as Meng et al. 2022 average their traces; a subject of one token is its last."""


def average_effects(traces: Sequence[Trace]) -> dict[str, np.ndarray]:
    """Average over traces the mean `effects` at each place, {kind: [L or L + 1, places]}; NaN where none has it."""
    kinds = {}
    for kind in RESTORED:
        means = [[_mean(trace.effects(kind)[:, place_T]) for place_T in _places_of(trace)] for trace in traces]
        stack = np.ma.masked_invalid(np.array(means))  # [traces, places, layers]
        kinds[kind] = stack.mean(0).filled(np.nan).T
    return kinds


def _mean(effect_LT: np.ndarray) -> np.ndarray:
    """The mean over tokens, NaN where there are none, [L]."""
    return effect_LT.mean(-1) if effect_LT.size else np.full(len(effect_LT), np.nan)


def _places_of(trace: Trace) -> list[np.ndarray]:
    """Say for each of PLACES which tokens are there, as booleans [T]; a token has one place."""
    t, subject_T = np.arange(len(trace.labels)), trace.corrupted_T
    first, last = np.flatnonzero(subject_T)[[0, -1]]
    is_last, is_first = t == last, (t == first) & (first < last)
    ends = (t == len(t) - 1) & (t > last)
    middle = (t > first) & (t < last)
    return [t < first, is_first, middle, is_last, (t > last) & ~ends, ends]


def every_state(m: Trained, T: int, window: int = 1) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, int]]]:
    """Make masks {kind: [A, L or L + 1, T]} that restore nothing, then each state alone; and each kind's shape."""
    L = m.model.config.layers
    shapes = {"residual": (L + 1, T), "mlp": (L, T), "attention": (L, T)}
    count = 1 + sum(layers * T for layers, _ in shapes.values())
    masks = {kind: np.zeros((count, *shape), bool) for kind, shape in shapes.items()}
    site = 1
    for kind, (layers, _) in shapes.items():
        width = 1 if kind == "residual" else window  # a restored stream already holds all that came before
        for layer in range(layers):
            low = layer - (width - 1) // 2
            for t in range(T):
                masks[kind][site, max(0, low) : low + width, t] = True
                site += 1
    return masks, shapes


def clean_states(m: Trained, batch: TokenRows, *, cached: bool = False) -> dict[str, jax.Array]:
    """Read what `patch` puts back: {tap: [T, D] or [L, T, D]} of the first row."""
    return _clean(m.model, m.params, batch.tokens_BT, batch.scored_BT, cached)[0]


def patch(m: Trained, batch: TokenRows, corrupted_ZTD, clean: dict, masks: dict[str, np.ndarray], *, cached=False):
    """Score the first row's tokens, log p [A, Z] in nats, in Z corrupted runs with A choices of states put back.

    corrupted_ZTD: what enters the first block instead. clean: from `clean_states`. masks: {residual: [A, L + 1, T],
    mlp: [A, L, T], attention: [A, L, T]} booleans, any number of states at once.
    """
    tokens_T, scored_T, corrupted_ZTD = batch.tokens_BT[0], batch.scored_BT[0], jnp.asarray(corrupted_ZTD)
    logp_AZ = _patched(m.model, m.params, tokens_T, scored_T, corrupted_ZTD, clean, masks, cached)
    return np.asarray(logp_AZ)


def _embedding_of(m: Trained, text: str, subject: str, other: str, batch: TokenRows, length: int) -> jax.Array:
    """What enters the first block with the other subject in the text, [1, T, D]."""
    changed = encode(m, whole_words(subject).sub(lambda _: other.strip(), text))
    require(
        len(changed) == length,
        f"{other!r} makes the prompt {len(changed)} tokens and {subject!r} {length}: name one of as many tokens",
    )
    tokens_BT = batch.tokens_BT.copy()
    tokens_BT[0, :length] = changed
    other_batch = dataclasses.replace(batch, tokens_BT=tokens_BT)
    return clean_states(m, other_batch)["embedding"][None]


@functools.partial(jax.jit, static_argnums=(0, 4))
def _clean(model, params, tokens_BT, scored_BT, cached):
    """The first row's states (see `clean_states`), and log p of its scored tokens in nats."""
    logits_BTV, values = forward(model, params, tokens_BT, ("embedding", *RESTORED.values()), cached=cached)
    nats_BT, _ = score(logits_BTV, tokens_BT)
    first = {name: x[0] if name == "embedding" else x[:, 0] for name, x in values.items()}
    return first, -jnp.sum(nats_BT[0] * scored_BT[0])


@functools.partial(jax.jit, static_argnums=(0, 7))
def _patched(model, params, tokens_T, scored_T, corrupted_ZTD, clean, masks, cached):
    """log p of the scored tokens, [A, Z]; see `patch`."""
    tokens_ZT = jnp.broadcast_to(tokens_T, (len(corrupted_ZTD), len(tokens_T)))

    def one(mask):
        def choose(value, clean_TD, mask_T, start):
            return jnp.where(part(mask_T, value, start)[:, None], part(clean_TD, value, start), value)

        def embedding(value, layer, start):
            corrupted = part(corrupted_ZTD, value, start, axis=1)
            return choose(corrupted, clean["embedding"], mask["residual"][0], start)

        def state(kind, tap):
            above = 1 if kind == "residual" else 0
            return lambda value, layer, start: choose(value, clean[tap][layer], mask[kind][layer + above], start)

        edits = {"embedding": embedding} | {tap: state(kind, tap) for kind, tap in RESTORED.items()}
        logits_ZTV, _ = forward(model, params, tokens_ZT, edits=edits, cached=cached)
        nats_ZT, _ = score(logits_ZTV, tokens_ZT)
        return -jnp.sum(nats_ZT * scored_T, axis=-1)

    return jax.lax.map(one, masks, batch_size=max(1, TOKENS // tokens_ZT.size))


# --- for the command, and the figure ---------------------------------------------------------------------------------
def run(m: Trained, o: Options) -> Report:
    """Trace the answer."""
    made = trace(
        m, o.text, o.subject, o.answer, other=o.other, noise=o.noise, samples=o.samples, window=o.window, seed=o.seed,
        cached=o.cached,
    )  # fmt: skip
    shown = [f"p({o.answer}) {made.clean:.4f} clean, {made.corrupted:.4f} with {o.subject} corrupted"]
    for kind, value_LT in made.restored.items():
        layers = range(len(made.restored["mlp"]))
        columns = ("token", *(["embedding"] if kind == "residual" else []), *map(str, layers))
        cells = [(label, *(f"{p:.4f}" for p in value_LT[:, t])) for t, label in enumerate(made.starred)]
        title = f"p({o.answer}) with {KIND_NAMES[kind]} restored at one token, after layer"
        shown += ["", table(columns, cells, title=title)]
    value = {
        "tokens": made.labels, "subject": made.corrupted_T.tolist(), "clean": made.clean, "corrupted": made.corrupted,
    }  # fmt: skip
    value |= {kind: value_LT.tolist() for kind, value_LT in made.restored.items()}
    return Report(value, shown, lambda out: traced(made, out))


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
    """Draw a panel for each kind of state, tokens down and layers across.

    values: {kind: [rows, T]}; the residual's first row is the embedding. low, high: ends of the colours, such as the
    corrupted and the clean run's probability.
    """
    low = min(v.min() for v in values.values()) if low is None else low
    high = max(v.max() for v in values.values()) if high is None else high
    widths = [v.shape[0] for v in values.values()]
    size = 2.6 + max(0.42 * sum(widths), 2.0 * len(values)), max(2.6, 1.3 + 0.26 * len(labels))
    options = dict(figsize=size, sharey=True, squeeze=False, gridspec_kw={"width_ratios": widths})
    with canvas(out, 1, len(values), style=HEAT, **options) as panels:
        for axes, (kind, value_LT) in zip(panels[0], values.items(), strict=True):
            image = axes.imshow(value_LT.T, cmap="Blues", aspect="auto", vmin=low, vmax=high)
            rows = value_LT.shape[0]
            names = ["emb", *range(rows - 1)] if kind == "residual" else range(rows)
            axes.tick_params(left=False)
            for (row, t), value in np.ndenumerate(value_LT) if rows <= 9 else ():
                colour = "white" if (value - low) > 0.6 * (high - low) else "black"
                written = f"{round(value, 2) + 0.0:.2f}"  # no -0.00
                axes.text(row, t, written, ha="center", va="center", fontsize=7, color=colour)
            every = max(1, rows // 8)
            axes.set_xticks(range(0, rows, every), list(names)[::every])
            axes.set_title(KIND_NAMES[kind].removeprefix("the "), fontsize=10)
            axes.set_xlabel("layer")
        token_ticks(panels[0, 0].yaxis, labels, 9)
        axes.figure.colorbar(image, ax=panels[0], label=unit, aspect=25, pad=0.02)
        axes.figure.suptitle(title, fontsize=11)
    return out


def traced(trace: Trace, out: Path) -> Path:
    """Draw the maps of one trace; the subject's tokens are starred."""
    answer = short(trace.answer, 30)
    title = f"P({answer}): {trace.clean:.3f} clean, {trace.corrupted:.3f} with the subject (*) corrupted"
    low, high = sorted([trace.corrupted, trace.clean])
    unit = f"P({answer}) with\none state restored"
    return trace_maps(trace.starred, trace.restored, out, low=low, high=high, unit=unit, title=title)
