"""The families of models that can be read and written: one entry each, used in both directions.

An entry has the rules of its config.json (keys.py, shapes.py), the names of its tensors, and what about them is not as
ours (tensors.py).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from lm.config import ModelConfig
from lm.errors import require
from lm.exchange import keys as k
from lm.exchange.keys import Biases, Choice, Keys, Only, Rope, Rule, Same, Unread, Windows
from lm.typed import shown


@dataclasses.dataclass(frozen=True)
class Family:
    """What `transformers` calls a model type.

    settings: those of ours that the family always has. rules: what its keys say. names: the tensors of each of our
    modules, {} being the layer; a scale or bias that has none there is 1 or 0. columns: whether maps inside blocks are
    [inputs, outputs]. fused: how queries, keys and values are one tensor. pairs: which entries of a head are rotated
    together, and which way. plus_one: whether norms multiply by 1 + weight. unread: rows of the table of positions that
    no token reads. factors: what to multiply tensors by at import, by module.
    """

    model_type: str
    architecture: str
    settings: Mapping[str, Any]
    rules: tuple[Rule, ...]
    names: Mapping[str, str]
    prefix: str = "model."
    columns: bool = False
    fused: Literal["no", "thirds", "by head"] = "no"
    pairs: Literal["halves", "neighbours", "backwards"] = "halves"
    plus_one: bool = False
    unread: int = 0
    factors: Callable[[Mapping[str, Any], ModelConfig], dict[str, float]] = lambda config, c: {}


# --- the families ----------------------------------------------------------------------------------------------------
SIZES = (
    Same("layers", "num_hidden_layers"), Same("width", "hidden_size"), Same("heads", "num_attention_heads"),
    Same("feedforward", "intermediate_size"), Same("context", "max_position_embeddings"), Same("vocab", "vocab_size"),
)  # fmt: skip
GROUPED = (*SIZES, Same("kv_heads", "num_key_value_heads", None))
LLAMA_SIZES = (*GROUPED, Same("head_width", "head_dim", None))
GPT_SIZES = (
    Same("layers", "n_layer"), Same("width", "n_embd"), Same("heads", "n_head"),
    Same("feedforward", "n_inner", None), Same("context", "n_positions"), Same("vocab", "vocab_size"),
)  # fmt: skip
ALL = k.ATTENTION | k.MLP
ATTENTION_BIAS = Biases(flags={"attention_bias": (False, k.ATTENTION)})
LLAMA_BIASES = Biases(flags={"attention_bias": (False, k.ATTENTION), "mlp_bias": (False, k.MLP)})


def tied(default: bool) -> Same:
    """Whether the embedding is the head, and what that is where it is not said."""
    return Same("tied", "tie_word_embeddings", default)


def rms(epsilon: float) -> Same:
    """The epsilon of RMS norms."""
    return Same("norm_epsilon", "rms_norm_eps", epsilon)


GATED = Choice("activation", "hidden_act", k.GATED, "silu")
RMS = {"norm": "rmsnorm", "positions": "rotary"}
LAYER = {"norm": "layernorm"}

SELF_ATTENTION = {
    f"blocks.attention.{ours}": f"layers.{{}}.self_attn.{ours[0]}_proj" for ours in ("query", "key", "value")
}
LLAMA = SELF_ATTENTION | {
    "embedding": "embed_tokens",
    "blocks.attention_norm": "layers.{}.input_layernorm",
    "blocks.attention.out": "layers.{}.self_attn.o_proj",
    "blocks.feedforward_norm": "layers.{}.post_attention_layernorm",
    "blocks.feedforward.gate": "layers.{}.mlp.gate_proj",
    "blocks.feedforward.inner": "layers.{}.mlp.up_proj",
    "blocks.feedforward.outer": "layers.{}.mlp.down_proj",
    "final_norm": "norm",
    "head": "lm_head",
}
QK_NORMS = {f"blocks.attention.{ours}_norm": f"layers.{{}}.self_attn.{ours[0]}_norm" for ours in ("query", "key")}
GEMMA2 = LLAMA | {
    "blocks.attention_out_norm": "layers.{}.post_attention_layernorm",
    "blocks.feedforward_norm": "layers.{}.pre_feedforward_layernorm",
    "blocks.feedforward_out_norm": "layers.{}.post_feedforward_layernorm",
}
OLMO2 = LLAMA | QK_NORMS | {
    "blocks.attention_norm": "layers.{}.post_attention_layernorm",
    "blocks.feedforward_norm": "layers.{}.post_feedforward_layernorm",
}  # fmt: skip
GPT2 = {
    "embedding": "wte",
    "position": "wpe",
    "blocks.attention_norm": "h.{}.ln_1",
    "blocks.attention.query": "h.{}.attn.c_attn",
    "blocks.attention.key": "h.{}.attn.c_attn",
    "blocks.attention.value": "h.{}.attn.c_attn",
    "blocks.attention.out": "h.{}.attn.c_proj",
    "blocks.feedforward_norm": "h.{}.ln_2",
    "blocks.feedforward.inner": "h.{}.mlp.c_fc",
    "blocks.feedforward.outer": "h.{}.mlp.c_proj",
    "final_norm": "ln_f",
    "head": "lm_head",
}
GPT_NEO = GPT2 | {
    f"blocks.attention.{ours}": f"h.{{}}.attn.attention.{theirs}_proj"
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))
}
GPTJ = GPT2 | {
    f"blocks.attention.{ours}": f"h.{{}}.attn.{theirs}_proj"
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))
}
GPTJ |= {
    "blocks.feedforward.inner": "h.{}.mlp.fc_in",
    "blocks.feedforward.outer": "h.{}.mlp.fc_out",
    "head_bias": "lm_head",
}
GPT_NEOX = {
    "embedding": "embed_in",
    "blocks.attention_norm": "layers.{}.input_layernorm",
    "blocks.attention.query": "layers.{}.attention.query_key_value",
    "blocks.attention.key": "layers.{}.attention.query_key_value",
    "blocks.attention.value": "layers.{}.attention.query_key_value",
    "blocks.attention.out": "layers.{}.attention.dense",
    "blocks.feedforward_norm": "layers.{}.post_attention_layernorm",
    "blocks.feedforward.inner": "layers.{}.mlp.dense_h_to_4h",
    "blocks.feedforward.outer": "layers.{}.mlp.dense_4h_to_h",
    "final_norm": "final_layer_norm",
    "head": "embed_out",
}
PHI = LLAMA | {
    "blocks.attention.out": "layers.{}.self_attn.dense",
    "blocks.feedforward.inner": "layers.{}.mlp.fc1",
    "blocks.feedforward.outer": "layers.{}.mlp.fc2",
    "final_norm": "final_layernorm",
    "head_bias": "lm_head",
}
OPT = LLAMA | {
    "position": "embed_positions",
    "blocks.attention_norm": "layers.{}.self_attn_layer_norm",
    "blocks.attention.out": "layers.{}.self_attn.out_proj",
    "blocks.feedforward_norm": "layers.{}.final_layer_norm",
    "blocks.feedforward.inner": "layers.{}.fc1",
    "blocks.feedforward.outer": "layers.{}.fc2",
    "final_norm": "final_layer_norm",
}
STARCODER2 = LLAMA | {
    "blocks.feedforward.inner": "layers.{}.mlp.c_fc",
    "blocks.feedforward.outer": "layers.{}.mlp.c_proj",
}
NANOCHAT = {ours: name for ours, name in LLAMA.items() if "norm" not in ours} | {
    "blocks.feedforward.inner": "layers.{}.mlp.fc1", "blocks.feedforward.outer": "layers.{}.mlp.fc2",
}  # fmt: skip
NORMLESS = {ours: name for ours, name in LLAMA.items() if "norm" not in ours}


def scale_queries(scale: float, c: ModelConfig) -> dict[str, float]:
    """Attention's scores times `scale`, where ours are over sqrt(H): that of the queries, or of their norm."""
    return {"blocks.attention.query_norm" if c.qk_norm else "blocks.attention.query": scale * math.sqrt(c.H)}


