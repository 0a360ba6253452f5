"""PyTorch training a GPT-2 as fast as nanoGPT does: fused attention, fused AdamW, optionally torch.compile. No JAX."""

import contextlib
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from lm.config import Experiment, ModelConfig

TOKENS = 1 << 20
"""Random tokens to train on."""


class Block(nn.Module):
    """Attention and feed-forward layer, each behind a LayerNorm."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        D, bias = c.width, c.bias
        self.heads = c.heads
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(D, bias=bias), nn.LayerNorm(D, bias=bias)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias), nn.Linear(D, D, bias)
        self.inner, self.outer = nn.Linear(D, 4 * D, bias), nn.Linear(4 * D, D, bias)

    def forward(self, x_BTD):
        B, T, D = x_BTD.shape
        qkv = self.qkv(self.attention_norm(x_BTD)).split(D, 2)
        q_BNTH, k_BNTH, v_BNTH = (x.view(B, T, self.heads, D // self.heads).transpose(1, 2) for x in qkv)
        a_BNTH = F.scaled_dot_product_attention(q_BNTH, k_BNTH, v_BNTH, is_causal=True)
        x_BTD = x_BTD + self.out(a_BNTH.transpose(1, 2).reshape(B, T, D))
        return x_BTD + self.outer(F.gelu(self.inner(self.feedforward_norm(x_BTD)), approximate="tanh"))


class GPT2(nn.Module):
    """Learned positions, tied head; the vocabulary padded as ours is."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.embedding, self.position = nn.Embedding(c.V, c.width), nn.Embedding(c.context, c.width)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width, bias=c.bias)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x_BT, y_BT):
        h_BTD = self.embedding(x_BT) + self.position.weight
        for block in self.blocks:
            h_BTD = block(h_BTD)
        logits_BTV = F.linear(self.norm(h_BTD), self.embedding.weight)
        return F.cross_entropy(logits_BTV.view(-1, logits_BTV.shape[-1]), y_BT.view(-1))


def torch_trainer(e: Experiment, compiled: bool, device: str = "cpu") -> Callable[[int], None]:
    """run(n): n optimizer steps on batches of e's shape, drawn from memory as nanoGPT draws them."""
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA for what autocast leaves; on a CPU it changes nothing
    T, B, o = e.model.context, e.train.batch, e.optimizer
    model = GPT2(e.model).to(device)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": o.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=o.learning_rate, betas=(o.beta1, o.beta2), fused=True)
    loss_of = torch.compile(model) if compiled else model
    data = torch.randint(e.model.vocab, (max(TOKENS, T + 2),))
    autocast = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else contextlib.nullcontext()

    def batch():
        starts = torch.randint(len(data) - T - 1, (B,))
        both = (torch.stack([data[i + shift : i + shift + T] for i in starts]) for shift in (0, 1))
        return [x.pin_memory().to(device, non_blocking=True) if device == "cuda" else x for x in both]

    def run(n: int) -> None:
        for _ in range(n):
            with autocast:
                loss = loss_of(*batch())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        loss.item()

    return run
