"""What others compute from the same files: logits of `transformers` and llama.cpp beside ours, where they are there."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from lm.errors import UserError, one_line, require
from lm.exchange import llama_cpp
from lm.model.api import Inputs, LanguageModel

ALIKE, ALIKE_IN_LLAMA = 1e-3, 5e-2
"""Largest differences that rounding explains, as shares of logits' deviation; llama.cpp's GELU is of half precision."""
TOKENS = 48
"""Tokens of the text that is compared."""


@dataclasses.dataclass(frozen=True)
class Check:
    """Which library was compared with, its version, and the largest difference between logits; None for none.

    deviation: the standard deviation of logits. why: what kept them from being compared.
    """

    against: str | None = None
    largest_difference: float | None = None
    deviation: float = 1.0
    why: str = "no other library is installed that reads it"

    def __str__(self) -> str:
        if self.against is None:
            return f"logits were not compared: {self.why}"
        return f"logits within {self.largest_difference:.1e} of {self.against}'s"

    def require_alike(self, most: float, consequence: str) -> None:
        """Raise UserError where logits differ by more than this share of their deviation."""
        alike = self.largest_difference is None or self.largest_difference <= most * self.deviation
        require(
            alike,
            f"logits are {self.largest_difference or 0:.1e} from {self.against}'s, whose deviation is "
            f"{self.deviation:.2g}: more than rounding explains, so {consequence} (--no-check leaves this out)",
        )


NONE = Check()


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
    tokens, name = some_tokens(model), f"transformers {transformers.__version__}"
    try:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
        with torch.no_grad():
            theirs_TV = theirs(torch.tensor([tokens])).logits[0].numpy()
    except Exception as error:  # whatever it makes of a folder that this version does not know
        return Check(why=f"{name} does not read it ({one_line(f'{type(error).__name__}: {error}', [])[:100]})")
    difference = np.abs(theirs_TV - our_logits(model, params, tokens)).max()
    return Check(name, float(difference), float(theirs_TV.std()))


def check_gguf(path: Path, model: LanguageModel, params: dict) -> Check:
    """Compare with llama.cpp reading the file."""
    tokens = some_tokens(model)
    try:
        version = llama_cpp.library().__version__
    except UserError:
        return NONE
    ours_TV = our_logits(model, params, tokens)
    difference = llama_cpp.check(path, tokens, ours_TV)
    return Check(f"llama.cpp (llama-cpp-python {version})", difference, float(ours_TV.std()))
