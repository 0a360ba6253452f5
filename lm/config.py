"""Experiment: one frozen tree of dataclasses that says everything about a run.

Each part checks itself where it is made and says what would be right. Nothing here imports JAX, so reading a
configuration, printing help and refusing a typo are instant.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from lm import limits
from lm.architectures import EncoderConfig as EncoderConfig
from lm.architectures import ModelBase, ModelConfig
from lm.architectures import RecurrentConfig as RecurrentConfig  # public names of this module
from lm.architectures import register as register
from lm.errors import require
from lm.limits import Range, duration_steps
from lm.limits import parse_duration as parse_duration
from lm.typed import check_types, shown


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it becomes tokens."""

    corpus: str = "stdlib"
    """A named corpus (see `lm data list`), or a file, folder or glob of .txt .md .py .jsonl .parquet (.gz .xz .zst)."""
    examples: str | None = None
    """A file of examples (.tsv .csv .jsonl .parquet .npz) to learn from, instead of a corpus."""
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
    """Attention does not cross documents, and positions restart in each. Of examples, chats alone: several to a row."""
    template: str | None = None
    """What writes examples as chats: plain, or a file of Jinja as models come with; recorded as its text. None: chats
    by the template that came with the tokenizer, or else plain; other examples by none."""
    learn_prompts: bool = False
    """Of examples, learn what is shown too, instead of the answers alone."""

    def __post_init__(self):
        check_types(self, "data.")
        require(bool(self.corpus), "data.corpus is empty: name a corpus or a path")

    @property
    def learnt(self) -> str:
        """What is learnt: the file of examples, or the corpus."""
        return self.corpus if self.examples is None else self.examples


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
    lora: limits.MaybeCount = None
    """Train adapters of this rank beside the hidden matrices of train.start, and nothing else (Hu et al. 2021)."""
    lora_alpha: limits.Positive = 16.0
    """The adapters' product is added times this over their rank."""

    def __post_init__(self):
        check_types(self, "optimizer.")


@dataclass(frozen=True)
class ScheduleConfig:
    """What changes over the run: the learning rate, as a fraction of its peak, and the length of windows."""

    name: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """wsd: warm-up, stable, then a linear decay (Hu et al. 2024)."""
    warmup: limits.MaybeLength = "2%"
    """Linear warm-up from zero."""
    decay: limits.MaybeLength = "40%"
    """Length of wsd's final decay."""
    final: limits.Fraction = 0.0
    """Rate at the end, as a fraction of the peak."""
    context_start: limits.MaybeCount = None
    """Tokens in the first windows: model.context divided by a power of two. Short windows cost less, and a step has as
    many more of them. None: whole ones from the beginning."""
    context_growth: limits.Length = "50%"
    """Length of their growth from context_start: windows double at equal intervals, and are whole from there on."""

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
    start: str | None = None
    """Begin with the parameters of this run, as far as both models have them, or with the vectors of this file for the
    words that both know (word2vec's format: .txt .vec .bin, also .gz)."""
    objective: Literal["next_token", "masked", "preference", "reward", "policy"] = "next_token"
    """next_token: predict what follows, from what is before it and from an example's source; masked: tell hidden tokens
    from both sides (Devlin et al. 2019), with model.mask full and a mask_token. After pretraining, of examples:
    preference: prefer chosen to rejected answers (DPO); reward: tell them apart by a reward (Bradley-Terry); policy:
    draw answers to prompts and make those likelier that feedback.reward likes."""
    label_smoothing: limits.BelowOne = 0.0
    """Share of the target that is spread over the vocabulary (Szegedy et al. 2016), or of preferences that are counted
    the other way round; not part of the reported loss."""
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
class FeedbackConfig:
    """What a model is told of its answers, by preferences or by rewards."""

    beta: limits.Positive = 0.1
    """Weight of the divergence from the reference, in rewards a nat."""
    reference: str | None = None
    """The run whose answers are the measure; None: train.start."""
    per_token: bool = False
    """Preferences by log-ratios a token instead of a text."""
    reward: str | None = None
    """What answers are worth to a policy: FILE.py:NAME, a function of prompt, answer or target that returns a number,
    or a run that learnt rewards."""
    group: Annotated[int, Range(least=2, below=2**31, why="an answer is compared with the others to its prompt")] = 8
    """Answers drawn to each prompt, which are compared with each other. train.batch is a multiple."""
    max_tokens: limits.Count = 64
    """Tokens of an answer at most."""
    updates: limits.Count = 1
    """Steps made with the same answers; train.steps, and what is logged, evaluated or saved, come at multiples."""
    clip: limits.Positive = 0.2
    """How far the ratio of a token's probability to that it was drawn with may go from 1 before it counts no more."""

    def __post_init__(self):
        check_types(self, "feedback.")


