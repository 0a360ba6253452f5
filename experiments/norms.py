"""Which norm, where, and what for: layer norm, RMS norm, batch norm or none, before a branch or after; no residuals.

python experiments/norms.py                              about 6 minutes on two CPU cores, nothing else running
python experiments/norms.py --steps 20 --seeds 0         about 2 minutes, to see that it works

A tutorial says that batch norm smooths the loss surface and lets larger rates through, and that layer norm is better
for stabilisation. Here small transformers read the characters of `kingdom`, each kind at six rates and with three
seeds: AdamW, warm-up over 5% of the steps, no clipping, which would hide what breaks. Batch norm is scored with the
moments of the training text, as it would be used, and also with those of its own batches, as it was trained. Then: what
logits at position 0 know of the last token, and loss and gradient by depth with and without residual connections.
Draws experiments/figures/norms.svg.

Expected: without a norm training diverges from a rate of 0.032 on, and with any norm never; but at its best rate the
model without a norm is ahead. Batch norm is the worst, and leaks the future, which the others do not, to the bit. Norms
after the sum learn letter frequencies alone at rates that norms before the branch still take. Without residual
connections two blocks hardly learn more than letter frequencies, and four or eight nothing else.

Axes, beside the README's: J the two moments, mean and variance; R runs of one kind that differ in their seeds.
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from norms_model import BATCH, ROWS, SCORED, Reader, Study, gradients, leak, losses_by_moments

import lm
from lm.errors import require
from lm.figures import STYLE, plt, save
from lm.files import whole

FIGURE = Path(__file__).parent / "figures" / "norms.svg"
RATES = (0.004, 0.008, 0.016, 0.032, 0.064, 0.128)
DEPTH_RATES = RATES[:2]
DEPTHS = (1, 2, 4, 8)
NEAR = 0.3
"""Nats above a kind's best mean loss up to which a rate still counts as one it takes."""


# --- what is trained -------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Kind:
    """Models that differ in rate and seed alone."""

    norm: str
    norm_place: str = "pre"
    residual: bool = True
    layers: int = 4

    def __str__(self) -> str:
        return f"{self.norm}-{self.norm_place}-{'with' if self.residual else 'without'}-{self.layers}"


GRID = [Kind(norm, place) for place in ("pre", "post") for norm in ("layernorm", "rmsnorm", "batchnorm")]
GRID += [Kind("none")]
"""Where there is no norm, it has no place either."""
BY_DEPTH = [Kind("layernorm", residual=residual, layers=layers) for residual in (True, False) for layers in DEPTHS]
GRADIENTS = [dataclasses.replace(kind, layers=DEPTHS[-1]) for kind in (
    Kind("layernorm"), Kind("layernorm", "post"), Kind("none"), Kind("layernorm", residual=False),
    Kind("none", residual=False),
)]  # fmt: skip


def experiment(kind: Kind, rate: float, seed: int, options: argparse.Namespace) -> lm.Experiment:
    shape = dict(width=64, heads=4, context=32, bias=True, qk_norm=False, zero_init=False, activation="gelu")
    return lm.Experiment(
        name=f"{kind}/{rate:g}-{seed}",
        model=Study(**dataclasses.asdict(kind), **shape, unroll=None if kind in GRID else 1),
        data=lm.DataConfig(corpus=options.corpus, tokenizer="chars", validation=0.02),
        optimizer=lm.OptimizerConfig(learning_rate=rate, clip=None, weight_decay=0.0),
        schedule=lm.ScheduleConfig(warmup="5%"),
        train=lm.TrainConfig(
            steps=options.steps, batch=BATCH, seed=seed, eval_tokens=SCORED, diverged=50.0, log_every="100%",
            eval_every="100%", checkpoint_every="100%",
        ),
    )  # fmt: skip


