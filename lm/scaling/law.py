"""A fitted law: what it says, how far to trust it, and what it predicts."""

import dataclasses
import math
from typing import Any

import numpy as np
from scipy.special import stdtrit

from lm.errors import require
from lm.scaling.laws import Form, evaluate, form_of
from lm.scaling.points import Points
from lm.scaling.problem import Problem


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value, its standard error, and the ends of its interval; an end the points do not bound is infinite (or 0)."""

    value: float
    se: float | None
    low: float | None
    high: float | None


TAILS = 5.0
"""Degrees of freedom of the errors of hold-outs, and the most that the quantile takes: cuts overlap, so many are not as
many."""


@dataclasses.dataclass(frozen=True)
class HoldOuts:
    """What rolling hold-outs of a law's points say, or `why` there are none.

    cuts: one dict a cut: flops, fitted and predicted (numbers of points), furthest (times the cut's compute), error
    (mean of predicted/actual - 1) and slope (of ln predicted/actual against the distance, least squares through 0).
    scatter: s0. growth: s1, both in ln L.
    """

    cuts: list[dict[str, float]]
    scatter: float = 0.0
    growth: float = 0.0
    why: str = ""

    def half_width(self, distance: np.ndarray | float, level: float) -> np.ndarray:
        """Half the interval of ln L at distances ln(C / largest fitted C); those below 0 count as 0."""
        scale = np.hypot(self.scatter, self.growth * np.maximum(distance, 0.0))
        return stdtrit(min(len(self.cuts), TAILS), (1 + level) / 2) * scale

    def widened(self, predicted, low, high, distance, level: float) -> tuple[np.ndarray, np.ndarray]:
        """The ends of an interval about predictions, no narrower than those that suppose the law."""
        factor = np.exp(self.half_width(distance, level))
        return np.minimum(low, predicted / factor), np.maximum(high, predicted * factor)

    def bias(self) -> float | None:
        """Mean slope, where the errors behind all cuts (three at least) grow to the same side; otherwise None."""
        slopes = np.array([cut["slope"] for cut in self.cuts])
        one_sided = len(slopes) >= 3 and abs(np.sign(slopes).sum()) == len(slopes)
        return float(slopes.mean()) if one_sided else None


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What every fit to points reports, of the loss or of the compute-optimal frontier alone.

    derived: quantities computed from the parameters, such as the exponents a, b of the compute-optimal frontier.
    draws: parameters of the resamples (or of the asymptotic normal, without any) that bands are made of.
    scatter: standard deviation about the fit. dropping: what the dropped points would change.
    hold_outs: how far off predictions from these points have been (`lm.scaling.holdouts`); None before any is made.
    """

    name: str
    formula: str
    source: str
    method: str
    level: float
    parameters: dict[str, Estimate]
    derived: dict[str, Estimate]
    objective: float
    points: int
    dropped: int
    conventions: dict[str, str]
    identifiable: dict[str, str]
    warnings: list[str]
    condition: float
    starts: dict[str, int]
    scatter: float
    dropping: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    held_out: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    hold_outs: HoldOuts | None = None
    data: Points | None = dataclasses.field(default=None, repr=False)
    draws: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)
    alternatives: dict[str, float] = dataclasses.field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """The parameters' values by name."""
        return {name: estimate.value for name, estimate in self.parameters.items()}

    def warned(self, *texts: str) -> "Fitted":
        """The same fit with more warnings."""
        return dataclasses.replace(self, warnings=[*self.warnings, *texts])

    def to_json(self) -> dict[str, Any]:
        """What `lm fit --json` prints; numbers that JSON does not have are None."""
        unlisted = ("name", "data", "draws", "problem")
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in unlisted}
        own = {"exponents": self.exponents()} if "a" in self.derived else {}
        return _as_json({"law": self.name} | shown | own)


