"""What probes know of a model's parts and of where their parameters are: one function a part.

Each takes the model and its parameters, also inside jit, and raises UserError where the model has no such part.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ModelConfig
from lm.errors import require
from lm.model.api import LanguageModel
from lm.model.mask import Mask, Places


# --- of any model ----------------------------------------------------------------------------------------------------
def embedding(model: LanguageModel, params: dict) -> jax.Array:
    """The vector of each token before the first block, [V, D]."""
    return model.tables(params)[0]


def unembedding(model: LanguageModel, params: dict) -> jax.Array:
    """The vector of each token that its logit is a product with, [V, D]; a tied model's are its embedding."""
    embedding_VD, unembedding_VD = model.tables(params)
    return embedding_VD if unembedding_VD is None else unembedding_VD


def predicts_next(model: LanguageModel) -> None:
    """Refuse a model that reads both ways: it tells hidden tokens, and no next one."""
    require(model.config.mask != "full", "this model reads both ways: what it says at a place is not the next token")


# --- of a transformer alone ------------------------------------------------------------------------------------------
def transformer(model: LanguageModel, part: str) -> ModelConfig:
    """The shape of a transformer; UserError for a model of another kind, which does not have the part."""
    kind = model.config.architecture
    require(
        isinstance(model.config, ModelConfig),
        f"the model is of the architecture {kind}, which has no {part}; a transformer has",
    )
    return model.config


def heads(model: LanguageModel) -> int:
    """How many query heads each layer has."""
    return transformer(model, "attention heads").heads


def final_norm(model: LanguageModel, params: dict, x_D: jax.Array):
    """The last norm at one state, and the same as a linear map: its divisor held at the state's.

    Returns (the normed state [D], a function of the parts of the state [..., D], the norm's bias [D]).
    """
    c = transformer(model, "final norm that is linear but for its divisor")
    require(c.norm_place == "pre", "with norms after its halves the residual stream is no sum of what the parts give")
    scale_D = params["final_norm"]["scale"]

    def centred(x):
        return x - x.mean(-1, keepdims=True) if c.norm == "layernorm" else x

    divisor = jnp.sqrt(jnp.mean(jnp.square(centred(x_D))) + c.norm_epsilon)
    bias_D = params["final_norm"].get("bias", jnp.zeros(c.width))
    return model.bind(params).final_norm(x_D), lambda x: centred(x) / divisor * scale_D, bias_D


def head_outputs(model: LanguageModel, params: dict) -> tuple[jax.Array, jax.Array]:
    """What maps each head's output to the residual stream, [L, N, H, D], and its bias [L, D]."""
    c, out = transformer(model, "attention heads"), params["blocks"]["attention"]["out"]
    bias_LD = out.get("bias", jnp.zeros((c.layers, c.width)))
    return out["kernel"].reshape(c.layers, c.heads, c.H, c.width), bias_LD


def head_bias(model: LanguageModel, params: dict) -> jax.Array:
    """What is added to the logits, [V]."""
    return params.get("head_bias", jnp.zeros(model.config.V))


def down_projections(model: LanguageModel, params: dict) -> jax.Array:
    """What maps each feed-forward layer's hidden units to what it adds, [L, F, D]."""
    c = transformer(model, "feed-forward layers")
    require(c.norm_place in ("pre", "post"), "what a feed-forward layer adds goes through a norm in this model first")
    return params["blocks"]["feedforward"]["outer"]["kernel"]


def with_down_projection(model: LanguageModel, params: dict, layer: int, w_FD: np.ndarray) -> dict:
    """Parameters in which one layer's down-projection is another."""
    feedforward = params["blocks"]["feedforward"]
    kernel_LFD = jnp.asarray(down_projections(model, params)).at[layer].set(w_FD.astype(np.float32))
    outer = feedforward["outer"] | {"kernel": kernel_LFD}
    return params | {"blocks": params["blocks"] | {"feedforward": feedforward | {"outer": outer}}}


def visible_keys(model: LanguageModel, T: int) -> np.ndarray:
    """Which key each query of every layer may see, [L, T, T] booleans; windows narrow it."""
    here, c = Places(np.arange(T)[None]), transformer(model, "attention")
    masks = [Mask(causal=c.mask != "full", window=window) for window in c.windows]
    return np.concatenate([np.asarray(mask(here, here)) for mask in masks])
