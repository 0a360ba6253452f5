"""Beyond the decoder: an encoder beside it, vectors before its tokens, open prompts, norms after the halves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close, relative_error
from model_cases import library, lively, products, small

from lm.config import EncoderConfig, ModelConfig
from lm.errors import UserError
from lm.model.api import Inputs, build
from lm.model.taps import Taps

B, T, S, E = 3, 9, 6, 5
VECTORS = 4
COUNTS = np.array([6, 2, 4], np.int32)
"""Real tokens of each row's source."""
VECTOR_COUNTS = np.array([4, 1, 0], np.int32)


def encoder(**changes) -> EncoderConfig:
    shape = dict(layers=1, width=12, heads=3, context=S + VECTORS, vocab=29, dtype="float32", zero_init=False, unroll=1)
    return EncoderConfig(**(shape | changes))


MODELS = {
    "translates": small(context=T, encoder=encoder()),
    "translates, grouped, window, post": small(
        context=T, kv_heads=2, window=3, norm_place="post", norm="layernorm", bias=True, encoder=encoder(layers=2)
    ),
    "translates vectors": small(context=T, encoder=encoder(vectors=E, positions="learned")),
    "vectors first": small(context=T + VECTORS, vectors=E),
    "vectors first, open, window": small(
        context=T + VECTORS, vectors=E, mask="prefix", window=3, global_every=2, positions="learned"
    ),
    "open prompt": small(context=T, mask="prefix", kv_heads=1),
}  # fmt: skip
every_model = pytest.mark.parametrize("c", MODELS.values(), ids=MODELS)


def drawn(c: ModelConfig, seed: int = 0) -> tuple[np.ndarray, dict]:
    """Tokens [B, T], and what else the model reads with them, ragged where it may be."""
    rng = np.random.default_rng(seed)
    tokens_BT, source_BS = (rng.integers(0, c.vocab, (B, n)).astype(np.int32) for n in (T, S))
    vectors = {}
    if c.vectors or (c.encoder and c.encoder.vectors):
        vectors = dict(vectors_BIE=rng.normal(size=(B, VECTORS, E)).astype(np.float32), vectors_count_B=VECTOR_COUNTS)
    if c.encoder:
        return tokens_BT, dict(source=Inputs(source_BS, count_B=COUNTS, **vectors))
    open_B = dict(open_B=VECTOR_COUNTS + 1) if c.mask == "prefix" else {}
    return tokens_BT, vectors | open_B


@functools.cache
def compiled(c: ModelConfig):
    """(params, inputs, state=None) -> logits without the padding, and the state."""

    def run(params, inputs, state=None):
        logits_BTV, state = build(c).apply(params, inputs, state=state)
        return logits_BTV[..., : c.vocab], state

    return jax.jit(run)


# --- reading in pieces -----------------------------------------------------------------------------------------------
@every_model
def test_cached_decoding_equals_the_full_pass(c):
    """What comes with the tokens is read with the first, of ragged rows; then token by token from the state."""
    params, (tokens_BT, beside) = lively(c), drawn(c)
    full_BTV, _ = compiled(c)(params, Inputs(tokens_BT, **beside))
    prompt_B = np.array([5, 3, 4], np.int32)
    first = Inputs(tokens_BT[:, :5], count_B=prompt_B, first=True, **beside)
    logits_BTV, state = compiled(c)(params, first, build(c).state(B, c.context))
    for row, count in enumerate(prompt_B):
        assert relative_error(logits_BTV[row, :count], full_BTV[row, :count]) < 1e-5
    for step in range(4):
        at_B = prompt_B + step
        token_B1 = np.take_along_axis(tokens_BT, at_B[:, None], axis=1)
        logits_B1V, state = compiled(c)(params, Inputs(token_B1), state)
        assert relative_error(logits_B1V[:, 0], full_BTV[np.arange(B), at_B]) < 1e-5


