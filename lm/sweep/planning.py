"""Plan a sweep: which models and token counts, within a budget, will tell most about the scaling law.

Every size is one trunk (warm-up, then a constant rate) with a cooldown branch at each token count, so that its shorter
models cost little. Rows lie on lines of equal compute C, C/2, C/4 ..., within limits on tokens per parameter, steps and
text: one design serves isoFLOP fits and parametric ones. What is chosen is the range of sizes and the largest C: of the
designs that spend the budget, the one whose predicted error is smallest.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from lm import scaling
from lm.config import Experiment, ModelBase, duration_steps
from lm.errors import UserError, require
from lm.model.api import build
from lm.scaling.chinchilla import Chinchilla
from lm.settings import to_dict
from lm.sweep import precision
from lm.sweep.design import Design, Row, shape
from lm.sweep.grids import from_design

WIDTHS = (16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
BATCH_TOKENS, BATCH_AT, BATCH_EXPONENT = 2048, 1e6, 0.38
"""A batch of 2,048 tokens for a run of a million, growing with the run's tokens as D^0.38 (Bergsma et al. 2025)."""
LARGEST_VOCABULARY = 1024
"""Beyond, embeddings outweigh the rest of tiny models and the law in N breaks."""
OCTAVE, OCTAVES = 8, 12
"""The largest C is sought on a grid with 8 values for each factor of two, down to the whole budget over 2^12."""
BYTES = Chinchilla(E=0.7, A=18.0, B=34.0, alpha=0.35, beta=0.3)
"""Assumed for small models of bytes, in nats: within 5% of what 10 to 165 thousand parameters reached on one and four
million bytes of the stdlib corpus. Too few runs for exponents; that takes a pilot."""
NOISE, SHARED = 0.006, 0.5
"""Assumed standard deviation of ln L between seeds (0.3% to 0.9% in these runs), and how much of its variance branches
of one trunk share."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What every row of a design must keep to."""

    tokens_per_parameter: tuple[float, float] = (15.0, 480.0)
    """Least and most."""
    ratios: tuple[float, ...] = ()
    """Train every size for just these many tokens a parameter, instead of along lines of equal compute."""
    spacing: float | None = None
    """Factor between lines of equal compute; None tries 2 and its root."""
    least_steps: int = 400
    """Shorter runs say more of the warm-up than of the law."""
    cooldown: float = 0.15
    """Fraction of each run's steps."""
    span: float = 64.0
    """Most between the smallest and the largest size: one law over more is much to ask."""
    head_width: int = 16
    """About this wide."""
    batch_tokens: int = BATCH_TOKENS
    """In a step of a run of a million tokens. Smaller: the large sizes reach least_steps at less compute."""

    def __post_init__(self):
        low, high = self.tokens_per_parameter
        require(0 < low <= high < math.inf, f"tokens per parameter {low:g} to {high:g}: the least first, both positive")
        right = all(0 < ratio < math.inf for ratio in self.ratios)
        require(right, f"ratios {self.ratios}: tokens per parameter must be positive")
        right = self.spacing is None or 1 < self.spacing < math.inf
        require(right, f"spacing {self.spacing}: must be above 1, or None")
        require(0 < self.cooldown < 1, f"cooldown {self.cooldown}: a fraction between 0 and 1, such as 0.15")
        require(self.span > 1, f"span {self.span}: must be above 1")
        for name, least in (("least_steps", 1), ("head_width", 2), ("batch_tokens", 1)):
            value = getattr(self, name)
            require(value >= least, f"{name.replace('_', ' ')} {value}: must be at least {least}")


