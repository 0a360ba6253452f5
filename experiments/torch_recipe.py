"""nanoGPT's recipe for Shakespeare's characters on a CPU, in PyTorch and without JAX: the rival of time_to_loss.py.

python experiments/torch_recipe.py path/to/input.txt --log log.jsonl [--compile]      80 s on two CPU cores
The model is lm/bench/torch_peer.py's at nanoGPT's shape (4 layers, D=128, 4 heads, T=64, no biases); the recipe is its
README's for a CPU with config/train_shakespeare_char.py (github.com/karpathy/nanoGPT): AdamW, betas 0.9 and 0.99, decay
0.1 of matrices, rate 1e-3 after 100 steps of warm-up then a cosine to 1e-4, 2,000 steps of 12 x 64, clip 1, no dropout.
Prints one JSON object; val_loss is of the last tenth of the text, in windows side by side as `lm.evaluate` does it.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch

from lm.bench import GPT2
from lm.config import ModelConfig

SHAPE = dict(layers=4, width=128, heads=4, context=64, vocab_multiple=1, bias=False)
BATCH, STEPS = 12, 2000
PEAK, FLOOR, WARMUP = 1e-3, 1e-4, 100
LOG_EVERY, EVAL_EVERY, SUBSET = 50, 250, 128
"""Steps between means of the training loss; steps between scores of so many windows spread over the validation text."""
IGNORED = -100
"""What F.cross_entropy leaves out."""


def learning_rate(step: int, steps: int = STEPS) -> float:
    """Of update number `step`, from 0: nanoGPT's get_lr."""
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    left = min(1.0, (step - WARMUP) / max(1, steps - WARMUP))
    return FLOOR + 0.5 * (1 + math.cos(math.pi * left)) * (PEAK - FLOOR)


def read(corpus: Path) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Training tokens, validation tokens (the last tenth), and the size of the alphabet."""
    points = np.frombuffer(corpus.read_text(encoding="utf-8").encode("utf-32-le"), np.uint32)
    alphabet, tokens = np.unique(points, return_inverse=True)
    tokens, cut = torch.from_numpy(tokens), int(0.9 * len(tokens))
    return tokens[:cut], tokens[cut:], len(alphabet)


def windows(tokens: torch.Tensor, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets [W, T], side by side; every token after the first is a target once, padding is IGNORED."""
    count = math.ceil((len(tokens) - 1) / context)
    x, y = torch.zeros(count * context, dtype=torch.long), torch.full((count * context,), IGNORED)
    x[: len(tokens) - 1], y[: len(tokens) - 1] = tokens[:-1], tokens[1:]
    return x.view(count, context), y.view(count, context)


@torch.no_grad()
def score(model: GPT2, x_WT: torch.Tensor, y_WT: torch.Tensor, batch: int = 64) -> float:
    """Nats per token."""
    counts = [(y_BT != IGNORED).sum().item() for y_BT in y_WT.split(batch)]
    losses = [model(x_BT, y_BT).item() for x_BT, y_BT in zip(x_WT.split(batch), y_WT.split(batch), strict=True)]
    return sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)


def make_model(vocab: int) -> GPT2:
    """Initialised as nanoGPT does: what a half-block adds starts smaller."""
    c = ModelConfig.gpt2("124M", **SHAPE, vocab=vocab)
    model = GPT2(c)
    for block in model.blocks:
        for added in (block.out, block.outer):
            torch.nn.init.normal_(added.weight, std=0.02 / math.sqrt(2 * c.layers))
    return model


def train(corpus: Path, steps: int, seed: int, compiled: bool, log: Path) -> dict:
    torch.manual_seed(seed)
    torch.set_num_threads(os.cpu_count() or 1)
    data, held_out, vocab = read(corpus)
    T = SHAPE["context"]
    model = make_model(vocab)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99), fused=True)
    loss_of = torch.compile(model) if compiled else model
    x_WT, y_WT = windows(held_out, T)
    some = torch.arange(min(SUBSET, len(x_WT))) * len(x_WT) // min(SUBSET, len(x_WT))

    watching, total = 0.0, torch.zeros(())
    with log.open("w", buffering=1) as lines:
        for step in range(steps):
            starts = torch.randint(len(data) - T - 1, (BATCH,))
            x_BT, y_BT = (torch.stack([data[i + shift : i + shift + T] for i in starts]) for shift in (0, 1))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            loss = loss_of(x_BT, y_BT)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.detach()
            if (step + 1) % LOG_EVERY == 0:
                begun, record = time.perf_counter(), {"step": step + 1, "loss": total.item() / LOG_EVERY}
                total.zero_()
                if (step + 1) % EVAL_EVERY == 0:
                    record["subset_loss"] = score(model, x_WT[some], y_WT[some])
                lines.write(json.dumps(record) + "\n")
                watching += time.perf_counter() - begun
    return {"val_loss": score(model, x_WT, y_WT), "watching_seconds": watching}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--log", type=Path, default=Path("log.jsonl"))
    o = parser.parse_args()
    print(json.dumps(train(o.corpus, o.steps, o.seed, o.compile, o.log)))


if __name__ == "__main__":
    main()
