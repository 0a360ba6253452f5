"""The peers do the work they are timed for. Each test skips without its library (extra `bench`)."""

import dataclasses

import numpy as np
import pytest

from lm import bench
from lm.bench.decoding import AnyText
from lm.model.api import build

pytestmark = pytest.mark.parity
PROMPT, TOKENS = [3, 1, 4, 1, 5], 7


def test_torch_trains_as_many_parameters_as_we_do(gpt2):
    pytest.importorskip("torch")
    from lm.bench.torch_peer import GPT2

    assert sum(p.numel() for p in GPT2(gpt2.model).parameters()) == build(gpt2.model).parameter_count()[0]


def test_torch_is_our_function(gpt2):
    """The same weights give the same loss in both, so both do the same arithmetic."""
    torch = pytest.importorskip("torch")
    from lm.bench.torch_peer import GPT2
    from lm.exchange import shapes
    from lm.exchange.tensors import to_ours
    from lm.model.loss import Batch, next_token

    c = dataclasses.replace(gpt2.model, vocab=gpt2.model.V)  # no padding: it would count in their softmax alone
    model = GPT2(c)
    names = {
        "embedding": "wte", "position": "wpe", "norm": "ln_f", "attention_norm": "ln_1", "feedforward_norm": "ln_2",
        "qkv": "attn.c_attn", "out": "attn.c_proj", "inner": "mlp.c_fc", "outer": "mlp.c_proj", "blocks": "h",
    }  # fmt: skip
    theirs = {}
    for name, value in model.state_dict().items():
        value = value.numpy()
        flipped = any(part in name for part in ("qkv", "out.", "inner", "outer")) and value.ndim == 2
        theirs[".".join(names.get(part, part) for part in name.split("."))] = value.T if flipped else value
    tokens_BT = np.random.default_rng(0).integers(c.vocab, size=(3, c.context + 1))
    f = shapes.family("gpt2")
    params = to_ours(f, shapes.write(f, c), c, theirs)
    nats_BT = next_token(build(c), params, Batch(tokens_BT)).nats.target
    with torch.no_grad():
        loss = float(model(torch.tensor(tokens_BT[:, :-1]), torch.tensor(tokens_BT[:, 1:])))
    assert loss == pytest.approx(float(nats_BT.mean()), abs=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_transformers_makes_the_tokens_asked_for(gpt2, batch):
    pytest.importorskip("transformers")
    from lm.bench.transformers_peer import generator

    made = generator(gpt2.model, batch, TOKENS, PROMPT)(1)
    assert made.shape == (batch, len(PROMPT) + TOKENS)
    assert made[:, : len(PROMPT)].tolist() == [PROMPT] * batch


@pytest.mark.parametrize("batch", [1, 3])
def test_llama_makes_the_tokens_asked_for(gpt2, batch, tmp_path, monkeypatch):
    """The same for each row, all within the vocabulary; its file of weights is gone afterwards."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    from lm.bench.llama_peer import generator

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = generator(gpt2.model, batch, TOKENS, PROMPT)
    made_CB = run(2)
    assert made_CB.shape == (TOKENS, batch)
    assert (made_CB == made_CB[:, :1]).all() and (0 <= made_CB).all() and (made_CB < gpt2.model.V).all()
    assert (run(1) == made_CB).all()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_peer_takes_part(gpt2):
    """Compiled ones included, where there is a compiler; their rates and ratios tell the same story."""
    pytest.importorskip("torch")
    found = bench.train(gpt2, rounds=2, seconds=0.02)
    assert [p.name for p in found.peers] + [a.name for a in found.absent] == [
        "PyTorch, eager",
        "PyTorch, torch.compile",
    ]
    assert found.peers[0].name == "PyTorch, eager"
    found = bench.decode(gpt2, tokens=TOKENS, rounds=2, seconds=0.02)
    assert {p.name for p in found.peers} | {a.name for a in found.absent} == {"transformers", "llama.cpp"}
    for peer in found.peers:
        assert peer.ratio.low <= peer.ratio.median <= peer.ratio.high
    assert len(AnyText(50, 16).encode_ordinary("anything")) == 16
