"""Models of ours in folders and files: transformers computes the same, or the export says why not."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from libraries import library
from lively import lively

from lm.config import Experiment, ModelConfig
from lm.errors import UserError
from lm.exchange import folding, shapes
from lm.exchange.outgoing import export_folder, publish
from lm.exchange.tensors import to_ours
from lm.model.api import Inputs
from lm.model.trained import Trained
from lm.tokenizer import ByteTokenizer

pytestmark = pytest.mark.parity
BASE = dict(
    layers=2, width=16, heads=4, kv_heads=2, context=48, feedforward=24, vocab=257, vocab_multiple=64,
    dtype="float32", zero_init=False, unroll=1,
)  # fmt: skip
LAYERNORM = dict(norm="layernorm", qk_norm=False)
SHAPES = {
    "qwen3: gated relu2": dict(),
    "qwen3: swiglu, windows, wide heads": dict(activation="swiglu", window=5, global_every=2, head_width=6),
    "qwen3: a base shape": dict(activation="swiglu", base_width=8, base_head_width=2, base_layers=1),
    "qwen3: normalised embeddings, tied": dict(activation="swiglu", embedding_norm=True, tied=True),
    "llama: swiglu": dict(activation="swiglu", qk_norm=False, rotary_base=12345.0),
    "llama: biases, rescaled": dict(activation="swiglu", qk_norm=False, bias=True, rotary_scaling="llama3",
                                    rotary_factor=8.0, rotary_context=16),
    "llama: geglu": dict(activation="geglu_exact", qk_norm=False, tied=True),
    "qwen2: biases of queries, keys and values": dict(activation="swiglu", qk_norm=False, bias="qkv"),
    "arcee: relu2": dict(activation="relu2", qk_norm=False),
    "arcee: gelu, biases": dict(activation="gelu", qk_norm=False, bias=True),
    "mistral: a window": dict(activation="swiglu", qk_norm=False, window=7),
    "gpt2: learned positions": dict(kv_heads=None, positions="learned", bias=True, activation="gelu", **LAYERNORM),
    "gpt2: sinusoids, no biases": dict(kv_heads=None, positions="sinusoidal", activation="gelu_exact", **LAYERNORM),
    "gpt2: no positions": dict(kv_heads=None, positions="none", activation="relu", **LAYERNORM),
    "starcoder2: window, no biases": dict(window=5, activation="gelu", **LAYERNORM),
    "stablelm: swiglu": dict(activation="swiglu", **LAYERNORM),
    "gpt_neox: parallel halves": dict(kv_heads=None, parallel="two_norms", activation="gelu", rotary_fraction=0.5,
                                      **LAYERNORM),
    "smollm3: no positions": dict(positions="none", activation="swiglu", qk_norm=False),
    "smollm3: rotated in part of the layers": dict(rotary_skips=2, activation="swiglu", qk_norm=False),
    "olmo2: norms of what halves add": dict(norm_place="output", qk_norm="width", activation="swiglu"),
    "nanochat: capped logits": dict(embedding_norm=True, logit_softcap=15.0, activation="relu2"),
    "gemma2: norms on both sides": dict(norm_place="both", qk_norm=False, activation="geglu", attention_softcap=3.0,
                                        tied=True),
    "gemma3_text: two bases": dict(norm_place="both", activation="geglu", window=5, global_every=2,
                                   rotary_base_windowed=100.0, tied=True),
}  # fmt: skip
"""Settings, and the family that says them with the fewest changes."""
REFUSED = {
    "value_residual": dict(value_residual=True),
    "norm_place": dict(norm_place="post", qk_norm=False),
    "logit_softcap": dict(logit_softcap=5.0, activation="swiglu", qk_norm=False),
    "head_bias": dict(head_bias=True),
    "mask": dict(mask="prefix"),
}


@functools.cache
def trained(name: str) -> Trained:
    """A model of bytes with lively parameters."""
    c = ModelConfig(**BASE | (SHAPES | REFUSED)[name])
    params = jax.tree.map(lambda x: np.asarray(x), lively(c))
    if name.startswith("nanochat"):  # whose norms have no scales

        def plain(path, x):
            return np.ones_like(x) if path[-1].key == "scale" else x

        params = jax.tree.map_with_path(plain, params)
    for table in ("embedding", "head"):
        if table in params:
            params[table] = params[table] * 0.3
    return Trained(params, ByteTokenizer(), Experiment(model=c), 7)


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_what_we_do(name, tmp_path):
    """In float32, at all 48 positions; and the folder's tokenizer is ours."""
    torch, transformers = library("torch"), library("transformers")
    m = trained(name)
    made = export_folder(m, tmp_path / "out", check=False)
    assert made.family == name.partition(":")[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    tokens_BT = np.random.default_rng(0).integers(0, 257, (2, 48)).astype(np.int32)
    with torch.no_grad():
        theirs_BTV = model(torch.from_numpy(tokens_BT).long()).logits.numpy()
    ours_BTV, _ = jax.jit(lambda params, tokens_BT: m.model.apply(params, Inputs(tokens_BT)))(m.params, tokens_BT)
    assert theirs_BTV.shape[-1] == 257 and theirs_BTV.std() > 0.1
    np.testing.assert_allclose(theirs_BTV, ours_BTV[..., :257], atol=2e-5 * max(1, theirs_BTV.std()))


@pytest.mark.parametrize("name", [name for name in SHAPES if not name.startswith("gemma")])
def test_what_is_written_is_read_again(name):
    """lm -> hf -> lm: the shape and the parameters that were said, to the bit."""
    m = trained(name)
    published, form = publish(m)
    said, params = folding.without_base(m.experiment.model, m.params)
    for one in form.foldings:
        params = one.params(said, params)
        said = dataclasses.replace(said, **one.settings(said))
    c = shapes.read(published.config)
    assert shapes.essence(c) == shapes.essence(said)
    again = to_ours(shapes.family(published.config["model_type"]), published.config, c, published.tensors)
    for (path, one), two in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(again), strict=True):
        rows = [slice(0, size) for size in two.shape]  # without the padding of our vocabulary
        np.testing.assert_array_equal(np.asarray(one)[tuple(rows)], two, err_msg=str(path))


@pytest.mark.parametrize("setting", REFUSED)
def test_what_no_family_computes_is_refused_by_name(setting, tmp_path):
    with pytest.raises(UserError, match=f"no family computes this model: .*model.{setting}"):
        export_folder(trained(setting), tmp_path / "out")
    assert not list(tmp_path.iterdir())
