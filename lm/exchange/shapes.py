"""The shape of a model as its family's config.json says it, and back.

What a family cannot say is found by reading what was written for it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lm.config import ModelConfig
from lm.errors import UserError, nearest, require
from lm.exchange.families import FAMILIES, Family
from lm.exchange.keys import RESOLVED, Biases, Keys
from lm.typed import shown

HARMLESS = frozenset({
    "_name_or_path", "_attn_implementation_autoset", "architectures", "auto_map", "begin_suppress_tokens",
    "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "head_dim", "id2label", "initializer_range",
    "init_std", "is_decoder", "is_encoder_decoder", "is_llama_config", "label2id", "layerdrop", "output_attentions",
    "output_hidden_states", "output_past", "pad_token_id", "prefix", "pretraining_tp", "problem_type", "return_dict",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "task_specific_params", "tokenizer_class", "torch_dtype", "transformers.js_config", "transformers_version",
    "unsloth_fixed", "unsloth_version", "use_cache", "gradient_checkpointing", "n_ctx",
    "reorder_and_upcast_attn", "suppress_tokens", "cache_implementation", "_remove_final_layer_norm",
    "_sliding_window_pattern", "model_max_length", "attn_implementation", "use_flash_attn", "do_sample",
    "early_stopping",
    "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length",
    "no_repeat_ngram_size", "num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty", "temperature",
    "top_k", "top_p", "typical_p", "diversity_penalty", "encoder_no_repeat_ngram_size", "bad_words_ids", "language",
})  # fmt: skip
"""Keys that change no logits."""
MOST_LAYERS = 10_000
"""More than any model has: what differs by layer is made into lists."""
UNUSED = (None, False, [], {}, "")
"""Values by which a key says that it asks for nothing."""


def family(model_type: Any) -> Family:
    """The family of this model type. Raises UserError where it is not among FAMILIES."""
    known = ", ".join(FAMILIES)
    require(
        model_type in FAMILIES,
        f"config.json: model_type {shown(model_type)[:40]} is not supported{nearest(str(model_type), FAMILIES)} "
        f"(known: {known})",
    )
    return FAMILIES[model_type]


def read(config: Mapping[str, Any], ignore: frozenset[str] = frozenset()) -> ModelConfig:
    """The shape that a config.json describes.

    ignore: keys that the user says may be left aside. Raises UserError for a family, a key or a value that is not
    understood, so that nothing which might change the function is passed over.
    """
    f, keys, settings = family(config.get("model_type")), Keys(config), {}
    try:
        for rule in f.rules:
            settings |= rule.read(keys, settings)
            layers = settings.get("layers", 0)
            require(type(layers) is not int or layers <= MOST_LAYERS, f"config.json: {layers:,} layers are too many")
    except UserError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:  # of values of another kind
        raise UserError(f"config.json: a key of {f.model_type} is of another kind ({str(error)[:100]})") from error
    drops = {key for key in config if key.endswith(("dropout", "_pdrop"))}
    left = [key for key, value in config.items() if value not in UNUSED]
    unknown = sorted(set(left) - keys.read - HARMLESS - drops - ignore)
    require(
        not unknown,
        f"config.json: {', '.join(unknown)[:120]}: not known of {f.model_type}, and may change what it computes; leave "
        "a key aside with --ignore KEY",
    )
    settings = {"vocab_multiple": 1, "zero_init": False, "qk_norm": False} | dict(f.settings) | settings
    if "feedforward" in settings and settings["feedforward"] is None:
        settings["feedforward"] = 4 * settings["width"]
    try:
        return ModelConfig(**settings)
    except UserError as error:
        raise UserError(f"config.json describes no model: {error}") from error


def biased(config: Mapping[str, Any]) -> frozenset[str]:
    """The kinds of maps and norms that have biases in this model; see keys.Biases."""
    rules = (rule for rule in family(config["model_type"]).rules if isinstance(rule, Biases))
    return next((rule.places(Keys(config)) for rule in rules), frozenset())


def write(f: Family, c: ModelConfig) -> dict[str, Any]:
    """The config.json of a model of this shape. Raises UserError where the family cannot say what it is."""
    config: dict[str, Any] = {"model_type": f.model_type, "architectures": [f.architecture]}
    for rule in f.rules:
        config |= rule.write(c)
    lost = differences(c, f, config)
    require(not lost, f"{f.model_type} has no {', '.join(lost)}")
    return config


def differences(c: ModelConfig, f: Family, config: Mapping[str, Any]) -> list[str]:
    """The settings that decide what a model computes and are not the same once its config.json is read again."""
    try:
        again = essence(read(config))
    except UserError as error:
        return [str(error)]
    return [f"model.{name} {value}" for name, value in essence(c).items() if again.get(name) != value]


COSMETIC = frozenset({
    "vocab_multiple", "dropout", "zero_init", "remat", "unroll", "dtype", "attention", "window", "global_every",
    "layer_windows", "base_width", "base_head_width", "base_layers", "mask_token",
})  # fmt: skip
"""Settings that change no logits of a model in hand, or that `essence` says in another way."""


def essence(c: ModelConfig) -> dict[str, Any]:
    """The settings that decide what a model computes, each said in one way only."""
    resolved = {ours: getattr(c, RESOLVED.get(ours, ours)) for ours in (f.name for f in dataclasses.fields(c))}
    kept = {name: value for name, value in resolved.items() if name not in COSMETIC} | {"windows": c.windows}
    if c.positions != "rotary":
        return {name: value for name, value in kept.items() if not name.startswith("rotary_")}
    if c.rotary_scaling == "none":
        kept |= {"rotary_factor": 1.0}
    if c.rotary_scaling != "llama3":
        kept |= {"rotary_band": (), "rotary_context": 0}
    if c.rotary_base_windowed is None or set(c.windows) == {None}:
        kept |= {"rotary_base_windowed": None}
    return kept
