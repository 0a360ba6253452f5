"""Models of ours in GGUF files: llama.cpp computes the same, or the export says why not."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from lively import lively

from lm.config import Experiment, ModelConfig
from lm.errors import UserError
from lm.exchange import shapes
from lm.exchange.checking import our_logits
from lm.exchange.outgoing import export_gguf, publish
from lm.exchange.tensors import to_ours
from lm.model.api import build
from lm.model.trained import Trained
from lm.tokenizer import ByteTokenizer, CharTokenizer

pytest.importorskip("gguf")
from lm.exchange import gguf

BASE = dict(layers=2, width=32, heads=4, kv_heads=2, context=48, feedforward=24, vocab=257, vocab_multiple=64,
            dtype="float32", zero_init=False, unroll=1, activation="swiglu", qk_norm=False, tied=False)  # fmt: skip
LAYERNORM = dict(norm="layernorm", bias=True)
GPT2 = dict(activation="gelu", kv_heads=None, tied=True, **LAYERNORM)
SHAPES = {
    "llama": dict(rotary_base=12345.0),
    "llama, nine heads, biases": dict(width=36, heads=9, kv_heads=3, bias=True),
    "llama, rescaled": dict(rotary_scaling="llama3", rotary_factor=8.0, rotary_context=16, tied=True),
    "qwen2": dict(bias="qkv"),
    "qwen3": dict(qk_norm=True, head_width=12),
    "qwen3, a base shape": dict(qk_norm=True, base_width=8, base_head_width=2, base_layers=1),
    "qwen3, normalised embeddings": dict(qk_norm=True, embedding_norm=True, tied=True),
    "arcee": dict(activation="relu2"),
    "smollm3": dict(layers=4, rotary_skips=4),
    "stablelm": dict(norm="layernorm", bias="qkv", rotary_fraction=0.5, kv_heads=None),
    "gpt2": dict(positions="learned", activation="gelu", kv_heads=None, tied=True, **LAYERNORM),
    "gpt2, sinusoidal positions": dict(
        positions="sinusoidal", activation="gelu", kv_heads=None, tied=True, **LAYERNORM
    ),
    "starcoder2": dict(activation="gelu", **LAYERNORM),
}
FOLDED = ("qwen3, a base shape", "qwen3, normalised embeddings", "gpt2, sinusoidal positions", "stablelm")


@functools.cache
def trained(name) -> Trained:
    c = ModelConfig(**(BASE | SHAPES[name]))
    return Trained(lively(c), ByteTokenizer(), Experiment(model=c), step=0)


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_written_is_read_again(name, tmp_path):
    """To the bit where no fold rounds; and the shape computes the same."""
    m = trained(name)
    made = export_gguf(m, tmp_path / "model.gguf", check=False)
    assert made.family == name.partition(",")[0]
    back = gguf.read(made.path)
    c = dataclasses.replace(shapes.read(back.config), dtype="float32")
    params = to_ours(shapes.family(back.config["model_type"]), back.config, c, back.tensors)
    if name not in FOLDED:
        assert shapes.essence(c) == shapes.essence(m.experiment.model)
        cut = build(dataclasses.replace(m.experiment.model, vocab_multiple=1)).shapes()
        ours = jax.tree.map(lambda x, shape: np.asarray(x)[tuple(map(slice, shape.shape))], m.params, cut)
        assert jax.tree.all(jax.tree.map(np.array_equal, ours, params))
    else:
        tokens = list(range(0, 257, 6))
        difference = our_logits(build(c), params, tokens) - our_logits(m.model, m.params, tokens)
        assert np.abs(difference).max() < 2e-5


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parity
def test_llama_cpp_computes_what_we_do(name, tmp_path):
    """Within 1e-4; 5e-3 with GELU, which llama.cpp has from a table of half precision."""
    pytest.importorskip("llama_cpp")
    made = export_gguf(trained(name), tmp_path / "model.gguf")
    tolerance = 5e-3 if trained(name).experiment.model.activation == "gelu" else 1e-4
    assert made.check.largest_difference < tolerance


@pytest.mark.parametrize(
    "changes",
    [
        dict(activation="relu2", qk_norm=True),  # llama.cpp would compute silu
        dict(window=8),
        dict(positions="none"),
        dict(value_residual=True),
        dict(logit_softcap=15.0),
        dict(qk_norm="width"),
        dict(norm="layernorm", activation="gelu_exact", bias=True),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(changes, tmp_path):
    c = ModelConfig(**(BASE | changes))
    m = Trained(lively(c), ByteTokenizer(), Experiment(model=c), step=0)
    with pytest.raises(UserError, match=r"no architecture of llama\.cpp computes this model: "):
        export_gguf(m, tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_that_llama_cpp_has_not_is_refused(tmp_path):
    m = trained("llama")
    letters = CharTokenizer("".join(map(chr, range(32, 288))))
    with pytest.raises(UserError, match=r"llama\.cpp has no tokenizer of characters"):
        export_gguf(dataclasses.replace(m, tokenizer=letters), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_fewer_bits_and_what_is_said_stand_in_the_file(tmp_path):
    """q8_0 keeps names and shapes, and the file says what it holds; one that is there is not written over."""
    import gguf as library

    m, path = trained("llama"), tmp_path / "model.gguf"
    export_gguf(m, path, dtype="q8_0", check=False)
    reader = library.GGUFReader(path)
    assert reader.fields["general.file_type"].contents() == 7
    assert "step 0" in reader.fields["general.description"].contents()
    assert {t.tensor_type.name for t in reader.tensors} == {"Q8_0", "F32"}
    published, _ = publish(m, for_gguf=True)
    for name, value in gguf.read(path).tensors.items():
        assert np.abs(value - published.tensors[name]).max() <= np.abs(value).max() / 127
    with pytest.raises(UserError, match="is there already"):
        export_gguf(m, path)
