"""Do values inside the model change by as much in a wide or deep model as in a small one?

python experiments/coordinate_check.py                     about 2 minutes on two CPU cores
python experiments/coordinate_check.py --optimizer muon    the same for Muon
Trains each size for a few steps and measures how far values have moved since the start: the root mean square over all
entries. Slopes of its logarithm against that of the width, or of the depth, are fitted by least squares, for the
standard model and for one with a base shape (CompleteP, lm/model/parametrization.py). With a base every slope must be
near 0, at every step looked at: then a learning rate serves all sizes. The exit status is 1 if one is not. Draws
experiments/figures/coordinate_check.svg (or _OPTIMIZER.svg). Expected: experiments/RESULTS.md.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import lm
from lm.data import Batches, prepare
from lm.figures import STYLE, save
from lm.model import Batch
from lm.training import hyperparameters, init_state, train_step, with_vocabulary

FIGURES = Path(__file__).parent / "figures"
WIDTHS, LAYERS = (32, 64, 128, 256), (4, 8, 16, 32)
STEPS = (2, 3, 5, 10)
"""After how many steps changes are measured: the first step moves the head alone, which starts at zero."""
NEAR = 0.2
"""Largest slope, up or down, that passes: over a factor of 8 a value then moves by half as much again at most."""
VALUES = {
    "attention.out": "attention adds, all layers",
    "mlp.hidden": "feed-forward inside, last layer",
    "residual.after": "residual stream, last layer",
    "logits": "logits",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=("adamw", "muon", "lion"), default="adamw")
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="the first is the base")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS, help="the first is the base")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path)
    o = parser.parse_args()
    start, panels = time.perf_counter(), {}
    for axis, sizes in (("width", o.widths), ("layers", o.layers)):
        for based in (False, True):
            changes = measure(o.optimizer, o.corpus, axis, sizes, o.seeds, based=based)
            panels[axis, based] = sizes, changes
            print(f"{'CompleteP' if based else 'standard'}, {axis} {' '.join(map(str, sizes))}: slopes after", *STEPS)
            for name, change_ZS in changes.items():
                print(f"  {VALUES[name]:<34}", *(f"{slope:+.2f}" for slope in slopes(sizes, change_ZS)))
    worst = max(abs(slopes(*of)).max() for of in flat(panels))
    figure = o.figure or FIGURES / ("coordinate_check" + f"_{o.optimizer}" * (o.optimizer != "adamw") + ".svg")
    draw(panels, figure)
    passed = worst <= NEAR
    print(f"{'pass' if passed else 'FAIL'}: with a base, slopes within {worst:.2f} of 0 (at most {NEAR})")
    print(f"{figure}, after {time.perf_counter() - start:.0f} s")
    raise SystemExit(0 if passed else 1)


def flat(panels: dict) -> list[tuple]:
    """(sizes, changes) of each value, with a base."""
    based = [of for (_, base), of in panels.items() if base]
    return [(sizes, change_ZS) for sizes, changes in based for change_ZS in changes.values()]


def experiment(optimizer: str, corpus: str, axis: str, size: int, base: int | None) -> lm.Experiment:
    """One size: heads 16 wide, at a constant rate."""
    shape = {"width": 32, "layers": 2} | {axis: size}
    return lm.Experiment(
        model=lm.ModelConfig(
            **shape, heads=shape["width"] // 16, head_width=16, context=64, dtype="float32",
            **({f"base_{axis}": base} if base else {}),
        ),
        data=lm.DataConfig(corpus=corpus),
        optimizer=lm.OptimizerConfig(name=optimizer, learning_rate=1e-3 if optimizer == "lion" else 4e-3),
        schedule=lm.ScheduleConfig(name="constant", warmup=0),
        train=lm.TrainConfig(batch=8),
    )  # fmt: skip


def measure(
    optimizer: str, corpus: str, axis: str, sizes: Sequence[int], seeds: int, *, based: bool
) -> dict[str, np.ndarray]:
    """How far each value has moved: [Z, S], by size and after each of STEPS; geometric means over seeds."""
    logs = []
    for size in sizes:
        e = experiment(optimizer, corpus, axis, size, sizes[0] if based else None)
        logs.append([np.log(list(moved(e, seeds).values()))])
    found_ZVS = np.exp(np.concatenate(logs).mean(axis=-1))
    return {name: found_ZVS[:, i] for i, name in enumerate(VALUES)}


def moved(e: lm.Experiment, seeds: int) -> dict[str, np.ndarray]:
    """The root mean square change of each value since the start: [S, seeds]."""
    data = prepare(e.data)
    e = with_vocabulary(e, data)
    step = jax.jit(lambda state, batch, hyper: train_step(state, batch, hyper, e)[0])
    found = {name: np.zeros((len(STEPS), seeds)) for name in VALUES}
    for seed in range(seeds):
        each = lm.replace(e, {"train.seed": seed})
        batches = Batches(data.train, context=e.model.context, batch=e.train.batch, seed=seed)
        hyper = hyperparameters(each, each.steps(batches.epoch_tokens))
        probe_BT = jnp.asarray(batches.at(max(STEPS))[:, :-1], jnp.int32)
        state = init_state(each)
        before = values(state.params, probe_BT, each)
        for i in range(max(STEPS)):
            state = step(state, Batch(jnp.asarray(batches.at(i), jnp.int32)), hyper)
            if i + 1 in STEPS:
                for name, now in values(state.params, probe_BT, each).items():
                    found[name][STEPS.index(i + 1), seed] = np.sqrt(np.mean((now - before[name]) ** 2))
    return found


def values(params: dict, tokens_BT, e: lm.Experiment) -> dict[str, np.ndarray]:
    """What VALUES says of these parameters."""
    logits_BTV, taps = lm.Trained(params, None, e, step=0).apply(tokens_BT, taps=tuple(VALUES))
    return {
        "attention.out": np.asarray(taps["attention.out"].sum(0)),
        "mlp.hidden": np.asarray(taps["mlp.hidden"][-1]),
        "residual.after": np.asarray(taps["residual.after"][-1]),
        "logits": np.asarray(logits_BTV[..., : e.model.vocab]),
    }


def slopes(sizes: Sequence[int], change_ZS: np.ndarray) -> np.ndarray:
    """d ln change / d ln size after each of STEPS, by least squares."""
    return np.polyfit(np.log(sizes), np.log(change_ZS), 1)[0]


def draw(panels: dict, path: Path) -> None:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(10, 7.6), layout="constrained", sharex="row", sharey="row")
        for row, axis in zip(axes, ("width", "layers"), strict=True):
            for panel, based in zip(row, (False, True), strict=True):
                sizes, changes = panels[axis, based]
                for (name, change_ZS), marker in zip(changes.items(), "os^D", strict=True):
                    slope = slopes(sizes, change_ZS)[-1]
                    panel.plot(sizes, change_ZS[:, -1], f"{marker}-", label=f"{VALUES[name]}: {slope:+.2f}")
                panel.set(xscale="log", yscale="log", xlabel="width D" if axis == "width" else "layers L")
                panel.set_xticks(sizes, map(str, sizes))
                panel.minorticks_off()
                panel.set_title(f"CompleteP, base {sizes[0]}" if based else "standard", fontsize=12)
                panel.legend(title=f"slope after {STEPS[-1]} steps", fontsize=9.5, alignment="left")
            row[0].set_ylabel(f"change of values in {STEPS[-1]} steps (rms)")
            low, high = row[0].get_ylim()
            row[0].set_ylim(low, high * (high / low) ** 0.55)  # room for the legends
        save(figure, path)


if __name__ == "__main__":
    main()
