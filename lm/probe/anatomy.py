"""What probes know of a transformer's parts and of where their parameters are: one function a part.

Each takes the model's configuration and its parameters, also inside jit.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ModelConfig
from lm.model.attention import visible
from lm.model.transformer import bind


def heads(c: ModelConfig) -> int:
    """How many query heads each layer has."""
    return c.heads


def tied(c: ModelConfig) -> bool:
    """Whether embedding and unembedding are one matrix."""
    return c.tied


def embedding(c: ModelConfig, params: dict) -> jax.Array:
    """The vector of each token before the first block, [V, D]."""
    return params["embedding"]


def unembedding(c: ModelConfig, params: dict) -> jax.Array:
    """The matrix that turns the normed last state into logits, [D, V]; a tied model's is its embedding."""
    return params["embedding"].T if tied(c) else params["head"]


def look(c: ModelConfig, params: dict, x_BTD: jax.Array) -> jax.Array:
    """Logits [B, T, V] of a residual stream through the last norm and the head."""
    model = bind(c, params)
    return model.logits(model.final_norm(x_BTD))


def final_norm(c: ModelConfig, params: dict, x_D: jax.Array):
    """The last norm at one state, and the same as a linear map: its divisor held at the state's.

    Returns (the normed state [D], a function of the parts of the state [..., D], the norm's bias [D]).
    """
    scale_D = params["final_norm"]["scale"]

    def centred(x):
        return x - x.mean(-1, keepdims=True) if c.norm == "layernorm" else x

    divisor = jnp.sqrt(jnp.mean(jnp.square(centred(x_D))) + c.norm_epsilon)
    bias_D = params["final_norm"].get("bias", jnp.zeros(c.width))
    return bind(c, params).final_norm(x_D), lambda x: centred(x) / divisor * scale_D, bias_D


def head_outputs(c: ModelConfig, params: dict) -> tuple[jax.Array, jax.Array]:
    """What maps each head's output to the residual stream, [L, N, H, D], and its bias [L, D]."""
    out = params["blocks"]["attention"]["out"]
    bias_LD = out.get("bias", jnp.zeros((c.layers, c.width)))
    return out["kernel"].reshape(c.layers, c.heads, c.H, c.width), bias_LD


def down_projections(c: ModelConfig, params: dict) -> jax.Array:
    """What maps each feed-forward layer's hidden units to its output, [L, F, D]."""
    return params["blocks"]["feedforward"]["outer"]["kernel"]


def with_down_projection(c: ModelConfig, params: dict, layer: int, w_FD: np.ndarray) -> dict:
    """Parameters in which one layer's down-projection is another."""
    feedforward = params["blocks"]["feedforward"]
    kernel_LFD = jnp.asarray(down_projections(c, params)).at[layer].set(w_FD.astype(np.float32))
    outer = feedforward["outer"] | {"kernel": kernel_LFD}
    return params | {"blocks": params["blocks"] | {"feedforward": feedforward | {"outer": outer}}}


def visible_keys(c: ModelConfig, T: int) -> np.ndarray:
    """Which key each query of every layer may see, [L, T, T] booleans; windows narrow it."""
    index_1T = np.arange(T)[None]
    return np.concatenate([np.asarray(visible(index_1T, index_1T, window)) for window in c.windows])
