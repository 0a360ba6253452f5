"""What is learnt: batches, and the objectives, pure functions of a model, its parameters and a batch, side by side.

Targets are shifted against inputs in `next_token` and nowhere else. Logits need not exist all at once.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.model.api import Inputs, LanguageModel

MASKED = 0.15
"""Share of the tokens that the masked objective hides, or changes, and asks for."""
HIDDEN, CHANGED = 0.8, 0.1
"""Of these, shares that are read as the mask token and as a token drawn at random; the rest is read as it is."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows to learn from, and what of them is to be learnt.

    tokens_BU: integers [B, T+1], inputs and targets one apart. weights_BT: 1 for a target that is to be learnt, else 0.
    start_B: a row's first target to be learnt. count_B: how many of its inputs are real; later targets are not learnt.
    None is all of them. segments_BT: the document of each token that is read, where `eot` does not tell. rejected_BU,
    rejected_weights_BT: of preferences, the same rows with the answer that was not chosen. old_BT, advantage_BT,
    reward_B: of rollouts, the log-probability that each target was drawn with, what it was better than expected by, and
    the reward of the text. The others are what `Inputs` has.
    """

    tokens_BU: jax.Array
    weights_BT: jax.Array | None = None
    start_B: jax.Array | None = None
    count_B: jax.Array | None = None
    segments_BT: jax.Array | None = None
    old_BT: jax.Array | None = None
    advantage_BT: jax.Array | None = None
    reward_B: jax.Array | None = None
    rejected_BU: jax.Array | None = None
    rejected_weights_BT: jax.Array | None = None
    source_BS: jax.Array | None = None
    source_count_B: jax.Array | None = None
    vectors_BIE: jax.Array | None = None
    vectors_count_B: jax.Array | None = None
    open_B: jax.Array | None = None

    def inputs(self, model: LanguageModel, tokens_BT: jax.Array, eot: int | None) -> Inputs:
        """What the model reads, `tokens_BT` being its tokens. eot: see `next_token`."""
        vectors = dict(vectors_BIE=self.vectors_BIE, vectors_count_B=self.vectors_count_B)
        beside, source = vectors, None
        if self.source_BS is not None:  # what comes beside a source comes with it
            beside, source = {}, Inputs(self.source_BS, count_B=self.source_count_B, **vectors)
        segments_BT = self.segments_BT
        if segments_BT is None and eot is not None:
            segments_BT = document_segments(self.tokens_BU[:, :-1], eot)
        return Inputs(tokens_BT, segments_BT, count_B=self.count_B, source=source, open_B=self.open_B, **beside)

    def weights(self) -> jax.Array:
        """[B, T] float32: what a target counts."""
        targets_BT = self.tokens_BU[:, 1:]
        index_T = jnp.arange(targets_BT.shape[1])
        weights_BT = jnp.ones(targets_BT.shape, jnp.float32) if self.weights_BT is None else self.weights_BT
        if self.start_B is not None:
            weights_BT = weights_BT * (index_T >= self.start_B[:, None])
        if self.count_B is not None:
            weights_BT = weights_BT * (index_T < self.count_B[:, None])
        return weights_BT.astype(jnp.float32)


class Nats(NamedTuple):
    """What positions cost, each float32 [...]."""

    target: jax.Array
    """-log p(target)."""
    log_z: jax.Array
    """The log-partition."""
    even: jax.Array
    """-log p, the mean over the vocabulary: what label smoothing adds a share of."""


class Learnt(NamedTuple):
    """An objective's account of a batch: what each target costs, the targets and their weights, all [B, T]."""

    nats: Nats
    targets_BT: jax.Array
    weights_BT: jax.Array


