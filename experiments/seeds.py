"""How much does a configuration's result depend on the seed?

python experiments/seeds.py quickstart                                        3 seeds, about 10 minutes on two CPU cores
python experiments/seeds.py shakespeare_char_cpu --corpus path/to/input.txt   3 seeds, about 8 minutes
Prints the last validation loss, bits per byte and seconds of each seed with mean and standard deviation, and draws the
runs' validation curves to experiments/figures/seeds_<config>.svg. Expected results: experiments/RESULTS.md.
"""

import argparse
import statistics
from pathlib import Path

import lm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a name in configs/ or a path to a .py file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--corpus", help="train on this file, folder or named corpus instead of the config's")
    parser.add_argument("--folder", default="runs/seeds", help="where the runs go")
    options = parser.parse_args()

    experiment = lm.load_experiment(options.config)
    if options.corpus:
        experiment = lm.replace(experiment, {"data.corpus": options.corpus})
    runs = []
    for seed in range(options.seeds):
        changes = {"train.seed": seed, "name": f"{experiment.name}-seed{seed}"}
        run = lm.train(lm.replace(experiment, changes), folder=options.folder, display=lm.Display())
        if run.metrics()[-1]["step"] < run.record["steps"]["total"]:
            raise SystemExit("stopped; the same command goes on from there")
        runs.append(run)

    print(f"{'run':<36}{'val loss':>10}{'bits/byte':>11}{'seconds':>9}")
    rows = []
    for run in runs:
        last = next(record for record in reversed(run.metrics()) if "val_loss" in record)
        rows.append([last["val_loss"], last["val_bits_per_byte"], last["seconds"]])
        print(f"{run.name:<36}{rows[-1][0]:>10.4f}{rows[-1][1]:>11.4f}{rows[-1][2]:>9.1f}")
    columns = list(zip(*rows, strict=True))
    for name, of in (("mean", statistics.mean), ("standard deviation", statistics.stdev)):
        if len(runs) > 1:
            loss, bits, seconds = (of(column) for column in columns)
            print(f"{name:<36}{loss:>10.4f}{bits:>11.4f}{seconds:>9.1f}")
    figure = Path(__file__).parent / "figures" / f"seeds_{Path(options.config).stem}.svg"
    print(lm.loss_curves(runs, figure))


if __name__ == "__main__":
    main()
