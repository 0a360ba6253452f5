"""Next-token loss: nats for each target, with logits that need not exist all at once."""

import jax
import jax.numpy as jnp

from lm.model.transformer import Transformer


def token_nats(model: Transformer, h_BTD: jax.Array, targets_BT: jax.Array, chunk: int | None = None):
    """-log p(target) and the log-partition of each position, both [B, T] float32, in nats.

    chunk: positions whose logits exist at once, forward and backward; None is all of them.
    """

    def of(h_D, target):
        logits_V = model.logits(h_D)
        log_z = jax.nn.logsumexp(logits_V, axis=-1)
        return log_z - jnp.take_along_axis(logits_V, target[..., None], axis=-1)[..., 0], log_z

    flat = h_BTD.reshape(-1, h_BTD.shape[-1]), targets_BT.reshape(-1)
    count = flat[1].shape[0]
    if chunk is None or chunk >= count:
        nats, log_z = of(*flat)
    else:
        pad = -count % chunk
        parts = (jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)).reshape(-1, chunk, *x.shape[1:]) for x in flat)
        nats, log_z = jax.lax.map(lambda part: jax.checkpoint(of)(*part), tuple(parts))
        nats, log_z = nats.reshape(-1)[:count], log_z.reshape(-1)[:count]
    return nats.reshape(targets_BT.shape), log_z.reshape(targets_BT.shape)


def window_nats(
    model: Transformer,
    tokens_BT1: jax.Array,
    *,
    eot: int | None,
    chunk: int | None = None,
    key: jax.Array | None = None,
):
    """token_nats of predicting each token of a window from those before it; training and evaluation both ask here.

    tokens_BT1: [B, T+1], inputs and targets one apart. eot: the end-of-text token where packed documents are kept
    apart, None where attention crosses them. key: turns dropout on.
    """
    inputs_BT, targets_BT = tokens_BT1[:, :-1], tokens_BT1[:, 1:]
    segments_BT = None if eot is None else document_segments(inputs_BT, eot)
    h_BTD, _ = model.hidden(inputs_BT, segments_BT=segments_BT, key=key)
    return token_nats(model, h_BTD, targets_BT, chunk)


def document_segments(tokens_BT: jax.Array, eot: int) -> jax.Array:
    """Number of the document each token belongs to, counted within its row: a document begins with end-of-text."""
    return jnp.cumsum(tokens_BT == eot, axis=1)