def scale_embedding(scale: float, c: ModelConfig) -> dict[str, float]:
    """What enters the first block times `scale`; a head that is the embedding is given it back by the last norm."""
    return {"embedding": scale} | ({"final_norm": 1 / scale} if c.tied else {})


def gemma_factors(config: Mapping[str, Any], c: ModelConfig) -> dict[str, float]:
    """Embeddings times sqrt(D), as Gemma has them, and its own scale of scores."""
    scalar = config.get("query_pre_attn_scalar", 256 if config["model_type"] != "gemma" else c.H)
    return scale_embedding(math.sqrt(c.width), c) | scale_queries(scalar**-0.5, c)


def granite_factors(config: Mapping[str, Any], c: ModelConfig) -> dict[str, float]:
    """Granite's multipliers of embeddings, of scores, of what blocks add, and the divisor of logits."""
    branch = config.get("residual_multiplier", 1.0)
    factors = scale_embedding(config.get("embedding_multiplier", 1.0), c)
    factors["final_norm"] = factors.get("final_norm", 1.0) / config.get("logits_scaling", 1.0)
    factors |= scale_queries(config.get("attention_multiplier", 1.0), c)
    return factors | {"blocks.attention.out": branch, "blocks.feedforward.outer": branch}


@dataclasses.dataclass(frozen=True)
class Multipliers:
    """Numbers that `factors` reads; they are written such that they change nothing."""

    neutral: Mapping[str, Callable[[ModelConfig], float]]

    def read(self, keys: Keys, known: k.Settings) -> k.Settings:
        for key in self.neutral:
            value = keys.number(key, 1.0)
            require(value is not None and value > 0, f"config.json: {key} {shown(value)}: must be above 0")
        return {}

    def write(self, c: ModelConfig) -> dict[str, Any]:
        return {key: number(c) for key, number in self.neutral.items()}


