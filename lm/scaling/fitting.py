"""Fit a scaling law to trained models: `fit(points, "chinchilla")` gives a `Law` that says how far to trust it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lm.errors import UserError, require
from lm.scaling import intervals
from lm.scaling.agreement import against_valleys, disagreement
from lm.scaling.isoflop import APPROACHES, VALLEYS, Frontier, fit_frontier
from lm.scaling.law import Estimate, Fitted, Law, interval, widening
from lm.scaling.laws import Form, form_of
from lm.scaling.points import Points
from lm.scaling.predictions import score
from lm.scaling.problem import METHODS, Problem, jacobian, make_problem, named, objective_of_constant, solve
from lm.scaling.resampling import check_choice, check_held, check_resampling, is_number, shown_number
from lm.scaling.verdicts import (
    COLLINEAR,
    PARALLEL,
    bounded,
    condition_number,
    consistent,
    scatters_beyond,
    verdict,
)

ALIASES = {"approach1": "frontier", "approach2": "isoflop", "approach3": "chinchilla"}
"""Names that Hoffmann et al. 2022 made known."""
SMALLEST_DELTA, LARGEST_DELTA = 1e-9, 1e3
DRAWS = 1000
"""Draws from the asymptotic normal where no bootstraps were asked for."""
FEW_BOOTSTRAPS = 100
"""Below, a standard error is known to no better than 7%, and the ends of a band to much less."""


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
    errors and bands; 0: asymptotic ones. Intervals at `level` are profile likelihoods, wider where resampled runs or
    seed noise scatter more. hold_out: a mask of points to predict instead of fitting. fixed: parameters to hold. What
    "repeated" shares with a law of data seen once is fitted with the rest, so its uncertainty is in every interval.
    `lm.scaling.verdicts` defines what is identified. Raises Unidentifiable when the points do not determine the
    parameters (constant D/N, for example), UserError on input or options that cannot be.
    """
    form, held = form_of(law), dict(fixed or {})
    check_resampling(points, bootstraps=bootstraps, cluster=cluster, level=level, seed=seed)
    check_choice("--method", method, METHODS)
    require(
        is_number(delta) and SMALLEST_DELTA <= delta <= LARGEST_DELTA,
        f"--delta {shown_number(delta)}: from {SMALLEST_DELTA:g} (--method l1 goes to nothing) to {LARGEST_DELTA:g}",
    )
    for name, value in held.items():
        check_held(name, value, parameters=form.parameters, positive=form.logs, law=law)
    fitted, held_out = _split(points, hold_out)
    free = len(form.parameters) - len(held)
    require(free > 0, f"every parameter of {law} is fixed ({', '.join(held)}): nothing is left to fit")
    require(
        len(fitted) > free,
        f"{len(fitted)} points cannot determine the {free} parameters of {law}: it takes at least {free + 1}, "
        "and more for intervals",
    )
    problem = make_problem(fitted, form, method, delta, held)
    theta_P, objective, counts = solve(problem, _base(form, fitted, held))
    condition = condition_number(jacobian(problem, theta_P))
    _refuse_collinear(form, fitted, condition)
    if bootstraps:
        theta_RP = intervals.bootstrap(problem, theta_P, fitted, bootstraps, cluster, seed)
    else:
        theta_RP = intervals.normal_draws(problem, theta_P, DRAWS, seed)
    result = _law(problem, fitted, theta_P, _finite(named(form, theta_RP), law), level, cluster, objective)
    said = _warnings(problem, fitted, result.values(), counts, cluster, condition)
    if 0 < bootstraps < FEW_BOOTSTRAPS:
        said.append(f"few bootstraps: {bootstraps}; standard errors and bands are rough below {FEW_BOOTSTRAPS}")
    result = dataclasses.replace(
        result, condition=condition, starts=counts, warnings=[*said, *result.warnings],
        dropping=_dropping(problem, fitted, result.values(), delta),
    )  # fmt: skip
    result = result.warned(*against_valleys(result))
    return result if held_out is None else score(result, held_out)