@every_model
def test_padding_changes_nothing(c):
    """Other tokens and vectors where a row has none change no logit by anything: exactly 0."""
    params, (tokens_BT, beside) = lively(c), drawn(c)
    count_B = np.array([9, 5, 7], np.int32)

    def logits(fill: float) -> list[np.ndarray]:
        padded = dict(beside)
        if "source" in beside:
            source = beside["source"]
            tokens_BS = np.where(np.arange(S) < COUNTS[:, None], source.tokens_BT, int(fill))
            padded["source"] = Inputs(tokens_BS, count_B=COUNTS, **filled(source.vectors_BIE, fill))
        padded |= filled(beside.get("vectors_BIE"), fill)
        rows_BT = np.where(np.arange(T) < count_B[:, None], tokens_BT, int(fill))
        made_BTV = compiled(c)(params, Inputs(rows_BT, count_B=count_B, **padded))[0]
        return [np.asarray(made_BTV[row, :count]) for row, count in enumerate(count_B)]

    def filled(vectors_BIE, fill):
        if vectors_BIE is None:
            return {}
        is_real_BI1 = (np.arange(VECTORS) < VECTOR_COUNTS[:, None])[..., None]
        return dict(vectors_BIE=np.where(is_real_BI1, vectors_BIE, fill), vectors_count_B=VECTOR_COUNTS)

    for one, other in zip(logits(3.0), logits(17.0), strict=True):
        np.testing.assert_array_equal(one, other)


def test_padding_of_a_model_that_reads_both_ways_changes_nothing():
    c = small(context=T, mask="full", mask_token=True)
    params, (tokens_BT, _) = lively(c), drawn(c)
    rows = [np.where(np.arange(T) < COUNTS[:, None], tokens_BT, fill) for fill in (3, 17)]
    one, other = (np.asarray(compiled(c)(params, Inputs(row, count_B=COUNTS))[0]) for row in rows)
    for row, count in enumerate(COUNTS):
        np.testing.assert_array_equal(one[row, :count], other[row, :count])
    # And what is not padding is read from both sides: the first token's logits know the last token.
    changed_BT = tokens_BT.copy()
    changed_BT[:, -1] = (changed_BT[:, -1] + 1) % c.vocab
    before, after = (compiled(c)(params, Inputs(tokens))[0] for tokens in (tokens_BT, changed_BT))
    assert (np.asarray(before[:, 0]) != np.asarray(after[:, 0])).any(axis=-1).all()


# --- who sees what ---------------------------------------------------------------------------------------------------
@every_model
def test_a_changed_future_token_changes_nothing_before_it(c):
    """Of the answer: what an open prompt holds may see the rest of it."""
    params, (tokens_BT, beside) = lively(c), drawn(c)
    open_B = np.maximum(beside.get("open_B", np.zeros(B, int)) - (VECTOR_COUNTS if c.vectors else 0), 0)
    before_BTV = np.asarray(compiled(c)(params, Inputs(tokens_BT, **beside))[0])
    for t in range(int(open_B.max()), T):
        changed_BT = tokens_BT.copy()
        changed_BT[:, t] = (changed_BT[:, t] + 1) % c.vocab
        after_BTV = np.asarray(compiled(c)(params, Inputs(changed_BT, **beside))[0])
        np.testing.assert_array_equal(after_BTV[:, :t], before_BTV[:, :t])
        assert (after_BTV[:, t] != before_BTV[:, t]).any(axis=-1).all()


def test_an_open_prompt_knows_its_own_end_and_no_more():
    """The first place's logits change with a later token of the prompt, and with no token of the answer."""
    c = MODELS["open prompt"]
    params, (tokens_BT, beside) = lively(c), drawn(c)
    before_BTV = np.asarray(compiled(c)(params, Inputs(tokens_BT, **beside))[0])
    for t in range(1, T):
        changed_BT = tokens_BT.copy()
        changed_BT[:, t] = (changed_BT[:, t] + 1) % c.vocab
        after_BTV = np.asarray(compiled(c)(params, Inputs(changed_BT, **beside))[0])
        differs_B = (after_BTV[:, 0] != before_BTV[:, 0]).any(axis=-1)
        np.testing.assert_array_equal(differs_B, t < beside["open_B"])


