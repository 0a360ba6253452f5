"""GGUF files: written and read back to the bit, equal to other libraries, refused by name where not understood."""

import dataclasses
import struct
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from hard_strings import hard_strings
from libraries import library

from lm.config import DataConfig
from lm.config_files import load_experiment
from lm.errors import UserError
from lm.exchange import shapes
from lm.exchange.gguf_rope import llama3_factors, llama3_rope
from lm.exchange.outgoing import export_gguf
from lm.exchange.published import Published
from lm.exchange.tensors import to_ours, to_theirs
from lm.exchange.tokenizers import from_texts, to_texts
from lm.model.api import build as build_model
from lm.model.trained import Trained
from lm.tokenizer import ByteTokenizer, build

gguf = pytest.importorskip("gguf")

from gguf_cases import CONFIGS, LLAMA3, READ_BY_TRANSFORMERS, L, V, published, settings, tensors, theirs  # noqa: E402

from lm.exchange.gguf import objection, read, write  # noqa: E402

every_case = pytest.mark.parametrize("name", CONFIGS)
TOKENS = [(7 * i * i + 3 * i) % V for i in range(48)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


def written(p: Published, path, **options) -> Published:
    """What is read of what was written."""
    write(p, path, **options)
    return read(path)


def resaved(path, change):
    """The file with its keys and tensors passed through change(fields, tensors), by the library alone."""
    reader = gguf.GGUFReader(path)
    fields = {name: f.contents() for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    values = {t.name: np.array(t.data) for t in reader.tensors}
    change(fields, values)
    writer = gguf.GGUFWriter(path, fields.pop("general.architecture"))
    for name, value in fields.items():
        kind = gguf.GGUFValueType.get_type(value)
        writer.add_key_value(name, value, kind)
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- there and back ---------------------------------------------------------------------------------------------------
@every_case
def test_a_round_trip_keeps_every_bit(name, path):
    """Tensors to the bit and the settings that were given, for every family that llama.cpp computes."""
    p = published(name)
    back = written(p, path)
    assert set(back.tensors) == set(p.tensors)
    for tensor, value in p.tensors.items():
        assert back.tensors[tensor].dtype == np.float32
        np.testing.assert_array_equal(back.tensors[tensor], value, err_msg=tensor)
    renamed = {"mistral": "llama"}.get(p.config["model_type"], p.config["model_type"])
    expected = p.config | {"model_type": renamed}
    expected = {key: value for key, value in expected.items() if value is not None and not key.endswith("token_id")}
    assert {key: back.config.get(key) for key in expected} == expected
    assert list(back.hashes) == ["model.gguf"]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "olmo"])  # clip_qkv is not among our settings
def test_a_file_holds_the_parameters_that_its_model_has(name, path):
    """Our parameters of what is read are those of what was written, and they can be written again."""
    p = published(name)
    back = written(p, path)
    c = shapes.read(back.config)
    assert shapes.essence(c) == shapes.essence(shapes.read(p.config))
    ours, again = (to_ours(shapes.family(p.config["model_type"]), q.config, c, q.tensors) for q in (p, back))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, again))
    f = shapes.family(back.config["model_type"])
    config = shapes.write(f, c)
    assert objection(config) is None
    rewritten = written(Published(config, to_theirs(f, config, c, ours)), path)
    thrice = to_ours(f, rewritten.config, c, rewritten.tensors)  # Gemma's and Granite's factors round
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6), thrice, ours)