def one(c: ModelConfig) -> float:
    """A multiplier that changes nothing."""
    return 1.0


QUERY_SCALAR = Multipliers({"query_pre_attn_scalar": lambda c: c.H})
GRANITE = Multipliers({
    "embedding_multiplier": one, "residual_multiplier": one, "logits_scaling": one,
    "attention_multiplier": lambda c: c.H**-0.5,
})  # fmt: skip
LIKE_LLAMA = (*LLAMA_SIZES, GATED, Rope())
QWEN_WINDOWS = Windows(pattern=0, switch="use_sliding_window", width=4096)
GEMMA_ACTIVATION = Choice("activation", "hidden_activation", k.GATED, "gelu_pytorch_tanh")
CAPS = (
    Same("attention_softcap", "attn_logit_softcapping", 50.0),
    Same("logit_softcap", "final_logit_softcapping", 30.0),
)
NO_CAPS = (
    Same("attention_softcap", "attn_logit_softcapping", None),
    Same("logit_softcap", "final_logit_softcapping", None),
)
UNREAD_ACTIVATION = Unread(("hidden_act",))
ONE_WAY = Only("use_bidirectional_attention", (False, None))


def caps(attention: float | None, logits: float | None) -> tuple[Same, Same]:
    """Gemma's caps, and what they are where they are absent."""
    return (
        Same("attention_softcap", "attn_logit_softcapping", attention),
        Same("logit_softcap", "final_logit_softcapping", logits),
    )


