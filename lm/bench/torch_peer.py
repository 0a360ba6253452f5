"""PyTorch training a ModelConfig's architecture as fast as nanoGPT trains its own: one product for queries, keys and
values, fused attention, fused AdamW, optionally torch.compile and autocast to bfloat16. No JAX.

`TorchTransformer` computes our function from our parameters (tests/bench/test_peers.py loads them), for the settings
in KNOWN; any other setting that is not at its default is refused by name.
"""

import dataclasses
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from lm.config import Experiment, ModelConfig, OptimizerConfig
from lm.errors import require

TOKENS = 1 << 20
"""Random tokens to train on."""
KNOWN = {
    "layers", "width", "heads", "kv_heads", "head_width", "feedforward", "context", "vocab", "vocab_multiple", "norm",
    "norm_epsilon", "bias", "positions", "rotary_base", "activation", "qk_norm", "tied", "embedding_norm", "dropout",
    "zero_init", "remat", "unroll", "dtype", "attention",
}  # fmt: skip
"""Settings that are followed, or that say how ours starts and is run rather than what it computes."""
UNKNOWN = {"positions": "sinusoidal", "qk_norm": "width"}
"""Values of these that are not."""
ACTIVATIONS = {
    "gelu": lambda x: F.gelu(x, approximate="tanh"), "gelu_exact": F.gelu, "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}  # fmt: skip
GATES = {"swiglu": F.silu, "geglu": ACTIVATIONS["gelu"], "geglu_exact": F.gelu, "reglu": F.relu}


def check(e: Experiment) -> None:
    """Raise UserError unless PyTorch can be given the same work, naming the settings that it does not know."""
    c = e.model
    require(isinstance(c, ModelConfig), f"{type(c).__name__}: PyTorch's side knows transformers alone")
    others = [f.name for f in dataclasses.fields(c) if f.name not in KNOWN and getattr(c, f.name) != f.default]
    others += [name for name, value in UNKNOWN.items() if getattr(c, name) == value]
    listed = ", ".join(f"model.{name} {getattr(c, name)!s:.40}" for name in others)
    require(not others, f"PyTorch's side does not know {listed}")
    require(e.train.objective == "next_token", f"PyTorch's side does not know train.objective {e.train.objective}")
    require(not e.data.packing, "PyTorch's side does not know data.packing")
    known = hasattr(torch.optim, "Muon") or e.optimizer.name != "muon"
    require(known and e.optimizer.name in ("adamw", "muon"), f"PyTorch {torch.__version__} has no {e.optimizer.name}")


def norm(c: ModelConfig) -> nn.Module:
    """RMSNorm or LayerNorm of the residual stream."""
    if c.norm == "rmsnorm":
        return nn.RMSNorm(c.width, eps=c.norm_epsilon)
    return nn.LayerNorm(c.width, eps=c.norm_epsilon, bias=c.bias is True)


def rotate(x_BTNH, cos_T1H, sin_T1H):
    """Turn the pair (i, i + H/2) of each head by its position's angle; sines of first halves are negative."""
    return x_BTNH * cos_T1H + x_BTNH.roll(x_BTNH.shape[-1] // 2, -1) * sin_T1H  # faster than by halves


class Attention(nn.Module):
    """Causal attention; each of K key heads serves N / K query heads."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.c, biased = c, bool(c.bias)
        self.qkv = nn.Linear(c.width, (c.heads + 2 * c.K) * c.H, biased)
        self.out = nn.Linear(c.heads * c.H, c.width, c.bias is True)
        self.query_norm = nn.RMSNorm(c.H, eps=c.norm_epsilon) if c.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(c.H, eps=c.norm_epsilon) if c.qk_norm else nn.Identity()

    def forward(self, x_BTD, turns):
        c, (B, T, _) = self.c, x_BTD.shape
        q_BTNH, k_BTKH, v_BTKH = self.qkv(x_BTD).view(B, T, -1, c.H).split((c.heads, c.K, c.K), 2)
        q_BTNH, k_BTKH = self.query_norm(q_BTNH.float()), self.key_norm(k_BTKH.float())  # float32, as ours are
        if turns is not None:
            q_BTNH, k_BTKH = rotate(q_BTNH, *turns), rotate(k_BTKH, *turns)
        q_BNTH, k_BKTH, v_BKTH = (x.transpose(1, 2).to(v_BTKH.dtype) for x in (q_BTNH, k_BTKH, v_BTKH))
        a_BNTH = F.scaled_dot_product_attention(q_BNTH, k_BKTH, v_BKTH, is_causal=True, enable_gqa=c.K != c.heads)
        return self.out(a_BNTH.transpose(1, 2).reshape(B, T, -1))


class FeedForward(nn.Module):
    """Two projections around a nonlinearity; where a third gates the first, one product makes both."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.gated, biased = c.gated, c.bias is True
        self.nonlinearity = GATES[c.activation] if c.gated else ACTIVATIONS[c.activation]
        self.inner = nn.Linear(c.width, 2 * c.F if c.gated else c.F, biased)
        self.outer = nn.Linear(c.F, c.width, biased)

    def forward(self, x_BTD):
        h_BTF = self.inner(x_BTD)
        if not self.gated:
            return self.outer(self.nonlinearity(h_BTF))
        gate_BTF, h_BTF = h_BTF.chunk(2, -1)
        return self.outer(self.nonlinearity(gate_BTF) * h_BTF)


class Block(nn.Module):
    """Attention and feed-forward layer, each behind a norm; dropout on what each adds."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.attention_norm, self.feedforward_norm = norm(c), norm(c)
        self.attention, self.feedforward = Attention(c), FeedForward(c)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x_BTD, turns):
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), turns))
        return x_BTD + self.dropout(self.feedforward(self.feedforward_norm(x_BTD)))


class TorchTransformer(nn.Module):
    """A decoder-only transformer; the vocabulary is padded as ours is, but padding is not masked."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.c = c
        self.embedding = nn.Embedding(c.V, c.width)
        self.position = nn.Embedding(c.context, c.width) if c.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm, self.dropout = norm(c), nn.Dropout(c.dropout)
        self.head = nn.Linear(c.width, c.V, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        if c.tied:
            self.head.weight = self.embedding.weight
        if c.positions == "rotary":
            frequencies_R = c.rotary_base ** (-torch.arange(c.H // 2) / (c.H // 2))
            angles_T1H = torch.outer(torch.arange(c.context), torch.cat((-frequencies_R, frequencies_R)))[:, None]
            self.register_buffer("cos_T1H", angles_T1H.cos(), persistent=False)
            self.register_buffer("sin_T1H", angles_T1H.sin(), persistent=False)

    def logits(self, x_BT):
        """[B, T, V] logits of tokens that fill the context."""
        c, x_BTD = self.c, self.embedding(x_BT)
        if self.position is not None:
            x_BTD = x_BTD + self.position.weight
        if c.embedding_norm:
            x_BTD = F.rms_norm(x_BTD, (c.width,), eps=c.norm_epsilon)
        x_BTD = self.dropout(x_BTD)
        turns = (self.cos_T1H, self.sin_T1H) if c.positions == "rotary" else None
        for block in self.blocks:
            x_BTD = block(x_BTD, turns)
        return self.head(self.norm(x_BTD))

    def forward(self, x_BT, y_BT):
        """Mean nats of the targets; -100 marks one that does not count."""
        return F.cross_entropy(self.logits(x_BT).float().flatten(0, 1), y_BT.flatten())


def torch_optimizers(model: TorchTransformer, o: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """Fused AdamW, which decays matrices alone; under muon PyTorch's own for the matrices of blocks."""
    matrices = [p for p in model.blocks.parameters() if p.dim() > 1] if o.name == "muon" else []
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": o.weight_decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=o.learning_rate, betas=(o.beta1, o.beta2), eps=o.epsilon, fused=True)
    if not matrices:
        return [adamw]
    how = dict(momentum=o.momentum, ns_steps=o.newton_schulz, weight_decay=o.weight_decay)
    return [adamw, torch.optim.Muon(matrices, lr=o.matrix_learning_rate, **how)]


def torch_trainer(e: Experiment, compiled: bool, device: str = "cpu") -> Callable[[int], None]:
    """run(n): n optimizer steps on batches of e's shape, drawn from memory as nanoGPT draws them.

    In bfloat16 (autocast) where e's model says so, and by default on "cuda". Raises UserError: see `check`.
    """
    check(e)
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA for what autocast leaves; on a CPU it changes nothing
    T, B, parts = e.model.context, e.train.batch, e.train.accumulation
    model = TorchTransformer(e.model).to(device)
    steppers = torch_optimizers(model, e.optimizer)
    loss_of = torch.compile(model) if compiled else model
    data = torch.randint(e.model.vocab, (max(TOKENS, T + 2),))
    half = e.model.dtype.startswith("bfloat16") or (e.model.dtype == "auto" and device == "cuda")

    def batch():
        starts = torch.randint(len(data) - T - 1, (B // parts,))
        both = (torch.stack([data[i + shift : i + shift + T] for i in starts]) for shift in (0, 1))
        return [x.pin_memory().to(device, non_blocking=True) if device == "cuda" else x for x in both]

    def run(n: int) -> None:
        for _ in range(n):
            model.zero_grad(set_to_none=True)
            for _ in range(parts):
                with torch.autocast(device, torch.bfloat16, enabled=half):
                    loss = loss_of(*batch()) / parts
                loss.backward()
            if e.optimizer.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), e.optimizer.clip)
            for stepper in steppers:
                stepper.step()
        loss.item()

    return run