def train(kind: Kind, rates: Iterable[float], options: argparse.Namespace) -> list[dict]:
    """A row for each run: rate, seed and validation loss, None where it diverged.

    Of batch norm that is with the moments of the training text; `own` is the loss with those of each batch scored.
    """
    wanted, lost, rows = [experiment(kind, rate, seed, options) for rate in rates for seed in options.seeds], {}, []
    try:
        lm.train_pack(wanted, folder=options.runs)
    except lm.Diverged as diverged:
        lost = diverged.lost
    for e in wanted:
        row = {"rate": e.optimizer.learning_rate, "seed": e.train.seed, "loss": None}
        if e.name not in lost:
            run = lm.Run(options.runs / e.name)
            require(run.finished, "stopped and saved: the same command with the same --runs goes on")
            row["loss"] = run.metrics()[-1]["val_loss"]
            if kind.norm == "batchnorm":
                row["loss"], row["own"] = losses_by_moments(Reader(run))
        rows.append(row)
    return rows


def best(rows: list[dict]) -> tuple[float, np.ndarray]:
    """The rate with the least mean loss over seeds, and the losses [R] at it."""
    by_rate = {rate: np.array([row["loss"] for row in rows if row["rate"] == rate]) for rate in RATES}
    whole_R = {rate: losses_R for rate, losses_R in by_rate.items() if losses_R.size and None not in losses_R}
    return min(whole_R.items(), key=lambda item: item[1].mean())


# --- what is measured ------------------------------------------------------------------------------------------------
def gradients_of(kind: Kind, options: argparse.Namespace) -> list[list[float]]:
    """[R, L] at the start, on the text that is held out."""
    data = lm.data.prepare(experiment(kind, RATES[0], 0, options).data)
    made = []
    for seed in options.seeds:
        e = lm.replace(experiment(kind, RATES[0], seed, options), {"model.vocab": data.tokenizer.n_vocab})
        windows = lm.data.validation_windows(data.validation, e.model.context, SCORED)
        made.append(gradients(e.model, lm.build(e.model).init(seed), windows["tokens_BU"][:BATCH]).tolist())
    return made


def letters(options: argparse.Namespace) -> float:
    """Nats a character on the held-out text of who knows the training text's frequencies alone."""
    data = lm.data.prepare(experiment(GRID[0], RATES[0], 0, options).data)
    counts_V = np.bincount(data.train.tokens, minlength=data.tokenizer.n_vocab) + 1e-9
    return float(-np.log(counts_V / counts_V.sum())[np.asarray(data.validation.tokens)].mean())


# --- the story -------------------------------------------------------------------------------------------------------
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="kingdom", help="a corpus that lm knows, or a text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--runs", type=Path, help="where runs and results are kept; what is there is not made again")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        options.runs = (options.runs or Path(temporary)) / f"{options.steps}-steps"
        made = study(options)
    print(table_of_norms(made), table_of_leaks(made), table_of_depths(made), sep="\n\n")
    save(draw(made), options.figure)
    print(options.figure)


def study(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is shown, each part kept as a file once it is there."""
    options.runs.mkdir(parents=True, exist_ok=True)

    def kept(name: str, make: Callable, *arguments) -> Any:
        path = options.runs / f"{name} of {' '.join(map(str, options.seeds))}.json"
        if not path.exists():
            made = make(*arguments)
            with whole(path) as file:
                json.dump(made, file)
        return json.loads(path.read_text())

    def over_best(kind: Kind, measure: Callable) -> list:
        rate, _ = best(made[str(kind)])
        return [measure(Reader(lm.Run(options.runs / f"{kind}/{rate:g}-{seed}"))) for seed in options.seeds]

    def gradients_after(reader: Reader) -> list[float]:
        return gradients(reader.c, reader.params, reader.windows_WU[:BATCH]).tolist()

    made = {"letters": kept("letters", letters, options)}
    for kind in dict.fromkeys([*GRID, *BY_DEPTH]):
        made[str(kind)] = kept(str(kind), train, kind, RATES if kind in GRID else DEPTH_RATES, options)
    made["leaks"] = {str(kind): kept(f"leaks {kind}", over_best, kind, leak) for kind in GRID}
    made["start"] = {str(kind): kept(f"start {kind}", gradients_of, kind, options) for kind in GRADIENTS}
    deepest = [kind for kind in BY_DEPTH if kind.layers == DEPTHS[-1]]
    made["after"] = {str(kind): kept(f"after {kind}", over_best, kind, gradients_after) for kind in deepest}
    return made


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds."""
    values = np.array(list(values))
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1) if len(values) > 1 else np.nan:.{digits}f}"


