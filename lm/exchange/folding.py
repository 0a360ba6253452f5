"""Models said in other settings: the same function, by changing parameters exactly or by a rounding.

Others' families lack some of our settings. What scales of a base shape say is multiplied into matrices; normalised
embeddings are a table of normalised rows; relu(h)^2 is relu(h) h, a gated layer with its gate equal to what it gates.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from lm.config import ModelConfig
from lm.model.layers import rms_normalise, sinusoids
from lm.model.parametrization import branch_factor, logit_factor, query_factor

Params = dict[str, Any]


def without_base(c: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The model without a base shape, whose factors are multiplied into its parameters."""
    branch, query, logit = branch_factor(c), query_factor(c), logit_factor(c)
    plain = dataclasses.replace(c, base_width=None, base_head_width=None, base_layers=None)
    if branch == query == logit == 1:
        return plain, params
    blocks = dict(params["blocks"])
    if c.norm_place in ("output", "both"):  # what a half adds leaves through a norm
        ending = "_out_norm" if c.norm_place == "both" else "_norm"
        names = [name for name in blocks if name in (f"attention{ending}", f"feedforward{ending}")]
        blocks |= {name: _times(blocks[name], branch) for name in names}
    else:
        for half, last in (("attention", "out"), ("feedforward", "outer")):
            blocks[half] = blocks[half] | {last: _times(blocks[half][last], branch)}
    name = "query_norm" if c.qk_norm else "query"
    blocks["attention"] = blocks["attention"] | {name: _times(blocks["attention"][name], query)}
    return plain, params | {"blocks": blocks, "final_norm": _times(params["final_norm"], logit)}


def _times(leaves: Params, factor: float) -> Params:
    return {name: np.asarray(x) * np.float32(factor) for name, x in leaves.items()}


@dataclasses.dataclass(frozen=True)
class Folding:
    """One way of saying a model in other settings.

    settings: the new ones, or none where it does not apply. params: what becomes of the parameters.
    """

    name: str
    settings: Callable[[ModelConfig], dict[str, Any]]
    params: Callable[[ModelConfig, Params], Params]


def _normalised_table(c: ModelConfig, params: Params) -> Params:
    table_VD = np.asarray(params["embedding"])
    head = {"head": table_VD.T} if c.tied else {}
    return params | head | {"embedding": np.asarray(rms_normalise(jnp.asarray(table_VD), c.norm_epsilon))}


def _zero_biases(c: ModelConfig, params: Params) -> Params:
    """A bias of zeros beside every matrix and every LayerNorm's scale that has none."""

    def add(tree: Params, inside: bool) -> Params:
        made = {key: add(value, key == "blocks" or inside) for key, value in tree.items() if isinstance(value, dict)}
        leaves = {key: value for key, value in tree.items() if not isinstance(value, dict)}
        matrix = leaves.get("kernel")
        last = matrix if matrix is not None else leaves.get("scale") if c.norm == "layernorm" else None
        if last is not None and "bias" not in leaves:
            shape = np.shape(last)
            leaves["bias"] = np.zeros((shape[0], shape[-1]) if inside else shape[-1:], np.float32)
        return leaves | made

    return {key: add(value, key == "blocks") if isinstance(value, dict) else value for key, value in params.items()}


def _gate_as_inner(c: ModelConfig, params: Params) -> Params:
    feedforward = params["blocks"]["feedforward"]
    blocks = params["blocks"] | {"feedforward": feedforward | {"gate": feedforward["inner"]}}
    return params | {"blocks": blocks}


def _table_of_positions(c: ModelConfig, params: Params) -> Params:
    table_TD = np.zeros((c.context, c.width), np.float32)
    if c.positions == "sinusoidal":
        table_TD = np.asarray(sinusoids(jnp.arange(c.context), c.width))
    return params | {"position": table_TD}


def _unchanged(c: ModelConfig, params: Params) -> Params:
    return params


FOLDINGS = (
    Folding(
        "embeddings are normalised in their table",
        lambda c: {"embedding_norm": False, "tied": False} if c.embedding_norm and c.positions != "learned" else {},
        _normalised_table,
    ),
    Folding("biases of zero are added", lambda c: {} if c.bias is True else {"bias": True}, _zero_biases),
    Folding(
        "relu2 is a gated relu whose gate is what it gates",
        lambda c: {"activation": "reglu", "feedforward": c.F} if c.activation == "relu2" else {},
        _gate_as_inner,
    ),
    Folding(
        "fixed positions are a table",
        lambda c: {"positions": "learned"} if c.positions in ("none", "sinusoidal") else {},
        _table_of_positions,
    ),
    Folding(
        "positions that nothing tells are rotations in no layer",
        lambda c: {"positions": "rotary", "rotary_skips": 1} if c.positions == "none" and c.H % 2 == 0 else {},
        _unchanged,
    ),
)


def equivalents(c: ModelConfig) -> Iterator[tuple[ModelConfig, tuple[Folding, ...]]]:
    """Shapes of the same function, those with the fewest changes first: each with the foldings that lead to it."""
    for count in range(len(FOLDINGS) + 1):
        for chosen in itertools.combinations(FOLDINGS, count):
            changed = c
            for folding in chosen:
                settings = folding.settings(changed)
                if not settings:
                    break
                changed = dataclasses.replace(changed, **settings)
            else:
                yield changed, chosen


def folded(c: ModelConfig, params: Params, chosen: tuple[Folding, ...]) -> Params:
    """The parameters after foldings, which are applied in order."""
    for folding in chosen:
        params = folding.params(c, params)
        c = dataclasses.replace(c, **folding.settings(c))
    return params
