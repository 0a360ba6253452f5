"""Fit a scaling law to trained models: `fit(points, "chinchilla")` gives a `Law` that says how far to trust it."""

from collections.abc import Mapping

import numpy as np

from lm.errors import UserError, require
from lm.scaling import intervals
from lm.scaling.law import Estimate, Law, interval, widening
from lm.scaling.laws import Form, form_of
from lm.scaling.points import Points
from lm.scaling.predictions import score
from lm.scaling.problem import Problem, make_problem, named, solve

COLLINEAR = 2e4
"""Condition number from which parameters are refused: good designs have some hundreds, constant D/N 1e5 and more."""
PARALLEL = 0.9999
"""Correlation of ln N and ln D from which they count as one."""
DRAWS = 1000
"""Draws from the asymptotic normal where no bootstraps were asked for."""


class Unidentifiable(UserError):
    """The points do not determine the law's parameters."""


def fit(
    points: Points, law: str = "chinchilla", *, method: str = "huber", delta: float = 1e-3, bootstraps: int = 1000,
    cluster: str = "point", level: float = 0.9, seed: int = 42, hold_out: np.ndarray | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Law:  # fmt: skip
    """Fit a law (`lm.scaling.laws.LAWS`) to points.

    method: "huber" of ln(prediction/loss) with `delta`, summed (Hoffmann et al. 2022, equation 3); "l1"; "squares" of
    the loss; "log-squares". bootstraps: refits of resampled points, whole runs or seed noise (`cluster`), for standard
    errors and bands; 0: asymptotic ones. Intervals at `level` are profile likelihoods. hold_out: a mask of points to
    predict instead of fitting. fixed: parameters to hold. Raises Unidentifiable when the points do not determine the
    parameters (constant D/N, for example), UserError on input that cannot be fitted.
    """
    require(0 < level < 1, f"--level {level:g}: between 0 and 1, such as 0.9")
    form, held_out = form_of(law), None
    if hold_out is not None:
        require(0 < hold_out.sum() < len(points), f"--hold-out leaves out {hold_out.sum()} of {len(points)} points")
        held_out, points = points.where(hold_out), points.where(~hold_out)
    held = _held(form, points, dict(fixed or {}))
    free = len(form.parameters) - len(held)
    require(free > 0, f"every parameter of {law} is fixed ({', '.join(held)}): nothing is left to fit")
    require(
        len(points) > free,
        f"{len(points)} points cannot determine the {free} parameters of {law}: it takes at least {free + 1}, "
        "and more for intervals",
    )
    problem = make_problem(points, form, method, delta, held)
    theta_P, objective, counts = solve(problem)
    condition = intervals.condition_number(problem, theta_P)
    _refuse_collinear(form, points, condition, law)

    values = {name: float(value) for name, value in named(form, theta_P).items()}
    if bootstraps:
        theta_RP = intervals.bootstrap(problem, theta_P, points, bootstraps, cluster, seed)
    else:
        theta_RP = intervals.normal_draws(problem, theta_P, DRAWS, seed)
    draws = named(form, theta_RP)
    ends = intervals.profiles(problem, theta_P, level)
    parameters = {name: _estimate(name, values[name], draws[name], ends) for name in form.parameters}
    scatter = intervals.spread(problem, theta_P).sd
    result = Law(
        name=law, formula=form.formula, source=form.source, method=method, level=level, parameters=parameters,
        derived=_derived(form, values, draws, level, widening(method, len(points), free)),
        objective=objective, points=len(points),
        dropped=0 if points.dropped is None else len(points.dropped), conventions=points.conventions,
        identifiable={name: _verdict(name, form, parameters[name], held) for name in form.parameters},
        warnings=_warnings(form, problem, points, values, counts, cluster, condition), condition=condition,
        starts=counts, scatter=scatter, dropping=_dropping(form, points, values, method, delta, held),
        data=points, problem=problem, draws=draws,
    )  # fmt: skip
    return result if held_out is None else score(result, held_out)


def _held(form: Form, points: Points, fixed: dict[str, float]) -> dict[str, float]:
    """Fixed parameters, and those that this law takes from a fit to the rows whose data were seen once."""
    missing = [name for name in form.needs_fixed if name not in fixed]
    if not missing:
        return fixed
    once = points.column("tokens") <= 1.001 * points.column("unique_tokens")
    require(
        once.sum() > len(form.needs_fixed),
        f"{form.name} builds on a chinchilla fit to data seen once: {once.sum()} rows have tokens <= unique_tokens, "
        f"too few; give {', '.join(missing)} with --fix",
    )
    base = {name: value for name, value in fixed.items() if name in form.needs_fixed}
    return fit(points.where(once), "chinchilla", bootstraps=0, fixed=base).values() | fixed


def _refuse_collinear(form: Form, points: Points, condition: float, law: str) -> None:
    why, collinear = "the points do not vary enough in " + " and ".join(form.inputs), False
    if {"params", "tokens"} <= set(form.inputs):
        n, d = np.log(points.params), np.log(points.tokens)
        alone = [of for of, x in (("size", n), ("number of tokens", d)) if np.ptp(x) < 1e-6]
        ratio, shared = np.exp(d - n), 0.0 if alone else min(abs(float(np.corrcoef(n, d)[0, 1])), 1 - 1e-12)
        # Of the design alone: where the optimum itself is degenerate, the Jacobian's number can look harmless.
        design = np.sqrt((1 + shared) / (1 - shared))
        collinear = shared > PARALLEL or ratio.max() / ratio.min() < 1.1
        condition = max(condition, design)
        if shared > PARALLEL:
            why = f"ln N and ln D are correlated at {shared:.6f}, so N and D cannot be told apart"
        if alone:
            why = f"every point has the same {' and '.join(alone)}"
        if ratio.max() / ratio.min() < 1.1:
            why = (
                f"every point has about {ratio.mean():.3g} tokens per parameter, so what N and D contribute cannot "
                "be told apart"
            )
    if condition < COLLINEAR and not collinear:
        return
    raise Unidentifiable(
        f"these points do not determine {law}: condition number {condition:.3g} (good "
        f"designs have some hundreds): {why}; vary N and D independently (`lm plan`), fix a parameter, or fit "
        "L(C) alone with --law power"
    )


def _estimate(name: str, value: float, drawn: np.ndarray, ends: dict) -> Estimate:
    """The profile's interval with the resamples' standard error; a fixed parameter has none."""
    if name not in ends:
        return Estimate(value, 0.0, value, value)
    return Estimate(value, float(np.std(drawn)), ends[name].low, ends[name].high)


def _derived(form: Form, values: dict, draws: dict, level: float, widen: float) -> dict[str, Estimate]:
    drawn = form.derived(draws)
    return {
        name: Estimate(float(value), float(np.std(drawn[name])), *interval(value, drawn[name], level, widen))
        for name, value in form.derived(values).items()
    }


def _verdict(name: str, form: Form, e: Estimate, held: dict) -> str:
    if name in held:
        return "fixed"
    if not np.isfinite(e.high) or (name in form.logs and e.low == 0) or not np.isfinite(e.low):
        side = "above" if not np.isfinite(e.high) else "below"
        return f"no: the points do not bound it from {side}"
    if name in form.logs and e.high / e.low > 20:
        return f"weakly: the interval spans a factor of {e.high / e.low:.0f}"
    if name not in form.logs and e.high - e.low > abs(e.value):
        return f"weakly: the interval [{e.low:.3g}, {e.high:.3g}] is wider than the value"
    return "yes"


def _warnings(form: Form, problem: Problem, points: Points, values: dict, counts: dict, cluster: str, condition: float):
    said = []
    free = int(problem.free_P.sum())
    if len(points) < 3 * free:
        said.append(f"few points: {len(points)} for {free} parameters; the intervals are rough")
    if not counts["moved"]:
        said.append("the fit did not move from its start: look at the columns and the objective")
    if counts["agreed"] < 2:
        said.append(f"only {counts['agreed']} of {counts['polished']} polished starts ended at this optimum")
    if condition > COLLINEAR / 20:
        said.append(f"condition number {condition:.3g}: parameters trade against each other; trust predictions more")
    for name, grid in form.grid.items():
        if name not in problem.held and not min(grid) <= values[name] <= max(grid):
            said.append(
                f"{name} = {values[name]:.3g} is outside {min(grid):.3g} to {max(grid):.3g}: an optimum at the edge"
            )
    if values.get("E", 1.0) < 1e-3 * points.column(form.target).min():
        said.append("E is zero: these points show no irreducible loss, so extrapolation will be too hopeful")
    if {"params", "tokens"} <= set(form.inputs):
        ratio = points.tokens / points.params
        if ratio.max() / ratio.min() < 4:
            said.append(
                f"tokens per parameter only go from {ratio.min():.3g} to {ratio.max():.3g}: exponents rest on little"
            )
    if points.run is not None and cluster == "point" and len(np.unique(points.run)) < len(points):
        said.append("points share a run: resample runs (--cluster run), or errors come out too small")
    if points.dropped is not None:
        said.append(f"{len(points.dropped)} points were dropped ({points.dropped_why}); see what that changed")
    return said


def _dropping(form: Form, points: Points, values: dict, method: str, delta: float, held: dict) -> dict:
    """Each parameter with and without the dropped points."""
    if points.dropped is None:
        return {}
    theta_P, _, _ = solve(make_problem(points.with_dropped(), form, method, delta, held))
    everything = named(form, theta_P)
    return {name: [values[name], float(everything[name])] for name in form.parameters}
