"""What others compute from the same files: logits of `transformers` and llama.cpp beside ours, where they are there."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from lm.errors import UserError
from lm.exchange import llama_cpp
from lm.model.api import Inputs, LanguageModel

TOKENS = 48
"""Tokens of the text that is compared."""


@dataclasses.dataclass(frozen=True)
class Check:
    """Which library was compared with, its version, and the largest difference between logits; None for none."""

    against: str | None
    largest_difference: float | None

    def __str__(self) -> str:
        if self.against is None:
            return "not compared with another library: none is installed that reads it"
        return f"logits within {self.largest_difference:.1e} of {self.against}'s"


NONE = Check(None, None)


def some_tokens(model: LanguageModel) -> list[int]:
    """Tokens from all over the vocabulary, as many as are compared; the same every time."""
    c = model.config
    return np.random.default_rng(0).integers(0, c.vocab, min(TOKENS, c.context)).tolist()


def our_logits(model: LanguageModel, params: dict, tokens: Sequence[int]) -> np.ndarray:
    """Our logits behind each of the tokens, [T, V] without padding, in float32."""
    plain = LanguageModel(dataclasses.replace(model.config, dtype="float32"))
    logits_BTV, _ = jax.jit(lambda params, tokens_BT: plain.apply(params, Inputs(tokens_BT)))(
        params, np.array([tokens], np.int32)
    )
    return np.asarray(logits_BTV[0, :, : model.config.vocab])


def check_folder(folder: Path, model: LanguageModel, params: dict) -> Check:
    """Compare with `transformers` reading the folder, in float32 and by its plain attention."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return NONE
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    tokens = some_tokens(model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    )
    with torch.no_grad():
        theirs_TV = theirs(torch.tensor([tokens])).logits[0].numpy()
    difference = np.abs(theirs_TV - our_logits(model, params, tokens)).max()
    return Check(f"transformers {transformers.__version__}", float(difference))


def check_gguf(path: Path, model: LanguageModel, params: dict) -> Check:
    """Compare with llama.cpp reading the file."""
    tokens = some_tokens(model)
    try:
        version = llama_cpp.library().__version__
    except UserError:
        return NONE
    difference = llama_cpp.check(path, tokens, our_logits(model, params, tokens))
    return Check(f"llama.cpp (llama-cpp-python {version})", difference)
