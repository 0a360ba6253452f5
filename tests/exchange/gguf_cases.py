"""A tiny configuration of every family that a GGUF file can hold, as config.json says it, and random tensors for it."""

import functools

import numpy as np

from lm.exchange.gguf_families import ARCHITECTURES, FAMILIES
from lm.exchange.published import Published

L, D, F, V, T = 4, 32, 56, 61, 64
SIX = dict(num_attention_heads=6, num_key_value_heads=2)
NINE = dict(num_attention_heads=9, num_key_value_heads=3)
SIZES = dict(num_hidden_layers=L, intermediate_size=F, vocab_size=V, max_position_embeddings=T)
OWN = SIZES | SIX | dict(hidden_size=48, head_dim=12, rms_norm_eps=1e-6)
"""Heads wider than the model over the heads."""
OVER = SIZES | NINE | dict(hidden_size=36, rms_norm_eps=1e-5)
"""Heads of a ninth of the model."""
BASE = dict(rope_type="default", rope_theta=12345.0)
LINEAR = dict(rope_type="linear", rope_theta=12345.0, factor=4.0)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
LAYERS = dict(num_hidden_layers=L, vocab_size=V, max_position_embeddings=T, hidden_size=D, layer_norm_eps=2e-5)
WINDOWED, FULL = "sliding_attention", "full_attention"

CONFIGS = {
    "llama": OWN | dict(model_type="llama", rope_parameters=BASE, tie_word_embeddings=False),
    "llama, nine heads, tied": OVER | dict(model_type="llama", rope_parameters=LINEAR, tie_word_embeddings=True),
    "llama, biases": OWN | dict(model_type="llama", rope_parameters=BASE, attention_bias=True, mlp_bias=True),
    "llama 3.1": OWN | dict(model_type="llama", rope_parameters=LLAMA3, tie_word_embeddings=True),
    "mistral": OVER | dict(model_type="mistral", rope_parameters=BASE, sliding_window=None),
    "qwen2": OVER | dict(model_type="qwen2", rope_parameters=BASE, tie_word_embeddings=True),
    "qwen3": OWN | dict(model_type="qwen3", rope_parameters=BASE, tie_word_embeddings=False),
    "smollm3": OVER | dict(model_type="smollm3", rope_parameters=BASE, pad_token_id=0, bos_token_id=0, eos_token_id=0),
    "arcee": OWN | dict(model_type="arcee", rope_parameters=BASE, bos_token_id=0, eos_token_id=0),
    "granite": OVER
    | dict(model_type="granite", rope_parameters=BASE, attention_multiplier=0.2, logits_scaling=3.0)
    | dict(residual_multiplier=0.22, embedding_multiplier=12.0),
    "gpt2": dict(model_type="gpt2", n_layer=L, n_embd=D, n_head=4, n_positions=T, vocab_size=V, n_inner=F)
    | dict(layer_norm_epsilon=2e-5, bos_token_id=0, eos_token_id=0),
    "gpt_neox": LAYERS
    | dict(model_type="gpt_neox", num_attention_heads=4, intermediate_size=F, hidden_act="gelu")
    | dict(rope_parameters=BASE | dict(partial_rotary_factor=0.25)),
    "gpt_neox, one after the other": LAYERS
    | dict(model_type="gpt_neox", num_attention_heads=4, intermediate_size=F, hidden_act="gelu_new")
    | dict(rope_parameters=BASE | dict(partial_rotary_factor=0.5), use_parallel_residual=False),
    "phi": LAYERS
    | dict(model_type="phi", num_attention_heads=4, num_key_value_heads=4, intermediate_size=F)
    | dict(rope_parameters=BASE | dict(partial_rotary_factor=0.5)),
    "starcoder2": SIZES
    | NINE
    | dict(model_type="starcoder2", hidden_size=36, rope_parameters=BASE, norm_epsilon=2e-5, sliding_window=None)
    | dict(bos_token_id=0, eos_token_id=0),
    "stablelm": LAYERS
    | dict(model_type="stablelm", num_attention_heads=4, num_key_value_heads=2, intermediate_size=F)
    | dict(rope_parameters=BASE | dict(partial_rotary_factor=0.25), use_qkv_bias=True),
    "stablelm, parallel": LAYERS
    | dict(model_type="stablelm", num_attention_heads=4, num_key_value_heads=4, intermediate_size=F)
    | dict(rope_parameters=BASE | dict(partial_rotary_factor=0.25), use_parallel_residual=True),
    "olmo": SIZES | NINE | dict(model_type="olmo", hidden_size=36, rope_parameters=BASE, clip_qkv=0.9, eos_token_id=0),
    "olmo2": OVER | dict(model_type="olmo2", rope_parameters=BASE, eos_token_id=0),
    "olmo3": OVER
    | dict(model_type="olmo3", sliding_window=8, layer_types=[WINDOWED, FULL, WINDOWED, FULL], eos_token_id=0)
    | dict(rope_parameters={FULL: BASE, WINDOWED: BASE}),
    "gemma": OWN | dict(model_type="gemma", rope_parameters=BASE),
    "gemma2": OWN
    | dict(model_type="gemma2", rope_parameters=BASE, query_pre_attn_scalar=12, sliding_window=8)
    | dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma3_text": OWN
    | dict(model_type="gemma3_text", query_pre_attn_scalar=12, sliding_window=8)
    | dict(layer_types=[WINDOWED, WINDOWED, FULL, WINDOWED])
    | dict(rope_parameters={FULL: LINEAR, WINDOWED: dict(rope_type="default", rope_theta=77.0)}),
}


