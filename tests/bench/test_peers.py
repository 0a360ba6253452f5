"""The peers do the work they are timed for. Each test skips without its library (extra `bench`)."""

import dataclasses

import jax
import numpy as np
import pytest
from libraries import library
from lively import lively

from lm import bench
from lm.bench.decoding import AnyText
from lm.config import DataConfig, Experiment, ModelConfig, OptimizerConfig, RecurrentConfig, TrainConfig
from lm.errors import UserError
from lm.model.api import Inputs, build

pytestmark = pytest.mark.parity
PROMPT, TOKENS = [3, 1, 4, 1, 5], 7
SHAPE = dict(layers=2, width=16, heads=4, context=12, vocab=29, vocab_multiple=8, dtype="float32")
ARCHITECTURES = {
    "GPT-2": ModelConfig.gpt2(**SHAPE),
    "the recipe": ModelConfig(**SHAPE, activation="swiglu", embedding_norm=True, dropout=0.1),
    "squared ReLU, grouped heads, biases": ModelConfig(
        **SHAPE, kv_heads=2, head_width=6, bias=True, norm="layernorm", tied=True, rotary_base=100.0
    ),
    "no positions, biases on queries, keys and values": ModelConfig(
        **SHAPE, positions="none", bias="qkv", activation="geglu_exact", qk_norm=False, feedforward=20
    ),
}


def torch_state(c: ModelConfig, params: dict) -> dict:
    """Our parameters under the names of TorchTransformer, matrices turned over."""
    torch = library("torch")
    params = jax.tree.map(np.asarray, params)
    state = {"embedding.weight": params["embedding"]}
    state["head.weight"] = params["embedding"] if c.tied else params["head"].T

    def put(name: str, module: dict) -> None:
        for ours, theirs in (("kernel", "weight"), ("scale", "weight"), ("bias", "bias")):
            if module.get(ours) is not None:
                state[f"{name}.{theirs}"] = module[ours].T if ours == "kernel" else module[ours]

    def side_by_side(*modules: dict) -> dict:
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=-1), *modules)

    put("norm", params["final_norm"])
    if c.positions == "learned":
        state["position.weight"] = params["position"]
    for i in range(c.layers):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        attention, feedforward = block["attention"], block["feedforward"]
        put(f"blocks.{i}.attention.qkv", side_by_side(attention["query"], attention["key"], attention["value"]))
        put(f"blocks.{i}.attention.out", attention["out"])
        put(f"blocks.{i}.attention_norm", block["attention_norm"])
        put(f"blocks.{i}.feedforward_norm", block["feedforward_norm"])
        for name in ("query_norm", "key_norm") if c.qk_norm else ():
            put(f"blocks.{i}.attention.{name}", attention[name])
        inner = feedforward["inner"]
        put(f"blocks.{i}.feedforward.inner", side_by_side(feedforward["gate"], inner) if c.gated else inner)
        put(f"blocks.{i}.feedforward.outer", feedforward["outer"])
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torch_computes_our_logits_from_our_parameters(name):
    """Every parameter has its place there, and none is left over; dropout is off while evaluating."""
    torch = library("torch")
    c = ARCHITECTURES[name]
    params = lively(c)
    model = bench.TorchTransformer(c).eval()
    model.load_state_dict(torch_state(c, params), strict=True)
    assert sum(p.numel() for p in model.parameters()) == build(c).parameter_count()[0]
    tokens_BT = np.random.default_rng(0).integers(c.vocab, size=(3, c.context))
    ours_BTV, _ = jax.jit(build(c).apply)(params, Inputs(tokens_BT))
    with torch.no_grad():
        theirs_BTV = model.logits(torch.from_numpy(tokens_BT)).numpy()
    assert np.abs(theirs_BTV).max() > 1
    np.testing.assert_allclose(theirs_BTV[..., : c.vocab], ours_BTV[..., : c.vocab], atol=1e-4)


def test_torch_drops_where_we_drop():
    """On the embedding and on what each half of a block adds, at the model's rate and nowhere else."""
    torch = library("torch")
    model, dropped = bench.TorchTransformer(ARCHITECTURES["the recipe"]), []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda _, inputs, output: dropped.append(output == 0))
    model.logits(torch.zeros(64, 12, dtype=torch.long))
    assert len(dropped) == 1 + 2 * 2
    assert [float(zeros.float().mean()) for zeros in dropped] == pytest.approx([0.1] * 5, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(model=ModelConfig(window=4)), "does not know model.window 4"),
        (dict(model=ModelConfig(positions="sinusoidal")), "does not know model.positions sinusoidal"),
        (dict(model=RecurrentConfig()), "RecurrentConfig: PyTorch's side knows transformers alone"),
        (dict(optimizer=OptimizerConfig(name="lion")), "has no lion"),
        (dict(data=DataConfig(packing=True)), "does not know data.packing"),
    ],
)
def test_what_torch_cannot_be_given_is_told(changes, said):
    library("torch")
    with pytest.raises(UserError, match=said):
        bench.torch_trainer(Experiment(**changes), compiled=False)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_trains_with_the_experiment_s_optimizer_and_precision(name, dtype, monkeypatch):
    """One optimizer moves each parameter, Muon the matrices of blocks alone; products are in the dtype."""
    torch = library("torch")
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    model = dataclasses.replace(ARCHITECTURES["the recipe"], dtype=dtype)
    e = Experiment(model=model, train=TrainConfig(batch=4, accumulation=2), optimizer=OptimizerConfig(name=name))
    made, dtypes = [], set()
    from lm.bench import torch_peer

    class Watched(torch_peer.TorchTransformer):
        def __init__(self, c):
            super().__init__(c)
            self.before = {name: p.detach().clone() for name, p in self.named_parameters()}
            self.head.register_forward_hook(lambda _, inputs, output: dtypes.add(str(output.dtype)))
            made.append(self)

    monkeypatch.setattr(torch_peer, "TorchTransformer", Watched)
    bench.torch_trainer(e, compiled=False)(2)
    assert dtypes == {f"torch.{dtype}"}
    [model] = made
    assert all((p != model.before[key]).any() for key, p in model.named_parameters())
    first, *others = bench.torch_optimizers(model, e.optimizer)
    moved = [p for group in first.param_groups for p in group["params"]]
    by_muon = [p for other in others for group in other.param_groups for p in group["params"]]
    assert len(moved) + len(by_muon) == len(list(model.parameters()))
    assert len(by_muon) == (4 * 2 if name == "muon" else 0)


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
