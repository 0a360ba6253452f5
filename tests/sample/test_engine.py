"""llama.cpp in the place of our parameters: the same texts from the same seeds."""

import numpy as np
import pytest
from sample_cases import ALPHABET, Letters, little

from lm.exchange.gguf import write
from lm.exchange.published import Published
from lm.sample import Sampler
from lm.sample.generate import generate

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
from lm.exchange.llama_cpp import LlamaGenerator, check

pytestmark = pytest.mark.parity
NAMES = {
    "attention_norm.scale": "input_layernorm",
    "attention.query.kernel": "self_attn.q_proj",
    "attention.key.kernel": "self_attn.k_proj",
    "attention.value.kernel": "self_attn.v_proj",
    "attention.out.kernel": "self_attn.o_proj",
    "attention.query_norm.scale": "self_attn.q_norm",
    "attention.key_norm.scale": "self_attn.k_norm",
    "feedforward_norm.scale": "post_attention_layernorm",
    "feedforward.gate.kernel": "mlp.gate_proj",
    "feedforward.inner.kernel": "mlp.up_proj",
    "feedforward.outer.kernel": "mlp.down_proj",
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A little model, and a generator of its file."""
    m = little(Letters(end=64), width=32, heads=4, kv_heads=2, activation="swiglu", qk_norm=True, tied=False)
    c, path = m.experiment.model, tmp_path_factory.mktemp("llama") / "little.gguf"
    config = dict(
        model_type="qwen3", max_position_embeddings=c.context, hidden_size=c.width, num_hidden_layers=c.layers,
        intermediate_size=c.F, num_attention_heads=c.heads, num_key_value_heads=c.K, head_dim=c.H,
        rms_norm_eps=c.norm_epsilon, rope_parameters=dict(rope_type="default", rope_theta=c.rotary_base),
    )  # fmt: skip
    tensors = {
        "model.embed_tokens.weight": np.array(m.params["embedding"])[: c.vocab],
        "lm_head.weight": np.array(m.params["head"]).T[: c.vocab],
        "model.norm.weight": np.array(m.params["final_norm"]["scale"]),
    }
    for ours, theirs in NAMES.items():
        value = m.params["blocks"]
        for part in ours.split("."):
            value = value[part]
        for layer in range(c.layers):
            tensors[f"model.layers.{layer}.{theirs}.weight"] = np.array(value[layer]).T
    write(Published(config, tensors), path)
    return m, LlamaGenerator(m, path, threads=1)


@pytest.mark.parametrize(
    "options",
    [
        dict(sampler=Sampler(temperature=0)),
        dict(sampler=Sampler(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01), seed=5, samples=3),
        dict(sampler=Sampler(repetition_penalty=1.3), seed=1),
        dict(stop=("a", "Q"), seed=2),
        dict(past_context="slide", max_tokens=70, seed=3),
    ],
)
def test_the_same_seed_gives_the_same_text(both, options):
    """Ragged prompts, several samples, stops, and rows that outgrow the context, drawn from llama.cpp's logits."""
    m, theirs = both
    options = {"max_tokens": 20, "sampler": Sampler(), **options}
    sampler = options.pop("sampler")
    prompts = ["The king", "x", ""]
    ours, found = (generate(g, prompts, sampler, **options) for g in (m, theirs))
    for a, b in zip(ours, found, strict=True):
        assert (a.prompt, a.text, a.tokens, a.ended) == (b.prompt, b.text, b.tokens, b.ended)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-3)


def test_the_check_tells_how_far_off_a_file_is(both):
    """Rounding for the model's own logits, more where one parameter is another."""
    m, theirs = both
    tokens = [(5 * i * i + i) % len(ALPHABET) for i in range(30)]
    logits_TV = np.array(m.apply(np.array([tokens]))[0][0])[:, : len(ALPHABET)]
    assert check(theirs.path, tokens, logits_TV) < 1e-4
    assert check(theirs.path, tokens, logits_TV + 0.01) > 0.009
