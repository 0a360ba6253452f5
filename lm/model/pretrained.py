"""Published weights as our parameters: GPT-2 and Llama state dicts, under the names that `transformers` gives them.

    model = transformers.GPT2LMHeadModel.from_pretrained("gpt2")
    params = from_gpt2({name: tensor.numpy() for name, tensor in model.state_dict().items()}, ModelConfig.gpt2())

NumPy arrays go in and come out. One table a family says where each of our parameters comes from.
"""

import functools
from collections.abc import Mapping

import jax
import numpy as np

from lm.config import ModelConfig
from lm.errors import nearest, require
from lm.model.api import build


def _third(which: int, x: np.ndarray) -> np.ndarray:
    """One of the three equal parts of the last axis: GPT-2 keeps queries, keys and values side by side."""
    return np.split(x, 3, axis=-1)[which]


SAME = np.asarray
TRANSPOSED = np.transpose
FIRST, SECOND, THIRD = (functools.partial(_third, which) for which in range(3))

GPT2 = {
    "embedding": ("wte", SAME),
    "position": ("wpe", SAME),
    "blocks.attention_norm": ("h.{}.ln_1", SAME),
    "blocks.attention.query": ("h.{}.attn.c_attn", FIRST),
    "blocks.attention.key": ("h.{}.attn.c_attn", SECOND),
    "blocks.attention.value": ("h.{}.attn.c_attn", THIRD),
    "blocks.attention.out": ("h.{}.attn.c_proj", SAME),
    "blocks.feedforward_norm": ("h.{}.ln_2", SAME),
    "blocks.feedforward.inner": ("h.{}.mlp.c_fc", SAME),
    "blocks.feedforward.outer": ("h.{}.mlp.c_proj", SAME),
    "final_norm": ("ln_f", SAME),
}
"""Ours: theirs, {} being the layer, and what turns theirs into ours. A kernel or scale of ours is a weight there."""

LLAMA = {
    "embedding": ("embed_tokens", SAME),
    "blocks.attention_norm": ("layers.{}.input_layernorm", SAME),
    "blocks.attention.query": ("layers.{}.self_attn.q_proj", TRANSPOSED),
    "blocks.attention.key": ("layers.{}.self_attn.k_proj", TRANSPOSED),
    "blocks.attention.value": ("layers.{}.self_attn.v_proj", TRANSPOSED),
    "blocks.attention.out": ("layers.{}.self_attn.o_proj", TRANSPOSED),
    "blocks.feedforward_norm": ("layers.{}.post_attention_layernorm", SAME),
    "blocks.feedforward.gate": ("layers.{}.mlp.gate_proj", TRANSPOSED),
    "blocks.feedforward.inner": ("layers.{}.mlp.up_proj", TRANSPOSED),
    "blocks.feedforward.outer": ("layers.{}.mlp.down_proj", TRANSPOSED),
    "final_norm": ("norm", SAME),
    "head": ("lm_head", TRANSPOSED),
}

BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Constants that some versions keep among the weights."""


def from_gpt2(state_dict: Mapping[str, np.ndarray], config: ModelConfig) -> dict:
    """Parameters of a GPT-2, `config` like ModelConfig.gpt2(); raises UserError where the two do not fit."""
    return _convert(state_dict, config, "GPT-2", GPT2, "transformer.", ModelConfig.gpt2())


def from_llama(state_dict: Mapping[str, np.ndarray], config: ModelConfig) -> dict:
    """Parameters of a Llama, `config` like ModelConfig.llama(); raises UserError where the two do not fit.

    The scaling of rotary positions for long contexts (Llama 3.1 and later) is not part of the model.
    """
    return _convert(state_dict, config, "Llama", LLAMA, "model.", ModelConfig.llama())


def _convert(state_dict, c: ModelConfig, family: str, table: dict, prefix: str, example: ModelConfig) -> dict:
    """Our tree, every leaf found through the table and of the right shape, every tensor used."""
    names = ("norm", "bias", "positions", "activation", "qk_norm", "value_residual", "embedding_norm", "logit_softcap")
    for name in (*names, "window"):
        ours, published = getattr(c, name), getattr(example, name)
        require(ours == published, f"model.{name} {ours}: a {family} has {published}")
    tensors = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    unused = {name for name in tensors if not name.endswith(BUFFERS)}
    size = dict(L=c.layers, V=c.vocab, D=c.width, T=c.context, F=c.F, NH=c.heads * c.H, KH=c.K * c.H)

    def find(ours: str, shape: tuple[int, ...], layer: int | None) -> np.ndarray:
        module, _, leaf = ours.rpartition(".") if ours not in table else (ours, "", "kernel")
        theirs, change = table[module]
        theirs = f"{theirs}.{'bias' if leaf == 'bias' else 'weight'}".format(layer)
        require(theirs in tensors, f"{theirs}: no such tensor in this {family}{nearest(theirs, tensors)}")
        unused.discard(theirs)
        try:
            value = np.asarray(change(tensors[theirs]), np.float32)
        except ValueError:  # not three equal parts
            value = np.asarray(tensors[theirs])
        require(
            value.shape == shape,
            f"{theirs} has shape {np.shape(tensors[theirs])}, which gives {ours} {value.shape}: "
            f"the configuration says {shape}",
        )
        return value

    def make(path, axes: tuple[str, ...]) -> np.ndarray:
        ours, shape = ".".join(part.key for part in path), tuple(size[axis] for axis in axes)
        if axes[0] == "L":
            return np.stack([find(ours, shape[1:], layer) for layer in range(c.layers)])
        return np.pad(find(ours, shape, None), [(0, c.V - c.vocab if axis == "V" else 0) for axis in axes])

    params = jax.tree_util.tree_map_with_path(make, build(c).axes(), is_leaf=lambda x: isinstance(x, tuple))
    if c.tied and "lm_head.weight" in unused:
        same = np.array_equal(tensors["lm_head.weight"], params["embedding"][: c.vocab])
        require(same, f"lm_head.weight differs from the embedding of this {family}: set model.tied to False")
        unused.discard("lm_head.weight")
    require(not unused, f"{min(unused, default='')}: a tensor of this {family} that the configuration has no place for")
    return params
