"""A family's tensors as our parameters, and back: each step has its inverse beside it.

A tensor of theirs goes through: its part of what is fused; rows in our order of a head's entries; 1 + weight; factors;
transposition. Ours goes back through the same in reverse. Nothing rounds but 1 + weight and factors.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lm.config import ModelConfig
from lm.errors import nearest, require
from lm.exchange import shapes
from lm.exchange.families import Family
from lm.model.api import build

BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""Constants that some versions keep among the weights."""
HEADS = ("lm_head.", "embed_out.")
"""How the names of heads begin, which have no prefix."""
ROTATED = {"query", "key", "query_norm", "key_norm"}


def to_ours(f: Family, config: Mapping[str, Any], c: ModelConfig, tensors: Mapping[str, np.ndarray]) -> dict:
    """Our parameters, float32, from tensors under the family's names, with or without its prefix.

    Raises UserError, naming the tensor, where one is missing, has another shape, is not finite, or has no place in such
    a model.
    """
    by_name = _without_prefix(f, tensors)
    unused = {name for name in by_name if not name.endswith(BUFFERS)}
    steps, size = Steps(f, config, c), _sizes(c)

    def find(module: str, leaf: str, shape: tuple[int, ...], layer: int | None) -> np.ndarray:
        name = steps.name(module, leaf, layer)
        if name is None:
            return np.full(shape, float(leaf == "scale"), np.float32)
        require(name in by_name, f"{name}: no such tensor in this {f.model_type}{nearest(name, by_name)}")
        unused.discard(name)
        theirs = by_name[name]
        value = steps.ours(module, leaf, theirs)
        require(
            value is not None and value.shape == shape,
            f"{name} has shape {np.shape(theirs)}, which does not give {module}.{leaf} {shape} of the configuration",
        )
        require(bool(np.isfinite(value).all()), f"{name} holds numbers that are not finite")
        return value

    def make(path, axes: tuple[str, ...]) -> np.ndarray:
        (module, leaf), shape = _split(path), tuple(size[axis] for axis in axes)
        if axes[0] == "L":
            return np.stack([find(module, leaf, shape[1:], layer) for layer in range(c.layers)])
        return np.pad(find(module, leaf, shape, None), [(0, c.V - c.vocab if axis == "V" else 0) for axis in axes])

    params = jax.tree_util.tree_map_with_path(make, build(c).axes(), is_leaf=lambda x: isinstance(x, tuple))
    head = f"{f.names['head']}.weight" if "head" in f.names else "lm_head.weight"
    if c.tied and head in unused:
        same = np.array_equal(by_name[head], by_name[f"{f.names['embedding']}.weight"])
        require(same, f"{head} is not the embedding, and config.json says tie_word_embeddings")
        unused.discard(head)
    left = sorted(unused)
    require(not left, f"{', '.join(left[:3])[:150]}: {len(left)} tensors that such a {f.model_type} has no place for")
    return params


def to_theirs(f: Family, config: Mapping[str, Any], c: ModelConfig, params: dict) -> dict[str, np.ndarray]:
    """Tensors under the family's names, its prefix included, from our parameters: the inverse of `to_ours`.

    Raises UserError where the family has no place for a scale that is not 1 or a bias that is not 0.
    """
    steps, made = Steps(f, config, c), {}
    parts: dict[str, list[np.ndarray]] = {}
    for path, axes in _leaves(c):
        module, leaf = _split(path)
        value = _at(params, path)
        if axes[0] == "V" or axes[-1] == "V":  # without the rows that pad our vocabulary
            value = np.take(value, range(c.vocab), axis=axes.index("V"))
        for layer, x in enumerate(value) if axes[0] == "L" else [(None, value)]:
            name = steps.name(module, leaf, layer)
            if name is None:
                neutral = bool((x == float(leaf == "scale")).all())
                require(neutral, f"a {f.model_type} has no place for {module}.{leaf}, which is not {leaf == 'scale':d}")
            else:
                parts.setdefault(name, []).append(steps.theirs(module, leaf, x))
    for name, found in parts.items():
        made[name] = found[0] if len(found) == 1 else steps.fuse(found)
    whole = {name: name if name.startswith(HEADS) else f.prefix + name for name in made}
    return {whole[name]: np.ascontiguousarray(x) for name, x in made.items()}


