"""What a language model is to everything outside this room: pure functions of its parameters.

An architecture is a configuration (a frozen dataclass) and a Flax NNX module that computes. `implements` joins the two,
`build(config)` gives the LanguageModel, and that is all that training, evaluation, sampling, sweeps and probes know.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm import parallel
from lm.errors import require
from lm.model import kernels
from lm.model.cost import Cost, Pairs
from lm.model.layers import compute_dtype, product_dtype
from lm.model.taps import Tap, Taps


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a model reads at once: T tokens of each of B rows, and what comes with them.

    segments_BT: the document of each token, where a row holds several that must not see each other. count_B: how many
    of a row's tokens are real, the rest being padding on the right; None is all of them. vectors_BIE: vectors that
    stand before the tokens, for a model with `vectors`; of a row's, vectors_count_B are real. source: what an encoder
    reads; a state remembers it, so it comes with the first tokens alone. open_B: under the mask "prefix", how many of
    a row's first places, vectors included, all its places may see. first: nothing was read before them, which is known
    when the program is compiled, so that the state is written and not read.
    """

    tokens_BT: jax.Array
    segments_BT: jax.Array | None = None
    count_B: jax.Array | None = None
    vectors_BIE: jax.Array | None = None
    vectors_count_B: jax.Array | None = None
    source: "Inputs | None" = None
    open_B: jax.Array | None = None
    first: bool = dataclasses.field(default=False, metadata=dict(static=True))

    @property
    def places(self) -> int:
        """How many places of each row they take, I + T."""
        return self.tokens_BT.shape[1] + (0 if self.vectors_BIE is None else self.vectors_BIE.shape[1])

    def counts(self) -> jax.Array:
        """[B] real places in each row: its tokens, and the vectors before them."""
        return self._real(self.tokens_BT, self.count_B) + self.vector_counts()

    def vector_counts(self) -> jax.Array:
        """[B] real vectors in each row."""
        if self.vectors_BIE is None:
            return jnp.zeros(len(self.tokens_BT), jnp.int32)
        return self._real(self.vectors_BIE, self.vectors_count_B)

    @staticmethod
    def _real(x: jax.Array, count_B: jax.Array | None) -> jax.Array:
        return jnp.full(x.shape[0], x.shape[1], jnp.int32) if count_B is None else count_B.astype(jnp.int32)


class Architecture(Protocol):
    """The NNX module of an architecture. Each method answers the LanguageModel's of the same name.

    `c` is the configuration. Parameters are float32 and carry `axes`, the glossary's letters; those of layers that are
    stacked along L are in a module called `blocks`.
    """

    def __init__(self, c: Any, rngs: nnx.Rngs): ...

    def hidden(self, inputs: Inputs, *, state: Any, taps: Taps, key: jax.Array | None) -> tuple[jax.Array, Any]: ...

    def final(self, x: jax.Array, taps: Taps) -> jax.Array: ...

    def logits(self, h: jax.Array, taps: Taps) -> jax.Array: ...

    @staticmethod
    def state(c: Any, batch: int, capacity: int) -> Any: ...

    @staticmethod
    def taps(c: Any) -> dict[str, Tap]: ...

    @staticmethod
    def cost(c: Any, context: int, pairs: Pairs) -> Cost: ...


_ARCHITECTURES: dict[type, type[Architecture]] = {}


def implements(config: type) -> Callable[[type], type]:
    """Say of a module's class that it computes the models of this type of configuration."""

    def join(architecture: type) -> type:
        _ARCHITECTURES[config] = architecture
        return architecture

    return join


