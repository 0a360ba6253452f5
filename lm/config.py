"""Experiment: one frozen tree of dataclasses that says everything about a run.

Each part checks itself where it is made and says what would be right. Nothing here imports JAX, so reading a
configuration, printing help and refusing a typo are instant.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from lm.errors import require
from lm.typed import check_types

# --- durations -------------------------------------------------------------------------------------------------------
Duration = int | str
"""2000, "2000 steps", "5M tokens", "3 epochs" or "10%" (of the run)."""

_DURATION = re.compile(
    r"\s*([0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?(?:e[0-9]{1,2})?)\s*([kKMGB]?)\s*(%|steps?|tokens?|epochs?)?\s*"
)
_SCALE = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}


def parse_duration(value: Duration, name: str = "duration") -> tuple[float, str]:
    """A duration as (amount, unit), the unit one of steps, tokens, epochs, %."""
    match = _DURATION.fullmatch(str(value))
    require(match is not None, f"{name} {value!r}: expected steps (2000), tokens (5M tokens), epochs (2 epochs) or 5%")
    number, scale, unit = match.groups()
    unit = "steps" if unit is None else unit if unit == "%" else unit.rstrip("s") + "s"
    return float(number) * _SCALE[scale], unit


def duration_steps(value: Duration, name: str, *, batch_tokens: int, epoch_tokens: int, total: int | None) -> int:
    """A duration in whole optimizer steps, rounded to the nearest; a percentage is of `total` steps."""
    amount, unit = parse_duration(value, name)
    if unit == "%":
        require(total is not None, f"{name} {value!r}: a percentage needs a total; give steps, tokens or epochs")
        return round(amount / 100 * total)
    tokens = {"steps": batch_tokens, "tokens": 1, "epochs": epoch_tokens}[unit]
    return round(amount * tokens / batch_tokens)


# --- the parts -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only transformer. Axis letters are those of the glossary in the README."""

    layers: int = 4
    """L, number of blocks."""
    width: int = 128
    """D, width of the residual stream."""
    heads: int = 4
    """N, query heads."""
    kv_heads: int | None = None
    """K, key/value heads: None is N (multi-head), 1 is multi-query, between is grouped-query."""
    head_width: int | None = None
    """H, width of one head; None is D / N."""
    feedforward: int | None = None
    """F, feed-forward width; None is 4 D, or 8/3 D rounded up to a multiple of 8 for swiglu."""
    context: int = 256
    """T, tokens in a training sequence and the longest the model reads at once."""
    vocab: int | None = None
    """Vocabulary entries; None takes the tokenizer's."""
    vocab_multiple: int = 8
    """V is the vocabulary padded to a multiple of this; padding is never predicted."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Normalisation before attention, before the feed-forward layer and before the head."""
    norm_epsilon: float = 1e-5
    """Added to the variance inside every norm."""
    bias: bool = False
    """Biases in projections and layer norms (GPT-2 has them)."""
    positions: Literal["rotary", "learned", "sinusoidal", "none"] = "rotary"
    """How tokens know their place."""
    rotary_base: float = 10_000.0
    """Longest rotary wavelength, in units of 2 pi tokens."""
    activation: Literal["gelu", "gelu_exact", "relu", "relu2", "swiglu"] = "relu2"
    """Feed-forward nonlinearity; gelu is the tanh form, gelu_exact the erf form, relu2 is relu squared."""
    window: int | None = None
    """Tokens a position attends to, itself included (sliding window); None is all before it."""
    global_every: int | None = None
    """With a window: every n-th layer attends to everything."""
    qk_norm: bool = True
    """RMS-normalise queries and keys per head."""
    value_residual: bool = False
    """Mix each layer's values with the first layer's, in learned proportions."""
    tied: bool = False
    """Use the embedding as the output head."""
    embedding_norm: bool = False
    """RMS-normalise the embedding before the first block."""
    logit_softcap: float | None = None
    """Squash logits to (-c, c) by c tanh(x / c)."""
    dropout: float = 0.0
    """Probability of zeroing, on the embedding and on what each half-block adds."""
    zero_init: bool = True
    """Start output projections, and an untied head, at zero."""
    remat: bool = False
    """Recompute each block's activations in the backward pass: less memory, about a third more FLOPs."""
    unroll: int | None = None
    """Blocks written out per iteration of the scan over layers: more is faster to run, slower to compile. None: all of
    up to 8 on a CPU, else one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype of matrix products; auto is bfloat16 on accelerators and float32 on CPU."""
    base_width: int | None = None
    """Width at which rates, decay and Adam's epsilon were chosen: CompleteP (lm/model/parametrization.py) carries them
    over to this one. None: nothing is scaled with the width."""
    base_head_width: int | None = None
    """H at the base width, where heads widen with the model; None where a wider model has more of them instead."""
    base_layers: int | None = None
    """Layers at which they were chosen; None: nothing is scaled with the depth."""
    attention: Literal["auto", "plain", "cudnn"] = "auto"
    """How whole sequences attend: plain (XLA, by blocks of queries), cudnn (its fused kernel, on NVIDIA GPUs, in
    bfloat16, without a window or packed documents), or auto: cudnn where it can be and pays."""

    def __post_init__(self):
        check_types(self, "model.")
        for name in ("layers", "width", "heads", "context", "vocab_multiple"):
            require(getattr(self, name) >= 1, f"model.{name} {getattr(self, name)}: must be at least 1")
        for name in (
            "kv_heads", "head_width", "feedforward", "vocab", "window", "global_every", "logit_softcap", "base_width",
            "base_head_width", "base_layers", "unroll",
        ):  # fmt: skip
            value = getattr(self, name)
            require(value is None or value > 0, f"model.{name} {value}: must be positive, or None")
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
        require(0 <= self.dropout < 1, f"model.dropout {self.dropout}: must be at least 0 and below 1")
        for name in ("norm_epsilon", "rotary_base"):
            require(getattr(self, name) > 0, f"model.{name} {getattr(self, name)}: must be positive")
        require(
            self.global_every is None or self.window is not None,
            f"model.global_every {self.global_every} needs model.window: without a window every layer is global",
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
    vocab: int = 4096
    """Vocabulary entries for words and bpe, the end-of-text token included."""
    validation: float = 0.1
    """Fraction held out: whole documents where there are several, else the end of the text."""
    validation_corpus: str | None = None
    """Validate on this corpus instead of holding out a fraction."""
    packing: bool = False
    """Attention does not cross documents, and positions restart in each."""

    def __post_init__(self):
        check_types(self, "data.")
        require(bool(self.corpus), "data.corpus is empty: name a corpus or a path")
        require(self.vocab >= 258, f"data.vocab {self.vocab}: 256 bytes, end of text and at least one more make 258")
        require(0 < self.validation < 1, f"data.validation {self.validation}: a fraction between 0 and 1, such as 0.1")


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates. Rates and decay are traced: changing them compiles nothing."""

    name: Literal["adamw", "muon", "lion", "sgd"] = "adamw"
    """muon: orthogonalised momentum on hidden matrices (Jordan et al. 2024) and AdamW on everything else."""
    learning_rate: float = 3e-3
    """Peak rate of every leaf, but for muon's matrices."""
    matrix_learning_rate: float = 0.02
    """Peak rate of hidden matrices under muon."""
    beta1: float = 0.9
    """Decay of the first moment (adamw, lion)."""
    beta2: float = 0.99
    """Decay of the second moment (adamw), of the momentum (lion)."""
    momentum: float = 0.95
    """Momentum of muon and sgd."""
    newton_schulz: int = 5
    """Newton-Schulz iterations of muon. Fewer than 5 start closer, scaled by the Schatten-4 norm: with 3 a small
    model saves an eighth of its step and learns about as much."""
    epsilon: float = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices, times the rate; never of norms, biases or embeddings."""
    clip: float | None = 1.0
    """Largest global norm of the gradient; None does not clip."""

    def __post_init__(self):
        check_types(self, "optimizer.")
        for name in ("learning_rate", "matrix_learning_rate", "epsilon"):
            value = getattr(self, name)
            require(value > 0, f"optimizer.{name} {value}: must be positive")
        for name in ("beta1", "beta2", "momentum"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name} {value}: must be at least 0 and below 1")
        require(self.newton_schulz >= 1, f"optimizer.newton_schulz {self.newton_schulz}: must be at least 1")
        require(self.weight_decay >= 0, f"optimizer.weight_decay {self.weight_decay}: must not be negative")
        require(self.clip is None or self.clip > 0, f"optimizer.clip {self.clip}: must be positive, or None")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run, as a fraction of its peak."""

    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """wsd: warm-up, stable, then a linear decay (Hu et al. 2024)."""
    warmup: Duration = "2%"
    """Linear warm-up from zero."""
    decay: Duration = "40%"
    """Length of wsd's final decay."""
    final: float = 0.0
    """Rate at the end, as a fraction of the peak."""

    def __post_init__(self):
        check_types(self, "schedule.")
        parse_duration(self.warmup, "schedule.warmup")
        parse_duration(self.decay, "schedule.decay")
        require(0 <= self.final <= 1, f"schedule.final {self.final}: a fraction between 0 and 1")


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, on how much at once, and what to write down."""

    steps: Duration = 2000
    """Length of the run."""
    batch: int = 32
    """B, sequences in an optimizer step."""
    accumulation: int = 1
    """Split each batch into this many passes, weighted by tokens: the same step in less memory."""
    seed: int = 0
    """Everything random is a pure function of this and the step."""
    z_loss: float = 0.0
    """Coefficient of the squared log-partition (PaLM uses 1e-4); not part of the reported loss."""
    loss_chunk: int | None = None
    """Tokens whose logits exist at once; for large vocabularies. None: all."""
    log_every: Duration = 20
    """Between lines of metrics.jsonl."""
    eval_every: Duration = "10%"
    """Between evaluations on the fixed validation set, the first before any step; "100%" evaluates the end alone."""
    eval_tokens: int = 131_072
    """Validation tokens scored each time, the same every time."""
    checkpoint_every: Duration = "20%"
    """Between checkpoints; one is always written at the end."""
    keep: int = 2
    """Latest checkpoints kept, beside the best by validation loss."""
    diverged: float = 2.0
    """Stop when the training loss exceeds this many times ln V."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also send metrics to these (extra `trackers`)."""

    def __post_init__(self):
        check_types(self, "train.")
        for name in ("batch", "accumulation", "eval_tokens", "keep"):
            require(getattr(self, name) >= 1, f"train.{name} {getattr(self, name)}: must be at least 1")
        for name in ("steps", "log_every", "eval_every", "checkpoint_every"):
            amount, _ = parse_duration(getattr(self, name), f"train.{name}")
            require(amount > 0, f"train.{name} {getattr(self, name)}: must be positive")
        for name in ("seed", "z_loss"):
            require(getattr(self, name) >= 0, f"train.{name} {getattr(self, name)}: must not be negative")
        require(self.loss_chunk is None or self.loss_chunk > 0, f"train.loss_chunk {self.loss_chunk}: must be positive")
        require(
            self.batch % self.accumulation == 0,
            f"train.batch {self.batch} is not a multiple of train.accumulation {self.accumulation}",
        )
        require(
            self.diverged > 1, f"train.diverged {self.diverged}: must be above 1, an untrained model's loss is ln V"
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
