"""Direct logit attribution (Elhage et al. 2021): a logit is a sum over what wrote to the residual stream.

Exact once the last norm's divisor is held at its value: head and norm are then linear. What a part does by way of later
parts is counted as theirs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from lm import tables
from lm.errors import require
from lm.model.trained import Trained
from lm.probe import anatomy
from lm.probe.passes import forward
from lm.probe.rows import continuation, encode, labels, rows


@dataclasses.dataclass(frozen=True)
class Attribution:
    """Parts of logit(answer) - logit(other), or of logit(answer) alone, at the last position of a text."""

    embedding: float
    heads_LN: np.ndarray
    mlp_L: np.ndarray
    biases: float
    """What biases of projections and of the final norm add, which belong to no head."""
    total: float
    """The difference of the model's logits before any soft cap; the parts add up to it."""
    first: tuple[str, ...]
    """The first token of the answer, and of the other: what was looked at."""

    def to_json(self) -> dict:
        """The fields, with lists for arrays."""
        arrays = {"heads": self.heads_LN.tolist(), "mlp": self.mlp_L.tolist()}
        names = ("first", "total", "embedding", "biases")
        return {name: getattr(self, name) for name in names} | arrays

    def table(self) -> Table:
        """A row for each part."""
        what = " over that of ".join(self.first)
        title = f"what adds to the logit of {what} after the text: {self.total:+.3f} in all"
        named = {"embedding": self.embedding}
        for layer, heads_N in enumerate(self.heads_LN):
            named |= {f"layer {layer} head {head}": value for head, value in enumerate(heads_N)}
            named[f"layer {layer} feed-forward"] = self.mlp_L[layer]
        named |= {"biases": self.biases} if self.biases else {}
        return tables.table(("part", ""), [(name, f"{value:+.3f}") for name, value in named.items()], title=title)


def attribute_logits(
    m: Trained, text: str, answer: str, other: str | None = None, *, cached: bool = False
) -> Attribution:
    """Find what each head and feed-forward layer adds to the first token of `answer`, against that of `other`."""
    model, tokens = m.model, encode(m, text)
    anatomy.transformer(model, "attention heads to attribute a logit to")
    anatomy.predicts_next(model)
    batch, t = rows(m, [tokens]) if len(tokens) > 1 else rows(m, [[*tokens, 0]]), len(tokens) - 1
    words = [continuation(m, word)[0] for word in (answer, answer if other is None else other)]
    require(other is None or words[0] != words[1], f"{answer!r} and {other!r} begin with the same token")
    direction_V = np.zeros(model.config.V, np.float32)
    direction_V[words[0]] += 1
    direction_V[words[1]] -= other is not None
    found = jax.device_get(_attribute(model, m.params, batch.tokens_BT, t, direction_V, cached))
    first = tuple(labels(m, words if other is not None else words[:1]))
    floats = {name: float(found.pop(name)) for name in ("embedding", "biases", "total")}
    return Attribution(**found, **floats, first=first)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _attribute(model, params, tokens_BT, t, direction_V, cached):
    """What each part adds to direction_V of the logits at position t of the first row; the fields of Attribution."""
    taps = ("embedding", "attention.heads", "attention.out", "mlp.out", "residual.after")
    _, values = forward(model, params, tokens_BT, taps, cached=cached)
    embedding_D = values.pop("embedding")[0, t].astype(jnp.float32)
    at = {name: value[:, 0, t].astype(jnp.float32) for name, value in values.items()}

    u_D = anatomy.unembedding(model, params).T.astype(jnp.float32) @ direction_V
    normed_D, linear, norm_bias_D = anatomy.final_norm(model, params, at["residual.after"][-1])
    out_LNHD, out_bias_LD = anatomy.head_outputs(model, params)
    head_bias = anatomy.head_bias(model, params) @ direction_V
    heads_LND = jnp.einsum("LNH,LNHD->LND", at["attention.heads"], out_LNHD)
    return {
        "embedding": linear(embedding_D) @ u_D, "heads_LN": linear(heads_LND) @ u_D,
        "mlp_L": linear(at["mlp.out"]) @ u_D,
        "biases": (linear(out_bias_LD) @ u_D).sum() + norm_bias_D @ u_D + head_bias,
        "total": normed_D @ u_D + head_bias,
    }  # fmt: skip