@dataclasses.dataclass(frozen=True)
class Rates:
    """Training FLOP/s measured at a few sizes; between them interpolated in the logarithms."""

    params: tuple[float, ...]
    """Ascending."""
    flops_per_second: tuple[float, ...]
    setup_seconds: float = 0.0
    """Time to compile, once a size."""

    def at(self, params: float) -> float:
        """FLOP/s of a model of so many parameters."""
        known = np.log(self.params), np.log(self.flops_per_second)
        return float(np.exp(np.interp(math.log(params), *known)))


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a sweep may cost; None is without limit."""

    flops: float | None
    seconds: float | None

    def allows(self, rows: Sequence[Row]) -> bool:
        """Whether the rows cost no more."""
        if self.flops is not None and sum(row.flops_added for row in rows) > self.flops:
            return False
        return self.seconds is None or sum(row.seconds for row in rows) <= self.seconds

    def most_flops(self, rates: Rates | None) -> float:
        """The FLOPs that no sweep within the budget exceeds."""
        in_time = math.inf if self.seconds is None else self.seconds * max(rates.flops_per_second)
        return min(in_time, math.inf if self.flops is None else self.flops)

    def __str__(self) -> str:
        parts = [f"{self.flops:.3g} FLOPs"] if self.flops else []
        return " and ".join(parts + ([f"{self.seconds / 60:.3g} minutes"] if self.seconds else []))


# --- sizes -----------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Size:
    """A model of the design."""

    layers: int
    width: int
    heads: int
    params_total: int
    params_nonembedding: int
    flops: float
    """Exact training FLOPs of a token."""


def layers_of(width: int) -> int:
    """2 layers up to D=48, 4 at 80, 8 at 256, 12 at 768: slower than the width."""
    return max(2, min(width // 20, 6 + width // 128))


def size(base: ModelBase, width: int, layers: int | None = None, head_width: int = 16) -> Size:
    """The base model with another width, heads of about head_width and a feed-forward layer of the default width."""
    layers, heads = layers or layers_of(width), max(1, round(width / head_width))
    while width % heads or ((width // heads) % 2 and heads > 1):
        heads -= 1
    changes = {key.removeprefix("model."): value for key, value in shape(base, layers, width, heads).items()}
    c = dataclasses.replace(base, **changes)
    total, nonembedding = build(c).parameter_count()
    return Size(
        layers=layers, width=width, heads=heads, params_total=total, params_nonembedding=nonembedding,
        flops=build(c).cost().training_flops,
    )  # fmt: skip


def affordable_sizes(base: ModelBase, flops: float, rules: Rules) -> list[Size]:
    """Sizes of which the shortest run costs at most the whole budget."""
    least = min(rules.ratios, default=rules.tokens_per_parameter[0])
    sizes = (size(base, width, head_width=rules.head_width) for width in WIDTHS)
    return list(itertools.takewhile(lambda s: least * s.params_total * s.flops <= flops, sizes))


def batch_of(tokens: float, context: int, batch_tokens: int = BATCH_TOKENS) -> int:
    """Sequences in a step of a run of so many tokens; batch_tokens: tokens in a step where the run has a million."""
    return max(1, round(batch_tokens * (tokens / BATCH_AT) ** BATCH_EXPONENT / context))


# --- rows ------------------------------------------------------------------------------------------------------------
def trunk_rows(
    s: Size, top: float, e: Experiment, rules: Rules, corpus_tokens: int | None, rates: Rates | None
) -> list[Row]:
    """A size's rows of at most `top` FLOPs, shortest first. The batch is that of the middle of its token counts."""
    T, most = e.model.context, corpus_tokens or math.inf
    wanted = [tokens for tokens in _token_counts(s, top, rules) if tokens <= most]
    while wanted:
        batch = batch_of(math.exp(np.mean(np.log(wanted))), T, rules.batch_tokens)
        if int(wanted[0] / (batch * T)) >= rules.least_steps:
            break
        wanted.pop(0)
    rows, before, name = [], 0, f"d{s.width}-l{s.layers}"
    for tokens in wanted:
        steps = int(tokens / (batch * T))
        cooldown = max(1, round(rules.cooldown * steps))
        branch = steps - cooldown
        added = (branch - before + cooldown) * batch * T * s.flops
        seconds = None
        if rates:
            evaluation = e.train.eval_tokens * s.flops / 3
            seconds = (added + evaluation) / rates.at(s.params_total) + (rates.setup_seconds if before == 0 else 0)
        rows.append(Row(
            name=f"{name}-{steps}", trunk=name, layers=s.layers, width=s.width, heads=s.heads,
            params_total=s.params_total, params_nonembedding=s.params_nonembedding, batch=batch, steps=steps,
            branch_step=branch, cooldown_steps=cooldown, tokens=steps * batch * T, flops=steps * batch * T * s.flops,
            flops_added=added, seconds=seconds,
        ))  # fmt: skip
        before = branch
    return rows


