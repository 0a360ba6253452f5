"""Shapes of models: what every architecture's configuration has, lm's own, and the decorator that adds another.

Nothing here imports JAX: reading a configuration, printing help and refusing a typo are instant.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from lm import limits
from lm.errors import require
from lm.limits import Range
from lm.typed import check_types, shown

ARCHITECTURES: dict[str, type["ModelBase"]] = {}
"""Configuration classes by the name of their architecture."""
RUN_AS = "<run_path>"
"""The module name of a config file while it runs."""


class ModelBase:
    """What training, data and evaluation read of any model's configuration.

    An architecture's configuration is a frozen dataclass that derives from this and has at least the fields `layers`
    (L), `width` (D), `context` (T) and `vocab` (None takes the tokenizer's). The values below hold where it has no
    field of that name.
    """

    architecture: str = ""
    """The name in ARCHITECTURES, given by `register`."""
    architecture_file: str | None = None
    """The name of the config file that defines the architecture; None for one of a package."""
    vocab_multiple = 1
    dtype = "auto"
    dropout = 0.0
    base_width = base_head_width = base_layers = None
    mask = "causal"
    mask_token = False
    vectors: int | None = None
    encoder: Any = None

    @property
    def pieces(self) -> dict[str, int]:
        """How many pieces devices may cut an axis of parameters into, where that is not its size."""
        return {}

    def __post_init__(self):
        check_types(self, "model.")
        if self.vocab is not None:
            require_narrow({"vocabulary": self.V})

    @property
    def V(self) -> int:
        """The vocabulary, with the mask token where there is one, padded to a multiple of `vocab_multiple`."""
        require(self.vocab is not None, "model.vocab is not known yet: set it, or give a tokenizer")
        return self.vocab_multiple * math.ceil((self.vocab + self.mask_token) / self.vocab_multiple)


def require_narrow(axes: dict[str, int]) -> None:
    """Refuse axes, named with their widths, that are too wide for 32-bit indices."""
    for name, width in axes.items():
        too_wide = f"model: the {name} axis would be {width:,} wide; must be below 2^31: lower its parts"
        require(width in limits.COUNT, too_wide)


def register(architecture: str) -> Callable[[type], type]:
    """Decorate a configuration class with the name of its architecture, which the records of its runs carry.

    Raises UserError for a class that is no frozen dataclass deriving from ModelBase, lacks a field that every model
    has, or takes the name of one of lm's own architectures.
    """

    def decorate(kind: type) -> type:
        is_config = isinstance(kind, type) and issubclass(kind, ModelBase) and is_dataclass(kind)
        require(is_config and kind.__dataclass_params__.frozen, f"{kind}: must be a frozen dataclass, and a ModelBase")
        lacking = {"layers", "width", "context", "vocab"} - {f.name for f in fields(kind)}
        require(not lacking, f"{kind.__name__}: every model has the field {', '.join(sorted(lacking))}")
        taken = getattr(ARCHITECTURES.get(architecture), "__module__", "")
        require(
            not taken.startswith("lm.") or taken == kind.__module__,
            f"architecture {architecture!r}: lm has one of this name; choose another",
        )
        kind.architecture = architecture
        if kind.__module__ == RUN_AS:
            kind.architecture_file = Path(sys.modules[RUN_AS].__file__).name
        ARCHITECTURES[architecture] = kind
        return kind

    return decorate


@dataclass(frozen=True)
class EncoderConfig(ModelBase):
    """Shape of a transformer's blocks; by itself, of an encoder. Axis letters are those of the README's glossary."""

    layers: limits.Count = 4
    """L, number of blocks."""
    width: limits.Count = 128
    """D, width of the residual stream."""
    heads: limits.Count = 4
    """N, query heads."""
    kv_heads: limits.MaybeCount = None
    """K, key/value heads: None is N (multi-head), 1 is multi-query, between is grouped-query."""
    head_width: limits.MaybeCount = None
    """H, width of one head; None is D / N."""
    feedforward: limits.MaybeCount = None
    """F, feed-forward width; None is 4 D, or 8/3 D rounded up to a multiple of 8 for those with a gate."""
    context: limits.Count = 256
    """T, places in a training sequence and the most that the model reads at once: tokens, and vectors before them."""
    vocab: limits.MaybeCount = None
    """Vocabulary entries; None takes the tokenizer's."""
    vocab_multiple: limits.Count = 8
    """V is the vocabulary padded to a multiple of this; padding is never predicted."""
    mask: Literal["causal", "prefix", "full"] = "full"
    """What a place attends to: causal, the places before it; prefix, also all of the prompt (Raffel et al. 2020, figure
    4); full, both ways, as encoders and masked models do."""
    mask_token: bool = False
    """One more entry in the vocabulary, read in the place of a hidden token and never predicted."""
    vectors: limits.MaybeCount = None
    """E, width of the vectors that may stand before the tokens, such as patches or frames; None: tokens alone."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation before attention, before the feed-forward layer and before the head."""
    norm_place: Literal["pre", "post", "output", "both"] = "pre"
    """pre: norms of what each half of a block reads; post: of the residual stream after each (Vaswani et al. 2017);
    output: of what each half adds (OLMo 2); both: of what it reads and of what it adds (Gemma 2)."""
    parallel: Literal["off", "two_norms", "one_norm"] = "off"
    """Both halves of a block read the same residual stream, each through its norm or both through one (GPT-J)."""
    norm_epsilon: limits.Positive = 1e-5
    """Added to the variance inside every norm."""
    bias: bool | Literal["qkv"] = False
    """Biases in projections and layer norms (GPT-2 has them); qkv: of queries, keys and values alone (Qwen 2)."""
    head_bias: bool = False
    """A bias on the logits."""
    positions: Literal["rotary", "learned", "sinusoidal", "none"] = "rotary"
    """How tokens know their place."""
    rotary_base: limits.Positive = 10_000.0
    """Longest rotary wavelength, in units of 2 pi tokens."""
    rotary_base_windowed: limits.MaybePositive = None
    """That of layers with a window, which are not rescaled either (Gemma 3); None: as the others."""
    rotary_fraction: Annotated[float, Range(above=0, most=1)] = 1.0
    """Share of each head that is rotated; the rest knows no place."""
    rotary_skips: limits.MaybeCount = None
    """Every n-th layer rotates nothing (SmolLM 3)."""
    rotary_scaling: Literal["none", "linear", "llama3"] = "none"
    """How frequencies are rescaled for contexts longer than were trained on. linear: divided by rotary_factor (Chen et
    al. 2023); llama3: those with long wavelengths alone, by rotary_factor, rotary_band and rotary_context."""
    rotary_factor: limits.Positive = 1.0
    """How many times as long a context frequencies are rescaled for."""
    rotary_band: tuple[float, ...] = (1.0, 4.0)
    """Under llama3: what turns fewer times in rotary_context tokens than the first is divided by rotary_factor, what
    turns more often than the second is left alone, and between them is between."""
    rotary_context: limits.Count = 8192
    """Under llama3, the context before it was lengthened."""
    activation: Literal["gelu", "gelu_exact", "relu", "relu2", "swiglu", "geglu", "geglu_exact", "reglu"] = "relu2"
    """Feed-forward nonlinearity; gelu is the tanh form, gelu_exact the erf form, relu2 is relu squared. swiglu, the
    geglus and reglu multiply one projection by silu, gelu or relu of another (Shazeer 2020)."""
    window: limits.MaybeCount = None
    """Tokens a position attends to, itself included (sliding window); None is all before it."""
    global_every: limits.MaybeCount = None
    """With a window: every n-th layer attends to everything."""
    layer_windows: tuple[int, ...] = ()
    """Each layer's window, instead of the two above; 0 is all before."""
    attention_softcap: limits.MaybePositive = None
    """Squash attention's scores to (-c, c) by c tanh(x / c)."""
    qk_norm: bool | Literal["width"] = True
    """RMS-normalise queries and keys per head; width: those of all heads together (OLMo 2)."""
    value_residual: bool = False
    """Mix each layer's values with the first layer's, in learned proportions."""
    tied: bool = False
    """Use the embedding as the output head."""
    embedding_norm: bool = False
    """RMS-normalise the embedding before the first block."""
    logit_softcap: limits.MaybePositive = None
    """Squash logits to (-c, c) by c tanh(x / c)."""
    dropout: limits.BelowOne = 0.0
    """Probability of zeroing, on the embedding and on what each half-block adds."""
    zero_init: bool = True
    """Start output projections, and an untied head, at zero."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass makes again instead of keeping it. full: each block from its input, for least memory and
    about a third more FLOPs; dots: all but the products with parameters; none: nothing."""
    unroll: limits.MaybeCount = None
    """Blocks written out per iteration of the scan over layers: more is faster to run, slower to compile. None: all of
    up to 8 on a CPU, else one."""
    dtype: Literal["auto", "float32", "bfloat16", "bfloat16_products"] = "auto"
    """What is computed in: auto is bfloat16 on accelerators and float32 on a CPU. bfloat16_products: float32, but that
    products with matrices round what they multiply; for CPUs that have instructions for it (AMX)."""
    base_width: limits.MaybeCount = None
    """Width at which rates, decay and Adam's epsilon were chosen: CompleteP (lm/model/parametrization.py) carries them
    over to this one. None: nothing is scaled with the width."""
    base_head_width: limits.MaybeCount = None
    """H at the base width, where heads widen with the model; None where a wider model has more of them instead."""
    base_layers: limits.MaybeCount = None
    """Layers at which they were chosen; None: nothing is scaled with the depth."""
    attention: Literal["auto", "plain", "cudnn"] = "auto"
    """How whole sequences attend: plain (XLA, by blocks of queries), cudnn (its fused kernel, on NVIDIA GPUs, in
    bfloat16, without a window or packed documents), or auto: cudnn where it can be and pays."""

    def __post_init__(self):
        if isinstance(self.remat, bool):  # as it was written once
            object.__setattr__(self, "remat", "full" if self.remat else "none")
        super().__post_init__()
        require(
            self.head_width is not None or self.width % self.heads == 0,
            f"model.width {self.width} is not a multiple of model.heads {self.heads}; change one, or head_width",
        )
        require(
            self.heads % self.K == 0,
            f"model.heads {self.heads} is not a multiple of model.kv_heads {self.K}: each key head serves equally many",
        )
        require(
            self.width != self.base_width or self.base_head_width in (None, self.H),
            f"model.base_head_width {self.base_head_width}: at the base width heads are {self.H} wide",
        )
        require(
            self.positions != "rotary" or self.H % 2 == 0,
            f"model.head_width {self.H} is odd: rotary positions rotate pairs; use an even head width",
        )
        require(
            self.global_every is None or self.window is not None,
            f"model.global_every {self.global_every} needs model.window: without a window every layer is global",
        )
        self._check_layers()
        require_narrow({"query, key and value": (self.heads + 2 * self.K) * self.H, "feed-forward": self.F})

    def _check_layers(self) -> None:
        """Refuse blocks that do not go together, and windows that are not the layers'."""
        require(
            self.parallel == "off" or (self.norm_place == "pre" and self.encoder is None),
            f"model.parallel {self.parallel}: needs model.norm_place pre, and no encoder",
        )
        require(
            self.qk_norm != "width" or self.encoder is None,
            "model.qk_norm width: needs no encoder, beside which queries and keys are normalised per head",
        )
        require(
            self.rotary_skips is None or self.positions == "rotary",
            f"model.rotary_skips {self.rotary_skips} needs model.positions rotary",
        )
        low, high = (*self.rotary_band, 0, 0)[:2]
        require(
            len(self.rotary_band) == 2 and 0 < low < high < math.inf,
            f"model.rotary_band {shown(self.rotary_band)}: must be two numbers above 0, the smaller first",
        )
        count, windows = len(self.layer_windows), self.layer_windows
        require(
            count in (0, self.layers) and all(0 <= window < limits.COUNT.below for window in windows),
            f"model.layer_windows: {count} numbers for {self.layers} layers; must be one of 0 or more for each",
        )
        require(not windows or self.window is None, "model.layer_windows and model.window: give one of the two")

    @property
    def pieces(self) -> dict[str, int]:
        """Heads are never cut; where an encoder has others, what goes for both is cut."""
        if self.encoder is None:
            return {"NH": self.heads, "KH": self.K}
        return {"NH": math.gcd(self.heads, self.encoder.heads), "KH": math.gcd(self.K, self.encoder.K)}

    @property
    def K(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    @property
    def H(self) -> int:
        """Width of one head."""
        return self.head_width or self.width // self.heads

    @property
    def F(self) -> int:
        """Feed-forward width."""
        if self.feedforward:
            return self.feedforward
        return 8 * math.ceil(self.width / 3) if self.gated else 4 * self.width

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer multiplies one projection by a function of another."""
        return self.activation in ("swiglu", "geglu", "geglu_exact", "reglu")

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Each layer's attention window; None is unlimited."""
        if self.layer_windows:
            return tuple(window or None for window in self.layer_windows)
        every = self.global_every
        return tuple(None if every and (layer + 1) % every == 0 else self.window for layer in range(self.layers))

    @property
    def layers_by_window(self) -> dict[int | None, int]:
        """How many layers have each window, without a list of them all."""
        if self.layer_windows:
            return dict(Counter(self.windows))
        unlimited = self.layers // self.global_every if self.global_every else 0
        return {None: unlimited, self.window: self.layers - unlimited}


@register("transformer")
@dataclass(frozen=True)
class ModelConfig(EncoderConfig):
    """Shape of a transformer: decoder-only, or with an encoder."""

    mask: Literal["causal", "prefix", "full"] = "causal"
    encoder: EncoderConfig | None = None
    """The shape of an encoder, which makes this the decoder beside it: every block also attends to what the encoder
    made of a source (Vaswani et al. 2017). Its vocabulary is this one's, where it has none of its own."""

    def __post_init__(self):
        super().__post_init__()
        encoder = self.encoder
        if encoder is None:
            return
        require(self.mask == "causal", f"model.mask {self.mask}: a decoder with an encoder is causal")
        require(self.vectors is None, "model.vectors: vectors are a source; set model.encoder.vectors instead")
        require(not isinstance(encoder, ModelConfig), "model.encoder: expected EncoderConfig, which has no encoder")
        require(encoder.mask == "full", f"model.encoder.mask {encoder.mask}: an encoder reads both ways; must be full")
        if encoder.vocab is None and self.vocab is not None:
            object.__setattr__(self, "encoder", replace(encoder, vocab=self.vocab))

    @classmethod
    def gpt2(cls, size: str = "124M", **changes) -> "ModelConfig":
        """GPT-2 (Radford et al. 2019): 124M, 350M, 774M or 1558M; `changes` replace fields."""
        shapes = {"124M": (12, 768, 12), "350M": (24, 1024, 16), "774M": (36, 1280, 20), "1558M": (48, 1600, 25)}
        require(size in shapes, f"GPT-2 {size!r}: no such size; one of {', '.join(shapes)}")
        layers, width, heads = shapes[size]
        gpt2 = dict(
            layers=layers, width=width, heads=heads, context=1024, vocab=50257, vocab_multiple=64, norm="layernorm",
            bias=True, positions="learned", activation="gelu", qk_norm=False, tied=True, zero_init=False,
        )  # fmt: skip
        return cls(**(gpt2 | changes))

    @classmethod
    def llama(cls, size: str = "15M", **changes) -> "ModelConfig":
        """Llama shapes: 15M, 42M and 110M (llama2.c's), 1B (Llama 3.2's); `changes` replace fields."""
        small = dict(context=1024, vocab=32000, tied=True)
        shapes = {
            "15M": dict(layers=6, width=288, heads=6, feedforward=768, **small | {"context": 256}),
            "42M": dict(layers=8, width=512, heads=8, feedforward=1376, **small),
            "110M": dict(layers=12, width=768, heads=12, feedforward=2048, **small),
            "1B": dict(
                layers=16, width=2048, heads=32, kv_heads=8, feedforward=8192, context=2048, vocab=128256, tied=True,
                rotary_base=500_000.0,
            ),
        }  # fmt: skip
        require(size in shapes, f"Llama {size!r}: no such size; one of {', '.join(shapes)}")
        llama = dict(norm="rmsnorm", positions="rotary", activation="swiglu", qk_norm=False, zero_init=False)
        return cls(**(llama | shapes[size] | changes))


@register("recurrent")
@dataclass(frozen=True)
class RecurrentConfig(ModelBase):
    """Shape of a recurrent language model: an embedding, layers of cells, a head; all D wide."""

    layers: limits.Count = 1
    """L, number of recurrent layers."""
    width: limits.Count = 128
    """D, width of the embedding and of every layer's state."""
    cell: Literal["lstm", "rnn"] = "lstm"
    """lstm: long short-term memory (Hochreiter & Schmidhuber 1997); rnn: tanh of input and state (Elman 1990)."""
    context: limits.Count = 256
    """T, tokens in a training sequence; generation carries its state further."""
    vocab: limits.MaybeCount = None
    """Vocabulary entries; None takes the tokenizer's."""
    vocab_multiple: limits.Count = 8
    """V is the vocabulary padded to a multiple of this; padding is never predicted."""
    bias: bool = True
    """Biases in the cells."""
    tied: bool = False
    """Use the embedding as the output head."""
    dropout: limits.BelowOne = 0.0
    """Probability of zeroing, on the embedding and on what each layer gives to the next."""
    dtype: Literal["auto", "float32", "bfloat16", "bfloat16_products"] = "auto"
    """What is computed in: auto is bfloat16 on accelerators and float32 on a CPU. bfloat16_products: float32, but that
    products with matrices round what they multiply; for CPUs that have instructions for it (AMX)."""

    @property
    def pieces(self) -> dict[str, int]:
        """The gates lie side by side along F, and each is as wide as the state: none of it is cut."""
        return {"F": 1}

    def __post_init__(self):
        super().__post_init__()
        require_narrow({"gates": (4 if self.cell == "lstm" else 1) * self.width})