_ALL = (
    Family("llama", "LlamaForCausalLM", RMS, (*LIKE_LLAMA, LLAMA_BIASES, rms(1e-6), tied(False)), LLAMA),
    Family("qwen3", "Qwen3ForCausalLM", RMS | {"qk_norm": True},
           (*LIKE_LLAMA, QWEN_WINDOWS, ATTENTION_BIAS, rms(1e-6), tied(False)), LLAMA | QK_NORMS),
    Family("qwen2", "Qwen2ForCausalLM", RMS,
           (*LIKE_LLAMA, QWEN_WINDOWS, Biases(k.QKV), rms(1e-6), tied(False)), LLAMA),
    Family("mistral", "MistralForCausalLM", RMS, (*LIKE_LLAMA, Windows(width=4096), rms(1e-6), tied(False)), LLAMA),
    Family("arcee", "ArceeForCausalLM", RMS,
           (*LLAMA_SIZES, Choice("activation", "hidden_act", k.PLAIN, "relu2"), Rope(), LLAMA_BIASES, rms(1e-5),
            tied(False)), LLAMA),
    Family("gpt2", "GPT2LMHeadModel", LAYER | {"positions": "learned"},
           (*GPT_SIZES, Choice("activation", "activation_function", k.PLAIN, "gelu_new"), Biases(ALL | k.NORMS),
            Same("norm_epsilon", "layer_norm_epsilon", 1e-5), Only("scale_attn_by_inverse_layer_idx", (False,)),
            Only("add_cross_attention", (False,)), Only("scale_attn_weights", (True,)), tied(True)),
           GPT2, "transformer.", columns=True, fused="thirds"),
    Family("starcoder2", "Starcoder2ForCausalLM", LAYER | {"positions": "rotary"},
           (*LLAMA_SIZES, Choice("activation", "hidden_act", k.PLAIN, "gelu_pytorch_tanh"), Rope(), Windows(),
            Biases(k.NORMS, {"use_bias": (True, ALL)}), Same("norm_epsilon", "norm_epsilon", 1e-5),
            Only("mlp_type", ("default",), written=False), Only("norm_type", ("layer_norm",), written=False),
            Unread(("activation_function", "layer_norm_epsilon", "attention_softmax_in_fp32",
                    "scale_attention_softmax_in_fp32")), tied(True)),
           STARCODER2),
    Family("stablelm", "StableLmForCausalLM", LAYER | {"positions": "rotary"},
           (*GROUPED, GATED, Rope(fraction=0.25), Biases(k.NORMS, {"use_qkv_bias": (False, k.QKV)}),
            Same("norm_epsilon", "layer_norm_eps", 1e-5), Only("qk_layernorm", (False,)),
            Choice("parallel", "use_parallel_residual", {False: "off", True: "one_norm"}, False),
            Only("rotary_scaling_factor", (1.0,), written=False), Unread(("norm_eps", "rope_pct")), tied(False)),
           LLAMA),
    Family("gpt_neox", "GPTNeoXForCausalLM", LAYER | {"positions": "rotary"},
           (*SIZES, Choice("activation", "hidden_act", k.PLAIN, "gelu"), Rope(fraction=0.25),
            Biases(k.MLP | k.NORMS, {"attention_bias": (True, k.ATTENTION)}),
            Same("norm_epsilon", "layer_norm_eps", 1e-5),
            Choice("parallel", "use_parallel_residual", {True: "two_norms", False: "off"}, True), tied(False)),
           GPT_NEOX, "gpt_neox.", fused="by head"),
    Family("phi", "PhiForCausalLM", LAYER | {"positions": "rotary", "parallel": "one_norm"},
           (*GROUPED, Choice("activation", "hidden_act", k.PLAIN, "gelu_new"), Rope(fraction=0.5),
            Biases(ALL | k.NORMS | k.HEAD), Same("norm_epsilon", "layer_norm_eps", 1e-5),
            Only("qk_layernorm", (False,)), tied(False)), PHI),
    Family("gptj", "GPTJForCausalLM", LAYER | {"positions": "rotary", "parallel": "one_norm"},
           (*GPT_SIZES, Choice("activation", "activation_function", k.PLAIN, "gelu_new"), k.RotaryDim(),
            Biases(k.MLP | k.NORMS | k.HEAD), Same("norm_epsilon", "layer_norm_epsilon", 1e-5),
            Only("rotary", (True,), written=False), Only("scale_attn_weights", (True,)), tied(False)),
           GPTJ, "transformer.", pairs="neighbours"),
    Family("gpt_neo", "GPTNeoForCausalLM", LAYER | {"positions": "learned"},
           (Same("layers", "num_layers"), Same("width", "hidden_size"), Same("heads", "num_heads"),
            Same("feedforward", "intermediate_size", None), Same("context", "max_position_embeddings"),
            Same("vocab", "vocab_size"), Choice("activation", "activation_function", k.PLAIN, "gelu_new"),
            k.NeoWindows(), Biases(k.MLP | k.NORMS | {"out"}), Same("norm_epsilon", "layer_norm_epsilon", 1e-5),
            tied(True)),
           GPT_NEO, "transformer.", factors=lambda config, c: scale_queries(1.0, c)),
    Family("opt", "OPTForCausalLM", LAYER | {"positions": "learned", "norm_epsilon": 1e-5},
           (Same("layers", "num_hidden_layers"), Same("width", "hidden_size"), Same("heads", "num_attention_heads"),
            Same("feedforward", "ffn_dim"), Same("context", "max_position_embeddings"), Same("vocab", "vocab_size"),
            Choice("activation", "activation_function", k.PLAIN, "relu"),
            Biases(k.NORMS, {"enable_bias": (True, ALL)}), Only("do_layer_norm_before", (True,)),
            Only("layer_norm_elementwise_affine", (True,)), Same("width", "word_embed_proj_dim", None), tied(True)),
           OPT, "model.decoder.", unread=2),
    Family("smollm3", "SmolLM3ForCausalLM", RMS,
           (*LLAMA_SIZES, GATED, Rope(2_000_000.0), k.Unrotated(), Windows(switch="use_sliding_window"), LLAMA_BIASES,
            rms(1e-6), Unread(("max_window_layers",)), tied(True)), LLAMA),
    Family("olmo", "OlmoForCausalLM", LAYER | {"positions": "rotary", "norm_epsilon": 1e-5},
           (*LIKE_LLAMA, ATTENTION_BIAS, Only("clip_qkv", (None,)), tied(False)), NORMLESS),
    Family("olmo2", "Olmo2ForCausalLM", RMS | {"norm_place": "output", "qk_norm": "width"},
           (*LIKE_LLAMA, ATTENTION_BIAS, rms(1e-5), tied(False)), OLMO2),
    Family("olmo3", "Olmo3ForCausalLM", RMS | {"norm_place": "output", "qk_norm": "width"},
           (*LLAMA_SIZES, GATED, Rope(500_000.0, by_type=True), Windows(pattern=4, width=4096), ATTENTION_BIAS,
            rms(1e-5), tied(False)), OLMO2),
    Family("granite", "GraniteForCausalLM", RMS, (*LIKE_LLAMA, LLAMA_BIASES, rms(1e-6), GRANITE, tied(False)), LLAMA,
           factors=granite_factors),
    Family("gemma", "GemmaForCausalLM", RMS,
           (*LLAMA_SIZES, Choice("activation", "hidden_act", k.GATED, "gelu_pytorch_tanh"), Rope(), ATTENTION_BIAS,
            rms(1e-6), Only("hidden_activation", (None, "gelu_pytorch_tanh")), ONE_WAY, tied(True)),
           LLAMA, plus_one=True, factors=gemma_factors),
    Family("gemma2", "Gemma2ForCausalLM", RMS | {"norm_place": "both"},
           (*LLAMA_SIZES, GEMMA_ACTIVATION, Rope(), Windows(pattern=2, width=4096), ATTENTION_BIAS, rms(1e-6),
            QUERY_SCALAR, *caps(50.0, 30.0), ONE_WAY, UNREAD_ACTIVATION, tied(True)),
           GEMMA2, plus_one=True, factors=gemma_factors),
    Family("gemma3_text", "Gemma3ForCausalLM", RMS | {"norm_place": "both", "qk_norm": True},
           (*LLAMA_SIZES, GEMMA_ACTIVATION, Rope(1_000_000.0, local=10_000.0, by_type=True),
            Windows(pattern=6, width=4096, pattern_key="sliding_window_pattern"), ATTENTION_BIAS, rms(1e-6),
            QUERY_SCALAR, *caps(None, None), ONE_WAY, UNREAD_ACTIVATION, tied(True)),
           GEMMA2 | QK_NORMS, plus_one=True, factors=gemma_factors),
    Family("nanochat", "NanoChatForCausalLM", RMS | {"qk_norm": True, "embedding_norm": True},
           (*LLAMA_SIZES, Choice("activation", "hidden_act", k.PLAIN, "relu2"), Rope(), ATTENTION_BIAS, rms(1e-6),
            Same("logit_softcap", "final_logit_softcapping", 15.0), tied(False)), NANOCHAT, pairs="backwards"),
)  # fmt: skip
FAMILIES: dict[str, Family] = {f.model_type: f for f in _ALL}
"""Every family by its model type; of several that fit a model of ours, the first is written."""
