"""Is training runs side by side faster than one after another?

python experiments/pack_speed.py --peer       about 15 minutes on two CPU cores, nothing else running
python experiments/pack_speed.py --quick      a look, about 3 minutes
Times the compiled steps of P tiny GPT-2s on random tokens, one run after another and in each way of
lm/training/pack.py. The ways take turns of about a second, every other round in reverse; printed are the medians of
steps x runs a second and of the speed over one after another in the same round, with its quartiles. --peer, which needs
PyTorch: also eight learning rates of the first shape as a pack, against eight PyTorch runs one after another.
Expected: experiments/RESULTS.md; figure experiments/figures/pack_speed.svg.
"""

import argparse
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import lm
from lm.bench import Contestant, Timing
from lm.config import Steps
from lm.training.pack import WAYS, make_pack, resolve
from lm.training.step import hyperparameters, init_state, make_train_steps

FIGURE = Path(__file__).parent / "figures" / "pack_speed.svg"
SHAPES = {
    "2 layers, D=64, T=128, B=32": (dict(layers=2, width=64, heads=2, context=128), 32),
    "1 layer, D=32, T=32, B=8": (dict(layers=1, width=32, heads=2, context=32), 8),
    "4 layers, D=128, T=64, B=12": (dict(layers=4, width=128, heads=4, context=64), 12),
}
FIRST = next(iter(SHAPES))
VOCAB = 256
APART = "one after another"
PEER_RUNS = 8
K = 64
"""Most steps in one dispatch, as in training."""
STEPS = Steps(total=10_000, warmup=100, decay=0, log_every=K, eval_every=K, checkpoint_every=K)


def experiments(shape: str, runs: int) -> list[lm.Experiment]:
    """AdamW; a seed and a learning rate each."""
    sizes, batch = SHAPES[shape]
    one = lm.Experiment(
        model=lm.ModelConfig.gpt2("124M", vocab=VOCAB, **sizes),
        train=lm.TrainConfig(batch=batch),
        optimizer=lm.OptimizerConfig(name="adamw"),
    )
    rates = np.geomspace(1e-4, 1e-2, runs)
    return [lm.replace(one, {"train.seed": p, "optimizer.learning_rate": float(rates[p])}) for p in range(runs)]


@functools.cache
def tokens() -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, VOCAB, 1 << 20).astype(np.uint16))


@functools.cache
def program(shape: str):
    """The compiled steps of a run alone: seeds and rates are traced."""
    return make_train_steps(experiments(shape, 1)[0], None, resident=True)


def windows(e: lm.Experiment) -> np.ndarray:
    return np.random.default_rng(e.train.seed).integers(0, 1 << 20, (K, e.train.batch), np.int32)


def dispatched(advance: Callable[[int], None]) -> Callable[[int], None]:
    """run(n) in dispatches of at most K steps, warmed up."""

    def run(n: int) -> None:
        for done in range(0, n, K):
            advance(min(K, n - done))

    run(1)
    return run


def one_after_another(shape: str, runs: int) -> Contestant:
    """n steps of the first run, then of the next."""
    made = experiments(shape, runs)
    states = [init_state(e) for e in made]
    given = [(hyperparameters(e, STEPS), tokens(), windows(e)) for e in made]

    def run(n: int) -> None:
        for p in range(runs):
            for done in range(0, n, K):
                states[p], report = program(shape)(states[p], *given[p], min(K, n - done))
                jax.device_get(report)

    run(1)
    return Contestant(APART, run)


def packed(shape: str, runs: int, how: str) -> Contestant:
    made = experiments(shape, runs)
    hypers = [hyperparameters(e, STEPS) for e in made]
    pack = make_pack([init_state(e) for e in made], hypers, made[0], None, resident=True, how=how)
    places = [windows(e) for e in made]
    return Contestant(how, dispatched(lambda n: pack.advance(tokens(), places, [n] * runs)))


def torch_runs(compiled: bool) -> Contestant:
    """Eight PyTorch models, one after another."""
    trainers = [lm.bench.torch_trainer(e, compiled) for e in experiments(FIRST, PEER_RUNS)]

    def run(n: int) -> None:
        for train in trainers:
            train(n)

    run(2)  # a second call may compile again
    return Contestant(f"PyTorch, {'torch.compile' if compiled else 'eager'}", run)


