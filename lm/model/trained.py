"""A trained model in hand: what `lm.load` returns, and what sampling, evaluation and probes take."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Experiment
from lm.errors import UserError, require
from lm.model.api import Inputs, LanguageModel, build
from lm.model.taps import Edit, Taps


@dataclasses.dataclass(frozen=True)
class Trained:
    """Parameters with the tokenizer and the experiment they belong to, and the step they are from.

    run: the lm.Run they were loaded from, None for parameters from elsewhere.
    """

    params: dict
    tokenizer: Any
    experiment: Experiment
    step: int
    run: Any = None

    def __repr__(self) -> str:
        count, place = sum(leaf.size for leaf in jax.tree.leaves(self.params)), self.run.path if self.run else "no run"
        return f"Trained({place}, step {self.step:,}: {count:,} parameters, tokenizer {self.tokenizer.name})"

    @property
    def model(self) -> LanguageModel:
        """What computes with the parameters."""
        return build(self.experiment.model)

    def apply(self, tokens_BT, *, taps: Iterable[str] = (), edits: Mapping[str, Edit] | None = None):
        """Logits [B, T, V] and a dict of the taps asked for; `model.taps` says which there are.

        tokens_BT: whole numbers below the vocabulary, else UserError. Under jit, where they are not known, all pass.
        """
        edits = tuple(sorted((edits or {}).items(), key=lambda item: item[0]))
        tokens_BT = _tokens(tokens_BT, self.experiment.model.vocab)
        return _apply(self.model, self.params, tokens_BT, tuple(taps), edits)


def _tokens(tokens_BT, vocab: int) -> jax.Array:
    """Tokens as an array on the device, refused where they are none of this vocabulary's."""
    if not isinstance(tokens_BT, jax.Array):
        try:
            tokens_BT = np.asarray(tokens_BT)
        except ValueError as error:
            raise UserError("tokens: rows of different lengths; pad them on the right") from error
    shape, kind = tokens_BT.shape, tokens_BT.dtype
    require(len(shape) == 2, f"tokens of shape {list(shape)}: must be [batch, positions]")
    require(np.issubdtype(kind, np.integer), f"tokens of type {kind}: must be whole numbers")
    if tokens_BT.size and not isinstance(tokens_BT, jax.core.Tracer):
        for token in (int(tokens_BT.min()), int(tokens_BT.max())):
            require(0 <= token < vocab, f"token {token}: must be at least 0 and below the vocabulary's {vocab}")
    return jnp.asarray(tokens_BT)


@functools.partial(jax.jit, static_argnames=("model", "read", "edits"))
def _apply(model: LanguageModel, params: dict, tokens_BT: jax.Array, read: tuple[str, ...], edits: tuple):
    taps = Taps(read, dict(edits))
    logits_BTV, _ = model.apply(params, Inputs(tokens_BT), taps=taps)
    return logits_BTV, taps.values
