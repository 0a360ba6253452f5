"""Is training runs side by side faster than one after another?

python experiments/pack_speed.py              8 minutes on two CPU cores, nothing else running
python experiments/pack_speed.py --quick      a look, 4 minutes
Times the compiled steps of P tiny GPT-2s on random tokens, one run after another and in each way of
lm/training/pack.py; and, where PyTorch is installed, eight learning rates of the first shape as a pack, against eight
PyTorch runs one after another. Contestants take alternating turns; printed are the medians of steps x runs a second and
of the speed over one after another in the same round, with its quartiles. Expected: experiments/RESULTS.md; figure
experiments/figures/pack_speed.svg.
"""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import lm
from lm.bench import Contestant, Program, Timing, compare
from lm.figures import STYLE, save
from lm.training import WAYS, resolve

FIGURE = Path(__file__).parent / "figures" / "pack_speed.svg"
SHAPES = {
    "2 layers, D=64, T=128, B=32": (dict(layers=2, width=64, heads=2, context=128), 32),
    "1 layer, D=32, T=32, B=8": (dict(layers=1, width=32, heads=2, context=32), 8),
    "4 layers, D=128, T=64, B=12": (dict(layers=4, width=128, heads=4, context=64), 12),
}
FIRST = next(iter(SHAPES))
STEPS = 8
"""Optimizer steps in a unit of work, at least so many in a dispatch: each dispatch allocates its temporaries anew."""
APART = "one after another"
PEER_RUNS = 8


def experiments(shape: str, runs: int) -> list[lm.Experiment]:
    """AdamW; a seed and a learning rate each."""
    sizes, batch = SHAPES[shape]
    one = lm.Experiment(
        model=lm.ModelConfig.gpt2("124M", vocab=256, **sizes),
        train=lm.TrainConfig(batch=batch),
        optimizer=lm.OptimizerConfig(name="adamw"),
    )
    rates = np.geomspace(1e-4, 1e-2, runs)
    return [lm.replace(one, {"train.seed": p, "optimizer.learning_rate": float(rates[p])}) for p in range(runs)]


def contestant(name: str, run: Callable[[int], None], times: int = 1) -> Contestant:
    """times: one run's work, as often as there are runs, is what they would cost one after another."""

    def work(n: int) -> None:
        for _ in range(times):
            run(n * STEPS)

    return Contestant(name, work)


def ways(shape: str, alone: Program, runs: int) -> list[Contestant]:
    """One after another first, then each way to pack."""
    packs = [contestant(way, Program(*experiments(shape, runs), how=way).run) for way in WAYS]
    return [contestant(APART, alone.run, runs), *packs]


def torch_runs(compiled: bool) -> Contestant:
    run = lm.bench.torch_trainer(experiments(FIRST, 1)[0], compiled)
    run(2)  # a second call may compile again
    return contestant(f"PyTorch, {'torch.compile' if compiled else 'eager'}", run, PEER_RUNS)


def measure(contestants: list[Contestant], runs: int, what: str, rounds: int, seconds: float) -> list[Timing]:
    """Time them and print a line each; the first is what the others are compared with."""
    timings = compare(contestants, seconds, rounds)
    for timing in timings:
        ratio = timing.ratio.per(1)
        print(
            f"{what:<30}{runs:>4}  {timing.name:<24}{runs * STEPS / timing.seconds.median:>15.1f}"
            f"{ratio.median:>8.2f}  {ratio.low:.2f} to {ratio.high:.2f}", flush=True,
        )  # fmt: skip
    return timings