def measure(contestants: list[Contestant], runs: int, what: str, rounds: int, seconds: float) -> list[Timing]:
    """Time them and print a line each; the first is what the others are compared with."""
    timings = lm.bench.compare(contestants, seconds, rounds)
    for timing in timings:
        ratio = timing.ratio.per(1)
        print(
            f"{what:<30}{runs:>4}  {timing.name:<24}{runs / timing.seconds.median:>15.1f}"
            f"{ratio.median:>8.2f}  {ratio.low:.2f} to {ratio.high:.2f}", flush=True,
        )  # fmt: skip
    return timings


def draw(measured: dict[str, dict[int, list[Timing]]], peers: list[Timing], path: Path) -> None:
    """Speed over one after another against P, a panel a shape; and the pack's speed over its peers'."""
    style = {"font.size": 11, "svg.hashsalt": "lm", "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        count = len(measured) + bool(peers)
        figure, panels = plt.subplots(1, count, figsize=(3.8 * count, 3.6), squeeze=False, layout="constrained")
        lines = panels[0][: len(measured)]
        for panel, (shape, by_runs) in zip(lines, measured.items(), strict=True):
            several = sorted(runs for runs in by_runs if runs > 1)
            for way in WAYS:
                spreads = [next(t for t in by_runs[runs] if t.name == way).ratio.per(1) for runs in several]
                middle = [s.median for s in spreads]
                around = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
                panel.errorbar(several, middle, around, marker="o", markersize=5, capsize=2.5, label=way)
            panel.axhline(1, color="black", linewidth=1, zorder=0)
            panel.set_title(shape, fontsize=11)
            panel.set(xlabel="P (runs side by side)", xscale="log")
            panel.set_xticks(several, [str(runs) for runs in several])
            panel.minorticks_off()
            panel.sharey(lines[0])
        lines[0].set_ylim(bottom=0)
        lines[0].set_ylabel("speed over one after another\n(median, quartiles)")
        lines[0].legend(frameon=False)
        if peers:
            bars, others = panels[0][-1], peers[1:]
            spreads = [t.ratio for t in others]
            around = [[s.median - s.low for s in spreads], [s.high - s.median for s in spreads]]
            bars.bar(range(len(others)), [s.median for s in spreads], 0.6, yerr=around, color="C4", capsize=2.5)
            for place, s in enumerate(spreads):
                bars.annotate(f"{s.median:.2f}x", (place, s.high), (0, 4), textcoords="offset points", ha="center")
            bars.axhline(1, color="black", linewidth=1, zorder=0)
            bars.set_xticks(
                range(len(others)), [t.name.replace(", ", ",\n").replace(" after", "\nafter") for t in others]
            )
            bars.set_title(f"{PEER_RUNS} learning rates\n{FIRST}", fontsize=11)
            bars.set_ylabel("speed of the pack over theirs")
            bars.margins(y=0.12)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="P")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    parser.add_argument("--peer", action="store_true", help="also against PyTorch")
    parser.add_argument("--quick", action="store_true", help="P of 2 and 8, three rounds of short turns")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    if options.quick:
        options.runs, options.rounds, options.seconds = [2, 8], 3, 0.2
    if options.peer and not importlib.util.find_spec("torch"):
        parser.error("--peer needs PyTorch: pip install 'lm[bench]'")

    turns = options.rounds, options.seconds
    print(f"{'shape':<30}{'P':>4}  {'way':<24}{'steps x runs/s':>15}{'ratio':>8}  quartiles")
    measured: dict[str, dict[int, list[Timing]]] = {}
    for shape in SHAPES:
        measured[shape] = {}
        for runs in options.runs:
            ways = [packed(shape, runs, how) for how in WAYS] if runs > 1 else []
            measured[shape][runs] = measure([one_after_another(shape, runs), *ways], runs, shape, *turns)
    peers = []
    if options.peer:
        pack = packed(FIRST, PEER_RUNS, resolve("auto"))
        theirs = [torch_runs(compiled=False), torch_runs(compiled=True)]
        peers = measure([pack, one_after_another(FIRST, PEER_RUNS), *theirs], PEER_RUNS, FIRST, *turns)
    draw(measured, peers, options.figure)
    print(options.figure)


if __name__ == "__main__":
    main()
