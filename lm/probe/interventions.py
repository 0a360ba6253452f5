"""Interventions: switch parts of the model off, or put clean states back into a corrupted run.

Which part or which state is data, not program: all of them run through one compiled program, many at a time.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import require
from lm.probe.passes import forward, part
from lm.probe.rows import CHUNK, Rows, continuation, encode, labels, places, rows, score, whole_words
from lm.run import Model

TOKENS = 4096
"""Tokens that go through the model at once; more interventions than that take turns."""
MOST_SAMPLES, MOST_NOISE = 10_000, 1_000
"""Bounds of a trace's noise: what fits in memory, and in float32 with room to add up."""


# --- ablation --------------------------------------------------------------------------------------------------------
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


def every_part(m: Model) -> list[Part]:
    """All heads, all layers' attention and feed-forward, and each of these two kinds in all layers at once."""
    c = m.experiment.model
    heads = [Part("head", layer, head) for layer in range(c.layers) for head in range(c.heads)]
    layers = [Part(kind, layer) for kind in ("attention", "mlp") for layer in (*range(c.layers), None)]
    return heads + layers


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Tokens' losses with each part off; A counts the parts."""

    parts: list[Part]
    rows: Rows
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
        return self.nats_ABT[:, self.rows.scored_BT].mean(-1)

    @property
    def base_accuracy(self) -> float:
        """Share of scored tokens that the whole model holds most likely."""
        return float((self.base_rank_BT[self.rows.scored_BT] == 1).mean())

    @property
    def accuracy_A(self) -> np.ndarray:
        return (self.rank_ABT[:, self.rows.scored_BT] == 1).mean(-1)


def ablate(
    m: Model,
    text: str | Rows,
    parts: Sequence[Part] | None = None,
    *,
    how: Literal["zero", "mean"] = "zero",
    cached: bool = False,
) -> Ablation:
    """Losses with each part's output replaced: by zero, or by its mean over the tokens of these same texts.

    parts: `every_part` by default. Each is switched off alone.
    """
    require(how in ("zero", "mean"), f"how {how!r}: one of zero, mean")
    c = m.experiment.model
    batch = text if isinstance(text, Rows) else rows(m, [encode(m, text)])
    parts = every_part(m) if parts is None else list(parts)
    require(bool(parts), "no parts to ablate")
    off = [_off(c, part) for part in (None, *parts)]  # the first is the whole model
    off = {name: np.stack([o[name] for o in off]) for name in off[0]}
    sums = [_sums(c, m.params, chunk.tokens_BT, chunk.held_BT) for chunk in batch.chunks(CHUNK)]
    scale = 0 if how == "zero" else 1 / batch.held_BT.sum()
    instead = jax.tree.map(lambda *sums: scale * sum(sums), *sums)
    read = [_ablated(c, m.params, chunk.tokens_BT, off, instead, cached) for chunk in batch.chunks(CHUNK)]
    nats_ABT, rank_ABT = (np.concatenate(x, axis=1)[:, : len(batch.length_B)] for x in zip(*read, strict=True))
    return Ablation(parts, batch, nats_ABT[0], rank_ABT[0], nats_ABT[1:], rank_ABT[1:])


ABLATED = {"head": "attention.heads", "attention": "attention.out", "mlp": "mlp.out"}
"""Kind -> the tap that carries its output."""


def _off(c, part: Part | None) -> dict[str, np.ndarray]:
    """{kind: booleans}, [L, N] for heads and [L] for the others."""
    off = {"head": np.zeros((c.layers, c.heads), bool)} | {k: np.zeros(c.layers, bool) for k in ("attention", "mlp")}
    if part is not None:
        known = part.kind in off and (part.layer is None or 0 <= part.layer < c.layers)
        known &= part.kind != "head" or (part.layer is not None and part.head in range(c.heads))
        require(known, f"no {part}: the model has layers 0 to {c.layers - 1} of heads 0 to {c.heads - 1}")
        layer = slice(None) if part.layer is None else part.layer
        off[part.kind][(layer, part.head) if part.kind == "head" else layer] = True
    return off


