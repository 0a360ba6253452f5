"""What a step makes small: objectives side by side, each a pure function of parameters and a batch.

    objective(params, batch, e, eot, hyper, key) -> (total, sums)

params are the model's own, adapters merged. total is the sum to differentiate; sums are scalars of which a log point
shows the mean: `nats` of the loss without what only regularises it, `tokens`, the number that both are divided by (of
preferences it counts pairs, of rollouts texts, whatever their length), and those that FIGURES names. hyper: traced
numbers, and under "frozen" the parameters that are read and never changed. key: of what is random, dropout among it.

B, T and V as in the glossary; in a preference's batch a row is a pair, and 2B rows are read.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.config import Experiment
from lm.data.batches import Columns
from lm.model.api import LanguageModel, build
from lm.model.loss import OBJECTIVES as LANGUAGE
from lm.model.loss import Batch, token_nats

DRAWS = 1 << 20
"""Folded into a step's key for what the objective draws: accumulation folds in the numbers of its parts."""
FIGURES = {
    "next_token": (),
    "masked": (),
    "preference": ("chosen", "rejected", "right"),
    "reward": ("chosen", "rejected", "right"),
    "policy": ("reward", "divergence", "clipped"),
}
"""What is logged beside the loss, by the name of the objective.

preference: mean log pi / pi_ref of the chosen and of the rejected answers, in nats a text, and the share of pairs in
which the first is higher; reward: the rewards themselves. policy: the mean reward, KL(pi || pi_ref) in nats a text, and
the share of tokens whose ratio was clipped.
"""

MEASURED = ("preference", "policy")
"""Objectives that are measured against a reference."""


class Account(NamedTuple):
    """What an objective makes of a batch."""

    total: jax.Array
    sums: dict[str, jax.Array]


def account(params: dict, batch: Batch, e: Experiment, eot: int | None, hyper: dict, key: jax.Array | None) -> Account:
    """What the experiment's objective makes of a batch."""
    return _OBJECTIVES[e.train.objective](params, batch, e, eot, hyper, key)


def mean_account(params: dict, columns: Columns, e: Experiment, eot: int | None, hyper: dict) -> dict[str, float]:
    """Means over all rows of columns: the loss, and the objective's other figures, their names after `val_`."""
    totals: dict[str, float] = {}
    for begin in range(0, len(columns["tokens_BU"]), e.train.batch):
        some = {name: jnp.asarray(column[begin : begin + e.train.batch]) for name, column in columns.items()}
        for name, value in _sums(params, Batch(**some), hyper, e, eot).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    count = totals.pop("tokens")
    return {f"val_{'loss' if name == 'nats' else name}": total / count for name, total in totals.items()}


@functools.partial(jax.jit, static_argnames=("e", "eot"))
def _sums(params: dict, batch: Batch, hyper: dict, e: Experiment, eot: int | None) -> dict[str, jax.Array]:
    return account(params, batch, e, eot, hyper, None).sums


# --- language --------------------------------------------------------------------------------------------------------
def language(params, batch: Batch, e: Experiment, eot: int | None, hyper: dict, key) -> Account:
    """Cross-entropy in nats, with label smoothing (Szegedy et al. 2016) and z-loss (Chowdhery et al. 2022, sec. 5)."""
    packed = eot if e.data.packing else None
    draws = None if key is None else jax.random.fold_in(key, DRAWS)
    nats_BT, _, weights_BT = LANGUAGE[e.train.objective](
        build(e.model), params, batch, eot=packed, chunk=e.train.loss_chunk, key=draws, dropout=key
    )
    nats = jnp.sum(weights_BT * nats_BT.target)
    smoothing, loss = e.train.label_smoothing, nats
    if smoothing:
        loss = (1 - smoothing) * nats + smoothing * jnp.sum(weights_BT * nats_BT.even)
    total = loss + hyper["z_loss"] * jnp.sum(weights_BT * nats_BT.log_z**2)
    return Account(total, {"nats": nats, "tokens": jnp.sum(weights_BT)})