def build(config: Any) -> "LanguageModel":
    """The model that a configuration describes. Raises UserError where no module implements its type."""
    name = type(config).__name__
    why = f"no module computes the models of {name}: decorate the one that does with @lm.implements({name})"
    require(type(config) in _ARCHITECTURES, why)
    return LanguageModel(config)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A next-token predictor. Equal and hashable by its configuration, so that it can be static under jax.jit."""

    config: Any

    @property
    def architecture(self) -> type[Architecture]:
        return _ARCHITECTURES[type(self.config)]

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of what passes from product to product."""
        return compute_dtype(self.config)

    @property
    def product_dtype(self) -> jnp.dtype:
        """The dtype that products with parameters round to, of which the machine's peak is spoken."""
        return product_dtype(self.config) or self.dtype

    @property
    def precision(self) -> str:
        """Both in words."""
        own, products = str(self.dtype), str(self.product_dtype)
        return own if own == products else f"{own} with products in {products}"

    # --- parameters --------------------------------------------------------------------------------------------------
    def init(self, seed: int) -> dict:
        """Fresh float32 parameters, a nested dict: the same for the same (configuration, seed) anywhere."""
        seed = seed if isinstance(seed, jax.Array) else np.uint32(seed % 2**32)
        return _initialiser(self)(seed)  # the bits that jax.random.key takes of any number

    def shapes(self) -> dict:
        """Each parameter's jax.ShapeDtypeStruct, a tree like the parameters; nothing is allocated."""
        return nnx.to_pure_dict(_definition(self)[1])

    def axes(self) -> dict:
        """Each parameter's axes in the glossary's letters, a tree like the parameters: ("L", "D", "F") and so on."""

        def letters(path, variable):
            stacked = ("L",) if any(step.key == "blocks" for step in path) else ()
            return stacked + tuple(variable.get_metadata("axes"))

        def is_variable(x) -> bool:
            return isinstance(x, nnx.Variable)

        abstract = _definition(self)[1]
        return nnx.to_pure_dict(jax.tree_util.tree_map_with_path(letters, abstract, is_leaf=is_variable))

    def with_axes(self, tree: dict) -> list[tuple[Any, tuple[str, ...]]]:
        """Each leaf of a tree like the parameters, beside its axes."""
        axes = jax.tree.leaves(self.axes(), is_leaf=lambda x: isinstance(x, tuple))
        return list(zip(jax.tree.leaves(tree), axes, strict=True))

    def parameter_count(self) -> tuple[int, int]:
        """(params_total, params_nonembedding): the latter without tables of tokens and positions, and the head."""
        return _parameter_count(self)

    @property
    def tied(self) -> bool:
        """Whether the table of embeddings is the head too."""
        return all(axes != ("D", "V") for axes in self.axes().values())

    def tables(self, params: dict) -> tuple[jax.Array, jax.Array | None]:
        """The embedding [V, D] and the unembedding [V, D], None where that is the embedding again (a tied head).

        Raises UserError where the architecture has no such parameter.
        """
        axes = self.axes()
        by_axes = {axes[name]: params[name] for name in axes if isinstance(axes[name], tuple)}  # no encoder's
        require(("V", "D") in by_axes, f"a {self.architecture.__name__} has no table of its tokens' vectors")
        head_DV = by_axes.get(("D", "V"))
        return by_axes["V", "D"], None if head_DV is None else head_DV.T

    def bind(self, params: dict) -> Any:
        """The NNX module that holds these parameters; cheap, and made inside jit."""
        module = nnx.merge(_definition(self)[0], params)
        if parallel.sizes_now() is None:
            return module
        graph, state = nnx.split(module)
        return nnx.merge(graph, parallel.at_use(state, self.config.pieces))

    def lay_out(self, params: dict, rows: int) -> dict:
        """The same parameters as products with `rows` tokens at a time read them fastest; see lm.model.kernels.

        Worth it for many tokens: inside a loop over tokens, stacked layers would be cut apart again for each. What is
        spread over devices stays so, and no matrix is turned over.
        """
        return _lay_out(self, params, kernels.few(rows) and parallel.mesh_under(params) is None)

    # --- the forward pass --------------------------------------------------------------------------------------------
    def state(self, batch: int, capacity: int) -> Any:
        """A pytree that has read nothing, with room for `capacity` tokens in each of `batch` rows."""
        context = self.config.context
        require(capacity <= context, f"a cache of {capacity} tokens exceeds the model's context of {context}")
        return self.architecture.state(self.config, batch, capacity)

    def hidden(
        self, params: dict, inputs: Inputs, *, state: Any = None, taps: Taps | None = None, key: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """What the head reads, [B, T, D], and the state after reading.

        The state returned has read exactly the first count_B tokens of each row; without a state, None is returned.
        key: turns dropout on. Raises UserError for more tokens than the context, for segments with a state, and for
        taps that the model does not have; for a source or vectors that it does not read, or reads and has not got.
        """
        self._check(inputs, state)
        taps = Taps() if taps is None else taps
        taps.check(self.taps)
        return self.bind(params).hidden(inputs, state=state, taps=taps, key=key)

    def _check(self, inputs: Inputs, state: Any) -> None:
        """Refuse what the model cannot read, by shapes alone: nothing of this is left once traced."""
        c, places = self.config, inputs.places
        require(places <= c.context, f"{places} tokens are more than the model's context of {c.context}")
        alone = state is None and inputs.source is None and inputs.vectors_BIE is None
        require(inputs.segments_BT is None or alone, "segments stand alone: with a state, one document a row")
        require(state is None or c.mask != "full", "this model reads both ways: it has nothing to continue from")
        reads_source = c.encoder is not None
        require(reads_source or inputs.source is None, "this model has no encoder to read a source: set model.encoder")
        require(
            not reads_source or inputs.source is not None or state is not None, "this model translates: give a source"
        )
        if inputs.vectors_BIE is not None:
            E = inputs.vectors_BIE.shape[-1]
            require(E == c.vectors, f"vectors {E} wide: model.vectors is {c.vectors}")

    def logits(self, params: dict, h: jax.Array, taps: Taps | None = None) -> jax.Array:
        """[..., V] float32 logits of h [..., D]; the padded entries of the vocabulary can never be predicted."""
        return self.bind(params).logits(jnp.asarray(h), Taps() if taps is None else taps)

    def apply(self, params: dict, inputs: Inputs, *, taps: Taps | None = None, **options) -> tuple[jax.Array, Any]:
        """Logits [B, T, V] and the state: `hidden`, then `logits`."""
        h_BTD, state = self.hidden(params, inputs, taps=taps, **options)
        return self.logits(params, h_BTD, taps), state

    def early_logits(self, params: dict, x: jax.Array) -> jax.Array:
        """The logits [..., V] that x [..., D] would give if it left the last block: the logit lens."""
        model = self.bind(params)
        return model.logits(model.final(x, Taps()), Taps())

    @property
    def taps(self) -> dict[str, Tap]:
        """The intermediate values that can be read and edited, by name."""
        return self.architecture.taps(self.config)

    # --- the cost ----------------------------------------------------------------------------------------------------
    def cost(self, context: int | None = None, *, pairs: Pairs = "visible") -> Cost:
        """What a token costs, the mean over a sequence of this length (default: the context). See `Pairs`."""
        return self.architecture.cost(self.config, context or self.config.context, pairs)


@functools.cache
def _definition(model: LanguageModel):
    """The NNX graph and the abstract parameters, without allocating anything. Refused where JAX is in float64."""
    require(
        not jax.config.jax_enable_x64,
        "models here are computed in float32, and JAX_ENABLE_X64 asks for float64: unset it (the command ignores it)",
    )
    return nnx.split(nnx.eval_shape(lambda: model.architecture(model.config, nnx.Rngs(0))))


@functools.cache
def _parameter_count(model: LanguageModel) -> tuple[int, int]:
    counts = [(math.prod(leaf.shape), not {"V", "T"} & set(axes)) for leaf, axes in model.with_axes(model.shapes())]
    return sum(count for count, _ in counts), sum(count for count, inner in counts if inner)


@functools.cache
def _initialiser(model: LanguageModel):
    """Compiled once for each configuration, whatever the seed."""

    def parameters(seed) -> dict:
        made = model.architecture(model.config, nnx.Rngs(params=jax.random.key(seed)))
        return nnx.to_pure_dict(nnx.state(made, nnx.Param))

    return jax.jit(parameters)


@functools.partial(jax.jit, static_argnames=("model", "few"))
def _lay_out(model: LanguageModel, params: dict, few: bool) -> dict:
    return kernels.lay_out(params, model.axes(), model.dtype, few)
