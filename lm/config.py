"""Experiment: one frozen tree of dataclasses that says everything about a run.

Each part checks itself where it is made and says what would be right. Nothing here imports JAX, so reading a
configuration, printing help and refusing a typo are instant.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from lm import limits
from lm.errors import require
from lm.limits import Range, duration_steps
from lm.limits import parse_duration as parse_duration  # a public name of this module
from lm.typed import check_types


# --- the parts -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only transformer. Axis letters are those of the glossary in the README."""

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
    """F, feed-forward width; None is 4 D, or 8/3 D rounded up to a multiple of 8 for swiglu."""
    context: limits.Count = 256
    """T, tokens in a training sequence and the longest the model reads at once."""
    vocab: limits.MaybeCount = None
    """Vocabulary entries; None takes the tokenizer's."""
    vocab_multiple: limits.Count = 8
    """V is the vocabulary padded to a multiple of this; padding is never predicted."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation before attention, before the feed-forward layer and before the head."""
    norm_epsilon: limits.Positive = 1e-5
    """Added to the variance inside every norm."""
    bias: bool = False
    """Biases in projections and layer norms (GPT-2 has them)."""
    positions: Literal["rotary", "learned", "sinusoidal", "none"] = "rotary"
    """How tokens know their place."""
    rotary_base: limits.Positive = 10_000.0
    """Longest rotary wavelength, in units of 2 pi tokens."""
    activation: Literal["gelu", "gelu_exact", "relu", "relu2", "swiglu"] = "relu2"
    """Feed-forward nonlinearity; gelu is the tanh form, gelu_exact the erf form, relu2 is relu squared."""
    window: limits.MaybeCount = None
    """Tokens a position attends to, itself included (sliding window); None is all before it."""
    global_every: limits.MaybeCount = None
    """With a window: every n-th layer attends to everything."""
    qk_norm: bool = True
    """RMS-normalise queries and keys per head."""
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
    remat: bool = False
    """Recompute each block's activations in the backward pass: less memory, about a third more FLOPs."""
    unroll: limits.MaybeCount = None
    """Blocks written out per iteration of the scan over layers: more is faster to run, slower to compile. None: all of
    up to 8 on a CPU, else one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype of matrix products; auto is bfloat16 on accelerators and float32 on CPU."""
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
        check_types(self, "model.")
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
        axes = {"query, key and value": (self.heads + 2 * self.K) * self.H, "feed-forward": self.F}
        if self.vocab is not None:
            axes["vocabulary"] = self.V
        for what, size in axes.items():
            require(
                size in limits.COUNT,
                f"model: the {what} axis would be {size:,} wide; must be below 2^31: lower its parts",
            )

    @property
    def K(self) -> int:
        return self.kv_heads or self.heads

    @property
    def H(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def F(self) -> int:
        if self.feedforward:
            return self.feedforward
        return 8 * math.ceil(self.width / 3) if self.activation == "swiglu" else 4 * self.width

    @property
    def V(self) -> int:
        require(self.vocab is not None, "model.vocab is not known yet: set it, or give a tokenizer")
        return self.vocab_multiple * math.ceil(self.vocab / self.vocab_multiple)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Each layer's attention window; None is unlimited."""
        every = self.global_every
        return tuple(None if every and (layer + 1) % every == 0 else self.window for layer in range(self.layers))

    @property
    def layers_by_window(self) -> dict[int | None, int]:
        """How many layers have each window, without a list of them all."""
        unlimited = self.layers // self.global_every if self.global_every else 0
        return {None: unlimited, self.window: self.layers - unlimited}

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


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it becomes tokens."""

    corpus: str = "stdlib"
    """A named corpus (see `lm data list`), or a file, folder or glob of .txt .md .py .jsonl .parquet (.gz .xz .zst)."""
    text_field: str = "text"
    """Field of a .jsonl or .parquet record that holds the text; meta.text is the field text within meta."""
    separator: str = "<|endoftext|>"
    """In plain text files, this string stands between documents; empty: a file is one document."""
    tokenizer: str = "bytes"
    """bytes, chars, words, bpe (the last three built from the training text), a tiktoken name such as gpt2, or a
    path to a saved tokenizer.json."""
    vocab: Annotated[int, Range(least=258, below=2**31, why="256 bytes, end of text and one more make 258")] = 4096
    """Vocabulary entries for words and bpe, the end-of-text token included."""
    validation: Annotated[float, Range(above=0, below=1)] = 0.1
    """Fraction held out: whole documents where there are several, else the end of the text."""
    validation_corpus: str | None = None
    """Validate on this corpus instead of holding out a fraction."""
    packing: bool = False
    """Attention does not cross documents, and positions restart in each."""

    def __post_init__(self):
        check_types(self, "data.")
        require(bool(self.corpus), "data.corpus is empty: name a corpus or a path")


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates. Rates and decay are traced: changing them compiles nothing."""

    name: Literal["adamw", "muon", "lion", "sgd"] = "adamw"
    """muon: orthogonalised momentum on hidden matrices (Jordan et al. 2024) and AdamW on everything else."""
    learning_rate: limits.Positive = 3e-3
    """Peak rate of every leaf, but for muon's matrices."""
    matrix_learning_rate: limits.Positive = 0.02
    """Peak rate of hidden matrices under muon."""
    beta1: limits.BelowOne = 0.9
    """Decay of the first moment (adamw, lion)."""
    beta2: limits.BelowOne = 0.99
    """Decay of the second moment (adamw), of the momentum (lion)."""
    momentum: limits.BelowOne = 0.95
    """Momentum of muon and sgd."""
    newton_schulz: Annotated[int, Range(least=1, most=100)] = 5
    """Newton-Schulz iterations of muon. Fewer than 5 start closer, scaled by the Schatten-4 norm: with 3 a small
    model saves an eighth of its step and learns about as much."""
    epsilon: limits.Positive = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: limits.NotNegative = 0.1
    """Decoupled decay of matrices, times the rate; never of norms, biases or embeddings."""
    clip: limits.MaybePositive = 1.0
    """Largest global norm of the gradient; None does not clip."""

    def __post_init__(self):
        check_types(self, "optimizer.")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run, as a fraction of its peak."""

    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """wsd: warm-up, stable, then a linear decay (Hu et al. 2024)."""
    warmup: limits.MaybeLength = "2%"
    """Linear warm-up from zero."""
    decay: limits.MaybeLength = "40%"
    """Length of wsd's final decay."""
    final: limits.Fraction = 0.0
    """Rate at the end, as a fraction of the peak."""

    def __post_init__(self):
        check_types(self, "schedule.")


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, on how much at once, and what to write down."""

    steps: limits.Length = 2000
    """Length of the run."""
    batch: limits.Count = 32
    """B, sequences in an optimizer step."""
    accumulation: limits.Count = 1
    """Split each batch into this many passes, weighted by tokens: the same step in less memory."""
    seed: limits.Seed = 0
    """Everything random is a pure function of this and the step."""
    z_loss: limits.NotNegative = 0.0
    """Coefficient of the squared log-partition (PaLM uses 1e-4); not part of the reported loss."""
    loss_chunk: limits.MaybeCount = None
    """Tokens whose logits exist at once; for large vocabularies. None: all."""
    log_every: limits.Length = 20
    """Between lines of metrics.jsonl."""
    eval_every: limits.Length = "10%"
    """Between evaluations on the fixed validation set, the first before any step; "100%" evaluates the end alone."""
    eval_tokens: limits.Count = 131_072
    """Validation tokens scored each time, the same every time."""
    checkpoint_every: limits.Length = "20%"
    """Between checkpoints; one is always written at the end."""
    keep: limits.Count = 2
    """Latest checkpoints kept, beside the best by validation loss."""
    diverged: Annotated[float, Range(above=1, below=math.inf, why="an untrained model's loss is ln V")] = 2.0
    """Stop when the training loss exceeds this many times ln V."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also send metrics to these (extra `trackers`)."""

    def __post_init__(self):
        check_types(self, "train.")
        require(
            self.batch % self.accumulation == 0,
            f"train.batch {self.batch} is not a multiple of train.accumulation {self.accumulation}",
        )


@dataclass(frozen=True)
class Experiment:
    """Everything about a run."""

    name: str = "run"
    """The run's directory under runs/."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        check_types(self, "")
        require(
            bool(re.fullmatch(r"[\w.+=-]+(/[\w.+=-]+)*", self.name)) and not {".", ".."} & set(self.name.split("/")),
            f"name {self.name!r}: letters, digits and any of . _ - + = (a / makes a subfolder)",
        )
        require(
            self.batch_tokens in limits.COUNT,
            f"train.batch {self.train.batch} x model.context {self.model.context}: {self.batch_tokens:,} tokens in a "
            "step; must be below 2^31",
        )
        require(
            self.optimizer.name != "sgd" or not (self.model.base_width or self.model.base_layers),
            "optimizer.name sgd does not go with model.base_width or model.base_layers: what carries over from a base "
            "shape is known for adamw, lion and muon",
        )

    @property
    def batch_tokens(self) -> int:
        """Tokens predicted in one optimizer step."""
        return self.train.batch * self.model.context

    def steps(self, epoch_tokens: int) -> "Steps":
        """Every duration in whole optimizer steps, one epoch being `epoch_tokens` tokens."""
        known = dict(batch_tokens=self.batch_tokens, epoch_tokens=epoch_tokens)
        total = max(1, duration_steps(self.train.steps, "train.steps", total=None, **known))
        known["total"] = total
        every = {
            name: max(1, duration_steps(getattr(self.train, name), f"train.{name}", **known))
            for name in ("log_every", "eval_every", "checkpoint_every")
        }
        warmup = duration_steps(self.schedule.warmup, "schedule.warmup", **known)
        decay = duration_steps(self.schedule.decay, "schedule.decay", **known)
        require(warmup <= total, f"schedule.warmup {self.schedule.warmup} is longer than the run's {total} steps")
        return Steps(total=total, warmup=warmup, decay=min(decay, total - warmup), **every)


@dataclass(frozen=True)
class Steps:
    """An experiment's durations in optimizer steps."""

    total: int
    warmup: int
    decay: int
    log_every: int
    eval_every: int
    checkpoint_every: int
