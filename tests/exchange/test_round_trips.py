"""A run that goes out to a GGUF file comes back as it was, to the bit where nothing was said otherwise."""

import dataclasses

import jax
import numpy as np
import pytest
from lively import lively

import lm
from lm.config import Experiment, ModelConfig
from lm.errors import UserError
from lm.exchange import export_gguf, import_model, shapes
from lm.model.trained import Trained
from lm.tokenizer import ByteTokenizer

pytest.importorskip("gguf", reason="needs the extra exchange")
pytest.importorskip("tokenizers", reason="needs the extra exchange")

C = ModelConfig(
    layers=2, width=48, heads=6, kv_heads=2, context=64, feedforward=72, vocab=257, vocab_multiple=1, zero_init=False,
    activation="swiglu", qk_norm=False,
)  # fmt: skip
LAYERNORM = dict(norm="layernorm", bias=True)
SHAPES = {
    "llama": dict(rotary_base=12345.0),
    "qwen3": dict(qk_norm=True, head_width=10),
    "qwen2": dict(bias="qkv"),
    "arcee": dict(activation="relu2"),
    "gpt2": dict(LAYERNORM, positions="learned", activation="gelu", kv_heads=None),
    "starcoder2": dict(LAYERNORM, activation="gelu"),
    "smollm3": dict(rotary_skips=4, layers=4),
    "olmo2": dict(norm_place="output", qk_norm="width"),
    "gpt_neox": dict(LAYERNORM, activation="gelu_exact", parallel="two_norms", kv_heads=None, rotary_fraction=0.5),
}


def trained(**changes) -> Trained:
    c = dataclasses.replace(C, **changes)
    return Trained(lively(c), ByteTokenizer(), Experiment(model=c), 0)


@pytest.mark.parametrize("family", SHAPES)
def test_a_file_gives_back_what_was_written(family, tmp_path):
    m = trained(**SHAPES[family])
    made = export_gguf(m, tmp_path / "out.gguf", check=False)
    assert made.family == family and made.foldings == ()
    back = lm.load(import_model(tmp_path / "out.gguf", "back", folder=tmp_path).run)
    assert shapes.essence(back.experiment.model) == shapes.essence(m.experiment.model)
    jax.tree.map(np.testing.assert_array_equal, m.params, back.params)
    text = "naïve <|endoftext|>  東京"
    assert back.tokenizer.encode_ordinary(text) == m.tokenizer.encode_ordinary(text)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (dict(activation="relu2", qk_norm=True), "hidden_act relu: llama.cpp computes a qwen3 with silu"),
        (dict(window=8), "llama.cpp computes this family without windows"),
        (dict(value_residual=True), "model.value_residual"),
        (dict(LAYERNORM, activation="gelu", positions="learned", mask="prefix"), "model.mask prefix"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused_with_the_reason(changes, why, tmp_path):
    with pytest.raises(UserError) as refused:
        export_gguf(trained(**changes), tmp_path / "out.gguf", check=False)
    assert why in str(refused.value) and not list(tmp_path.iterdir())
