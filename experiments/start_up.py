"""How long do small acts of the command take, from the start of a process to its end, and how much of a processor?

python experiments/start_up.py --points TABLE.csv                   about 5 minutes on two CPU cores
python experiments/start_up.py --points TABLE.csv --against FOLDER  in turn with another checkout of lm
TABLE.csv has parameters, FLOPs and losses (chinchilla_epoch_svg.csv: 245 points). A run of the quick start's shape is
trained for 20 steps in a temporary folder and listed 20 times; each act is done once to fill the caches, and then
--rounds times. Prints medians. Expected on quiet cores: help within 0.5 s, a table of 20 runs within 1 s, 20 tokens
within 3 s, a fit within 6 s; see experiments/RESULTS.md.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkouts import OURS, require_checkout

TRAIN = "train quickstart --name tiny --train.steps 20 --train.eval-tokens 2000"
ACTS = {
    "help of runs": "runs --help",
    "help of train": "train --help",
    "help of sample": "sample --help",
    "help of plan": "plan --help",
    "table of 20 runs": "runs --folder many",
    "20 tokens sampled": "sample tiny --prompt The --max-tokens 20",
    "fit of a table, 1,000 bootstraps": "fit points.csv --tokens-from 6nd",
    "training of a finished run": TRAIN,
    "probe: an analogy": "probe tiny analogy int if str",
    "plot of a run's loss": "plot tiny --out loss.png",
}


def act(checkout: Path, place: Path, arguments: str) -> tuple[float, float]:
    """Seconds on the clock and of processors that a command takes; its bytecode and programs are kept in `place`."""
    kept = {"PYTHONPATH": checkout, "LM_CACHE": place / "cache", "PYTHONPYCACHEPREFIX": place / "bytecode"}
    known = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lm.cli", *arguments.split()], cwd=place, check=True, capture_output=True,
        env=known | {name: str(value) for name, value in kept.items()},
    )  # fmt: skip
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepare(checkout: Path, place: Path, points: Path) -> None:
    """A run, a folder of 20 like it, and a table of points, as the checkout makes them."""
    place.mkdir()
    shutil.copy(points, place / "points.csv")
    act(checkout, place, TRAIN)
    for number in range(20):
        shutil.copytree(place / "runs/tiny", place / f"many/{number}", ignore=shutil.ignore_patterns("checkpoints"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=Path, required=True)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    o = parser.parse_args()
    if not o.points.is_file():
        parser.error(f"--points {o.points}: no such file; a .csv of parameters, FLOPs and losses")
    checkouts = {"ours": OURS} | ({"theirs": require_checkout(parser, o.against)} if o.against else {})
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / name for name in checkouts}
        for name, checkout in checkouts.items():
            prepare(checkout, places[name], o.points)
        print("| act |", *(f"{name}, s | processor, s |" for name in checkouts))
        print("|---|" + "---|" * 2 * len(checkouts))
        for what, arguments in ACTS.items():
            taken = {name: [] for name in checkouts}
            for _ in range(1 + o.rounds):
                for name, checkout in checkouts.items():
                    taken[name].append(act(checkout, places[name], arguments))
            medians = [statistics.median(column) for name in checkouts for column in zip(*taken[name][1:], strict=True)]
            print(f"| {what} |", *(f"{seconds:.2f} |" for seconds in medians), flush=True)


if __name__ == "__main__":
    main()