USUAL = dict(rope_type="default", rope_theta=10000.0)
BYTES = dict(vocab_size=257, bos_token_id=256, eos_token_id=256)
READ_BY_TRANSFORMERS = {name: CONFIGS[name] for name in ("llama", "mistral", "qwen2", "stablelm")} | {
    "qwen3 of usual width": CONFIGS["qwen3"] | dict(head_dim=128),
    "gpt2 of usual shape": CONFIGS["gpt2"] | BYTES | dict(n_positions=1024, n_inner=4 * D, layer_norm_epsilon=1e-5),
    "starcoder2 of usual base": CONFIGS["starcoder2"] | BYTES | dict(rope_parameters=USUAL, norm_epsilon=1e-5),
    "gemma2 of usual caps": OWN
    | dict(model_type="gemma2", rope_parameters=USUAL, query_pre_attn_scalar=256, head_dim=256),
    "gemma3 of usual bases": OWN
    | dict(model_type="gemma3_text", query_pre_attn_scalar=256, head_dim=256, num_hidden_layers=6)
    | dict(rope_parameters={FULL: dict(rope_type="default", rope_theta=1e6), WINDOWED: USUAL}),
}
"""Models of which transformers 5.23 reads all that a GGUF file says: of what it leaves out they have its defaults."""


def published(name: str, **changes) -> Published:
    """The case with random tensors that need no other library to be made."""
    config = CONFIGS[name] | changes
    a = ARCHITECTURES[FAMILIES[config["model_type"]]]
    rng, values = np.random.default_rng(0), {}
    for module in a.modules:
        if module in ("lm_head", "transformer.lm_head") and config.get("tie_word_embeddings", a.family in TIED):
            continue
        if (
            module.endswith("post_attention_layernorm")
            and a.family == "stablelm"
            and config.get("use_parallel_residual")
        ):
            continue
        shape = _shape(config, module.rpartition(".")[2])
        shape = (shape[1], shape[1]) if module.endswith("attn.c_proj") else shape
        for layer in range(L) if "{}" in module else (0,):
            values[f"{module.format(layer)}.weight"] = rng.standard_normal(shape, np.float32)
            if _has_bias(config, module):
                size = shape[1] if a.family == "gpt2" and len(shape) == 2 else shape[0]
                values[f"{module.format(layer)}.bias"] = rng.standard_normal(size, np.float32)
    for module, value in values.items():
        if a.one_more and module.endswith("norm.weight"):
            values[module] = np.round(64 * value) / 64  # survives that converters add 1
    return Published(config, values)


