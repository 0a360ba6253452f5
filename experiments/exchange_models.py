"""Tiny models of every family as transformers makes them, with weights away from 0 and 1."""

import functools
import json

import torch
import transformers

VOCAB = 257
"""Bytes, and the end of a text."""
SHAPE = dict(
    num_hidden_layers=4, hidden_size=48, num_attention_heads=6, intermediate_size=40, max_position_embeddings=2048
)
GROUPED = SHAPE | dict(num_key_value_heads=2)
GPT = dict(n_layer=2, n_embd=48, n_head=6, n_positions=2048)
LLAMA31 = dict(
    rope_type="llama3", rope_theta=12345.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
GEMMA3 = {
    "full_attention": dict(rope_type="linear", factor=8.0, rope_theta=1e6),
    "sliding_attention": dict(rope_type="default", rope_theta=1e4),
}
CASES = {
    "arcee": dict(GROUPED),
    "gemma": dict(GROUPED, head_dim=10),
    "gemma2": dict(
        GROUPED, head_dim=8, sliding_window=5, query_pre_attn_scalar=20, attn_logit_softcapping=2.0,
        final_logit_softcapping=1.5,
    ),
    "gemma3_text": dict(GROUPED, head_dim=8, sliding_window=5, num_hidden_layers=6, rope_parameters=GEMMA3),
    "gpt2": dict(GPT),
    "gpt_neo": dict(
        num_layers=4, hidden_size=48, num_heads=6, attention_types=[[["global", "local"], 2]], window_size=5,
        max_position_embeddings=2048,
    ),
    "gpt_neox": dict(SHAPE),
    "gpt_neox, one after the other": dict(SHAPE, use_parallel_residual=False, attention_bias=False),
    "gptj": dict(GPT, rotary_dim=4),
    "granite": dict(
        GROUPED, embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.5, attention_multiplier=0.2
    ),
    "granite, tied": dict(GROUPED, embedding_multiplier=3.0, logits_scaling=2.0, tie_word_embeddings=True),
    "llama": dict(GROUPED),
    "llama, scaled": dict(GROUPED, rope_parameters=LLAMA31),
    "llama, biases and wide heads": dict(GROUPED, attention_bias=True, mlp_bias=True, head_dim=10),
    "llama, 9 heads on 3": dict(GROUPED, hidden_size=72, num_attention_heads=9, num_key_value_heads=3),
    "llama, tied": dict(GROUPED, tie_word_embeddings=True),
    "mistral": dict(GROUPED, sliding_window=5),
    "nanochat": dict(GROUPED),
    "olmo": dict(GROUPED),
    "olmo2": dict(GROUPED),
    "olmo3": dict(GROUPED, sliding_window=5),
    "opt": dict(
        num_hidden_layers=4, hidden_size=48, num_attention_heads=6, ffn_dim=40, max_position_embeddings=2048,
        word_embed_proj_dim=48,
    ),
    "phi": dict(GROUPED),
    "qwen2": dict(GROUPED),
    "qwen2, windows in the last layers": dict(
        GROUPED, use_sliding_window=True, sliding_window=5, max_window_layers=2
    ),
    "qwen3": dict(GROUPED, head_dim=8),
    "qwen3, biases, relu": dict(GROUPED, head_dim=12, hidden_act="relu", attention_bias=True),
    "smollm3": dict(GROUPED),
    "stablelm": dict(GROUPED),
    "stablelm, parallel, biases": dict(GROUPED, use_qkv_bias=True, use_parallel_residual=True),
    "starcoder2": dict(GROUPED),
}  # fmt: skip
"""Settings of each, by family and what is particular."""


@functools.cache
def their_model(case: str):
    """The model, float32, by plain attention; logits' standard deviation is about one."""
    torch.set_num_threads(1)
    settings = dict(vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, pad_token_id=None) | CASES[case]
    config = transformers.AutoConfig.for_model(case.partition(",")[0], **settings)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=draw)
            if weight.ndim == 1:
                is_scale = name.endswith("weight")
                weight.copy_(0.6 + 0.2 * noise if is_scale else 0.3 * noise)
            elif len(weight) in (VOCAB, 2048, 2050):  # a table, or a head
                weight.copy_(noise * (0.03 if "gemma" in case else 0.07))  # Gemma's is times sqrt(D)
            else:
                weight.copy_(noise * weight.shape[-1] ** -0.5)
    return model


def state_dict(model) -> dict:
    """The tensors as a folder has them: without a copy of a tied head."""
    tensors = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return tensors


def config_of(model) -> dict:
    """What config.json would say."""
    return json.loads(model.config.to_json_string(use_diff=True))