def test_every_token_reads_all_of_its_source():
    """By gradients: of every real place of the source, and of no other."""
    c = MODELS["translates"]
    m, params, (tokens_BT, beside) = build(c), lively(c), drawn(c)

    def told(push_BSD):
        taps = Taps(edits={"source": lambda x_BSD, layer: x_BSD + push_BSD})
        logits_BTV, _ = m.apply(params, Inputs(tokens_BT, **beside), taps=taps)
        return jnp.sum(logits_BTV[..., : c.vocab] @ jnp.linspace(-1, 2, c.vocab))

    influence_BS = np.abs(jax.jit(jax.grad(told))(np.zeros((B, S, c.encoder.width), np.float32))).sum(-1)
    np.testing.assert_array_equal(influence_BS > 0, np.arange(S) < COUNTS[:, None])


def test_cross_attention_can_be_looked_at():
    """Weights are of real places alone and sum to one; asking for them changes nothing."""
    c = MODELS["translates, grouped, window, post"]
    m, params, (tokens_BT, beside) = build(c), lively(c), drawn(c)
    taps = Taps(m.taps)
    logits_BTV, _ = m.apply(params, Inputs(tokens_BT, **beside), taps=taps)
    weights_LBNTS = np.asarray(taps.values["cross.weights"])
    assert weights_LBNTS.shape == (c.layers, B, c.heads, T, S)
    np.testing.assert_allclose(weights_LBNTS.sum(-1), 1, rtol=1e-6)
    assert (weights_LBNTS[..., 0, :].sum((0, 2)) > 0).tolist() == (np.arange(S) < COUNTS[:, None]).tolist()
    assert relative_error(logits_BTV[..., : c.vocab], compiled(c)(params, Inputs(tokens_BT, **beside))[0]) < 1e-6
    for name, tap in m.taps.items():
        assert taps.values[name].ndim == len(tap.axes), name


# --- torch -----------------------------------------------------------------------------------------------------------
def torchs(c: ModelConfig, params: dict):
    """torch.nn.Transformer with our blocks' parameters."""
    torch = library("torch")
    D = c.width
    module = torch.nn.Transformer(
        D, c.heads, c.encoder.layers, c.layers, c.F, dropout=0.0, batch_first=True, norm_first=c.norm_place == "pre"
    )

    def put(theirs, ours, turned=False):
        with torch.no_grad():
            theirs.copy_(torch.tensor(np.asarray(ours).T if turned else np.asarray(ours)))

    def put_attention(theirs, ours, layer):
        parts = [ours[name] for name in ("query", "key", "value")]
        put(theirs.in_proj_weight, np.concatenate([part["kernel"][layer].T for part in parts]))
        put(theirs.in_proj_bias, np.concatenate([part["bias"][layer] for part in parts]))
        put(theirs.out_proj.weight, ours["out"]["kernel"][layer], turned=True)
        put(theirs.out_proj.bias, ours["out"]["bias"][layer])

    def put_norm(theirs, ours, layer=...):
        put(theirs.weight, ours["scale"][layer])
        put(theirs.bias, ours["bias"][layer])

    for stack, ours in ((module.encoder, params["encoder"]), (module.decoder, params)):
        blocks = ours["blocks"]
        for layer, theirs in enumerate(stack.layers):
            put_attention(theirs.self_attn, blocks["attention"], layer)
            norms = ["attention_norm", "feedforward_norm"]
            if stack is module.decoder:
                put_attention(theirs.multihead_attn, blocks["cross"], layer)
                norms.insert(1, "cross_norm")
            for number, name in enumerate(norms, 1):
                put_norm(getattr(theirs, f"norm{number}"), blocks[name], layer)
            for linear, name in ((theirs.linear1, "inner"), (theirs.linear2, "outer")):
                put(linear.weight, blocks["feedforward"][name]["kernel"][layer], turned=True)
                put(linear.bias, blocks["feedforward"][name]["bias"][layer])
        put_norm(stack.norm, ours["final_norm"])
    return torch, module.eval()