TIED = ("gpt2", "gemma", "gemma2", "gemma3_text", "smollm3", "starcoder2")


def _shape(config: dict, module: str) -> tuple[int, ...]:
    """transformers' shape of a module's matrix or scale."""
    D = config.get("hidden_size", config.get("n_embd"))
    N = config.get("num_attention_heads", config.get("n_head"))
    H, K, inner = config.get("head_dim", D // N), config.get("num_key_value_heads", N), F
    width = config["model_type"] in ("olmo2", "olmo3")
    shapes = dict(embed_tokens=(V, D), wte=(V, D), embed_in=(V, D), lm_head=(V, D), embed_out=(V, D), wpe=(T, D))
    shapes |= dict(q_proj=(N * H, D), k_proj=(K * H, D), v_proj=(K * H, D), o_proj=(D, N * H), dense=(D, N * H))
    shapes |= dict(query_key_value=(3 * D, D), c_attn=(D, 3 * D), q_norm=(N * H if width else H,))
    shapes |= dict(k_norm=(K * H if width else H,), down_proj=(D, inner), fc2=(D, inner), dense_4h_to_h=(D, inner))
    shapes |= dict.fromkeys(("up_proj", "gate_proj", "fc1", "dense_h_to_4h"), (inner, D))
    shapes |= dict(c_fc=(inner, D), c_proj=(D, inner))
    if config["model_type"] == "gpt2":
        shapes |= dict(c_fc=(D, inner), c_proj=(inner, D))
    return shapes.get(module, (D,))


def _has_bias(config: dict, module: str) -> bool:
    leaf, family = module.rpartition(".")[2], config["model_type"]
    if leaf in ("wte", "wpe", "embed_in", "embed_out", "embed_tokens"):
        return False
    if family in ("gpt2", "gpt_neox", "phi", "starcoder2"):
        return leaf != "lm_head" or family == "phi"
    if "norm" in leaf:
        return family == "stablelm"
    if leaf in ("q_proj", "k_proj", "v_proj"):
        return family == "qwen2" or bool(config.get("attention_bias") or config.get("use_qkv_bias"))
    return bool(config.get("attention_bias")) if leaf == "o_proj" else bool(config.get("mlp_bias")) and "mlp" in module


@functools.cache
def theirs(name: str):
    """transformers' model of a configuration, its weights random and away from what they start as."""
    import torch
    import transformers

    torch.set_num_threads(1)
    config = transformers.AutoConfig.for_model(**(CONFIGS | READ_BY_TRANSFORMERS)[name])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            # 1/64ths survive that converters add 1 to Gemma's norms.
            norm = torch.round(64 * (weight + 0.3 * noise)) / 64
            weight.copy_(1.5 * noise * weight.shape[-1] ** -0.5 if weight.ndim == 2 else norm)
    return model


def settings(model) -> dict:
    """What config.json of a model says, without what every configuration has."""
    import transformers

    general = transformers.PreTrainedConfig().to_dict()
    return {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in general or general[name] != value or name == "tie_word_embeddings"
    }


def tensors(model) -> dict[str, np.ndarray]:
    """A model's tensors as NumPy arrays, a head that is the embedding left out."""
    shared = {} if model.config.tie_word_embeddings is False else {"lm_head.weight"}
    values = {name: value.numpy() for name, value in model.state_dict().items() if name not in shared}
    if model.config.model_type == "gpt_neox":  # as it is saved
        values["embed_out.weight"] = values.pop("lm_head.weight")
    return values
