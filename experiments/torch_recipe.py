"""nanoGPT's recipes for Shakespeare's characters in PyTorch and without JAX: the rivals of time_to_loss.py and
loss_in_minutes.py.

python experiments/torch_recipe.py path/to/input.txt --log log.jsonl [--compile]      80 s on two CPU cores
python experiments/torch_recipe.py path/to/input.txt --recipe gpu --seconds 480 [--fit]      what 8 minutes can reach
The model is lm/bench/torch_peer.py's; the recipes are nanoGPT's (github.com/karpathy/nanoGPT), "cpu" of its README (4
layers, D=128, 4 heads, T=64, 2,000 steps of 12 x 64, no dropout) and "gpu" of config/train_shakespeare_char.py (6
layers, D=384, 6 heads, T=256, 5,000 steps of 64 x 256, dropout .2: some 3 minutes on an A100). In both: no biases,
AdamW, betas 0.9 and 0.99, decay 0.1 of matrices, rate 1e-3 after 100 steps of warm-up then a cosine to 1e-4, clip 1.
With --fit the whole schedule, warm-up and all, is stretched over the seconds instead of the steps.
Attention's weights are not dropped, though nanoGPT drops them: with that PyTorch has no fused attention on a CPU.
Logs training loss and the loss of a subset of the validation text; the time of that watching is told apart and not
counted. Prints one JSON object; val_loss is of the last tenth of the text, in windows side by side as `lm.evaluate`
does it.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from lm.bench import TorchTransformer, torch_optimizers
from lm.config import ModelConfig, OptimizerConfig

PEAK, FLOOR, WARMUP = 1e-3, 1e-4, 100
LOGS, EVALS = 40, 8
"""Means of the training loss in a log, and scores of a subset: so many windows spread over the validation text."""
SUBSET = 128
IGNORED = -100
"""What F.cross_entropy leaves out."""
AT_ONCE = 64
"""Windows that are scored together."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained, and for how long."""

    shape: dict
    batch: int
    steps: int

    def config(self, vocab: int) -> ModelConfig:
        alike = dict(vocab=vocab, vocab_multiple=1, bias=False, activation="gelu_exact")
        return ModelConfig.gpt2("124M", **self.shape, **alike)


RECIPES = {
    "cpu": Recipe(dict(layers=4, width=128, heads=4, context=64), batch=12, steps=2000),
    "gpu": Recipe(dict(layers=6, width=384, heads=6, context=256, dropout=0.2), batch=64, steps=5000),
}


def learning_rate(step: float, steps: int) -> float:
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
def score(model: TorchTransformer, x_WT: torch.Tensor, y_WT: torch.Tensor, batch: int = AT_ONCE) -> float:
    """Nats per token, nothing being dropped."""
    model.eval()
    counts = [(y_BT != IGNORED).sum().item() for y_BT in y_WT.split(batch)]
    losses = [model(x_BT, y_BT).item() for x_BT, y_BT in zip(x_WT.split(batch), y_WT.split(batch), strict=True)]
    model.train()
    return sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)


def scoring_seconds(model: TorchTransformer, x_WT: torch.Tensor, y_WT: torch.Tensor) -> float:
    """How long `score` will take, judged by some windows; the first time takes longer."""
    for _ in range(2):
        begun = time.perf_counter()
        score(model, x_WT[:AT_ONCE], y_WT[:AT_ONCE])
        some = time.perf_counter() - begun
    return some * len(x_WT) / min(AT_ONCE, len(x_WT))


def make_model(recipe: Recipe, vocab: int) -> TorchTransformer:
    """Initialised as nanoGPT does: what a half-block adds starts smaller."""
    c = recipe.config(vocab)
    model = TorchTransformer(c)
    for block in model.blocks:
        for added in (block.attention.out, block.feedforward.outer):
            torch.nn.init.normal_(added.weight, std=0.02 / math.sqrt(2 * c.layers))
    return model


class Clock:
    """Seconds since it was made, those of watching apart."""

    def __init__(self):
        self.start, self.watching = time.perf_counter(), 0.0

    def worked(self) -> float:
        return time.perf_counter() - self.start - self.watching

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.watching += time.perf_counter() - begun


def train(
    corpus: Path, recipe: Recipe, *, seed: int = 0, log: Path, compiled: bool = False, seconds: float = math.inf,
    fit: bool = False, bfloat16: bool = False,
) -> dict:  # fmt: skip
    """Train to the recipe's last step, or for so many seconds with the final scoring; returns what is printed.

    fit: the schedule ends when the time does, instead of with the recipe's steps.
    """
    clock = Clock()
    torch.manual_seed(seed)
    torch.set_num_threads(os.cpu_count() or 1)
    data, held_out, vocab = read(corpus)
    T, half = recipe.shape["context"], torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
    model = make_model(recipe, vocab)
    [optimizer] = torch_optimizers(model, OptimizerConfig(learning_rate=PEAK, beta2=0.99, weight_decay=0.1))
    loss_of = torch.compile(model) if compiled else model
    x_WT, y_WT = windows(held_out, T)
    some = torch.arange(min(SUBSET, len(x_WT))) * len(x_WT) // min(SUBSET, len(x_WT))
    with clock.watch(), half:
        allowed = seconds - scoring_seconds(model, x_WT, y_WT)

    step, share, latest, losses = 0, 0.0, 0.0, []
    with log.open("w", buffering=1) as lines:
        while share < 1 and (begun := clock.worked()) + latest < allowed:
            starts = torch.randint(len(data) - T - 1, (recipe.batch,))
            x_BT, y_BT = (torch.stack([data[i + shift : i + shift + T] for i in starts]) for shift in (0, 1))
            rate = learning_rate(share * recipe.steps if fit else step, recipe.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with half:
                loss = loss_of(x_BT, y_BT)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            step, before, latest = step + 1, share, clock.worked() - begun
            share = max(clock.worked() / allowed, 0 if fit else step / recipe.steps)
            if int(share * LOGS) > int(before * LOGS):
                record = {"step": step, "loss": float(np.mean(losses))}
                losses.clear()
                if int(share * EVALS) > int(before * EVALS):
                    with clock.watch(), half:
                        record["subset_loss"] = score(model, x_WT[some], y_WT[some])
                lines.write(json.dumps(record | {"watching_seconds": clock.watching}) + "\n")
    with half:
        val_loss = score(model, x_WT, y_WT)
    said = {"val_loss": val_loss, "step": step, "tokens": step * recipe.batch * T, "watching_seconds": clock.watching}
    return said | {"parameters": sum(p.numel() for p in model.parameters())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="cpu")
    parser.add_argument("--batch", type=int, help="instead of the recipe's")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after PyTorch is imported; scoring included")
    parser.add_argument("--fit", action="store_true", help="the schedule ends with the seconds, not with the steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bfloat16", action="store_true", help="matrix products by autocast")
    parser.add_argument("--log", type=Path, default=Path("log.jsonl"))
    o = parser.parse_args()
    if o.fit and o.seconds == math.inf:
        parser.error("--fit needs --seconds")
    if not o.corpus.is_file():
        parser.error(f"{o.corpus}: no such file")
    changes = {name: value for name in ("batch", "steps") if (value := getattr(o, name))}
    recipe = dataclasses.replace(RECIPES[o.recipe], **changes)
    how = dict(seed=o.seed, log=o.log, compiled=o.compile, seconds=o.seconds, fit=o.fit, bfloat16=o.bfloat16)
    print(json.dumps(train(o.corpus, recipe, **how)))


if __name__ == "__main__":
    main()
