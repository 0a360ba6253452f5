"""Every law with every kind of option on tables that determine little: one line of refusal, or a law that says so."""

import json
import math

import numpy as np
import pytest
from synthetic import grid, synthetic

from lm.errors import UserError
from lm.scaling import LAWS, Points, fit, make_points

pytestmark = pytest.mark.usefixtures("polished")

NOISE = 0.01


def tables(random: np.random.Generator) -> dict[str, Points]:
    """45 rows each (one compiled program a law), but for the short one."""
    params, tokens = grid()
    noise = np.exp(NOISE * random.standard_normal(len(params)))
    good = synthetic(NOISE).loss
    rows = {
        "noisy": (params, tokens, good),
        "noise alone": (params, tokens, 3 * noise),
        "one ratio": (params, 20 * params, good),
        "one size": (np.full_like(params, 1e7), tokens, good),
        "one budget": (params, 1e18 / params, good),
        "one loss": (params, tokens, np.full_like(params, 3.0)),
        "huge": (params * 1e200, tokens * 1e60, good),
        "steep": (params, tokens, good ** random.uniform(5, 60)),
        "three": (params[:3], tokens[:3], good[:3]),
    }
    return {name: _points(*columns, random) for name, columns in rows.items()}


def _points(params, tokens, loss, random) -> Points:
    more = {
        "unique_tokens": tokens / random.choice([1.0, 4.0, 30.0], len(tokens)),
        "learning_rate": 0.1 * params**-0.2 * np.exp(NOISE * random.standard_normal(len(params))),
        "batch_tokens": 10 * tokens**0.3 * np.exp(NOISE * random.standard_normal(len(params))),
    }
    return make_points(params, tokens, loss, columns=more, run=np.arange(len(loss)) // 3, sd=NOISE * loss)


def options(law: str, random: np.random.Generator) -> dict:
    """What someone may ask for, sense or nonsense."""
    chosen = dict(
        method=str(random.choice(["huber", "l1", "log-squares"])), delta=float(random.choice([1e-6, 1e-3, 1.0])),
        bootstraps=int(random.choice([0, 0, 2, 12])), cluster=str(random.choice(["point", "run", "noise"])),
        level=float(random.choice([0.5, 0.9, 0.999999])), seed=int(random.integers(2**32)),
    )  # fmt: skip
    if random.random() < 0.4:
        name = str(random.choice(LAWS[law].parameters))
        chosen["fixed"] = {name: float(random.choice([1e-300, 1e-3, 1.0, 100.0, 1e12, 1e300]))}
    return chosen


def check(law) -> None:
    """Numbers that are numbers, and verdicts that follow from them."""
    found = json.loads(json.dumps(law.to_json(), allow_nan=False))
    for name, said in found["identifiable"].items():
        assert said.split(":")[0] in ("yes", "fixed", "weakly", "no"), said
        e = law.parameters[name]
        assert e.se is None or math.isfinite(e.se)
        if said == "yes":
            assert math.isfinite(e.low) and math.isfinite(e.high) and e.low <= e.value <= e.high, (name, e)
            if name in LAWS[law.name].logs:
                assert e.high < 20 * e.low, (name, e)
            else:
                assert e.high - e.low <= abs(e.value), (name, e)
    for e in law.derived.values():
        assert e.low <= e.value <= e.high and (e.se is None or math.isfinite(e.se))


def tried(law: str, seed: int) -> int:
    """Fits that came to a law, of one a table."""
    random, fitted = np.random.default_rng([seed, *law.encode()]), 0
    for name, points in tables(random).items():
        chosen = options(law, random)
        try:
            check(fit(points, law, **chosen))
        except UserError as refused:
            assert len(str(refused)) < 500 and "\n" not in str(refused)
        except Exception as error:
            raise AssertionError(f"{law} of {name} with {chosen}: {error!r}") from error
        else:
            fitted += 1
    return fitted


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("law", ["chinchilla", "power"])
def test_no_traceback_and_no_nonsense_called_identified(law):
    assert tried(law, seed=0) >= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_traceback_for_any_law(law, seed):
    tried(law, seed)
