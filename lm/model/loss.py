"""Next-token loss: nats for each target, with logits that need not exist all at once."""

import jax
import jax.numpy as jnp

from lm.model.api import Inputs, LanguageModel


def token_nats(
    model: LanguageModel, params: dict, h_BTD: jax.Array, targets_BT: jax.Array, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """-log p(target) and the log-partition of each position, both [B, T] float32, in nats.

    chunk: positions whose logits exist at once, forward and backward; None is all of them.
    """

    def nats_and_log_z(h_MD, target_M):
        logits_MV = model.logits(params, h_MD)
        log_z_M = jax.nn.logsumexp(logits_MV, axis=-1)
        return log_z_M - jnp.take_along_axis(logits_MV, target_M[:, None], axis=-1)[:, 0], log_z_M

    h_MD, target_M = h_BTD.reshape(-1, h_BTD.shape[-1]), targets_BT.reshape(-1)
    count = target_M.size
    if chunk is None or chunk >= count:
        nats, log_z = nats_and_log_z(h_MD, target_M)
    else:
        pad = -count % chunk
        h_CMD = jnp.pad(h_MD, ((0, pad), (0, 0))).reshape(-1, chunk, h_MD.shape[-1])
        target_CM = jnp.pad(target_M, (0, pad)).reshape(-1, chunk)
        part = jax.checkpoint(nats_and_log_z)
        nats, log_z = jax.lax.map(lambda chunked: part(*chunked), (h_CMD, target_CM))
        nats, log_z = nats.reshape(-1)[:count], log_z.reshape(-1)[:count]
    return nats.reshape(targets_BT.shape), log_z.reshape(targets_BT.shape)


def window_nats(
    model: LanguageModel,
    params: dict,
    tokens_BU: jax.Array,
    *,
    eot: int | None,
    chunk: int | None = None,
    key: jax.Array | None = None,
):
    """token_nats of predicting each token of a window from those before it; training and evaluation both ask here.

    tokens_BU: [B, T+1], inputs and targets one apart. eot: the end-of-text token where packed documents are kept
    apart, None where attention crosses them. key: turns dropout on.
    """
    inputs_BT, targets_BT = tokens_BU[:, :-1], tokens_BU[:, 1:]
    segments_BT = None if eot is None else document_segments(inputs_BT, eot)
    h_BTD, _ = model.hidden(params, Inputs(inputs_BT, segments_BT), key=key)
    return token_nats(model, params, h_BTD, targets_BT, chunk)


def document_segments(tokens_BT: jax.Array, eot: int) -> jax.Array:
    """Number of the document each token belongs to, counted within its row: a document begins with end-of-text."""
    return jnp.cumsum(tokens_BT == eot, axis=1)
