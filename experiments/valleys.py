"""Which way to find the bottom of an isoFLOP valley errs least, and do the intervals hold?

python experiments/valleys.py [--replicates 200]        some minutes on two CPU cores
Tables are made from known laws: 6 budgets from 1e17 to 1e21 FLOPs, 9 sizes each over a factor of 30 or 300, centred on
the optimum or up to a factor of 2 beside it, losses off by log-normal noise. Prints the root mean square error of the
exponent a and the share of nominal 90% intervals that hold it, by valley. Expected: the parabola through the lowest
point and its neighbours errs less than Akima everywhere, the parabola through all is best on narrow valleys and worse
on wide and lopsided ones; 86 to 94% of intervals hold. See experiments/RESULTS.md.
"""

import argparse
import itertools
import time

import numpy as np

import lm
from lm.errors import UserError

LAWS = {
    "Hoffmann": dict(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
    "lopsided": dict(E=1.8, A=4000.0, B=900.0, alpha=0.52, beta=0.26),
}
VALLEYS = ("quadratic", "akima", "quadratic-all")
NOISES = (0.001, 0.003, 0.01, 0.03)


def table(law: dict, *, noise: float, span: float, beside: float, random: np.random.Generator) -> lm.scaling.Points:
    """One noisy sweep: sizes spread over a factor `span`, each budget's shifted by up to exp(beside)."""
    flops = np.geomspace(1e17, 1e21, 6)
    total = law["alpha"] + law["beta"]
    g = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / total)
    best = g * (flops / 6) ** (law["beta"] / total) * np.exp(random.uniform(-beside, beside, 6))
    params = (best[:, None] * np.geomspace(span**-0.5, span**0.5, 9)).ravel()
    tokens = np.repeat(flops, 9) / (6 * params)
    loss = law["E"] + law["A"] / params ** law["alpha"] + law["B"] / tokens ** law["beta"]
    return lm.scaling.make_points(params, tokens, loss * np.exp(noise * random.standard_normal(len(loss))))


def trial(law: dict, valley: str, replicates: int, **shape) -> tuple[float, float, int]:
    """Root mean square error of a, the share of intervals that hold it, and how many tables had no exponent."""
    truth = law["beta"] / (law["alpha"] + law["beta"])
    errors, holds = [], []
    for replicate in range(replicates):
        seed = [replicate, *(round(1e4 * value) for value in shape.values())]
        points = table(law, random=np.random.default_rng(seed), **shape)
        try:
            a = lm.scaling.fit_frontier(points, valley=valley, bootstraps=0).parameters["a"]
        except UserError:
            continue
        errors.append(a.value - truth)
        holds.append(a.low <= truth <= a.high)
    return float(np.sqrt(np.mean(np.square(errors)))), float(np.mean(holds)), replicates - len(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=200)
    replicates = parser.parse_args().replicates
    began = time.perf_counter()
    print(f"{'law':<10}{'span':>6}{'beside':>8}{'noise':>8}" + "".join(f"{valley:>24}" for valley in VALLEYS))
    for (name, law), (span, beside), noise in itertools.product(LAWS.items(), ((30, 0), (30, 0.7), (300, 0.7)), NOISES):
        found = [trial(law, valley, replicates, noise=noise, span=span, beside=beside) for valley in VALLEYS]
        cells = [f"{error:.4f}, {held:.1%}" + (f" ({none} none)" if none else "") for error, held, none in found]
        row = f"{name:<10}{span:>6}{beside:>8}{noise:>8.1%}" + "".join(f"{cell:>24}" for cell in cells)
        print(row, flush=True)
    print(f"{replicates} tables a row, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