def _token_counts(s: Size, top: float, rules: Rules) -> list[float]:
    """Ascending: along lines of equal compute from `top` down, or at fixed tokens per parameter."""
    if rules.ratios:
        return [ratio * s.params_total for ratio in sorted(rules.ratios) if ratio * s.params_total * s.flops <= top]
    low, high = (ratio * s.params_total for ratio in rules.tokens_per_parameter)
    lines = max(1, math.ceil(math.log(max(top / s.flops / low, 1), rules.spacing)) + 1)
    counts = [top / s.flops / rules.spacing**line for line in reversed(range(lines))]
    return [tokens for tokens in counts if low <= tokens <= high]


# --- the plan --------------------------------------------------------------------------------------------------------
def plan(
    e: Experiment, *, flops: float | None = None, seconds: float | None = None, rates: Rates | None = None,
    corpus_tokens: int | None = None, sizes: Sequence[Size] = (), rules: Rules | None = None,
    law: Chinchilla = BYTES, law_from: str = "assumed", noise: float = NOISE, shared_noise: float = SHARED,
    target: float | None = None,
) -> Design:  # fmt: skip
    """The most telling design within a budget of FLOPs or of seconds at measured rates, or of both.

    e: what all rows have in common, its vocabulary known. corpus_tokens: of one epoch; no row sees more. sizes: these
    alone, instead of the rule's. target: FLOPs of a compute-optimal model; then the error of predicting its loss is
    made smallest, otherwise that of a = beta / (alpha + beta), and four times the largest row is extrapolated to.
    Raises UserError when nothing affordable determines the law, and says why: too little budget, too short a text,
    sizes or tokens per parameter that do not vary.
    """
    rules, budget = rules or Rules(), Budget(flops, seconds)
    _check(e, budget, sizes, rates, noise=noise, shared_noise=shared_noise, target=target)
    expect = functools.partial(Expectation, law=law, noise=noise, shared_noise=shared_noise, target=target)
    best, least, refused = None, math.inf, (0, "")
    for rows in _candidates(e, budget, sizes, rules, corpus_tokens, rates):
        expected = expect(rows)
        if why := precision.obstacle(law, *expected.points()):
            refused = max(refused, (len(rows), why))
        elif (error := expected.error()) < least:
            best, least = expected, error
    if best is None:
        count, why = refused
        text = f" and one epoch of {corpus_tokens:,} tokens" if corpus_tokens else ""
        found = f"of {count} points, collinear: {why}" if count else "empty; raise the budget, or give more text"
        limits = f"within {budget}, with at least {rules.least_steps} steps{text}"
        raise UserError(f"no design {limits} determines the law: the largest is {found}")
    design = best.design(e, law_from, corpus_tokens)
    _check_trainable(e, design)
    return design


def _check(e: Experiment, budget: Budget, sizes: Sequence[Size], rates: Rates | None, **numbers) -> None:
    flops, seconds, shared = budget.flops, budget.seconds, numbers["shared_noise"]
    require(flops is not None or seconds is not None, "which budget? Give --minutes 15 or --flops 1e13")
    require(seconds is None or rates is not None, "a budget of time needs a rate: measure it, or give --rate FLOP/s")
    positive = {"flops": flops, "seconds": seconds, "noise": numbers["noise"], "target": numbers["target"]}
    for name, value in positive.items():
        require(value is None or 0 < value < math.inf, f"{name} {value}: must be positive")
    require(0 <= shared < 1, f"shared noise {shared}: a fraction of the variance, at least 0 and below 1")
    names = [(s.width, s.layers) for s in sizes]
    require(len(set(names)) == len(names), f"sizes {names}: one is given twice")
    if why := unplannable(e):
        raise UserError(why)


