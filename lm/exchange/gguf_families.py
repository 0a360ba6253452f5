"""The architectures that GGUF and `transformers` share: one entry each, used to read a file and to write one.

`fixed` is what llama.cpp computes whatever a file says (src/models/*.cpp there): it fills config.json in where a file
is read, and a model that is otherwise is not written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm.exchange.gguf_rope import PARTIAL_ROPE, ROPE
from lm.exchange.gguf_traits import (
    ATTENTION_BIAS,
    DERIVED_WIDTH,
    GATED_BIAS,
    GEMMA3_ROPE,
    GPT_NEOX,
    GRANITE,
    INNER,
    MULTI_HEAD,
    NO_WINDOWS,
    OLMO,
    OLMO2,
    OWN_WIDTH,
    PARALLEL,
    QKV_BIAS,
    SMOLLM3,
    TANH,
    Trait,
    gemma_scale,
    softcap,
    windows,
)


@dataclass(frozen=True)
class Architecture:
    """How one of GGUF's architectures says what config.json and the tensors of a family say."""

    family: str
    """model_type of config.json."""
    modules: tuple[str, ...]
    """Those of `transformers` that hold tensors; {} is the layer."""
    keys: Mapping[str, str]
    """Keys of the file and of config.json that say the same."""
    fixed: Mapping[str, Any]
    """Keys of config.json and their only values; of a tuple any, the first is read."""
    traits: tuple[Trait, ...]
    optional: frozenset[str] = frozenset({"lm_head"})
    """Modules that a file may lack."""
    interleaved: bool = False
    """Whether a head's rows of queries and keys alternate between the halves that rotary positions turn."""
    rescaled: bool = False
    """Whether llama.cpp takes frequencies of its own from the file, as Llama 3.1 needs them."""
    one_more: bool = False
    """Whether the scale of a norm is 1 more than `transformers` keeps."""
    own_head: bool = False
    """Whether llama.cpp wants the head's matrix in the file even where it is the embedding."""


def _layers(prefix: str, modules: str) -> tuple[str, ...]:
    """Names of modules in every layer."""
    return tuple(f"{prefix}.{{}}.{module}" for module in modules.split())


ENDS = ("model.embed_tokens", "model.norm", "lm_head")
LAYER_NORM_ENDS = ("model.embed_tokens", "model.final_layernorm", "lm_head")
ATTENTION = _layers("model.layers", "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj")
NORMS = _layers("model.layers", "input_layernorm post_attention_layernorm")
OUTER_NORMS = _layers("model.layers", "post_attention_layernorm post_feedforward_layernorm")
QK_NORMS = _layers("model.layers", "self_attn.q_norm self_attn.k_norm")
UP_DOWN = _layers("model.layers", "mlp.up_proj mlp.down_proj")
GATED = UP_DOWN + _layers("model.layers", "mlp.gate_proj")
GEMMA2_NORMS = NORMS + _layers("model.layers", "pre_feedforward_layernorm post_feedforward_layernorm")
GPT2_ENDS = ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head")
GPT2_MODULES = GPT2_ENDS + _layers("transformer.h", "ln_1 attn.c_attn attn.c_proj ln_2 mlp.c_fc mlp.c_proj")
NEOX_ENDS = ("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out")
NEOX_ATTENTION = _layers("gpt_neox.layers", "input_layernorm attention.query_key_value attention.dense")
NEOX_MLP = _layers("gpt_neox.layers", "post_attention_layernorm mlp.dense_h_to_4h mlp.dense_4h_to_h")
PHI_MODULES = LAYER_NORM_ENDS + _layers(
    "model.layers", "input_layernorm self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.dense mlp.fc1 mlp.fc2"
)

SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
GROUPED = SIZES | {"attention.head_count_kv": "num_key_value_heads"}
RMS = GROUPED | {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
LAYER_NORM = {"attention.layer_norm_epsilon": "layer_norm_eps"}
GPT2_SIZES = {
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}

GELU_NEW = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
NO_BIAS = {"attention_bias": False}
SILU = {"hidden_act": "silu"}
GEMMA = {"hidden_activation": TANH, "attention_bias": False, "use_bidirectional_attention": (None, False)}
LLAMA = dict(family="llama", modules=ENDS + ATTENTION + NORMS + GATED, keys=RMS)
OWN = (OWN_WIDTH, ROPE, NO_WINDOWS)
DERIVED = (DERIVED_WIDTH, ROPE, NO_WINDOWS)
PARTIAL = (DERIVED_WIDTH, PARTIAL_ROPE, NO_WINDOWS)

ARCHITECTURES = {
    "llama": Architecture(
        **LLAMA,
        fixed=SILU | {"pretraining_tp": 1},
        traits=(*OWN, ATTENTION_BIAS, GATED_BIAS),
        interleaved=True,
        rescaled=True,
    ),
    "qwen2": Architecture(**LLAMA | {"family": "qwen2"}, fixed=SILU, traits=DERIVED),
    "qwen3": Architecture("qwen3", ENDS + ATTENTION + QK_NORMS + NORMS + GATED, RMS, fixed=SILU | NO_BIAS, traits=OWN),
    "smollm3": Architecture(
        **LLAMA | {"family": "smollm3"},
        fixed=SILU | NO_BIAS | {"mlp_bias": False},
        traits=(*OWN, SMOLLM3),
        interleaved=True,
    ),
    "arcee": Architecture(
        "arcee",
        ENDS + ATTENTION + NORMS + UP_DOWN,
        RMS,
        fixed={"hidden_act": "relu2", "mlp_bias": False} | NO_BIAS,
        traits=OWN,
        interleaved=True,
        rescaled=True,
    ),
    "granite": Architecture(
        **LLAMA | {"family": "granite"},
        fixed=SILU,
        traits=(*DERIVED, ATTENTION_BIAS, GATED_BIAS, GRANITE),
        interleaved=True,
        rescaled=True,
    ),
    "gpt2": Architecture(
        "gpt2",
        GPT2_MODULES,
        GPT2_SIZES,
        fixed={
            "activation_function": GELU_NEW,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": (False, True),  # another order of the same arithmetic
            "add_cross_attention": False,
        },
        traits=(DERIVED_WIDTH, INNER, MULTI_HEAD),
    ),
    "gptneox": Architecture(
        "gpt_neox",
        NEOX_ENDS + NEOX_ATTENTION + NEOX_MLP,
        SIZES | LAYER_NORM,
        fixed={"attention_bias": True},
        traits=(DERIVED_WIDTH, PARTIAL_ROPE, MULTI_HEAD, GPT_NEOX),
        optional=frozenset({"embed_out"}),
        own_head=True,
    ),
    "phi2": Architecture(
        "phi",
        PHI_MODULES,
        GROUPED | LAYER_NORM,
        fixed={"hidden_act": GELU_NEW, "qk_layernorm": False},
        traits=PARTIAL,
        own_head=True,
    ),
    "starcoder2": Architecture(
        "starcoder2",
        ENDS + ATTENTION + NORMS + _layers("model.layers", "mlp.c_fc mlp.c_proj"),
        GROUPED | {"attention.layer_norm_epsilon": "norm_epsilon"},
        fixed={"hidden_act": TANH, "use_bias": True, "mlp_type": "default"},
        traits=DERIVED,
    ),
    "stablelm": Architecture(
        "stablelm",
        ENDS + ATTENTION + NORMS + GATED,
        GROUPED | LAYER_NORM,
        fixed=SILU | {"qk_layernorm": False, "rotary_scaling_factor": 1.0},
        traits=(*PARTIAL, QKV_BIAS, PARALLEL),
        optional=frozenset({"lm_head", "post_attention_layernorm"}),
        own_head=True,
    ),
    "olmo": Architecture(
        "olmo",
        ("model.embed_tokens", "lm_head", *ATTENTION, *GATED),
        GROUPED,
        fixed=SILU | NO_BIAS,
        traits=(*DERIVED, OLMO),
        interleaved=True,
    ),
    "olmo2": Architecture(
        "olmo2",
        ENDS + ATTENTION + QK_NORMS + OUTER_NORMS + GATED,
        RMS,
        fixed=SILU | NO_BIAS,
        traits=(DERIVED_WIDTH, ROPE, OLMO2),
        own_head=True,
    ),
    "gemma": Architecture(
        **LLAMA | {"family": "gemma"},
        fixed={"hidden_act": TANH} | NO_BIAS | {"use_bidirectional_attention": (None, False)},
        traits=OWN,
        one_more=True,
    ),
    "gemma2": Architecture(
        "gemma2",
        ENDS + ATTENTION + GEMMA2_NORMS + GATED,
        RMS,
        fixed=GEMMA,
        traits=(
            OWN_WIDTH,
            windows(2, usual=4096),
            ROPE,
            gemma_scale(46),
            softcap("attn_logit_softcapping", 50.0),
            softcap("final_logit_softcapping", 30.0),
        ),
        one_more=True,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        ENDS + ATTENTION + QK_NORMS + GEMMA2_NORMS + GATED,
        RMS,
        fixed=GEMMA | {"attn_logit_softcapping": None},
        traits=(
            OWN_WIDTH,
            windows(6, usual=None),
            ROPE,
            GEMMA3_ROPE,
            gemma_scale(62),
            softcap("final_logit_softcapping", None),
        ),
        one_more=True,
    ),
}
"""GGUF's architectures that our families share."""

FAMILIES = {a.family: name for name, a in ARCHITECTURES.items()} | {"mistral": "llama", "olmo3": "olmo2"}
"""The architecture of each model_type."""
