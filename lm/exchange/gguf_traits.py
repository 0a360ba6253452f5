"""What config.json and a GGUF file say of a model in different words: heads, windows, factors.

A trait is a pair of functions that each take what they understand out of a dict: `read` out of a file's keys (without
the architecture's name before them) into config.json's, `write` out of config.json's into the file's. What is left
over at the end nobody understood, and is refused by name.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lm.errors import require

TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
"""Spellings of one GELU."""

Fields = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


class Trait(NamedTuple):
    """Part of what a model is: read(keys, config, shapes by GGUF's names) and write(config, keys, names there)."""

    read: Callable[[Fields, Fields, Shapes], None]
    write: Callable[[Fields, Fields], None]


def plain(number: float) -> float:
    """A float32 as the shortest decimal that rounds to it: 1e-06, not 9.999999974752427e-07."""
    return float(str(np.float32(number)))


def same(value: Any, expected: Any) -> bool:
    """Whether a setting is as expected, one of a tuple being enough."""
    return value in expected if isinstance(expected, tuple) else value == expected


def head_width(config: Fields) -> int:
    """A head's width by config.json."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


# --- heads, biases, ends ----------------------------------------------------------------------------------------------
def _read_own_width(left: Fields, config: Fields, shapes: Shapes) -> None:
    """A head's width, which need not be the model's over the heads."""
    widths = [left.pop(f"attention.{part}_length", None) for part in ("key", "value")]
    require(widths[0] == widths[1], f"attention.value_length {widths[1]} differs from keys' {widths[0]}")
    config["head_dim"] = widths[0] or config["hidden_size"] // config["num_attention_heads"]


def _write_own_width(left: Fields, fields: Fields) -> None:
    width = left.pop("head_dim", None) or fields["embedding_length"] // fields["attention.head_count"]
    fields["attention.key_length"] = fields["attention.value_length"] = width


def _read_derived_width(left: Fields, config: Fields, shapes: Shapes) -> None:
    """A head's width in architectures where it is the model's over the heads."""
    names = {"n_embd": "n_head"} if "n_embd" in config else {"hidden_size": "num_attention_heads"}
    (width, heads), *_ = names.items()
    for part in ("key", "value"):
        own = left.pop(f"attention.{part}_length", config[width] // config[heads])
        require(own * config[heads] == config[width], f"attention.{part}_length {own}: not the width over the heads")


def _write_derived_width(left: Fields, fields: Fields) -> None:
    D, N = fields["embedding_length"], fields["attention.head_count"]
    width = left.pop("head_dim", None) or D // N
    require(width * N == D, f"head_dim {width}: llama.cpp takes {D} over {N} heads in this family")
    fields["attention.key_length"] = fields["attention.value_length"] = width


OWN_WIDTH = Trait(_read_own_width, _write_own_width)
DERIVED_WIDTH = Trait(_read_derived_width, _write_derived_width)


def bias(setting: str, tensor: str) -> Trait:
    """Whether there are biases, which config.json says and a file shows by having them."""

    def read(left: Fields, config: Fields, shapes: Shapes) -> None:
        config[setting] = f"blk.0.{tensor}.bias" in shapes

    return Trait(read, lambda left, fields: left.pop(setting, None))


def _read_parallel(left: Fields, config: Fields, shapes: Shapes) -> None:
    """StableLM's parallel blocks have no norm of their own before the feed-forward part."""
    left.pop("use_parallel_residual", None)
    config["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in shapes


def _write_parallel(left: Fields, fields: Fields) -> None:
    fields["use_parallel_residual"] = bool(left.pop("use_parallel_residual", False))


ATTENTION_BIAS, GATED_BIAS = bias("attention_bias", "attn_q"), bias("mlp_bias", "ffn_gate")
QKV_BIAS = bias("use_qkv_bias", "attn_q")
PARALLEL = Trait(_read_parallel, _write_parallel)


def _read_gpt_neox(left: Fields, config: Fields, shapes: Shapes) -> None:
    """Pythia's GELU unless the file says another, which only ours do."""
    config["hidden_act"] = left.pop("hidden_activation", "gelu")
    config["use_parallel_residual"] = left.pop("use_parallel_residual", True)


def _write_gpt_neox(left: Fields, fields: Fields) -> None:
    """llama.cpp computes GELU by tanh from a table of half precision, which is further off than tanh is."""
    activation = left.pop("hidden_act", "gelu")
    require(activation in ("gelu", *TANH), f"hidden_act {activation}: llama.cpp computes a gpt_neox with gelu")
    if activation != "gelu":
        fields["hidden_activation"] = activation
    fields["use_parallel_residual"] = bool(left.pop("use_parallel_residual", True))


GPT_NEOX = Trait(_read_gpt_neox, _write_gpt_neox)


# --- windows ----------------------------------------------------------------------------------------------------------
def _read_no_windows(left: Fields, config: Fields, shapes: Shapes) -> None:
    """Nothing: a window in the file is not understood."""


def _write_no_windows(left: Fields, fields: Fields) -> None:
    """A window that reaches as far as the context, or is not used, is none."""
    window, kinds = left.pop("sliding_window", None), left.pop("layer_types", None)
    used = left.pop("use_sliding_window", True)
    left.pop("max_window_layers", None)
    seen = kinds is None or "sliding_attention" in kinds
    require(
        not (window and used and seen) or window >= fields["context_length"],
        f"sliding_window {window}: llama.cpp computes this family without windows",
    )


def windows(every: int, usual: int | None) -> Trait:
    """Windows on all layers but every `every`th; `usual` is llama.cpp's window where a file names none."""

    def pattern(layers: int, every: int) -> list[bool]:
        return [(layer + 1) % every != 0 for layer in range(layers)]

    def read(left: Fields, config: Fields, shapes: Shapes) -> None:
        window, kinds = left.pop("attention.sliding_window", usual), left.pop("attention.sliding_window_pattern", every)
        L = config["num_hidden_layers"]
        windowed = (pattern(L, kinds) if isinstance(kinds, int) else kinds) if window else [False] * L
        require(len(windowed) == L, f"attention.sliding_window_pattern has {len(windowed)} entries for {L} layers")
        config["layer_types"] = ["sliding_attention" if is_windowed else "full_attention" for is_windowed in windowed]
        config["sliding_window"] = window or config["max_position_embeddings"]

    def write(left: Fields, fields: Fields) -> None:
        L, window = fields["block_count"], left.pop("sliding_window", None)
        kinds = left.pop("layer_types", None)
        for name in ("_sliding_window_pattern", "sliding_window_pattern"):
            left.pop(name, None)  # what layer_types was made of
        windowed = pattern(L, every) if kinds is None else [kind == "sliding_attention" for kind in kinds]
        if window and any(windowed):
            fields["attention.sliding_window"] = window
            if windowed != pattern(L, every):
                fields["attention.sliding_window_pattern"] = windowed
        else:
            require(usual is None, "layer_types: llama.cpp gives this family windows on half of its layers")

    return Trait(read, write)


NO_WINDOWS = Trait(_read_no_windows, _write_no_windows)


def _read_olmo2(left: Fields, config: Fields, shapes: Shapes) -> None:
    """An OLMo 2 with windows is an OLMo 3, whose rotary settings are those of full and of windowed layers."""
    if left.get("attention.sliding_window"):
        OLMO3.read(left, config, shapes)
        config["model_type"] = "olmo3"
        rope = config["rope_parameters"]
        require(rope["rope_type"] == "default", "rope.scaling.factor: not known here with windows")
        config["rope_parameters"] = {"full_attention": rope, "sliding_attention": dict(rope)}


def _write_olmo2(left: Fields, fields: Fields) -> None:
    (OLMO3 if left.get("sliding_window") else NO_WINDOWS).write(left, fields)


OLMO3 = windows(4, usual=None)
OLMO2 = Trait(_read_olmo2, _write_olmo2)


# --- what is Gemma's, Granite's, SmolLM3's alone ----------------------------------------------------------------------
def _read_gemma3_rope(left: Fields, config: Fields, shapes: Shapes) -> None:
    windowed = {"rope_type": "default", "rope_theta": plain(left.pop("rope.freq_base_swa", 10000.0))}
    config["rope_parameters"] = {"full_attention": config["rope_parameters"], "sliding_attention": windowed}


def gemma_scale(wide: int) -> Trait:
    """The scale of queries: of a head's width, but of the model's width over the heads at `wide` layers (27B)."""

    def scale(D: int, N: int, H: int, L: int) -> int:
        return D // N if L == wide else H

    def read(left: Fields, config: Fields, shapes: Shapes) -> None:
        names = ("hidden_size", "num_attention_heads", "head_dim", "num_hidden_layers")
        config["query_pre_attn_scalar"] = scale(*(config[name] for name in names))

    def write(left: Fields, fields: Fields) -> None:
        names = ("embedding_length", "attention.head_count", "attention.key_length", "block_count")
        expected = scale(*(fields[name] for name in names))
        wanted = left.pop("query_pre_attn_scalar", expected)
        require(wanted == expected, f"query_pre_attn_scalar {wanted}: llama.cpp takes {expected} for this shape")

    return Trait(read, write)


def softcap(setting: str, usual: float | None) -> Trait:
    """A soft-cap; `usual` is llama.cpp's where a file names none, and then one is a must."""

    def read(left: Fields, config: Fields, shapes: Shapes) -> None:
        cap = left.pop(setting, usual)
        config[setting] = plain(cap) if cap else None

    def write(left: Fields, fields: Fields) -> None:
        cap = left.pop(setting, usual)
        require(bool(cap) or usual is None, f"{setting} {cap}: llama.cpp caps the logits of this family")
        if cap:
            fields[setting] = float(cap)

    return Trait(read, write)


GEMMA3_ROPE = Trait(_read_gemma3_rope, lambda left, fields: None)


def _read_granite(left: Fields, config: Fields, shapes: Shapes) -> None:
    """Granite's four factors; 0 in a file is the attention's usual scale, and no scale elsewhere."""
    config["attention_multiplier"] = plain(left.pop("attention.scale", 0)) or head_width(config) ** -0.5
    config["logits_scaling"] = plain(left.pop("logit_scale", 1))
    config["residual_multiplier"] = plain(left.pop("residual_scale", 0)) or 1.0
    config["embedding_multiplier"] = plain(left.pop("embedding_scale", 0)) or 1.0


def _write_granite(left: Fields, fields: Fields) -> None:
    fields["attention.scale"] = float(left.pop("attention_multiplier", 1.0))
    fields["logit_scale"] = float(left.pop("logits_scaling", 1.0))
    fields["residual_scale"] = float(left.pop("residual_multiplier", 1.0))
    fields["embedding_scale"] = float(left.pop("embedding_multiplier", 1.0))
    zero = next((name for name in ("attention.scale", "residual_scale", "embedding_scale") if not fields[name]), "")
    require(not zero, f"{zero} 0: llama.cpp takes it for none")


GRANITE = Trait(_read_granite, _write_granite)


def _every_fourth(layers: int) -> list[int]:
    return [int((layer + 1) % 4 != 0) for layer in range(layers)]


def _read_smollm3(left: Fields, config: Fields, shapes: Shapes) -> None:
    """Every fourth layer of a SmolLM3 has no rotary positions."""
    config["no_rope_layers"], config["no_rope_layer_interval"] = _every_fourth(config["num_hidden_layers"]), 4


def _write_smollm3(left: Fields, fields: Fields) -> None:
    every = left.pop("no_rope_layer_interval", None) or 4
    L, turned = fields["block_count"], left.pop("no_rope_layers", None)
    turned = turned or [int((layer + 1) % every != 0) for layer in range(L)]
    require(
        turned == _every_fourth(L),
        "no_rope_layers: llama.cpp leaves rotary positions out of every fourth layer of a smollm3, and of no other",
    )


SMOLLM3 = Trait(_read_smollm3, _write_smollm3)


def _read_olmo(left: Fields, config: Fields, shapes: Shapes) -> None:
    """The bound of OLMo 1's queries, keys and values, and its epsilon, which `transformers` has no setting for."""
    clip, epsilon = left.pop("attention.clamp_kqv", 0), plain(left.pop("attention.layer_norm_epsilon", 1e-5))
    config["clip_qkv"] = plain(clip) if clip else None
    require(epsilon == 1e-5, f"attention.layer_norm_epsilon {epsilon}: an olmo has 1e-05")


def _write_olmo(left: Fields, fields: Fields) -> None:
    fields["attention.layer_norm_epsilon"] = 1e-5
    if clip := left.pop("clip_qkv", None):
        fields["attention.clamp_kqv"] = float(clip)


OLMO = Trait(_read_olmo, _write_olmo)


def _read_inner(left: Fields, config: Fields, shapes: Shapes) -> None:
    """GPT-2's inner width, which its configuration may leave out."""
    config["n_inner"] = left.pop("feed_forward_length", 4 * config["n_embd"])


def _write_inner(left: Fields, fields: Fields) -> None:
    fields["feed_forward_length"] = left.pop("n_inner", None) or 4 * fields["embedding_length"]


def _read_multi_head(left: Fields, config: Fields, shapes: Shapes) -> None:
    """As many heads of keys as of queries."""
    N = config.get("n_head", config.get("num_attention_heads"))
    K = left.pop("attention.head_count_kv", N)
    require(K == N, f"attention.head_count_kv {K}: {config['model_type']} has as many as its {N} heads")


INNER = Trait(_read_inner, _write_inner)
MULTI_HEAD = Trait(_read_multi_head, lambda left, fields: None)
