"""Switching a part off is zeroing its weights; a mean ablation is done by hand; batches and padding do not show."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from close import assert_close
from inside_cases import HARD, TEXT, lively

from lm import probe
from lm.errors import UserError
from lm.probe.actions import ablate
from lm.probe.rows import encode, rows

M = lively(**HARD)
L, N, H = 3, 4, 4


def silenced(part):
    """M with the weights of a part's output zero."""
    params = jax.tree.map(np.array, M.params)
    outer = params["blocks"]["feedforward"]["outer"]["kernel"]
    out = params["blocks"]["attention"]["out"]["kernel"]
    layer = slice(None) if part.layer is None else part.layer
    if part.kind == "head":
        out[layer, part.head * H : (part.head + 1) * H] = 0
    else:
        (outer if part.kind == "mlp" else out)[layer] = 0
    return dataclasses.replace(M, params=jax.tree.map(jnp.asarray, params))


def test_every_part_is_there_once():
    parts = probe.every_part(M)
    assert len(parts) == len(set(parts)) == L * N + 2 * (L + 1)
    assert [str(part) for part in parts[-5:]] == [
        "all attention", "layer 0 feed-forward", "layer 1 feed-forward", "layer 2 feed-forward", "all feed-forward",
    ]  # fmt: skip
    assert str(parts[5]) == "layer 1 head 1"


@pytest.mark.parametrize("cached", [False, True])
def test_ablation_by_taps_is_ablation_by_weights(cached):
    """A head, a layer of attention, one of feed-forward, and all: token for token."""
    parts = [probe.Part("head", 1, 2), probe.Part("attention", 0), probe.Part("mlp", 2), probe.Part("mlp", None)]
    ablation = probe.ablate(M, TEXT, parts, cached=cached)
    assert_close(ablation.base_nats_BT[0, 1:22], probe.token_losses(M, TEXT).nats, relative=1e-4)
    for part, nats_BT, loss, accuracy in zip(
        parts, ablation.nats_ABT, ablation.loss_A, ablation.accuracy_A, strict=True
    ):
        expected = probe.token_losses(silenced(part), TEXT)
        assert_close(nats_BT[0, 1:22], expected.nats, relative=1e-4, what=str(part))
        assert loss == pytest.approx(expected.nats.mean(), rel=1e-3) and abs(loss - ablation.base) > 1e-2
        assert accuracy == pytest.approx((expected.rank == 1).mean())


def test_mean_ablation_puts_in_the_mean_over_the_tokens():
    """By hand: the mean of a layer's output over all tokens of two texts of different length, in its place."""
    batch = rows(M, [encode(M, TEXT), encode(M, "a cat")])
    ablation = probe.ablate(M, batch, [probe.Part("mlp", 1), probe.Part("head", 2, 3)], how="mean")
    _, values = M.apply(batch.tokens_BT, taps=("mlp.out", "attention.heads"))
    for nats_BT, name, layer, head in (
        (ablation.nats_ABT[0], "mlp.out", 1, ...),
        (ablation.nats_ABT[1], "attention.heads", 2, 3),
    ):
        values_BT = values[name][layer][:, :, head]
        mean = np.concatenate([values_BT[0, :22], values_BT[1, :6]]).mean(0)

        def edit(value, here, layer=layer, head=head, mean=mean):
            return jnp.where(here == layer, value.at[:, :, head].set(mean), value)

        logits_BTV, _ = M.apply(batch.tokens_BT, edits={name: edit})
        logp_BTV = jax.nn.log_softmax(logits_BTV)
        expected_BT = -np.take_along_axis(np.asarray(logp_BTV)[:, :-1], batch.tokens_BT[:, 1:, None], -1)[..., 0]
        scored_BT = batch.scored_BT[:, 1:]
        assert_close(nats_BT[:, 1:][scored_BT], expected_BT[scored_BT], relative=1e-4)
        assert scored_BT.sum() == 21 + 5


def test_many_texts_go_in_chunks_and_the_padding_changes_nothing(monkeypatch):
    texts = [TEXT, "a cat", "no", "the end of it", "a king"]
    batch = rows(M, [encode(M, text) for text in texts])
    parts = [probe.Part("attention", 1)]
    whole = probe.ablate(M, batch, parts, how="mean")
    monkeypatch.setattr(ablate, "CHUNK", 2)
    in_chunks = probe.ablate(M, batch, parts, how="mean")
    assert_close(in_chunks.loss_A, whole.loss_A, relative=1e-5)
    assert in_chunks.nats_ABT.shape == whole.nats_ABT.shape == (1, 5, 32)


def test_parts_there_are_not_are_refused():
    for part in (probe.Part("mlp", 3), probe.Part("head", 0, 4), probe.Part("head", None, 0), probe.Part("tail", 0)):
        with pytest.raises(UserError, match="the model has layers 0 to 2 of heads 0 to 3"):
            probe.ablate(M, TEXT, [part])
    with pytest.raises(UserError, match="one of zero, mean"):
        probe.ablate(M, TEXT, how="median")
