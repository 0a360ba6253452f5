"""Configurations as they are published: each is read as what its family computes, every key accounted for."""

import pytest

from lm.exchange import shapes

COMMON = dict(
    bos_token_id=0, eos_token_id=[0, 1], torch_dtype="bfloat16", transformers_version="4.40.1", use_cache=True,
    initializer_range=0.02, attention_dropout=0.1,
)  # fmt: skip
SIZES = dict(
    hidden_size=64, num_attention_heads=8, num_hidden_layers=4, intermediate_size=96, max_position_embeddings=4096,
    vocab_size=500,
)  # fmt: skip
GROUPED = SIZES | dict(num_key_value_heads=2, hidden_act="silu")
PUBLISHED = {
    "pythia": (
        dict(SIZES, model_type="gpt_neox", hidden_act="gelu", layer_norm_eps=1e-5, rotary_emb_base=10000,
             rotary_pct=0.25, tie_word_embeddings=False, use_parallel_residual=True),
        dict(parallel="two_norms", rotary_fraction=0.25, activation="gelu_exact", bias=True, tied=False),
    ),
    "gpt2": (
        dict(model_type="gpt2", n_ctx=1024, n_embd=64, n_head=8, n_layer=4, n_positions=1024, vocab_size=500,
             activation_function="gelu_new", layer_norm_epsilon=1e-5, attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1,
             summary_activation=None, summary_type="cls_index", summary_use_proj=True, summary_first_dropout=0.1,
             task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}),
        dict(positions="learned", feedforward=256, tied=True, bias=True, context=1024),
    ),
    "gpt-j": (
        dict(model_type="gptj", n_embd=64, n_head=8, n_layer=4, n_positions=2048, vocab_size=500, rotary=True,
             rotary_dim=4, n_inner=None, activation_function="gelu_new", layer_norm_epsilon=1e-5, resid_pdrop=0.0,
             gradient_checkpointing=False, scale_attn_weights=True, tie_word_embeddings=False,
             tokenizer_class="GPT2Tokenizer", summary_use_proj=True, summary_type="cls_index"),
        dict(parallel="one_norm", rotary_fraction=0.5, head_bias=True),
    ),
    "opt": (
        dict(model_type="opt", _remove_final_layer_norm=False, activation_dropout=0.0, activation_function="relu",
             do_layer_norm_before=True, dropout=0.1, ffn_dim=96, hidden_size=64, init_std=0.02, layerdrop=0.0,
             max_position_embeddings=2048, num_attention_heads=8, num_hidden_layers=4, pad_token_id=1, prefix="</s>",
             vocab_size=500),
        dict(positions="learned", activation="relu", tied=True, context=2048),
    ),
    "llama 3.2": (
        dict(GROUPED, model_type="llama", head_dim=8, mlp_bias=False, attention_bias=False, pretraining_tp=1,
             rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=True,
             rope_scaling=dict(factor=32.0, high_freq_factor=4.0, low_freq_factor=1.0, rope_type="llama3",
                               original_max_position_embeddings=8192)),
        dict(rotary_scaling="llama3", rotary_factor=32.0, rotary_band=(1.0, 4.0), rotary_context=8192, tied=True),
    ),
    "SmolLM2": (
        {**GROUPED, "model_type": "llama", "is_llama_config": True, "rope_interleaved": False, "rope_scaling": None,
         "rope_theta": 100000, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
         "transformers.js_config": {"dtype": "q4"}},
        dict(rotary_base=100000.0, activation="swiglu", tied=True),
    ),
    "SmolLM3": (
        dict(GROUPED, model_type="smollm3", attention_bias=False, mlp_bias=False, max_window_layers=28,
             no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0], layer_types=["full_attention"] * 4,
             pretraining_tp=2, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=5000000.0, sliding_window=None,
             use_sliding_window=False),
        dict(rotary_skips=4, tied=True, rotary_base=5000000.0),
    ),
    "mistral v0.1": (
        dict(GROUPED, model_type="mistral", rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096),
        dict(window=4096, tied=False),
    ),
    "mistral v0.3": (
        dict(GROUPED, model_type="mistral", head_dim=16, rms_norm_eps=1e-5, rope_theta=1e6, sliding_window=None),
        dict(window=None, head_width=16),
    ),
    "Qwen 2.5": (
        dict(GROUPED, model_type="qwen2", max_window_layers=24, rms_norm_eps=1e-6, rope_theta=1e6, sliding_window=32768,
             tie_word_embeddings=True, use_mrope=False, use_sliding_window=False),
        dict(bias="qkv", window=None, layer_windows=(), tied=True),
    ),
    "Qwen 3": (
        dict(GROUPED, model_type="qwen3", attention_bias=False, head_dim=16, max_window_layers=28, rms_norm_eps=1e-6,
             rope_scaling=None, rope_theta=1e6, sliding_window=None, use_sliding_window=False),
        dict(qk_norm=True, head_width=16, bias=False),
    ),
    "Gemma": (
        dict(SIZES, model_type="gemma", num_key_value_heads=1, head_dim=16, hidden_act="gelu_pytorch_tanh",
             hidden_activation=None, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=10000.0, attention_bias=False),
        dict(activation="geglu", tied=True, kv_heads=1),
    ),
    "Gemma 2": (
        dict(SIZES, model_type="gemma2", num_key_value_heads=2, attention_bias=False, attn_logit_softcapping=50.0,
             cache_implementation="hybrid", final_logit_softcapping=30.0, head_dim=16, hidden_act="gelu_pytorch_tanh",
             hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256, rms_norm_eps=1e-6, rope_theta=10000.0,
             sliding_window=4096),
        dict(norm_place="both", window=4096, global_every=2, attention_softcap=50.0, logit_softcap=30.0),
    ),
    "Gemma 3": (
        dict(SIZES, model_type="gemma3_text", num_hidden_layers=12, num_key_value_heads=1, attn_logit_softcapping=None,
             final_logit_softcapping=None, head_dim=16, hidden_activation="gelu_pytorch_tanh",
             query_pre_attn_scalar=256, rms_norm_eps=1e-6, rope_local_base_freq=10000, rope_scaling=None,
             rope_theta=1000000, sliding_window=512, sliding_window_pattern=6, cache_implementation="hybrid"),
        dict(window=512, global_every=6, rotary_base=1e6, rotary_base_windowed=1e4, logit_softcap=None),
    ),
    "OLMo": (
        dict(GROUPED, model_type="olmo", attention_bias=False, clip_qkv=None, pad_token_id=1, rope_scaling=None,
             rope_theta=10000.0, tie_word_embeddings=True),
        dict(norm="layernorm", bias=False, tied=True),
    ),
    "OLMo 2": (
        dict(GROUPED, model_type="olmo2", attention_bias=False, rms_norm_eps=1e-6, rope_scaling=None, rope_theta=5e5),
        dict(norm_place="output", qk_norm="width", norm_epsilon=1e-6),
    ),
    "Phi 2": (
        dict(SIZES, model_type="phi", embd_pdrop=0.0, hidden_act="gelu_new", layer_norm_eps=1e-5,
             num_key_value_heads=8, partial_rotary_factor=0.5, qk_layernorm=False, resid_pdrop=0.1, rope_scaling=None,
             rope_theta=10000.0, tie_word_embeddings=False),
        dict(parallel="one_norm", rotary_fraction=0.5, head_bias=True, activation="gelu"),
    ),
    "Granite 3": (
        dict(GROUPED, model_type="granite", attention_bias=False, attention_multiplier=0.015625, mlp_bias=False,
             embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, rms_norm_eps=1e-5,
             rope_scaling=None, rope_theta=5e6, tie_word_embeddings=True),
        dict(tied=True, rotary_base=5e6),
    ),
    "StarCoder 2": (
        dict(SIZES, model_type="starcoder2", activation_function="gelu", attention_softmax_in_fp32=True,
             embedding_dropout=0.1, hidden_act="gelu_pytorch_tanh", layer_norm_epsilon=1e-5, mlp_type="default",
             norm_epsilon=1e-5, norm_type="layer_norm", num_key_value_heads=2, residual_dropout=0.1,
             rope_theta=999999.44, scale_attention_softmax_in_fp32=True, sliding_window=4096, use_bias=True),
        dict(window=4096, activation="gelu", bias=True, tied=True),
    ),
    "StableLM": (
        dict(GROUPED, model_type="stablelm", layer_norm_eps=1e-5, norm_eps=1e-5, rope_pct=0.25, rope_theta=10000,
             partial_rotary_factor=0.25, rotary_scaling_factor=1.0, use_qkv_bias=True, tie_word_embeddings=False),
        dict(rotary_fraction=0.25, parallel="off", bias=True),
    ),
    "TinyStories": (
        dict(model_type="gpt_neo", activation_function="gelu_new", attention_layers=["global", "local"] * 2,
             attention_types=[[["global", "local"], 2]], embed_dropout=0, hidden_size=64, intermediate_size=None,
             layer_norm_epsilon=1e-5, max_position_embeddings=2048, num_heads=8, num_layers=4, resid_dropout=0,
             vocab_size=500, window_size=256, gradient_checkpointing=False),
        dict(layer_windows=(0, 256, 0, 256), positions="learned", tied=True),
    ),
}  # fmt: skip
"""Keys as in files of the Hub, at small sizes, and settings that they mean."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_understood(name):
    config, meant = PUBLISHED[name]
    c = shapes.read(COMMON | config)
    assert {setting: getattr(c, setting) for setting in meant} == meant


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_is_read_as_the_same(name):
    """Every setting that decides what is computed survives its family's config.json."""
    config, _ = PUBLISHED[name]
    c = shapes.read(COMMON | config)
    again = shapes.write(shapes.family(config["model_type"]), c)
    assert shapes.essence(shapes.read(again)) == shapes.essence(c)