def fit_by_name(
    points: Points, law: str, *, method: str = "huber", delta: float = 1e-3, valley: str = VALLEYS[0],
    fixed: Mapping[str, float] | None = None, hold_out: np.ndarray | None = None, **common,
) -> Fitted:  # fmt: skip
    """Fit a law, or an approach to the optimum alone, under any of its names: `fit` or `fit_frontier`.

    common: options of both, such as bootstraps, cluster, level and seed.
    """
    name = ALIASES.get(law, law)
    if name not in APPROACHES:
        return fit(points, name, method=method, delta=delta, hold_out=hold_out, fixed=fixed, **common)
    require(hold_out is None, f"--hold-out: {name} fits the optimum and predicts no losses; use --law chinchilla")
    require(not fixed, f"--fix: {name} is two straight lines in logarithms and holds no parameter")
    return fit_frontier(points, name, valley=valley, **common)


def against_law(valleys: Frontier) -> list[str]:
    """A warning where the law (approach 3), fitted to the same points, finds another exponent than their valleys.

    There is none for approach 1, which has no valleys.
    """
    if valleys.method not in VALLEYS:
        return []
    try:
        law = fit(valleys.data, "chinchilla", bootstraps=0, level=valleys.level)
    except UserError:
        return []
    return disagreement(law, valleys)


def _split(points: Points, hold_out) -> tuple[Points, Points | None]:
    """The points to fit, and those to predict."""
    if hold_out is None:
        return points, None
    mask = np.asarray(hold_out)
    require(mask.dtype == bool and mask.shape == (len(points),), "hold_out is a mask with a truth value for each point")
    require(0 < mask.sum() < len(points), f"--hold-out leaves out {mask.sum()} of {len(points)} points")
    return points.where(~mask), points.where(mask)


def _base(form: Form, points: Points, held: dict[str, float]) -> dict[str, float]:
    """Where the search begins for the parameters that this law shares with one of data seen once."""
    shared = [name for name in form.base if name not in held]
    if not shared:
        return {}
    once = points.column("tokens") <= 1.001 * points.column("unique_tokens")
    require(
        once.sum() > len(form.base),
        f"{form.name} builds on a chinchilla fit to data seen once: {once.sum()} rows have tokens <= unique_tokens, "
        f"too few; give {', '.join(shared)} with --fix",
    )
    fixed = {name: value for name, value in held.items() if name in form.base}
    return fit(points.where(once), "chinchilla", bootstraps=0, fixed=fixed).values()


def _finite(draws: dict[str, np.ndarray], law: str) -> dict[str, np.ndarray]:
    """The resamples all of whose parameters a float can hold."""
    finite_R = np.all([np.isfinite(drawn) for drawn in draws.values()], axis=0)
    if finite_R.sum() < 2:
        raise Unidentifiable(f"these points do not determine {law}: resamples lead to parameters beyond any number")
    return {name: drawn[finite_R] for name, drawn in draws.items()}