def taken(rows: list[dict]) -> tuple[float, float | None]:
    """The largest rate at which every seed ends within NEAR of the best mean, and the least at which one diverged."""
    _, best_R = best(rows)
    lost = {row["rate"] for row in rows if row["loss"] is None}
    far = {row["rate"] for row in rows if row["rate"] not in lost and row["loss"] > best_R.mean() + NEAR} | lost
    return max({row["rate"] for row in rows} - far), min(lost, default=None)


def table_of_norms(made: dict) -> str:
    """Markdown: the best loss, its rate, and the largest rates."""
    lines = ["| norm | place | best validation loss | at rate | largest rate taken | diverges from |"]
    lines += ["|---|---|---|---|---|---|"]
    for kind in GRID:
        rate, losses_R = best(made[str(kind)])
        largest, diverges = taken(made[str(kind)])
        place = "" if kind.norm == "none" else kind.norm_place
        lines.append(f"| {kind.norm} | {place} | {spread(losses_R)} | {rate:g} | {largest:g} | {diverges or 'never'} |")
    return "\n".join(lines)


def table_of_leaks(made: dict) -> str:
    """Markdown: largest changes of a logit by another last token, where there should be none; and the two losses."""
    lines = ["| norm | place | logits at position 0 | other rows | in evaluation | loss of its own batches |"]
    lines += ["|---|---|---|---|---|---|"]
    for kind in GRID:
        rate, losses_R = best(made[str(kind)])
        leaks = made["leaks"][str(kind)]
        cells = [spread(one[name] for one in leaks) if any(one[name] for one in leaks) else "0 exactly"
                 for name in (f"position 0, {BATCH} rows", "other rows", "evaluation")]  # fmt: skip
        own = [row["own"] for row in made[str(kind)] if row["rate"] == rate and "own" in row] or losses_R
        place = "" if kind.norm == "none" else kind.norm_place
        lines.append(f"| {kind.norm} | {place} | {' | '.join(cells)} | {spread(own)} |")
    return "\n".join(lines)


def table_of_depths(made: dict) -> str:
    """Markdown: validation loss with and without residual connections, by layers."""
    lines = ["| layers | with residual connections | without | letter frequencies |", "|---|---|---|---|"]
    for layers in DEPTHS:
        pair = [spread(best(made[str(kind)])[1]) for kind in BY_DEPTH if kind.layers == layers]
        lines.append(f"| {layers} | {' | '.join(pair)} | {made['letters']:.3f} |")
    return "\n".join(lines)


# --- the figure ------------------------------------------------------------------------------------------------------
COLOURS = {"layernorm": "C0", "rmsnorm": "C2", "batchnorm": "C3", "none": "0.4"}
NAMES = {"layernorm": "layer norm", "rmsnorm": "RMS norm", "batchnorm": "batch norm", "none": "no norm"}


def draw(made: dict):
    """Loss against rate before and after, loss by depth; the leak by rows; gradients by layer, start and end."""
    with plt.rc_context(STYLE | {"font.size": 12}):
        figure, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
        for axis, place in zip(axes[0], ("pre", "post"), strict=False):
            draw_rates(axis, place, made)
        draw_depths(axes[0, 2], made)
        draw_leaks(axes[1, 0], made)
        draw_gradients(axes[1, 1], made["start"], "Gradient by block, at the start")
        draw_gradients(axes[1, 2], made["after"], "Gradient by block, after training")
    return figure


