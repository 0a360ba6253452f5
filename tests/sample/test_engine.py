"""llama.cpp in the place of our parameters: the same texts from the same seeds."""

import json

import numpy as np
import pytest
from sample_cases import ALPHABET, Letters, little

from lm.exchange.gguf import write
from lm.exchange.incoming import import_model
from lm.exchange.outgoing import export_gguf
from lm.exchange.published import Published
from lm.sample import Sampler
from lm.sample.generate import generate
from lm.tokenizer import ByteTokenizer

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
from lm.exchange.engine import LlamaGenerator
from lm.exchange.llama_cpp import check

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


@pytest.fixture
def place(workplace):
    """A directory with runs/bytes, a model that was exported and imported again."""
    m = little(ByteTokenizer(), width=32, kv_heads=2, activation="swiglu", tied=False)
    export_gguf(m, "bytes.gguf", check=False)
    import_model("bytes.gguf", "bytes", check=False)
    return workplace


def test_the_command_samples_from_a_file_as_from_its_run(lm, place):
    """The same JSON from a run, from the file that is written of it, and from the file alone."""
    options = ("--prompt", "ab", "--max-tokens", 12, "--seed", 4, "--top-k", 9, "--json")
    status, out, _ = lm("sample", "bytes", *options)
    ours = json.loads(out)
    assert status == 0 and set(ours) == {"samples", "tokens_per_second"}
    status, out, told = lm("sample", "bytes", "--engine", "llama.cpp", *options)
    assert status == 0 and "bytes/0.gguf for llama.cpp: qwen3, logits within" in told
    found = json.loads(out)
    again = json.loads(lm("sample", "runs/bytes/0.gguf", "--engine", "llama.cpp", *options)[1])
    for one, other, third in zip(ours["samples"], found["samples"], again["samples"], strict=True):
        np.testing.assert_allclose(one.pop("logprobs"), other["logprobs"], atol=2e-3)
        assert third == other and one == {key: value for key, value in other.items() if key != "logprobs"}


def test_what_the_engine_cannot_do_is_said_in_one_line(lm, place, tiny_run):
    for words, said in (
        (("sample", "bytes", "--engine", "llama.cpp", "--beam", "2"), "leave out --beam"),
        (("sample", "runs/none.gguf", "--engine", "llama.cpp"), "runs/none.gguf: No such file"),
        (("sample", "runs/none.gguf"), "--engine llama.cpp samples from the file"),
        (("sample", tiny_run.path, "--engine", "llama.cpp"), "llama.cpp has no tokenizer of characters"),
    ):
        status, out, told = lm(*words)
        assert status == 2 and not out and said in told and told.count("\n") == 1, told
    assert not list(place.glob("runs/*/*.gguf")) and not list(tiny_run.path.glob("*.gguf"))
