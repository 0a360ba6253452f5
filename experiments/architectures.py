r"""An LSTM against a transformer: the same characters, the same number of parameters, tokens and seeds.

python experiments/architectures.py --corpus input.txt      18 minutes on two CPU cores
python experiments/architectures.py --corpus input.txt --steps 200 --seeds 0     a minute, to see that it works

Trains configs/shakespeare_char_cpu.py and configs/lstm_char_cpu.py on a text (Shakespeare's plays, as `lm data prepare
shakespeare --download` fetches them), with three seeds each. The runs of a seed follow each other, so that a machine
that slows down slows both. Draws validation loss against tokens and against seconds of training, and prints a row for
each architecture. Everything but the model is the same: data, optimizer, schedule, seeds. Expected: the LSTM ahead all
the way, by 0.01 nats at the end; its sequences of 64 characters are short.
"""

import argparse
from pathlib import Path

import numpy as np

import lm
from lm.figures import STYLE, plt, save

FIGURE = Path(__file__).parent / "figures" / "architectures.svg"
CONFIGS = {"transformer": "shakespeare_char_cpu", "LSTM": "lstm_char_cpu"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="shakespeare", help="a text, or a corpus that lm knows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--runs", type=Path, default=Path("runs/architectures"), help="where the runs are kept")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    runs = {name: [] for name in CONFIGS}
    for seed in options.seeds:
        for name, config in CONFIGS.items():
            run = lm.train(experiment(config, seed, options), folder=options.runs)
            if not run.finished:
                raise SystemExit(75)  # stopped and saved: the same command goes on
            runs[name].append(run)
    print(table(runs))
    save(draw(runs), options.figure)
    print(options.figure)


def experiment(config: str, seed: int, options: argparse.Namespace) -> lm.Experiment:
    """The configuration on the text, scored often enough for a curve."""
    changes = {
        "name": f"{config}-{seed}", "data.corpus": options.corpus, "train.seed": seed, "train.steps": options.steps,
        "train.eval_every": max(1, options.steps // 20),
    }  # fmt: skip
    return lm.replace(lm.load_experiment(config), changes)


def table(runs: dict[str, list[lm.Run]]) -> str:
    """Markdown: what each architecture has and reaches, mean and standard deviation over seeds."""
    lines = [
        "| architecture | parameters | FLOPs a token | validation, nats a character | bits a character | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, some in runs.items():
        record, last = some[0].record, [run.metrics()[-1] for run in some]
        nats, seconds = (np.array([one[key] for one in last]) for key in ("val_loss", "seconds"))
        spread = [np.std(x, ddof=1) if len(x) > 1 else np.nan for x in (nats, seconds)]
        lines.append(
            f"| {name} | {record['params_total']:,} | {record['flops_per_token']:,.0f} "
            f"| {nats.mean():.4f} +- {spread[0]:.4f} | {nats.mean() / np.log(2):.4f} "
            f"| {seconds.mean():.0f} +- {spread[1]:.0f} |"
        )
    return "\n".join(lines)


def draw(runs: dict[str, list[lm.Run]]):
    """Validation loss against tokens and against seconds: a line for the mean over R seeds, thin ones for each."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    for axis, key, unit in ((axes[0], "tokens", 1e6), (axes[1], "seconds", 1)):
        for i, (name, some) in enumerate(runs.items()):
            curves = [[r for r in run.metrics() if "val_loss" in r and r["step"] > 0] for run in some]
            x_RE = np.array([[r[key] / unit for r in curve] for curve in curves])
            loss_RE = np.array([[r["val_loss"] for r in curve] for curve in curves])
            for x_E, loss_E in zip(x_RE, loss_RE, strict=True):
                axis.plot(x_E, loss_E, color=f"C{i}", linewidth=0.6, alpha=0.6)
            label = f"{name}, {loss_RE[:, -1].mean():.3f} at the end"
            axis.plot(x_RE.mean(0), loss_RE.mean(0), color=f"C{i}", linewidth=1.8, label=label)
    axes[0].set(xlabel="million characters read", ylabel="validation loss, nats per character")
    axes[1].set(xlabel="seconds of training")
    axes[0].legend(frameon=False)
    params = ", ".join(f"{name} {some[0].record['params_total']:,}" for name, some in runs.items())
    figure.suptitle(f"Shakespeare's characters: {params} parameters, {len(runs['LSTM'])} seeds", fontsize=11)
    return figure


if __name__ == "__main__":
    main()