def centre_and_spread(values: Iterable[Iterable[float]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each row, and its standard deviation over seeds, 0 where there is one seed."""
    rows = np.array(list(values))
    return rows.mean(axis=1), rows.std(axis=1, ddof=1) if rows.shape[1] > 1 else np.zeros(len(rows))


def draw_rates(axis, place: str, made: dict) -> None:
    top = made["letters"] + 0.25
    for kind in GRID:
        if kind.norm_place != place and kind.norm != "none":
            continue
        rows = made[str(kind)]
        points = {rate: [row["loss"] for row in rows if row["rate"] == rate] for rate in RATES}
        ends = {rate: np.array(losses) for rate, losses in points.items() if None not in losses}
        style = dict(color=COLOURS[kind.norm], marker="o", markersize=4, capsize=3)
        axis.errorbar(list(ends), *centre_and_spread(list(ends.values())), label=NAMES[kind.norm], **style)
        lost = [rate for rate in points if rate not in ends]
        axis.plot(lost, [top] * len(lost), "x", color=COLOURS[kind.norm], markersize=8)
    axis.axhline(made["letters"], color="0.6", linestyle=":")
    axis.text(RATES[0], made["letters"] + 0.02, "letter frequencies", va="bottom", color="0.4")
    axis.set(xscale="log", xlabel="learning rate (x: diverged)", ylabel="validation loss, nats a character")
    axis.set_xticks(RATES, [f"{rate:g}" for rate in RATES], fontsize=10)
    axis.minorticks_off()
    axis.set_title("Norm before the branch" if place == "pre" else "Norm after the sum")
    axis.legend(loc="center left")


def draw_depths(axis, made: dict) -> None:
    for residual, colour in ((True, "C0"), (False, "C1")):
        kinds = [kind for kind in BY_DEPTH if kind.residual == residual]
        losses = [best(made[str(kind)])[1] for kind in kinds]
        label = "with residual connections" if residual else "without"
        axis.errorbar(DEPTHS, *centre_and_spread(losses), color=colour, marker="o", capsize=3, label=label)
    axis.axhline(made["letters"], color="0.6", linestyle=":")
    axis.set(xscale="log", xlabel="layers", ylabel="validation loss, nats a character")
    axis.set_xticks(DEPTHS, [str(layers) for layers in DEPTHS])
    axis.minorticks_off()
    axis.set_title("Layer norm before, best rate")
    axis.legend(loc="center right")


def draw_leaks(axis, made: dict) -> None:
    for kind in GRID:
        if kind.norm == "batchnorm":
            leaks, pre = made["leaks"][str(kind)], kind.norm_place == "pre"
            change_RB = np.array([[one[f"position 0, {rows} rows"] for rows in ROWS] for one in leaks])
            style = dict(marker="o" if pre else "s", linestyle="-" if pre else "--", capsize=3)
            label = f"batch norm, {'before' if pre else 'after'}"
            axis.errorbar(ROWS, *centre_and_spread(change_RB.T), color=COLOURS[kind.norm], label=label, **style)
    axis.set(xscale="log", yscale="log", xlabel="rows in the batch", ylabel="largest change of a logit")
    axis.set_xticks(ROWS, [str(rows) for rows in ROWS])
    axis.minorticks_off()
    axis.set_title("Leak of the last token to the first")
    axis.legend()


def draw_gradients(axis, by_kind: dict, title: str) -> None:
    for kind in GRADIENTS:
        if str(kind) in by_kind:
            norms_RL = np.array(by_kind[str(kind)])
            label = NAMES[kind.norm] + ("" if kind.norm == "none" else f", {kind.norm_place}")
            line = dict(color="C1" if kind.norm_place == "post" else COLOURS[kind.norm], marker="o", markersize=4)
            line["linestyle"] = "-" if kind.residual else "--"
            label += "" if kind.residual else ", no residuals"
            axis.errorbar(np.arange(kind.layers) + 1, *centre_and_spread(norms_RL.T), capsize=3, label=label, **line)
    axis.set(yscale="log", xlabel="block", ylabel="norm of the gradient of what enters")
    axis.set_title(title)
    axis.legend(fontsize=10)


if __name__ == "__main__":
    main()
