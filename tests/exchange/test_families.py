"""Every family: transformers' logits, at far positions too, and the same model after both ways."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from family_cases import CASES, VOCAB, config_of, state_dict, their_model
from libraries import library

from lm.errors import UserError
from lm.exchange import from_state_dict, shapes
from lm.exchange.families import FAMILIES
from lm.exchange.tensors import to_ours, to_theirs
from lm.model.api import Inputs, build

pytestmark = pytest.mark.parity
T = 1040
ROUNDS = {"gemma": 1e-6, "gemma2": 1e-6, "gemma3_text": 1e-6}
"""Families in which 1 + weight or a factor rounds on the way back."""
EVERY_COMMIT = ("llama, scaled", "gemma3_text", "gptj")
every_case = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in EVERY_COMMIT else pytest.mark.gate) for case in CASES]
)


@functools.cache
def ours(case):
    """Our shape and parameters of their model."""
    model = their_model(case)
    config = config_of(model)
    c = shapes.read(config)
    return c, to_ours(shapes.family(config["model_type"]), config, c, state_dict(model))


def their_logits(model, tokens_BT):
    torch = library("torch")
    with torch.no_grad():
        return model(torch.from_numpy(tokens_BT).long()).logits.numpy()


def some_tokens():
    return np.random.default_rng(1).integers(0, VOCAB, (1, T)).astype(np.int32)


@every_case
def test_logits_equal_theirs(case):
    """Within 2e-5, where a wrong GELU shows at 4e-4 and a wrong epsilon at 5e-5; to position 1,039."""
    c, params = ours(case)
    theirs_BTV = their_logits(their_model(case), some_tokens())
    assert 0.05 < theirs_BTV.std() < 2
    model = build(dataclasses.replace(c, unroll=1))  # compiled in less time
    made_BTV, _ = jax.jit(lambda params, tokens_BT: model.apply(params, Inputs(tokens_BT)))(params, some_tokens())
    difference_BTV = np.abs(np.asarray(made_BTV) - theirs_BTV)
    assert difference_BTV[:, 47].max() < 2e-5
    assert difference_BTV.max() < 2e-5


@every_case
def test_both_ways_is_the_same_model(case):
    """To the bit where nothing rounds; and what is written computes in transformers what was read."""
    torch, transformers = library("torch"), library("transformers")
    c, params = ours(case)
    f = shapes.family(case.partition(",")[0])
    config = shapes.write(f, c) | dict(bos_token_id=0, eos_token_id=0, pad_token_id=None)
    theirs = to_theirs(f, config, c, params)
    again = to_ours(f, config, shapes.read(config), theirs)
    for (path, one), two in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, two, rtol=ROUNDS.get(f.model_type, 0), atol=0, err_msg=str(path))
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config), attn_implementation="eager"
    ).eval()
    renamed = {name.replace("embed_out.", "lm_head."): torch.from_numpy(value.copy()) for name, value in theirs.items()}
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"} and (not missing or c.tied)
    tokens_BT = some_tokens()[:, :48]
    np.testing.assert_allclose(their_logits(model, tokens_BT), their_logits(their_model(case), tokens_BT), atol=2e-5)


def test_every_family_has_a_case():
    assert {case.partition(",")[0] for case in CASES} == set(FAMILIES)


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("olmo", dict(clip_qkv=8.0), "clip_qkv 8.0 is not supported, only None"),
        ("llama", dict(model_type="llma"), "model_type 'llma' is not supported; did you mean llama"),
        ("llama", dict(rope_parameters=dict(rope_type="yarn", factor=4.0)), "rope_type 'yarn' is not supported, only"),
        ("llama", dict(rope_scaling=dict(type="dynamic", factor=4.0), rope_parameters=None), "rope_type 'dynamic' is"),
        ("llama", dict(quantization_config=dict(bits=4)), "quantization_config: not known of llama, and may change"),
        ("llama", dict(hidden_act="gelu_python"), "hidden_act 'gelu_python' is not supported, only silu"),
        ("gpt2", dict(n_head=5), "describes no model: model.width 48 is not a multiple of model.heads 5"),
        ("llama", dict(hidden_size="48"), "describes no model: model.width '48': expected int"),
        ("llama", dict(attention_bias=1), "attention_bias 1: expected true or false"),
        ("gemma2", dict(layer_types=["full_attention"]), "layer_types ['full_attention']: expected full_attention or"),
        ("stablelm", dict(qk_layernorm=True), "qk_layernorm True is not supported, only False"),
        ("opt", dict(do_layer_norm_before=False), "do_layer_norm_before False is not supported, only True"),
        ("opt", dict(word_embed_proj_dim=24), "word_embed_proj_dim 24 is not supported, only 48"),
        ("smollm3", dict(no_rope_layers=[1, 0, 0, 1]), "no_rope_layers [1, 0, 0, 1]: only every n-th may be 0"),
        ("gptj", dict(rotary_dim=99), "rotary_dim 99: heads are 8 wide"),
        ("gpt_neo", dict(attention_types=7), "attention_types 7: expected global or local a layer"),
        ("granite", dict(residual_multiplier=-1), "residual_multiplier -1: must be above 0"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(case, change, said):
    """Unknown kinds, values and keys: one line, which says what is known."""
    with pytest.raises(UserError) as refused:
        shapes.read(config_of(their_model(case)) | change)
    assert said in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_an_unknown_key_may_be_left_aside_by_name():
    config = config_of(their_model("llama")) | dict(novelty=3, another=2)
    with pytest.raises(UserError, match="another, novelty: not known of llama"):
        shapes.read(config)
    assert shapes.read(config, frozenset({"novelty", "another"})) == ours("llama")[0]


def test_older_spellings_say_the_same():
    """rope_theta with rope_scaling of either kind, as before transformers 5, and keys that files omit."""
    config = config_of(their_model("llama, scaled"))
    rope = config.pop("rope_parameters")
    for key in ("rope_type", "type"):
        scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "rope_type")}
        old = config | dict(rope_theta=rope["rope_theta"], rope_scaling=scaling | {key: "llama3"})
        assert shapes.read(old) == ours("llama, scaled")[0]
    neox = config_of(their_model("gpt_neox"))
    del neox["rope_parameters"]
    assert shapes.read(neox | dict(rotary_pct=0.25, rotary_emb_base=10_000)) == ours("gpt_neox")[0]
    gemma = config_of(their_model("gemma2"))
    del gemma["layer_types"]
    assert shapes.read(gemma) == ours("gemma2")[0]


def test_a_model_in_hand_is_taken_as_it_is():
    """By its own configuration, with the keys that only objects have."""
    theirs = their_model("olmo2")
    c, params = from_state_dict(theirs.config.to_dict(), {k: v.numpy() for k, v in theirs.state_dict().items()})
    assert c == ours("olmo2")[0]
    jax.tree.map(np.testing.assert_array_equal, params, ours("olmo2")[1])


def test_tied_and_untied_heads_are_as_config_says():
    """A copy of the embedding beside a tied head is the embedding; an untied one may be equal, and must be there."""
    model = their_model("llama, tied")
    config, f, tensors = config_of(model), FAMILIES["llama"], state_dict(model)
    copy = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    c = shapes.read(config)
    assert "head" not in to_ours(f, config, c, copy)
    untied = config | dict(tie_word_embeddings=False)
    params = to_ours(f, untied, shapes.read(untied), copy)
    np.testing.assert_array_equal(params["head"].T, params["embedding"])
    with pytest.raises(UserError, match=r"lm_head\.weight: no such tensor in this llama"):
        to_ours(f, untied, shapes.read(untied), tensors)