def judge_choice(measured: dict[str, dict[int, list[Timing]]]) -> str:
    """How far the way that lm chooses by itself is from the fastest, over all shapes and P."""
    chosen, shares = resolve("auto"), []
    for by_runs in measured.values():
        for timings in by_runs.values():
            speeds = {timing.name: 1 / timing.seconds.median for timing in timings}
            shares.append(speeds[chosen] / max(speeds.values()))
    best = sum(share == 1 for share in shares)
    return f"lm chooses {chosen} here: the fastest in {best} of {len(shares)} cases, at worst {min(shares):.2f} of it"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[2, 4, 8], metavar="P")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn")
    parser.add_argument("--quick", action="store_true", help="P of 2 and 8, three rounds of short turns")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    if options.quick:
        options.runs, options.rounds, options.seconds = [2, 8], 3, 0.2
    turns = options.rounds, options.seconds

    print(f"{'shape':<30}{'P':>4}  {'way':<24}{'steps x runs/s':>15}{'ratio':>8}  quartiles")
    peers = []
    if importlib.util.find_spec("torch"):
        pack = contestant(f"lm, {resolve('auto')}", Program(*experiments(FIRST, PEER_RUNS)).run)
        alone = contestant(f"lm, {APART}", Program(*experiments(FIRST, 1)).run, PEER_RUNS)
        theirs = [torch_runs(compiled=False), torch_runs(compiled=True)]
        peers = measure([pack, alone, *theirs], PEER_RUNS, FIRST, options.rounds, 6 * options.seconds)
    else:
        print("PyTorch is not installed: pip install -e '.[bench]'")
    measured: dict[str, dict[int, list[Timing]]] = {}
    for shape in SHAPES:
        alone = Program(*experiments(shape, 1))
        measured[shape] = {runs: measure(ways(shape, alone, runs), runs, shape, *turns) for runs in options.runs}
    print(judge_choice(measured))
    draw(measured, peers, options.figure)
    print(options.figure)


# --- the figure ------------------------------------------------------------------------------------------------------
def draw(measured: dict[str, dict[int, list[Timing]]], peers: list[Timing], path: Path) -> None:
    """Speed over one after another against P, a panel a shape; and the pack's speed over its peers'."""
    style = STYLE | {"font.size": 11, "axes.grid": False}
    with plt.rc_context(style):
        count = len(measured) + bool(peers)
        figure, panels = plt.subplots(1, count, figsize=(3.6 * count, 3.8), squeeze=False, layout="constrained")
        lines = panels[0][: len(measured)]
        for panel, (shape, by_runs) in zip(lines, measured.items(), strict=True):
            draw_ways(panel, by_runs)
            panel.set_title(shape.replace(", T", ",\nT"), fontsize=11)
            panel.sharey(lines[0])
        highest = max(
            t.ratio.per(1).high for by_runs in measured.values() for timings in by_runs.values() for t in timings
        )
        lines[0].set_ylim(0, 1.08 * highest)
        lines[0].set_ylabel("speed over one after another\n(median, quartiles)")
        lines[0].legend(frameon=False)
        if peers:
            draw_peers(panels[0][-1], peers[1:])
        save(figure, path)


def draw_ways(panel, by_runs: dict[int, list[Timing]]) -> None:
    for way in WAYS:
        spreads = [next(t for t in timings if t.name == way).ratio.per(1) for timings in by_runs.values()]
        around = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
        middle = [s.median for s in spreads]
        panel.errorbar(list(by_runs), middle, around, marker="o", markersize=5, capsize=2.5, label=way)
    panel.axhline(1, color="black", linewidth=1, zorder=0)
    panel.set(xlabel="P (runs side by side)", xscale="log")
    panel.set_xticks(list(by_runs), [str(runs) for runs in by_runs])
    panel.minorticks_off()


def draw_peers(panel, others: list[Timing]) -> None:
    spreads = [t.ratio for t in others]
    around = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
    panel.bar(range(len(others)), [s.median for s in spreads], 0.6, yerr=around, color="C4", capsize=2.5)
    for place, s in enumerate(spreads):
        panel.annotate(f"{s.median:.2f}x", (place, s.high), (0, 4), textcoords="offset points", ha="center")
    panel.axhline(1, color="black", linewidth=1, zorder=0)
    names = [t.name.replace(", ", ",\n").replace(" after", "\nafter").replace("torch.", "torch.\n") for t in others]
    panel.set_xticks(range(len(others)), names, fontsize=9.5)
    panel.set_title(f"{PEER_RUNS} learning rates,\n{FIRST}", fontsize=11)
    panel.set_ylabel("speed of the pack over theirs")
    panel.margins(y=0.12)


if __name__ == "__main__":
    main()