def unplannable(e: Experiment) -> str | None:
    """Why no sweep of this experiment's model over sizes can be planned, as far as its settings say; None if it can.

    The vocabulary is what its settings say it is; where they leave that to the text, it is known once that was read.
    """
    known = e.model.vocab or {"bytes": 257, "bpe": e.data.vocab}.get(e.data.tokenizer, 0)
    if known > LARGEST_VOCABULARY:
        return (
            f"a vocabulary of {known:,} is too large for models this small: their embeddings would outweigh the rest; "
            f"use at most {LARGEST_VOCABULARY:,}: --data.tokenizer bytes, or bpe with --data.vocab {LARGEST_VOCABULARY}"
        )
    if e.schedule.context_start is not None:
        return (
            f"schedule.context_start {e.schedule.context_start}: a plan counts on whole windows; give "
            "--schedule.context-start None"
        )
    if e.train.accumulation > 1:
        return f"train.accumulation {e.train.accumulation}: a plan chooses its batches; give --train.accumulation 1"
    return None


def _candidates(
    e: Experiment, budget: Budget, sizes: Sequence[Size], rules: Rules, corpus_tokens: int | None, rates: Rates | None
) -> Iterator[list[Row]]:
    """For each spacing and range of sizes, the designs whose largest C is within an octave of what the budget allows.

    Within the octave because the lines fall differently on the limits in tokens; below it less is spent, and learnt.
    """
    most = budget.most_flops(rates)
    chosen = sorted(sizes or affordable_sizes(e.model, most, rules), key=lambda s: s.params_total)
    ranges = [slice(None)] if sizes else list(_ranges(chosen, rules.span))
    tops = [most / 2 ** (i / OCTAVE) for i in range(OCTAVES * OCTAVE)]
    for spacing in (rules.spacing,) if rules.spacing or rules.ratios else (2.0, math.sqrt(2)):
        spaced = dataclasses.replace(rules, spacing=spacing)
        trunks = [[trunk_rows(s, top, e, spaced, corpus_tokens, rates) for s in chosen] for top in tops]
        for some in ranges:
            designs = ([row for rows in by_size[some] for row in rows] for by_size in trunks)
            yield from itertools.islice(filter(budget.allows, designs), OCTAVE)


def _ranges(sizes: Sequence[Size], span: float) -> Iterator[slice]:
    """At least three neighbouring sizes, the largest at most `span` times the smallest."""
    for first in range(len(sizes)):
        for end in range(first + 3, len(sizes) + 1):
            if sizes[end - 1].params_total <= span * sizes[first].params_total:
                yield slice(first, end)


def _check_trainable(e: Experiment, design: Design) -> None:
    """Refuse a warm-up that is not over where the first branch of a trunk begins."""
    for row, made in zip(design.rows, from_design(e, design), strict=True):
        steps = duration_steps(
            made.schedule.warmup, "schedule.warmup", batch_tokens=made.batch_tokens,
            epoch_tokens=design.corpus_tokens or row.tokens, total=row.steps,
        )  # fmt: skip
        require(
            steps <= row.branch_step,
            f"schedule.warmup {e.schedule.warmup} is {steps} steps, and the run of {row.steps} steps would decay from "
            f"step {row.branch_step} on: give a shorter --schedule.warmup",
        )


