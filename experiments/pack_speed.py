"""Is training runs side by side in one program faster than one after another?

python experiments/pack_speed.py              about 15 minutes on two CPU cores, nothing else running
python experiments/pack_speed.py --rounds 3 --seconds 0.2 --runs 1 4      a look, 2 minutes
Times the compiled step alone: P runs of three tiny shapes, one after another and packed (see lm/training/pack.py), and
alone in as many threads as cores; all make the same number of steps a dispatch. The ways take turns, in an order that
is reversed every round; printed are medians of steps x runs a second and of the ratio to one after another in the same
round, with its range.
Expected: experiments/RESULTS.md; figure experiments/figures/pack_speed.svg.
"""

import argparse
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import lm
from lm.config import Steps
from lm.training import pack
from lm.training.step import hyperparameters, init_state, make_train_steps

SHAPES = {  # layers, D, heads, T, B
    "1 layer, D=32, T=32, B=8": (1, 32, 2, 32, 8),
    "2 layers, D=64, T=128, B=32": (2, 64, 4, 128, 32),
    "4 layers, D=128, T=64, B=12": (4, 128, 4, 64, 12),
}
APART = "one after another"
THREADS = "threads"
"""The program of a run alone, called by as many threads as there are cores."""
K = 64
STEPS = Steps(total=10_000, warmup=100, decay=0, log_every=K, eval_every=K, checkpoint_every=K)


def experiments(shape: tuple[int, ...], runs: int) -> list[lm.Experiment]:
    """Bytes, AdamW; a seed and a rate each."""
    layers, width, heads, context, batch = shape
    model = lm.ModelConfig(layers=layers, width=width, heads=heads, context=context, vocab=257)
    one = lm.Experiment(model=model, train=lm.TrainConfig(batch=batch))
    changes = [{"train.seed": seed, "optimizer.learning_rate": 1e-3 * (1 + seed)} for seed in range(runs)]
    return [lm.replace(one, change) for change in changes]


def contestants(shape: tuple[int, ...], runs: int, tokens: jax.Array) -> dict[str, Callable[[int], None]]:
    """way -> a function that makes n steps of every run and waits for them, already compiled."""
    made = experiments(shape, runs)
    hyper = [hyperparameters(e, STEPS) for e in made]
    windows = np.random.default_rng(0).integers(0, tokens.size, (runs, K, made[0].train.batch), np.int32)
    alone = make_train_steps(made[0], None, resident=True)
    states = [init_state(e) for e in made]

    def make(p: int, n: int) -> None:
        states[p], report = alone(states[p], hyper[p], tokens, windows[p], n)
        jax.block_until_ready(report)

    def one_after_another(n: int) -> None:
        for p in range(runs):
            make(p, n)

    def threads(n: int) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(make, range(runs), [n] * runs))

    def packed(how: str) -> Callable[[int], None]:
        program = pack.make_pack_steps(made[0], None, resident=True, runs=runs, how=how)
        held, stacked = [pack.stack([init_state(e) for e in made])], pack.stack(hyper)

        def together(n: int) -> None:
            counts = np.full(runs, n, np.int32)
            held[0], report = program(held[0], stacked, tokens, windows, counts)
            jax.block_until_ready(report)

        return together

    ways = {APART: one_after_another}
    if runs > 1:
        ways |= {how: packed(how) for how in pack.WAYS} | {THREADS: threads}
    for way in ways.values():
        way(1)
    return ways


@dataclasses.dataclass(frozen=True)
class Rates:
    """Steps x runs a second of each way in each round."""

    runs: int
    by_way: dict[str, list[float]]

    def ratios(self, way: str) -> list[float]:
        """To one after another, round by round."""
        return [a / b for a, b in zip(self.by_way[way], self.by_way[APART], strict=True)]


def measure(shape: tuple[int, ...], runs: int, tokens: jax.Array, rounds: int, seconds: float) -> Rates:
    """Alternating rounds; every way makes about `seconds` of steps, at most K, in each."""
    ways = contestants(shape, runs, tokens)
    start = time.perf_counter()
    ways[APART](4)
    n = int(np.clip(4 * seconds / (time.perf_counter() - start), 1, K))
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in list(ways)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            ways[way](n)
            rates[way].append(runs * n / (time.perf_counter() - start))
    return Rates(runs, rates)


def draw(results: dict[str, list[Rates]], file: Path) -> None:
    """Ratio to one after another against P, a panel a shape; bars are the range over rounds."""
    figure, panels = plt.subplots(1, len(results), figsize=(4 * len(results), 3.2), sharey=True, squeeze=False)
    for panel, (shape, measured) in zip(panels[0], results.items(), strict=True):
        several = [rates for rates in measured if rates.runs > 1]
        for way in (*pack.WAYS, THREADS):
            ratios = [rates.ratios(way) for rates in several]
            middle = np.array([statistics.median(of) for of in ratios])
            low, high = (np.array([pick(of) for of in ratios]) for pick in (min, max))
            around = [middle - low, high - middle]
            panel.errorbar([rates.runs for rates in several], middle, around, marker="o", capsize=2, label=way)
        panel.axhline(1, color="gray", linewidth=0.8)
        panel.set(title=shape, xlabel="runs P", xscale="log")
        panel.set_xticks([rates.runs for rates in several], [str(rates.runs) for rates in several])
    panels[0][0].set_ylabel("speed / one after another")
    panels[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one way in one round")
    parser.add_argument("--out", default=str(Path(__file__).parent / "figures" / "pack_speed.svg"))
    options = parser.parse_args()

    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 257, 1 << 20).astype(np.uint16))
    print(f"{'shape':<30}{'P':>4}  {'way':<20}{'steps x runs/s':>15}{'ratio':>8}  range")
    results: dict[str, list[Rates]] = {}
    for name, shape in SHAPES.items():
        results[name] = [measure(shape, runs, tokens, options.rounds, options.seconds) for runs in options.runs]
        for rates in results[name]:
            for way, speeds in rates.by_way.items():
                ratios = rates.ratios(way)
                print(
                    f"{name:<30}{rates.runs:>4}  {way:<20}{statistics.median(speeds):>15.1f}"
                    f"{statistics.median(ratios):>8.2f}  {min(ratios):.2f} to {max(ratios):.2f}", flush=True,
                )  # fmt: skip
    draw(results, Path(options.out))
    print(options.out)


if __name__ == "__main__":
    main()