# --- preferences -----------------------------------------------------------------------------------------------------
def preference(params, batch: Batch, e: Experiment, eot: int | None, hyper: dict, key) -> Account:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7), no dropout: -log sigma(beta (d_c - d_r)) with
    d = log pi(answer) / pi_ref(answer). Smoothed labels are Mitchell's conservative DPO (2023): a share of the pairs
    counts the other way round."""
    rows, model = _both(batch), build(e.model)
    own, reference = (_text_nats(model, p, rows, e.train.loss_chunk) for p in (params, hyper["frozen"]["reference"]))
    ratio_2B = reference.nats_B - own.nats_B
    per_2B = ratio_2B / jnp.maximum(own.tokens_B, 1) if e.feedback.per_token else ratio_2B
    margin_B = hyper["beta"] * (_chosen(per_2B) - _rejected(per_2B))
    return _compared(margin_B, ratio_2B, e.train.label_smoothing)


def dpo_nats(margin_B: jax.Array, smoothing: float) -> jax.Array:
    """-log sigma of the margin, a share of which counts the other way round: [B] nats."""
    return -(1 - smoothing) * jax.nn.log_sigmoid(margin_B) - smoothing * jax.nn.log_sigmoid(-margin_B)


def reward(params, batch: Batch, e: Experiment, eot: int | None, hyper: dict, key) -> Account:
    """A reward model by Bradley and Terry (1952; Ouyang et al. 2022, equation 1): -log sigma(r_c - r_r), with the
    rewards of `text_rewards`. No dropout."""
    rewards_2B = text_rewards(build(e.model), params, _both(batch))
    return _compared(_chosen(rewards_2B) - _rejected(rewards_2B), rewards_2B, e.train.label_smoothing)


def text_rewards(model: LanguageModel, params: dict, rows: Batch) -> jax.Array:
    """The reward of each row, [B]: the logit of the vocabulary's last token, of ours the end of text, where all of the
    answer but its end is read.

    So a reward model is a language model without a parameter more, and any run can become one.
    """
    weights_BT = rows.weights()
    last_B = weights_BT.shape[1] - 1 - jnp.argmax(weights_BT[:, ::-1] > 0, axis=1)
    h_BTD, _ = model.hidden(params, rows.inputs(model, rows.tokens_BU[:, :-1], None))
    h_BD = jnp.take_along_axis(h_BTD, last_B[:, None, None], axis=1)[:, 0]
    return model.logits(params, h_BD)[:, model.config.vocab - 1]


def _both(batch: Batch) -> Batch:
    """The chosen rows, then the rejected ones."""
    return Batch(
        tokens_BU=jnp.concatenate([batch.tokens_BU, batch.rejected_BU]),
        weights_BT=jnp.concatenate([batch.weights_BT, batch.rejected_weights_BT]),
    )


def _chosen(x_2B: jax.Array) -> jax.Array:
    return x_2B[: len(x_2B) // 2]


def _rejected(x_2B: jax.Array) -> jax.Array:
    return x_2B[len(x_2B) // 2 :]


def _compared(margin_B: jax.Array, figure_2B: jax.Array, smoothing: float) -> Account:
    """The account of a loss of margins."""
    nats = jnp.sum(dpo_nats(margin_B, 0.0))
    total = jnp.sum(dpo_nats(margin_B, smoothing)) if smoothing else nats
    sums = {"nats": nats, "tokens": jnp.float32(len(margin_B)), "chosen": jnp.sum(_chosen(figure_2B))}
    sums |= {"rejected": jnp.sum(_rejected(figure_2B)), "right": jnp.sum(margin_B > 0).astype(jnp.float32)}
    return Account(total, sums)


class _Texts(NamedTuple):
    """What the learnt tokens of each row cost together, and how many they are."""

    nats_B: jax.Array
    tokens_B: jax.Array


def _text_nats(model: LanguageModel, params: dict, rows: Batch, chunk: int | None) -> _Texts:
    weights_BT = rows.weights()
    h_BTD, _ = model.hidden(params, rows.inputs(model, rows.tokens_BU[:, :-1], None))
    nats_BT = token_nats(model, params, h_BTD, rows.tokens_BU[:, 1:], chunk).target
    return _Texts(jnp.sum(weights_BT * nats_BT, axis=1), jnp.sum(weights_BT, axis=1))


# --- rollouts --------------------------------------------------------------------------------------------------------
def policy(params, batch: Batch, e: Experiment, eot: int | None, hyper: dict, key) -> Account:
    """Policy gradients of E[reward] - beta KL(pi || pi_ref) over rollouts, no dropout: the clipped ratio (Schulman et
    al. 2017, equation 7) times advantages within a group (Shao et al. 2024, section 4.1), and the KL of each token's
    distribution, exact and differentiated.

    Divided by the number of texts, not by their lengths (Liu et al. 2025, "Understanding R1-Zero-like training"). What
    later tokens cost in KL is in the advantages (lm/training/rollouts.py), so that this is the gradient of the whole.
    """
    model, weights_BT = build(e.model), batch.weights()
    logprob_BT, divergence_BT = token_divergence(model, params, hyper["frozen"]["reference"], batch, e.train.loss_chunk)
    ratio_BT = jnp.exp(logprob_BT - batch.old_BT)
    low, high = 1 - e.feedback.clip, 1 + e.feedback.clip
    clipped_BT = jnp.clip(ratio_BT, low, high)
    gain_BT = jnp.minimum(ratio_BT * batch.advantage_BT, clipped_BT * batch.advantage_BT)
    total = jnp.sum(weights_BT * (hyper["beta"] * divergence_BT - gain_BT))
    rewards, divergence = jnp.sum(batch.reward_B), jnp.sum(weights_BT * divergence_BT)
    lengths_B = jnp.maximum(jnp.sum(weights_BT, axis=1), 1)
    sums = {"nats": hyper["beta"] * divergence - rewards, "tokens": jnp.float32(len(weights_BT))}
    sums |= {"reward": rewards, "divergence": divergence}
    sums |= {"clipped": jnp.sum(jnp.sum(weights_BT * (ratio_BT != clipped_BT), axis=1) / lengths_B)}
    return Account(total, sums)


class Divergence(NamedTuple):
    """Of each target: its log-probability, and KL(pi || pi_ref) of the distribution it was drawn from, [B, T] nats."""

    logprob: jax.Array
    divergence: jax.Array


def token_divergence(
    model: LanguageModel, params: dict, reference: dict, batch: Batch, chunk: int | None = None
) -> Divergence:
    """Both from full passes; chunk: positions whose logits exist at once, forward and backward, None: all."""
    inputs = batch.inputs(model, batch.tokens_BU[:, :-1], None)
    target_BT, V = batch.tokens_BU[:, 1:], model.config.vocab
    own_BTD, _ = model.hidden(params, inputs)
    their_BTD, _ = model.hidden(reference, inputs)

    def of_some(some):
        own_MD, their_MD, target_M = some
        own_MV = jax.nn.log_softmax(model.logits(params, own_MD)[:, :V])
        their_MV = jax.nn.log_softmax(model.logits(reference, their_MD)[:, :V])
        logprob_M = jnp.take_along_axis(own_MV, target_M[:, None], axis=1)[:, 0]
        return Divergence(logprob_M, jnp.sum(jnp.exp(own_MV) * (own_MV - their_MV), axis=1))

    rows = own_BTD.reshape(-1, own_BTD.shape[-1]), their_BTD.reshape(-1, own_BTD.shape[-1]), target_BT.reshape(-1)
    count = target_BT.size
    if chunk is None or chunk >= count:
        made = of_some(rows)
    else:
        pad = -count % chunk
        padded = jax.tree.map(lambda x: jnp.pad(x, ((0, pad), *((0, 0),) * (x.ndim - 1))), rows)
        cut = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), padded)
        made = jax.tree.map(lambda x: x.reshape(-1)[:count], jax.lax.map(jax.checkpoint(of_some), cut))
    return jax.tree.map(lambda x_M: x_M.reshape(target_BT.shape), made)


_OBJECTIVES: dict[str, Callable[..., Account]] = {
    "next_token": language, "masked": language, "preference": preference, "reward": reward, "policy": policy,
}  # fmt: skip