def token_nats(
    model: LanguageModel, params: dict, h_BTD: jax.Array, targets_BT: jax.Array, chunk: int | None = None
) -> Nats:
    """What each target costs, [B, T], in nats.

    chunk: positions whose logits exist at once, forward and backward; None is all of them.
    """
    vocab = model.config.vocab

    def nats_of_some(h_MD, target_M):
        logits_MV = model.logits(params, h_MD)
        log_z_M = jax.nn.logsumexp(logits_MV, axis=-1)
        target_nats_M = log_z_M - jnp.take_along_axis(logits_MV, target_M[:, None], axis=-1)[:, 0]
        return Nats(target_nats_M, log_z_M, log_z_M - jnp.mean(logits_MV[:, :vocab], axis=-1))

    h_MD, target_M = h_BTD.reshape(-1, h_BTD.shape[-1]), targets_BT.reshape(-1)
    count = target_M.size
    if chunk is None or chunk >= count:
        nats = nats_of_some(h_MD, target_M)
    else:
        pad = -count % chunk
        h_CMD = jnp.pad(h_MD, ((0, pad), (0, 0))).reshape(-1, chunk, h_MD.shape[-1])
        target_CM = jnp.pad(target_M, (0, pad)).reshape(-1, chunk)
        part = jax.checkpoint(nats_of_some)
        nats = jax.lax.map(lambda chunked: part(*chunked), (h_CMD, target_CM))
        nats = jax.tree.map(lambda x_CM: x_CM.reshape(-1)[:count], nats)
    return jax.tree.map(lambda x_M: x_M.reshape(targets_BT.shape), nats)


# --- objectives ------------------------------------------------------------------------------------------------------
def next_token(
    model: LanguageModel,
    params: dict,
    batch: Batch,
    *,
    eot: int | None = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
    dropout: jax.Array | None = None,
) -> Learnt:
    """Predict each token from those before it and, in a batch that has one, from the source or the vectors.

    eot: the end-of-text token where packed documents are kept apart, None where attention crosses them. chunk: see
    `token_nats`. key: what an objective draws at random, here nothing. dropout: the key that turns dropout on.
    """
    inputs_BT, targets_BT = batch.tokens_BU[:, :-1], batch.tokens_BU[:, 1:]
    h_BTD, _ = model.hidden(params, batch.inputs(model, inputs_BT, eot), key=dropout)
    return Learnt(token_nats(model, params, h_BTD, targets_BT, chunk), targets_BT, batch.weights())


def masked(
    model: LanguageModel,
    params: dict,
    batch: Batch,
    *,
    eot: int | None = None,
    chunk: int | None = None,
    key: jax.Array | None = None,
    dropout: jax.Array | None = None,
) -> Learnt:
    """Tell what the tokens were that are hidden or changed (Devlin et al. 2019, section 3.1): of 15% of a row's inputs,
    each drawn by itself, 80% are read as the mask token, 10% as a token at random, 10% as they are.

    The arguments are those of `next_token`; the last token of a window is not read.
    """
    tokens_BT = batch.tokens_BU[:, :-1]
    read_BT, chosen_BT = corrupt(key, tokens_BT, model.config.vocab)
    h_BTD, _ = model.hidden(params, batch.inputs(model, read_BT, eot), key=dropout)
    weights_BT = batch.weights() * chosen_BT
    return Learnt(token_nats(model, params, h_BTD, tokens_BT, chunk), tokens_BT, weights_BT)


def corrupt(key: jax.Array, tokens_BT: jax.Array, vocab: int) -> tuple[jax.Array, jax.Array]:
    """Tokens as the masked objective shows them, and which it asks for. The mask token is number `vocab`."""
    choose, which, draw = jax.random.split(key, 3)
    chosen_BT = jax.random.bernoulli(choose, MASKED, tokens_BT.shape)
    fate_BT = jax.random.uniform(which, tokens_BT.shape)
    drawn_BT = jax.random.randint(draw, tokens_BT.shape, 0, vocab, tokens_BT.dtype)
    changed_BT = jnp.where(fate_BT < HIDDEN + CHANGED, drawn_BT, tokens_BT)
    return jnp.where(chosen_BT, jnp.where(fate_BT < HIDDEN, vocab, changed_BT), tokens_BT), chosen_BT


OBJECTIVES: dict[str, Callable[..., Learnt]] = {"next_token": next_token, "masked": masked}
"""By the name that train.objective gives them."""


def document_segments(tokens_BT: jax.Array, eot: int) -> jax.Array:
    """Number of the document each token belongs to, counted within its row: a document begins with end-of-text."""
    return jnp.cumsum(tokens_BT == eot, axis=1)