@functools.partial(jax.jit, static_argnums=0)
def _sums(c, params, tokens_BT, held_BT):
    """{kind: every layer's output summed over tokens}, [L, N, H] for heads and [L, D] for the others."""
    _, values = forward(c, params, tokens_BT, ABLATED.values(), cached=False)
    total = lambda x: jnp.einsum("LBT...,BT->L...", x, held_BT, preferred_element_type=jnp.float32)  # noqa: E731
    return {kind: total(values[tap]) for kind, tap in ABLATED.items()}


@functools.partial(jax.jit, static_argnums=(0, 5))
def _ablated(c, params, tokens_BT, off, instead, cached):
    """Nats and ranks (`score`) [A, B, T]. off: {kind: [A, L] or [A, L, N] booleans}; instead: {kind: [L, ...]}."""

    def one(off):
        def switch(kind):
            def edit(value, layer, start):
                off_N = off[kind][layer][..., None]  # [N, 1] for heads, [1] else
                return jnp.where(off_N, instead[kind][layer].astype(value.dtype), value)

            return edit

        logits_BTV, _ = forward(
            c, params, tokens_BT, edits={ABLATED[kind]: switch(kind) for kind in off}, cached=cached
        )
        return score(logits_BTV, tokens_BT)

    return jax.lax.map(one, off, batch_size=max(1, TOKENS // tokens_BT.size))


# --- patching and causal tracing -------------------------------------------------------------------------------------
RESTORED = {"residual": "residual.after", "mlp": "mlp.out", "attention": "attention.out"}
"""Kind of state -> its tap. Row 0 of the residual kind is the embedding, row e is what leaves layer e - 1."""


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
    """{residual: [L + 1, T], mlp: [L, T], attention: [L, T]} probability, a mean over samples; T is the prompt's."""

    def effects(self, kind: str) -> np.ndarray:
        """What restoring a state gives back (Meng's indirect effect): restored minus corrupted probability."""
        return self.restored[kind] - self.corrupted


def trace(
    m: Model,
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
    clean, clean_logp = _clean(m.experiment.model, m.params, batch.tokens_BT, batch.scored_BT, cached)
    embedding_TD = clean["embedding"]
    if other is None:
        scale = noise * jnp.std(embedding_TD[np.flatnonzero(corrupt_T)].astype(jnp.float32))
        drawn_STD = jax.random.normal(jax.random.key(seed), (samples, *embedding_TD.shape)) * scale
        corrupted_STD = embedding_TD + (drawn_STD * corrupt_T[:, None]).astype(embedding_TD.dtype)
    else:
        corrupted_STD = _embedding_of(m, text, subject, other, batch, len(prompt))

    masks, shapes = every_state(m, batch.tokens_BT.shape[1], window)
    logp_XS = patch(m, batch, corrupted_STD, clean, masks, cached=cached)
    corrupted, *probability_X = np.exp(logp_XS).mean(-1)  # the first mask restores nothing
    ends = np.cumsum([layers * T for layers, T in shapes.values()])[:-1]
    kinds = zip(shapes.items(), np.split(np.array(probability_X), ends), strict=True)
    restored = {kind: values.reshape(shape)[:, : len(prompt)] for (kind, shape), values in kinds}
    return Trace(labels(m, prompt), answer, subject_T, float(np.exp(clean_logp)), float(corrupted), restored)


PLACES = ("before the subject", "subject, first", "subject, middle", "subject, last", "between", "last token")
"""Where a token of a prompt stands, as Meng et al. 2022 average their traces; a subject of one token is its last."""


def average_effects(traces: Sequence[Trace]) -> dict[str, np.ndarray]:
    """{kind: [L or L + 1, places]}: the mean over traces of the mean `effects` at each place; NaN where none has it."""
    kinds = {}
    for kind in RESTORED:
        means = [[_mean(trace.effects(kind)[:, place_T]) for place_T in _places_of(trace)] for trace in traces]
        stack = np.ma.masked_invalid(np.array(means))  # [traces, places, layers]
        kinds[kind] = stack.mean(0).filled(np.nan).T
    return kinds


def _mean(effect_LT: np.ndarray) -> np.ndarray:
    return effect_LT.mean(-1) if effect_LT.size else np.full(len(effect_LT), np.nan)


def _places_of(trace: Trace) -> list[np.ndarray]:
    """[T] booleans for each of PLACES; a token has one place."""
    t, subject_T = np.arange(len(trace.labels)), trace.corrupted_T
    first, last = np.flatnonzero(subject_T)[[0, -1]]
    is_last, is_first = t == last, (t == first) & (first < last)
    ends = (t == len(t) - 1) & (t > last)
    middle = (t > first) & (t < last)
    return [t < first, is_first, middle, is_last, (t > last) & ~ends, ends]


def every_state(m: Model, T: int, window: int = 1) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, int]]]:
    """Masks {kind: [X, L or L + 1, T]} that restore nothing, then each state alone; and each kind's shape, in order."""
    L = m.experiment.model.layers
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