@dataclass(frozen=True)
class ParallelConfig:
    """How many devices compute together, and what each holds. Changes no number that is learnt but by rounding."""

    data: limits.MaybeCount = None
    """Devices that a batch's rows are spread over, or a pack's runs; None: all there are."""
    model: limits.Count = 1
    """Devices that every matrix is spread over, by its hidden values, heads or vocabulary."""
    fsdp: bool = False
    """Spread parameters, gradients and optimizer over parallel.data too; each layer is gathered where it is used."""

    def __post_init__(self):
        check_types(self, "parallel.")

    @property
    def cuts_parameters(self) -> bool:
        """Whether no device holds a run whole."""
        return self.fsdp or self.model > 1


ONE_DEVICE = ParallelConfig(data=1)


USED_BY = {
    "optimizer.matrix_learning_rate": ("optimizer.name", {"muon"}),
    "optimizer.newton_schulz": ("optimizer.name", {"muon"}),
    "optimizer.momentum": ("optimizer.name", {"muon", "sgd"}),
    "optimizer.beta1": ("optimizer.name", {"adamw", "lion", "muon"}),
    "optimizer.beta2": ("optimizer.name", {"adamw", "lion", "muon"}),
    "optimizer.epsilon": ("optimizer.name", {"adamw", "muon"}),
    "schedule.decay": ("schedule.name", {"wsd"}),
    "schedule.final": ("schedule.name", {"cosine", "linear", "wsd"}),
    "data.vocab": ("data.tokenizer", {"words", "bpe"}),
}  # fmt: skip
"""Settings that only some choices of another have a use for."""


@dataclass(frozen=True)
class Experiment:
    """Everything about a run."""

    name: str = "run"
    """The run's directory under runs/."""
    model: ModelBase = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self):
        registered = isinstance(self.model, ModelBase) and "architecture" in vars(type(self.model))
        require(registered, f"model {shown(self.model)}: expected ModelConfig, or another class that is registered")
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
        self._check_objective()
        self._check_feedback()
        self._check_context()
        require(
            self.optimizer.name != "sgd" or not (self.model.base_width or self.model.base_layers),
            "optimizer.name sgd does not go with model.base_width or model.base_layers: what carries over from a base "
            "shape is known for adamw, lion and muon",
        )

    def _check_objective(self) -> None:
        """Refuse an objective that the model cannot learn by, and a model that the data have nothing for."""
        m, masked = self.model, self.train.objective == "masked"
        require(
            not masked or (m.mask == "full" and m.mask_token and self.data.examples is None),
            'train.objective masked: needs model.mask "full", model.mask_token and a corpus instead of data.examples',
        )
        require(
            masked or m.mask != "full",
            "model.mask full: a model that reads both ways would read the token it is to predict; give train.objective "
            "masked, or model.mask prefix",
        )
        sourced = [name for name in ("encoder", "vectors") if getattr(m, name) is not None]
        require(
            not sourced or self.data.examples is not None,
            f"model.{' and '.join(sourced)}: nothing in a corpus is a source; give data.examples",
        )

    def _check_feedback(self) -> None:
        """Refuse what does not go with feedback, and adapters of nothing."""
        t, f, objective = self.train, self.feedback, self.train.objective
        require(
            self.optimizer.lora is None or t.start is not None,
            f"optimizer.lora {self.optimizer.lora}: adapters change a model that is there; give train.start RUN",
        )
        if objective not in ("preference", "reward", "policy"):
            return
        plain = self.model.encoder is None and self.model.vectors is None and self.model.mask == "causal"
        require(plain, f"train.objective {objective}: for models that read text alone, with model.mask causal")
        require(
            not self.data.packing, f"train.objective {objective}: its examples are a row each; leave data.packing out"
        )
        if objective == "policy":
            parts = f.group * t.accumulation
            require(
                t.batch % parts == 0,
                f"train.batch {t.batch}: must be a multiple of feedback.group x train.accumulation, {parts}",
            )
            context = self.model.context
            require(
                f.max_tokens < context,
                f"feedback.max_tokens {f.max_tokens}: must leave room for a prompt in model.context {context}",
            )

    def _check_context(self) -> None:
        """Refuse a schedule of context that windows cannot be cut by."""
        T, start = self.model.context, self.schedule.context_start
        if start is None:
            return
        pieces, rest = divmod(T, start)
        require(
            rest == 0 and pieces.bit_count() == 1,
            f"schedule.context_start {start}: must be model.context {T} divided by a power of two",
        )
        require(
            self.data.examples is None,
            f"schedule.context_start {start}: data.examples have rows of their own length; leave it out",
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
        if self.train.objective == "policy":
            odd = [f"train.{name}" for name, n in {"steps": total, **every}.items() if n % self.feedback.updates]
            told = f"feedback.updates {self.feedback.updates}: {', '.join(odd)} must be a multiple of it, in steps"
            require(not odd, told)
        growth, told = 0, self.schedule.context_growth
        if self.schedule.context_start is not None:
            growth = duration_steps(told, "schedule.context_growth", **known)
        require(growth <= total, f"schedule.context_growth {told} is longer than the run's {total} steps")
        return Steps(total=total, warmup=warmup, decay=min(decay, total - warmup), growth=growth, **every)


@dataclass(frozen=True)
class Steps:
    """An experiment's durations in optimizer steps."""

    total: int
    warmup: int
    decay: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    growth: int = 0
    """Of the context; runs from before there was such a schedule do not record it."""