@every_case
@pytest.mark.parity
def test_what_is_read_computes_as_what_was_written(name, path):
    """transformers' model of the configuration and tensors that are read gives the logits of the one written."""
    torch, transformers = library("torch"), library("transformers")
    model = theirs(name)
    back = written(Published(settings(model), tensors(model)), path)
    config = transformers.AutoConfig.for_model(**back.config)
    again = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    names = {"embed_out.weight": "lm_head.weight"}
    values = {names.get(name, name): torch.tensor(value) for name, value in back.tensors.items()}
    missing, unexpected = again.load_state_dict(values, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    with torch.no_grad():
        tokens = torch.tensor([TOKENS])
        assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
@pytest.mark.parity
def test_transformers_reads_the_file_as_we_do(name, path):
    """Its own loader gives the logits of the model that was written."""
    torch, transformers = library("torch"), library("transformers")
    pytest.importorskip("accelerate")
    model = theirs(name)
    texts = to_texts(ByteTokenizer(), 64) if model.config.vocab_size == 257 else {}  # of GPT-2 it counts tokens
    write(Published(settings(model), tensors(model), texts), path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        difference = loaded(torch.tensor([TOKENS])).logits - model(torch.tensor([TOKENS])).logits
    assert difference.abs().max() < 2e-5


@every_case
@pytest.mark.parity
def test_llama_cpp_computes_what_transformers_computes(name, path):
    """In float32 within 5e-5; families with GELU within 5e-3, for llama.cpp has it from a table of half precision."""
    torch, _ = library("torch"), pytest.importorskip("llama_cpp")
    from lm.exchange.llama_cpp import check

    model = theirs(name)
    write(Published(settings(model), tensors(model)), path)
    with torch.no_grad():
        logits_TV = model(torch.tensor([TOKENS])).logits[0].numpy()
    from_a_table = ("gpt", "phi", "starcoder", "gemma")
    assert check(path, TOKENS, logits_TV) < (5e-3 if name.startswith(from_a_table) else 5e-5)


@pytest.mark.parametrize("name", ["llama 3.1", "smollm3", "phi", "gemma3_text"])
@pytest.mark.parity
def test_positions_beyond_a_thousand_are_right(name, path):
    """Angles are rounded there; a wrong base, factor or window would show in every digit."""
    torch, _ = library("torch"), pytest.importorskip("llama_cpp")
    from lm.exchange.llama_cpp import logits

    model, tokens = theirs(name), [(7 * i * i + i // V) % V for i in range(1100)]
    write(Published(settings(model), tensors(model)), path)
    with torch.no_grad():
        logits_TV = model(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(logits(path, tokens) - logits_TV)[1000:].max() < 5e-3 < 1e-2 * logits_TV.std()


@pytest.mark.parity
def test_the_quick_start_can_go_to_llama_cpp(path):
    """Its configuration as it stands, with random parameters and a vocabulary of its own: text, logits, and back."""
    pytest.importorskip("llama_cpp")
    experiment = load_experiment("quickstart")
    tokenizer = build(experiment.data, [(Path(__file__).parents[2] / "README.md").read_text()])
    c = dataclasses.replace(experiment.model, vocab=tokenizer.n_vocab)
    rng = np.random.default_rng(0)
    draw = {"kernel": 0.1, "embedding": 1.0, "scale": 0.3}

    def random(path, leaf):
        kind = path[-1].key
        return np.float32(draw.get(kind, 0.1) * rng.standard_normal(leaf.shape) + (kind == "scale"))

    params = jax.tree.map_with_path(random, build_model(c).shapes())
    made = export_gguf(Trained(params, tokenizer, dataclasses.replace(experiment, model=c), 900), path)
    assert made.family == "qwen3" and made.check.largest_difference < 1e-4
    back = read(path)
    assert from_texts(back.texts).encode_ordinary("def main(x):\n\n  return 1234") == tokenizer.encode_ordinary(
        "def main(x):\n\n  return 1234"
    )
    again = to_ours(shapes.family("qwen3"), back.config, shapes.read(back.config), back.tensors)
    ours, theirs = (tree["blocks"]["attention"]["query"]["kernel"] for tree in (params, again))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("base", "H", "scaling"),
    [
        (500000.0, 128, (8.0, 1.0, 4.0, 8192)),  # Llama 3.1
        (500000.0, 64, (32.0, 1.0, 4.0, 8192)),  # Llama 3.2
        (500.0, 12, (8.0, 1.0, 4.0, 16)),
        (10000.0, 64, (4.0, 2.0, 10.0, 2048)),
    ],
)
def test_the_scaling_of_llama_3_is_told_from_its_factors(base, H, scaling):
    """Settings that give the same factors; of old context and limits only ratios show."""
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factors = llama3_factors(base, H, *scaling)
    assert len(set(factors.tolist())) > 1
    found = llama3_rope(base, factors)
    np.testing.assert_allclose(llama3_factors(base, H, *(found[name] for name in names)), factors, rtol=2e-6)
    if scaling[1] == 1:
        assert tuple(found[name] for name in names) == scaling
    assert llama3_rope(base, factors[::-1]) is None


@pytest.mark.parametrize(("dtype", "kind"), [("f16", "F16"), ("q8_0", "Q8_0")])
def test_fewer_bits_are_those_of_the_library(dtype, kind, path):
    """Matrices whose rows are whole blocks lose bits as the library has it, row by row; all else stays as it is."""
    p = published("llama", hidden_size=64)
    back, kind = written(p, path, dtype=dtype), gguf.GGMLQuantizationType[kind]
    for name, value in p.tensors.items():
        rounded = value.ndim == 2 and (dtype == "f16" or value.shape[1] % 32 == 0)
        expected = gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind) if rounded else value
        np.testing.assert_array_equal(back.tensors[name], expected, err_msg=name)
    assert not np.array_equal(back.tensors["lm_head.weight"], p.tensors["lm_head.weight"])
    assert f'"{kind.name}"' in back.texts["gguf.json"]


def test_queries_keys_and_values_may_stand_together(path):
    """As older converters wrote Phi: one tensor of three, taken apart by rows."""
    p = published("phi", num_key_value_heads=2)
    write(p, path)

    def fuse(fields, values):
        for layer in range(L):
            for leaf in ("weight", "bias"):
                parts = [values.pop(f"blk.{layer}.attn_{part}.{leaf}") for part in "qkv"]
                values[f"blk.{layer}.attn_qkv.{leaf}"] = np.concatenate(parts)

    resaved(path, fuse)
    for name, value in read(path).tensors.items():
        np.testing.assert_array_equal(value, p.tensors[name], err_msg=name)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@pytest.mark.parity
def test_llama_cpp_cuts_text_as_our_tokenizers_do(kind, path):
    """300 hard strings, by the vocabulary that stands in the file beside the model."""
    pytest.importorskip("llama_cpp")
    from lm.exchange.llama_cpp import encode

    tokenizer = build(DataConfig(tokenizer=kind, vocab=600), [(Path(__file__).parents[2] / "README.md").read_text()])
    p = published("qwen3", vocab_size=tokenizer.n_vocab + 3)
    tensors = {
        name: np.resize(x, (p.config["vocab_size"], x.shape[1])) if len(x) == V else x for name, x in p.tensors.items()
    }
    back = written(Published(p.config, tensors, to_texts(tokenizer, 64)), path)
    texts = [text for text in hard_strings() if "\0" not in text]
    ours = [tokenizer.encode_ordinary(text) for text in texts]
    assert encode(path, texts) == ours
    assert [from_texts(back.texts).encode_ordinary(text) for text in texts] == ours
    assert from_texts(back.texts).eot_token == tokenizer.eot_token


# --- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("qwen3", dict(hidden_act="relu"), "hidden_act relu: llama.cpp computes a qwen3 with silu"),
        ("gpt2", dict(activation_function="relu"), "activation_function relu"),
        ("gpt2", dict(scale_attn_weights=False), "scale_attn_weights False"),
        ("qwen3", dict(attention_bias=True), "attention_bias True"),
        ("mistral", dict(sliding_window=8), "sliding_window 8: llama.cpp computes this family without windows"),
        ("qwen2", dict(use_sliding_window=True, sliding_window=8), "sliding_window 8"),
        ("qwen2", dict(head_dim=12), "head_dim 12: llama.cpp takes 36 over 9 heads"),
        ("smollm3", dict(no_rope_layers=[0, 0, 0, 0]), "no_rope_layers"),
        ("starcoder2", dict(use_bias=False), "use_bias False"),
        ("phi", dict(qk_layernorm=True), "qk_layernorm True"),
        ("gemma2", dict(attn_logit_softcapping=None), "attn_logit_softcapping None"),
        ("gemma2", dict(query_pre_attn_scalar=144), "query_pre_attn_scalar 144: llama.cpp takes 12"),
        ("granite", dict(residual_multiplier=0.0), "residual_scale 0"),
        ("llama", dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=2.0)), "rope_type yarn"),
        ("qwen3", dict(rope_parameters=dict(rope_theta=1e4, partial_rotary_factor=0.5)), "partial_rotary_factor 0.5"),
        ("qwen3", dict(rope_parameters=LLAMA3), "rope_type llama3: llama.cpp has it not for a qwen3"),
        ("llama", dict(value_residual=True), "value_residual True: llama.cpp has no place for it"),
        ("llama", dict(rms_norm_eps=None), "config.json has no rms_norm_eps"),
        ("llama", dict(model_type="nanochat"), "model_type nanochat"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_not_written(name, changes, said, path):
    p = published(name)
    with pytest.raises(UserError, match=said):
        write(Published(p.config | changes, p.tensors), path)
    assert not list(path.parent.iterdir())
    assert objection(p.config) is None and said in objection(p.config | changes)


def test_tensors_that_have_no_place_or_are_missing_are_named(path):
    p = published("llama")
    more, fewer = dict(p.tensors), dict(p.tensors)
    more["model.layers.0.mlp.router.weight"] = np.ones((2, 2), np.float32)
    del fewer["model.layers.3.mlp.up_proj.weight"]
    for values, said in ((more, "model.layers.0.mlp.router.weight"), (fewer, "model.layers.3.mlp.up_proj.weight")):
        with pytest.raises(UserError, match=said):
            write(Published(p.config, values), path)
    assert not list(path.parent.iterdir())


def test_a_file_is_written_whole_or_not_at_all(path):
    """A value that is not finite, found while the file is half-written, leaves what stood there."""
    p = published("llama")
    write(p, path, about={"name": "before"})
    before = path.read_bytes()
    wrong = p.tensors["model.norm.weight"].copy()
    wrong[3] = np.nan
    with pytest.raises(UserError, match=r"output_norm\.weight"):
        write(Published(p.config, dict(p.tensors) | {"model.norm.weight": wrong}), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def put(**entries):
    """A change of a file: keys set, or with None taken away."""

    def change(fields, values):
        for name, value in entries.items():
            fields.pop(name.replace("__", "."), None)
            if value is not None:
                fields[name.replace("__", ".")] = value

    return change


def put_tensor(name, value):
    return lambda fields, values: values.pop(name) if value is None else values.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(general__architecture="mamba"), "general.architecture 'mamba': not known here"),
        (put(general__type="adapter"), "general.type adapter"),
        (put(split__count=3), "split.count 3"),
        (put(llama__block_count=2**31 - 1), "llama.block_count 2147483647"),
        (put(llama__block_count=3), "blk.3.attn_"),
        (put(llama__block_count=5), "blk.4.attn_"),
        (put(llama__expert_count=8), "llama.expert_count 8"),
        (put(llama__attention__scale=0.5), "llama.attention.scale 0.5: a key that is not known"),
        (put(llama__attention__sliding_window=8), "llama.attention.sliding_window 8"),
        (put(llama__rope__scaling__type="yarn"), "rope.scaling.type yarn"),
        (put(llama__attention__head_count_kv=[2, 2, 2, 1]), "llama.attention.head_count_kv"),
        (put(llama__rope__dimension_count=8), "rope.dimension_count 8"),
        (put(llama__attention__value_length=4), "attention.value_length 4"),
        (put(llama__embedding_length=None), "llama.embedding_length None"),
        (put(llama__embedding_length="x"), "llama.embedding_length 'x'"),
        (put(llama__attention__head_count=0), "llama.attention.head_count 0"),
        (put_tensor("blk.0.ffn_gate_inp.weight", np.ones((8, 48), np.float32)), "blk.0.ffn_gate_inp.weight"),
        (put_tensor("rope_freqs.weight", np.float32([1, 3, 2, 8, 1, 2])), "rope_freqs.weight"),
        (put_tensor("blk.2.ffn_up.weight", None), "blk.2.ffn_up.weight: no such tensor"),
        (put_tensor("token_embd.weight", None), "token_embd.weight: no such tensor"),
    ],
)
def test_what_is_not_understood_in_a_file_is_named(change, said, path):
    write(published("llama"), path)
    resaved(path, change)
    with pytest.raises(UserError, match=said) as error:
        read(path)
    assert str(path) in str(error.value)


