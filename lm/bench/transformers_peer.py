"""transformers' GPT-2 generating greedily with its key/value cache."""

import os
from collections.abc import Sequence

import torch
import transformers

from lm.config import ModelConfig


def generator(c: ModelConfig, batch: int, tokens: int, prompt: Sequence[int], device: str = "cpu"):
    """run(n): n times `tokens` tokens for each of `batch` rows, in bfloat16 on "cuda". Returns the last rows."""
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    transformers.logging.set_verbosity_error()
    config = transformers.GPT2Config(
        vocab_size=c.V, n_positions=c.context, n_embd=c.width, n_layer=c.layers, n_head=c.heads,
        bos_token_id=None, eos_token_id=None, pad_token_id=0, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    model = model.to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    rows = torch.tensor([list(prompt)] * batch, device=model.device)
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=tokens, use_cache=True, eos_token_id=None, pad_token_id=0
    )
    mask = torch.ones_like(rows)

    def run(n: int) -> torch.Tensor:
        with torch.inference_mode():
            for _ in range(n):
                made = model.generate(rows, attention_mask=mask, generation_config=settings)
        return made.cpu()

    return run