@dataclasses.dataclass(frozen=True)
class Expectation:
    """What rows are expected to tell of a law, with the noise between seeds and within trunks."""

    rows: list[Row]
    law: Chinchilla
    noise: float
    shared_noise: float
    target: float | None

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """N and D of the rows."""
        return tuple(np.array([[row.params_total, row.tokens] for row in self.rows], float).reshape(-1, 2).T)

    def covariance(self) -> np.ndarray:
        """Covariance of the law's parameters as fitted to the rows, [5, 5]."""
        trunks = np.array([row.trunk for row in self.rows])
        return precision.covariance(self.law, *self.points(), self.noise, trunks, self.shared_noise)

    def optimum(self, flops: float) -> tuple[float, float]:
        """N and D of the lowest loss, at the FLOPs a parameter and token that the largest size has (6 and more)."""
        largest = max(self.rows, key=lambda row: row.params_total)
        return self.law.optimum(flops, largest.flops / largest.params_total / largest.tokens)

    def error(self) -> float:
        """The standard error that the design is to make small."""
        V = self.covariance()
        if self.target is None:
            return precision.standard_errors(self.law, V)["a"]
        return precision.prediction_error(self.law, V, *self.optimum(self.target))

    def design(self, e: Experiment, law_from: str, corpus_tokens: int | None) -> Design:
        """The design, with predictions, totals and what to beware of."""
        rows, law, V = self.rows, self.law, self.covariance()
        errors = precision.standard_errors(law, V)
        target = self.target or 4 * max(row.flops for row in rows)
        N, D = self.optimum(target)
        ahead = dict(flops=target, params=N, tokens=D, loss=float(law.loss(N, D)))
        ahead["error"] = precision.prediction_error(law, V, N, D)
        return Design(
            experiment=to_dict(e), rows=tuple(rows), law=law, law_from=law_from, noise=self.noise,
            shared_noise=self.shared_noise, standard_errors=errors, condition=precision.condition(law, *self.points()),
            target=ahead, corpus_tokens=corpus_tokens, flops=sum(row.flops_added for row in rows),
            flops_without_trunks=sum(row.flops for row in rows),
            seconds=None if rows[0].seconds is None else sum(row.seconds for row in rows),
            warnings=tuple(self._warnings(law_from, errors["a"], ahead["tokens"], corpus_tokens)),
        )  # fmt: skip

    def _warnings(self, law_from: str, error: float, tokens: float, corpus_tokens: int | None) -> Iterator[str]:
        if law_from == "assumed":
            first = "train the cheapest rows first, then plan again with --pilot points.csv"
            yield f"law and noise are assumptions: {first}"
        if error > 0.1:
            yield f"a will be known to +-{error:.2f} only: raise the budget, or repeat rows with other seeds"
        sizes = [row.params_total for row in self.rows]
        N, _ = self.optimum(max(row.flops for row in self.rows))
        if not min(sizes) < N < max(sizes):
            optimum = f"the optimum of the largest compute, {N:,.0f} parameters"
            yield f"{optimum}, lies outside the sizes: no valley around it"
        if corpus_tokens and tokens > corpus_tokens:
            yield f"the extrapolation wants {tokens:,.0f} tokens, more than one epoch of {corpus_tokens:,}"


# --- from a pilot ----------------------------------------------------------------------------------------------------
def pilot_law(path) -> dict:
    """The law and the noise of points already trained, as `plan` takes them: law, law_from and noise.

    noise: the residuals' standard deviation in ln L. Raises UserError where the points do not determine a law.
    """
    points = scaling.read_points(path)
    law = Chinchilla(**scaling.fit(points, "chinchilla", bootstraps=0).values())
    return {"law": law, "law_from": f"fitted to {path}", "noise": residual_noise(law, points)}


def residual_noise(law: Chinchilla, points) -> float:
    """Standard deviation of ln L about the law, of five parameters."""
    n = len(points.loss)
    require(n > 5, f"{n} points leave no residual of a law with 5 parameters; give --noise")
    r = np.log(points.loss) - np.log(law.loss(points.params, points.tokens))
    return float(np.sqrt(np.sum(r**2) / (n - 5)))