def clean_states(m: Model, batch: Rows, *, cached: bool = False) -> dict[str, jax.Array]:
    """{tap: [T, D] or [L, T, D]} of the first row: what `patch` puts back."""
    return _clean(m.experiment.model, m.params, batch.tokens_BT, batch.scored_BT, cached)[0]


def patch(m: Model, batch: Rows, corrupted_STD, clean: dict, masks: dict[str, np.ndarray], *, cached=False):
    """log p of the first row's scored tokens, [X, S] nats, in S corrupted runs with X choices of states put back.

    corrupted_STD: what enters the first block instead. clean: from `clean_states`. masks: {residual: [X, L + 1, T],
    mlp: [X, L, T], attention: [X, L, T]} booleans, any number of states at once.
    """
    given = batch.tokens_BT[0], batch.scored_BT[0], jnp.asarray(corrupted_STD), clean, masks
    return np.asarray(_patched(m.experiment.model, m.params, *given, cached))


def _embedding_of(m: Model, text: str, subject: str, other: str, batch: Rows, length: int) -> jax.Array:
    """[1, T, D]: what enters the first block with the other subject in the text."""
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
def _clean(c, params, tokens_BT, scored_BT, cached):
    logits_BTV, values = forward(c, params, tokens_BT, ("embedding", *RESTORED.values()), cached=cached)
    nats_BT, _ = score(logits_BTV, tokens_BT)
    first = {name: x[0] if name == "embedding" else x[:, 0] for name, x in values.items()}
    return first, -jnp.sum(nats_BT[0] * scored_BT[0])


@functools.partial(jax.jit, static_argnums=(0, 7))
def _patched(c, params, tokens_T, scored_T, corrupted_STD, clean, masks, cached):
    tokens_ST = jnp.broadcast_to(tokens_T, (len(corrupted_STD), len(tokens_T)))

    def one(mask):
        def choose(value, clean_TD, mask_T, start):
            return jnp.where(part(mask_T, value, start)[:, None], part(clean_TD, value, start), value)

        def embedding(value, layer, start):
            corrupted = part(corrupted_STD, value, start, axis=1)
            return choose(corrupted, clean["embedding"], mask["residual"][0], start)

        def state(kind, tap):
            above = 1 if kind == "residual" else 0
            return lambda value, layer, start: choose(value, clean[tap][layer], mask[kind][layer + above], start)

        edits = {"embedding": embedding} | {tap: state(kind, tap) for kind, tap in RESTORED.items()}
        logits_STV, _ = forward(c, params, tokens_ST, edits=edits, cached=cached)
        nats_ST, _ = score(logits_STV, tokens_ST)
        return -jnp.sum(nats_ST * scored_T, axis=-1)

    return jax.lax.map(one, masks, batch_size=max(1, TOKENS // tokens_ST.size))