def _law(
    problem: Problem, points: Points, theta_P: np.ndarray, draws: dict, level: float, cluster: str, objective: float
) -> Law:
    """The fitted law with its estimates and verdicts."""
    form = problem.form
    values = {name: float(value) for name, value in named(form, theta_P).items()}
    ends = intervals.profiles(problem, theta_P, level)
    estimates = {name: Estimate(value, 0.0, value, value) for name, value in problem.held.items()}
    for name, (low, high) in ends.items():
        if cluster != "point":  # a profile knows nothing of seed noise, and of what a run's points share
            stretched = interval(values[name], draws[name], level, 1.0)
            low, high = min(low, stretched[0]), max(high, stretched[1])
        e = Estimate(values[name], float(np.std(draws[name])), low, high)
        estimates[name] = bounded(e, positive=name in form.logs)
    estimates = {name: estimates[name] for name in form.parameters}
    said = []
    if explains := objective < (1 - 1e-9) * objective_of_constant(problem):
        verdicts = {
            name: verdict(e, positive=name in form.logs, scattered=scatters_beyond(e, level))
            for name, e in estimates.items()
        }
    else:
        verdicts = dict.fromkeys(form.parameters, "no: the law fits no better than one constant")
        said.append("the law fits these points no better than one constant would: its parameters mean nothing")
    verdicts |= dict.fromkeys(problem.held, "fixed")
    widen, drawn = widening(problem.method, len(points), int(problem.free_P.sum())), form.derived(draws)
    derived = {
        name: Estimate(float(value), float(np.std(drawn[name])), *interval(value, drawn[name], level, widen))
        for name, value in form.derived(values).items()
    }
    shown = {name: consistent(e, level) for name, e in estimates.items()}
    if hidden := [name for name, e in shown.items() if e.se is None]:
        said.append(f"no standard error of {', '.join(hidden)}: resamples and interval contradict each other")
    if explains and (lost := [name for name, text in verdicts.items() if text.startswith("no")]):
        said.append(f"these points do not identify {', '.join(lost)}: quote no value of them, nor what rests on one")
    return Law(
        name=form.name, formula=form.formula, source=form.source, method=problem.method, level=level,
        parameters=shown, derived={name: consistent(e, level) for name, e in derived.items()}, objective=objective,
        points=len(points), dropped=0 if points.dropped is None else len(points.dropped),
        conventions=points.conventions, identifiable=verdicts, warnings=said, condition=np.nan, starts={},
        scatter=intervals.spread(problem, theta_P).sd, data=points, problem=problem, draws=draws,
    )  # fmt: skip


def _refuse_collinear(form: Form, points: Points, condition: float) -> None:
    why, collinear = "the points do not vary enough in " + " and ".join(form.inputs), False
    if {"params", "tokens"} <= set(form.inputs):
        n, d = np.log(points.params), np.log(points.tokens)
        alone = [name for name, x in (("size", n), ("number of tokens", d)) if np.ptp(x) < 1e-6]
        ratio, shared = np.exp(d - n), 0.0 if alone else min(abs(float(np.corrcoef(n, d)[0, 1])), 1 - 1e-12)
        constant = ratio.max() / ratio.min() < 1.1
        collinear = shared > PARALLEL or constant
        # The design's own number: where the optimum itself is degenerate, the Jacobian's can look harmless.
        condition = max(condition, np.sqrt((1 + shared) / (1 - shared)))
        if constant:
            why = (
                f"every point has about {ratio.mean():.3g} tokens per parameter, so what N and D contribute cannot "
                "be told apart"
            )
        elif alone:
            why = f"every point has the same {' and '.join(alone)}"
        elif shared > PARALLEL:
            why = f"ln N and ln D are correlated at {shared:.6f}, so N and D cannot be told apart"
    if condition >= COLLINEAR or collinear:
        raise Unidentifiable(
            f"these points do not determine {form.name}: condition number {condition:.3g} (good "
            f"designs have some hundreds): {why}; vary N and D independently (`lm plan`), fix a parameter, or fit "
            "L(C) alone with --law power"
        )


def _warnings(problem: Problem, points: Points, values: dict, counts: dict, cluster: str, condition: float):
    said, form, free = points.doubts(), problem.form, int(problem.free_P.sum())
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
    if "E" in values and "E" not in problem.held and values["E"] < 1e-3 * points.column(form.target).min():
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


def _dropping(problem: Problem, points: Points, values: dict, delta: float) -> dict:
    """Each parameter with and without the dropped points."""
    if points.dropped is None:
        return {}
    everything, form, held = points.with_dropped(), problem.form, problem.held
    theta_P, _, _ = solve(make_problem(everything, form, problem.method, delta, held), _base(form, everything, held))
    again = named(form, theta_P)
    return {name: [values[name], float(again[name])] for name in form.parameters}