@pytest.mark.parity
@pytest.mark.parametrize("place", ["post", "pre"])
def test_an_encoder_and_a_decoder_are_torchs(place):
    """What the head reads and the gradient of the source's embedding, over a padded source, within 1e-5."""
    shape = dict(
        norm="layernorm", bias=True, activation="relu", positions="none", qk_norm=False, width=16, heads=4,
        feedforward=24, norm_place=place,
    )  # fmt: skip
    c = small(context=T, **shape, encoder=encoder(layers=2, **shape))
    params, (tokens_BT, beside) = lively(c), drawn(c)
    torch, module = torchs(c, params)
    table = torch.tensor(params["encoder"]["embedding"], requires_grad=True)
    source = table[torch.tensor(beside["source"].tokens_BT).long()]
    target = torch.tensor(params["embedding"])[torch.tensor(tokens_BT).long()]
    padding = torch.tensor(np.arange(S) >= COUNTS[:, None])
    future = torch.nn.Transformer.generate_square_subsequent_mask(T)
    theirs = module(source, target, tgt_mask=future, src_key_padding_mask=padding, memory_key_padding_mask=padding)
    weights_BTD = np.random.default_rng(1).normal(size=(B, T, 16)).astype(np.float32)
    (theirs * torch.tensor(weights_BTD)).sum().backward()

    def weighed(params):
        h_BTD, _ = build(c).hidden(params, Inputs(tokens_BT, **beside))
        return jnp.sum(h_BTD * weights_BTD), h_BTD

    (_, h_BTD), gradient = jax.jit(jax.value_and_grad(weighed, has_aux=True))(params)
    assert_close(h_BTD, theirs.detach().numpy(), relative=1e-5)
    assert_close(gradient["encoder"]["embedding"], table.grad.numpy(), relative=1e-5)


# --- costs and refusals ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["translates", "open prompt"])
def test_matrix_products_are_those_of_the_program(name):
    c = MODELS[name]
    tokens = jax.ShapeDtypeStruct((B, T), np.int32)
    source = jax.ShapeDtypeStruct((B, c.encoder.context), np.int32) if c.encoder else None

    def run(params, tokens, source):
        return build(c).apply(params, Inputs(tokens, source=None if source is None else Inputs(source)))[0]

    counted = products(jax.make_jaxpr(run)(build(c).shapes(), tokens, source).jaxpr)
    assert counted / (B * T) == pytest.approx(build(c).cost(pairs="computed").forward_flops, rel=1e-12)


def test_what_a_model_cannot_read_is_refused():
    tokens_BT = np.zeros((1, 3), np.int32)
    vectors_BIE = np.zeros((1, 2, E), np.float32)
    plain, both = (build(c) for c in (small(), MODELS["translates"]))
    full = build(small(mask="full"))
    cases = [
        (plain, Inputs(tokens_BT, source=Inputs(tokens_BT)), None, "no encoder to read a source: set model.encoder"),
        (both, Inputs(tokens_BT), None, "this model translates: give a source"),
        (both, Inputs(tokens_BT), both.state(1, 4), "its state knows no source: give one first"),
        (plain, Inputs(tokens_BT, vectors_BIE=vectors_BIE), None, "vectors 5 wide: model.vectors is None"),
        (full, Inputs(tokens_BT), full.state(1, 4), "reads both ways: it has nothing to continue from"),
    ]
    for m, inputs, state, message in cases:
        with pytest.raises(UserError, match=message):
            m.hidden(m.init(0), inputs, state=state)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(mask="prefix", encoder=EncoderConfig()), "a decoder with an encoder is causal"),
        (dict(encoder=ModelConfig()), "expected EncoderConfig, which has no encoder"),
        (dict(encoder=EncoderConfig(mask="causal")), "an encoder reads both ways"),
        (dict(vectors=3, encoder=EncoderConfig()), "set model.encoder.vectors instead"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        ModelConfig(**changes)