# --- damage -----------------------------------------------------------------------------------------------------------
HEAD = b"GGUF" + struct.pack("<I", 3)
KEY = struct.pack("<Q", 1) + b"a"
HUGE = 1 << 60


@pytest.mark.parametrize(
    "start",
    [
        b"",
        HEAD + struct.pack("<QQ", 0, 0),
        HEAD + struct.pack("<QQ", 0, HUGE),
        HEAD + struct.pack("<QQ", HUGE, 0),
        HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", HUGE),
        HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 900_000_000),
        HEAD + struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IIQ", 9, 0, 900_000_000),
        HEAD + struct.pack("<QQ", 0, 1) + KEY + struct.pack("<IIQ", 9, 9, 1000),
        HEAD + struct.pack("<QQ", 1, 0) + KEY + struct.pack("<I", 1 << 31),
        HEAD + struct.pack("<QQ", 1, 0) + KEY + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0),
    ],
)
def test_a_gigabyte_of_zeros_is_refused_in_little_memory(start, path):
    """Whatever sizes its beginning claims."""
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(1 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=str(path)):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("a text, and long enough to be read as one")
    for name in ("empty.gguf", "text.gguf", "missing.gguf", "."):
        with pytest.raises(UserError, match=name.rstrip(".") or str(tmp_path)):
            read(tmp_path / name)


def test_damaged_files_are_refused_or_read(path):
    """Cut anywhere, or with any byte of the header changed: a UserError or a model, and never anything else."""
    write(published("llama 3.1"), path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for size in rng.integers(len(whole), size=40):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            read(path)
    refused = 0
    for place in rng.integers(24, 2500, size=150):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ int(rng.integers(1, 256))]) + whole[place + 1 :])
        try:
            dict(read(path).tensors)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50