class Steps:
    """What lies between a tensor of a family's and a parameter of ours."""

    def __init__(self, f: Family, config: Mapping[str, Any], c: ModelConfig):
        self.f, self.c = f, c
        self.biased, self.factors = shapes.biased(config), f.factors(config, c)
        self.order_H, self.signs_H = head_order(f, c)

    def name(self, module: str, leaf: str, layer: int | None) -> str | None:
        """The name of theirs, without the prefix; None where the family has no such tensor."""
        if module not in self.f.names or (leaf == "bias" and _kind(module) not in self.biased):
            return None
        return f"{self.f.names[module]}.{'bias' if leaf == 'bias' else 'weight'}".format(layer)

    def ours(self, module: str, leaf: str, x: np.ndarray) -> np.ndarray | None:
        """A parameter of ours; None where the tensor cannot be cut or ordered so."""
        x, inside = np.asarray(x, np.float32), module.startswith("blocks.")
        if self.f.columns and inside and x.ndim == 2:
            x = x.T
        try:
            x = self._part(module, x)
            x = self._in_order(module, x, theirs=False)
        except ValueError:
            return None
        if leaf == "scale" and self.f.plus_one:
            x = x + np.float32(1)
        x = self._times(module, x, inverse=False)
        if module == "position":
            x = x[self.f.unread :][: self.c.context]
        return x.T if leaf == "kernel" or module == "head" else x

    def theirs(self, module: str, leaf: str, x: np.ndarray) -> np.ndarray:
        """The inverse of `ours`, before what is fused is put together."""
        x, inside = np.asarray(x, np.float32), module.startswith("blocks.")
        x = x.T if leaf == "kernel" or module == "head" else x
        if module == "position":
            x = np.pad(x, [(self.f.unread, 0), (0, 0)])
        x = self._times(module, x, inverse=True)
        if leaf == "scale" and self.f.plus_one:
            x = x - np.float32(1)
        x = self._in_order(module, x, theirs=True)
        fused = self.f.fused != "no" and module.rpartition(".")[2] in ("query", "key", "value")
        return x.T if self.f.columns and inside and x.ndim == 2 and not fused else x

    def fuse(self, parts: list[np.ndarray]) -> np.ndarray:
        """Keys, queries and values, in the order of their names, as one tensor."""
        key, query, value = parts
        if self.f.fused == "by head":
            heads = [x.reshape(self.c.heads, 1, self.c.H, *x.shape[1:]) for x in (query, key, value)]
            return np.concatenate(heads, axis=1).reshape(-1, *query.shape[1:])
        x = np.concatenate([query, key, value])
        return x.T if self.f.columns and x.ndim == 2 else x

    def _part(self, module: str, x: np.ndarray) -> np.ndarray:
        """Queries, keys or values of a tensor in which they are together; ValueError where it cannot be cut so."""
        which = {"query": 0, "key": 1, "value": 2}.get(module.rpartition(".")[2])
        if self.f.fused == "no" or which is None:
            return x
        if self.f.fused == "by head":
            return x.reshape(self.c.heads, 3, self.c.H, *x.shape[1:])[:, which].reshape(-1, *x.shape[1:])
        return np.split(x, 3)[which]

    def _in_order(self, module: str, x: np.ndarray, *, theirs: bool) -> np.ndarray:
        """Queries' or keys' rows with a head's entries in our order, or theirs; ValueError where heads do not fit."""
        if self.order_H is None or module.rpartition(".")[2] not in ROTATED:
            return x
        heads = x.reshape(-1, self.c.H, *x.shape[1:])
        signs = self.signs_H.reshape(-1, *(1,) * (x.ndim - 1))
        if theirs:
            made = np.empty_like(heads)
            made[:, self.order_H] = heads * signs
        else:
            made = heads[:, self.order_H] * signs
        return made.reshape(x.shape)

    def _times(self, module: str, x: np.ndarray, *, inverse: bool) -> np.ndarray:
        factor = self.factors.get(module, 1.0)
        if factor == 1:
            return x
        return x / np.float32(factor) if inverse else x * np.float32(factor)


def head_order(f: Family, c: ModelConfig) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Which of theirs each entry of a head of ours is, [H], and its sign; None where they are the same.

    Ours are rotated in pairs (i, i + H/2), of which the first of each half may be all that turns.
    """
    H, turning = c.H, round(c.rotary_fraction * c.H / 2)
    if c.positions != "rotary" or (f.pairs == "halves" and 2 * turning == H):
        return None, None
    rest, i, signs_H = np.arange(2 * turning, H), np.arange(turning), np.ones(H, np.float32)
    first, second = (2 * i, 2 * i + 1) if f.pairs == "neighbours" else (i, i + turning)
    if f.pairs == "backwards":  # turned the other way is the second of each pair negated
        signs_H[H // 2 : H // 2 + turning] = -1
    half = len(rest) // 2
    return np.concatenate([first, rest[:half], second, rest[half:]]), signs_H


def _kind(module: str) -> str:
    """What keys.Biases calls a module."""
    last = module.rpartition(".")[2]
    return "norms" if last.endswith("norm") else last.removesuffix("_bias")


def _sizes(c: ModelConfig) -> dict[str, int]:
    """How long each axis of the parameters is, the vocabulary's without its padding."""
    return dict(L=c.layers, V=c.vocab, D=c.width, T=c.context, F=c.F, NH=c.heads * c.H, KH=c.K * c.H, H=c.H)


def _leaves(c: ModelConfig) -> Iterator[tuple[Any, tuple[str, ...]]]:
    yield from jax.tree_util.tree_leaves_with_path(build(c).axes(), is_leaf=lambda x: isinstance(x, tuple))


def _split(path) -> tuple[str, str]:
    """Module and leaf of a parameter: what is no kernel, scale or bias is a table, and head_bias a bias."""
    keys = [part.key for part in path]
    if keys[-1] in ("kernel", "scale", "bias"):
        return ".".join(keys[:-1]), keys[-1]
    return ".".join(keys), "bias" if keys[-1] == "head_bias" else "table"


def _at(params: dict, path) -> np.ndarray:
    for part in path:
        params = params[part.key]
    return np.asarray(params, np.float32)


def _without_prefix(f: Family, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors under names as in f.names: files may lack the prefix, and call a head as others do."""
    head = f"{f.names['head']}." if "head" in f.names else HEADS[0]

    def short(name: str) -> str:
        name = name.removeprefix(f.prefix)
        other = next((other for other in HEADS if name.startswith(other)), None)
        return name if other is None else head + name.removeprefix(other)

    return {short(name): tensor for name, tensor in tensors.items()}