@dataclasses.dataclass(frozen=True)
class Law(Fitted):
    """A loss fitted to points. In nats per token, params and tokens as `conventions` says."""

    problem: Problem | None = dataclasses.field(default=None, repr=False)

    @property
    def form(self) -> Form:
        """The law's formula."""
        return form_of(self.name)

    @property
    def shares_budgets(self) -> bool:
        """Whether it predicts the loss from N and D alone, and so says how to share a budget between them."""
        return set(self.form.inputs) == {"params", "tokens"} and self.form.target == "loss"

    def predict(self, params=None, tokens=None, **columns) -> np.ndarray:
        """Loss at N, D (and whatever else the law reads, by name); arrays go together."""
        return self._evaluate(self.values(), params, tokens, columns)

    def predict_interval(self, params=None, tokens=None, *, scatter: bool = True, **columns):
        """(low, high) of a new run's loss there; scatter=False: of the law itself, without a run's own noise."""
        shape = np.broadcast_shapes(*(np.shape(v) for v in (params, tokens, *columns.values()) if v is not None))
        draws = {name: drawn.reshape(-1, *(1,) * len(shape)) for name, drawn in self.draws.items()}
        loss_Rn = self._evaluate(draws, params, tokens, columns)
        if scatter:
            noise = self.scatter * np.random.RandomState(1).standard_normal((len(loss_Rn), *(1,) * len(shape)))
            loss_Rn = loss_Rn + noise if self.method == "squares" else loss_Rn * np.exp(noise)
        return tuple(percentiles(loss_Rn, self.level))

    def optimum(self, flops) -> dict[str, np.ndarray]:
        """The lowest loss at each budget: params, tokens and loss, with `*_low` and `*_high` of the first two.

        C = k N^(1+g) D as in the points; k = 6, g = 0 where they count 6ND.
        """
        flops = np.atleast_1d(np.asarray(flops, np.float64))
        k, g = cost_of(self.data)

        def tokens(log_params):
            return np.exp(np.log(flops / k) - (1 + g) * log_params)

        n_X = self._best_n(self.values(), flops, k, g)
        low_X, high_X = percentiles(
            self._best_n({name: drawn[:, None] for name, drawn in self.draws.items()}, flops, k, g), self.level
        )
        low_X, high_X = np.minimum(low_X, n_X), np.maximum(high_X, n_X)  # draws of exact points round beside the value
        return {
            "params": np.exp(n_X), "tokens": tokens(n_X), "loss": self.predict(np.exp(n_X), tokens(n_X)),
            "params_low": np.exp(low_X), "params_high": np.exp(high_X),
            "tokens_low": tokens(high_X), "tokens_high": tokens(low_X),
        }  # fmt: skip

    def exponents(self) -> dict[str, Estimate]:
        """a and b of N* ~ C^a and D* ~ C^b: the slopes of `optimum` over the points' budgets, FLOPs as they count them.

        Those of `derived` hold where C is proportional to N D; with exact FLOPs C = k N^(1+g) D, and a is smaller.
        """
        ends = self.data.flops.min() * np.array([1, 10])
        k, g = cost_of(self.data)

        def slope(p: dict) -> np.ndarray:
            return np.diff(self._best_n(p, ends, k, g), axis=-1)[..., 0] / np.log(ends[1] / ends[0])

        def tokens_exponent(a: float) -> float:
            return 1 - (1 + g) * a

        a, drawn_R = float(slope(self.values())), slope({name: draw[:, None] for name, draw in self.draws.items()})
        fixed = sum(verdict == "fixed" for verdict in self.identifiable.values())
        low, high = interval(a, drawn_R, self.level, widening(self.method, self.points, len(self.parameters) - fixed))
        se = float(np.std(drawn_R))
        b = Estimate(tokens_exponent(a), (1 + g) * se, tokens_exponent(high), tokens_exponent(low))
        return {"a": Estimate(a, se, low, high), "b": b}

    def _evaluate(self, p: dict, params, tokens, columns: dict) -> np.ndarray:
        by_name = {"params": params, "tokens": tokens} | columns
        missing = [name for name in self.form.inputs if by_name.get(name) is None]
        inputs = ", ".join(self.form.inputs)
        require(not missing, f"{self.name} predicts from {inputs}; {', '.join(missing)} missing")
        return evaluate(self.form, p, by_name)

    def _best_n(self, p: dict, flops: np.ndarray, k: float, g: float) -> np.ndarray:
        """ln N of the lowest loss with D = C / (k N^(1+g)), by golden section; a law's valley has one bottom."""
        inputs = set(self.form.inputs)
        require(inputs == {"params", "tokens"}, f"{self.name} does not say how to share a budget")
        budget = np.log(flops / k)

        def loss(n):
            return self._evaluate(p, np.exp(n), np.exp(budget - (1 + g) * n), {})

        low = np.zeros(np.broadcast_shapes(budget.shape, *(np.shape(value) for value in p.values())))
        high, golden = low + budget / (1 + g), (math.sqrt(5) - 1) / 2
        for _ in range(60):
            left, right = high - golden * (high - low), low + golden * (high - low)
            lower = loss(left) < loss(right)
            low, high = np.where(lower, low, left), np.where(lower, right, high)
        return (low + high) / 2


def _as_json(value: Any) -> Any:
    """A JSON value, with None for the numbers that JSON does not have."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cost_of(points: Points) -> tuple[float, float]:
    """(k, g) of C = k N^(1+g) D: least squares on logarithms; g = 0 where C/(ND) is the same for all, as for 6ND."""
    ratio = np.log(points.flops / (points.params * points.tokens))
    if np.ptp(ratio) < 1e-3:
        return float(np.exp(ratio.mean())), 0.0
    g, log_k = np.polyfit(np.log(points.params), ratio, 1)
    return float(np.exp(log_k)), float(g)


def widening(method: str, points: int, free: int) -> float:
    """The factor that intervals from resampled squares need: without it they are too narrow by the fit's degrees of
    freedom (Hesterberg 2015), which those of absolute values are not."""
    return math.sqrt(points / (points - free)) if "squares" in method else 1.0


def percentiles(values: np.ndarray, level: float) -> np.ndarray:
    """The ends between which the middle `level` of the values lies, along the first axis: [2, ...]."""
    return np.percentile(values, [50 * (1 - level), 50 * (1 + level)], axis=0)


def interval(value: float, drawn: np.ndarray, level: float, widen: float) -> tuple[float, float]:
    """The resamples' percentiles about a value, widened, and stretched to the value where it lies outside."""
    low, high = value + widen * (percentiles(drawn, level) - value)
    return min(float(low), value), max(float(high), value)
