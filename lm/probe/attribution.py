"""Direct logit attribution (Elhage et al. 2021): a logit is a sum over what wrote to the residual stream.

Exact once the last norm's divisor is held at its value: head and norm are then linear. What a part does by way of later
parts is counted as theirs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import require
from lm.model.transformer import bind
from lm.probe.passes import forward
from lm.probe.rows import continuation, encode, labels, rows
from lm.run import Model


@dataclasses.dataclass(frozen=True)
class Attribution:
    """Parts of logit(answer) - logit(other), or of logit(answer) alone, at the last position of a text."""

    embedding: float
    heads_LN: np.ndarray
    mlp_L: np.ndarray
    biases: float
    """Of projections and the final norm, that belong to no head."""
    total: float
    """The difference of the model's logits before any soft cap; the parts add up to it."""
    first: tuple[str, ...]
    """The first token of the answer, and of the other: what was looked at."""


def attribute_logits(
    m: Model, text: str, answer: str, other: str | None = None, *, cached: bool = False
) -> Attribution:
    """What each head and feed-forward layer adds to the first token of `answer`, against that of `other`."""
    c, tokens = m.experiment.model, encode(m, text)
    batch, t = rows(m, [tokens]) if len(tokens) > 1 else rows(m, [[*tokens, 0]]), len(tokens) - 1
    words = [continuation(m, word)[0] for word in (answer, answer if other is None else other)]
    require(other is None or words[0] != words[1], f"{answer!r} and {other!r} begin with the same token")
    direction_V = np.zeros(c.V, np.float32)
    direction_V[words[0]] += 1
    direction_V[words[1]] -= other is not None
    embedding, heads_LN, mlp_L, biases, total = jax.device_get(
        _attribute(c, m.params, batch.tokens_BT, t, direction_V, cached)
    )
    first = tuple(labels(m, words if other is not None else words[:1]))
    return Attribution(float(embedding), heads_LN, mlp_L, float(biases), float(total), first)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _attribute(c, params, tokens_BT, t, direction_V, cached):
    taps = ("embedding", "attention.heads", "attention.out", "mlp.out", "residual.after")
    _, values = forward(c, params, tokens_BT, taps, cached=cached)
    at = lambda name, lead=1: values[name][(slice(None),) * lead + (0, t)].astype(jnp.float32)  # noqa: E731
    model, final_D = bind(c, params), at("residual.after")[-1]
    head_DV = (params["embedding"].T if c.tied else params["head"]).astype(jnp.float32)
    u_D = head_DV @ direction_V

    norm = params["final_norm"]
    centred = (lambda x: x - x.mean(-1, keepdims=True)) if c.norm == "layernorm" else (lambda x: x)
    divisor = jnp.sqrt(jnp.mean(jnp.square(centred(final_D))) + c.norm_epsilon)
    project = lambda x: centred(x) / divisor * norm["scale"] @ u_D  # noqa: E731

    out = params["blocks"]["attention"]["out"]
    out_LNHD = out["kernel"].reshape(c.layers, c.heads, c.H, c.width)
    heads_LND = jnp.einsum("LNH,LNHD->LND", at("attention.heads"), out_LNHD)
    biases = project(out["bias"]).sum() + norm.get("bias", jnp.zeros(c.width)) @ u_D if c.bias else 0.0
    total = model.final_norm(final_D) @ u_D
    return project(at("embedding", 0)), project(heads_LND), project(at("mlp.out")), biases, total
