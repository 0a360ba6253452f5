"""How long until a validation loss of 1.88 on Shakespeare's characters, from the start of a process to its end?

python experiments/time_to_loss.py path/to/input.txt      15 minutes on two CPU cores, on which nothing else should run
Ours is `lm train shakespeare_char_cpu` with the settings OURS; options that are not this script's are passed on to it
(--train.steps 500). The rival is nanoGPT's model and recipe in PyTorch (torch_recipe.py), eager and compiled, of which
the faster counts. Same shape: 4 layers, D=128, 4 heads, T=64. In every round each starts afresh with a seed of the
round's; before them comes a round with empty caches of compiled programs ("cold"). Both score the whole last tenth of
the text. Prints a markdown table; exit status 1 when our mean loss is above the goal. Draws
experiments/figures/time_to_loss.svg. Expected results: experiments/RESULTS.md.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lm
from lm.errors import require

HERE = Path(__file__).resolve().parent
FIGURE = HERE / "figures" / "time_to_loss.svg"
GOAL = 1.88
"""Nats a character: what nanoGPT's README reports for this shape and recipe."""
OURS = {
    "train.steps": 176, "train.batch": 16, "optimizer.matrix-learning-rate": 0.042,
    "train.log-every": 10, "train.eval-every": "100%", "train.checkpoint-every": "100%",
}  # fmt: skip
LOOK = 0.05
"""Seconds between two looks at a process's log."""
NAMES = {"lm": "lm", "eager": "PyTorch, eager", "compile": "PyTorch, torch.compile"}
COLOURS = {"lm": "C2", "eager": "C1", "compile": "C3"}


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One process, from start to end."""

    who: str
    seed: int
    seconds: float
    val_loss: float
    curve: list[tuple[float, float]]
    """(seconds since the process started, mean training loss since the last point)."""
    said: dict
    """What it printed."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One contestant over the warm rounds."""

    who: str
    seconds: float
    """Median."""
    cold: float
    losses: list[float]
    ratio: list[float]
    """Its time over ours, in the same round."""

    def markdown(self) -> str:
        ratio = "" if self.who == "lm" else f"{statistics.median(self.ratio):.2f} ({spread(self.ratio)})"
        losses = f"{statistics.mean(self.losses):.4f} ({spread(self.losses, 4)})"
        return f"| {NAMES[self.who]} | {self.seconds:.1f} | {self.cold:.1f} | {losses} | {ratio} |"


def spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def summary(attempts: Sequence[Attempt]) -> list[Row]:
    """A row for each contestant, ours first and then the fastest; the first attempt of each is its cold one."""
    rows = []
    by = {who: [a for a in attempts if a.who == who] for who in dict.fromkeys(a.who for a in attempts)}
    for who, (cold, *warm) in by.items():
        require(len(warm) == len(by["lm"]) - 1 > 0, f"{who}: {len(warm)} rounds, lm made {len(by['lm']) - 1}")
        ratio = [theirs.seconds / ours.seconds for theirs, ours in zip(warm, by["lm"][1:], strict=True)]
        seconds = statistics.median(a.seconds for a in warm)
        rows.append(Row(who, seconds, cold.seconds, [a.val_loss for a in warm], ratio))
    return sorted(rows, key=lambda row: (row.who != "lm", row.seconds))


# --- contestants -----------------------------------------------------------------------------------------------------
def commands(corpus: Path, passed_on: Sequence[str]) -> dict[str, Callable[[int], tuple[list[str], str]]]:
    """For each contestant and a seed: the command, and the log it writes."""

    def ours(seed: int):
        settings = [piece for key, value in OURS.items() for piece in (f"--{key}", str(value))]
        how = [*settings, *passed_on, "--data.corpus", str(corpus), "--train.seed", str(seed), "--name", f"seed{seed}"]
        command = [sys.executable, "-m", "lm.cli", "train", "shakespeare_char_cpu", *how, "--json"]
        return command, f"runs/seed{seed}/metrics.jsonl"

    def theirs(seed: int, *how: str):
        log = f"torch-{seed}.jsonl"
        return [
            sys.executable,
            str(HERE / "torch_recipe.py"),
            str(corpus),
            "--seed",
            str(seed),
            "--log",
            log,
            *how,
        ], log

    return {"lm": ours, "eager": theirs, "compile": lambda seed: theirs(seed, "--compile")}


def attempt(who: str, seed: int, command: list[str], folder: Path, log: Path) -> Attempt:
    """Run a process in a folder, which also keeps its caches, timed; look at its log as it goes."""
    points = []
    caches = {"LM_CACHE": f"{folder}/lm", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
    paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | caches | {"PYTHONPATH": paths}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as complaints:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=complaints)
        ended = None
        while ended is None:
            ended = process.poll()
            now = time.perf_counter() - start
            lines = log.read_text().splitlines() if log.exists() else []
            points += [(now, json.loads(line)) for line in lines[len(points) :] if line.endswith("}")]
            if ended is None:
                time.sleep(LOOK)
        out.seek(0), complaints.seek(0)
        require(ended == 0, f"{NAMES[who]} failed: {complaints.read().strip()[-600:]}")
        said = json.loads(out.read().splitlines()[-1])
    curve = [(seconds, record["loss"]) for seconds, record in points if "loss" in record]
    print(f"{NAMES[who]}, seed {seed}: {now:.1f} s, validation loss {said['val_loss']:.4f}", file=sys.stderr)
    return Attempt(who, seed, now, said["val_loss"], curve, said)


def measure(corpus: Path, contestants: Sequence[str], rounds: int, passed_on: Sequence[str]) -> list[Attempt]:
    """The cold round, seed 0, and then `rounds` warm ones, in alternating order."""
    makers, attempts = commands(corpus, passed_on), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(rounds + 1):
            for who in contestants if seed % 2 == 0 else reversed(contestants):
                command, log = makers[who](seed)
                attempts.append(attempt(who, seed, command, Path(folder), Path(folder, log)))
    return attempts


# --- what a person sees ----------------------------------------------------------------------------------------------
def draw(attempts: Sequence[Attempt], goal: float, path: Path) -> None:
    """Training loss over time, and where each process ended: its validation loss. Warm rounds; eager or compiled."""
    import matplotlib.pyplot as plt

    from lm.figures import STYLE, save

    shown = ("lm", summary(attempts)[1].who)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        for who in shown:
            warm = [a for a in attempts if a.who == who][1:]
            for a in warm:
                axes.plot(*zip(*a.curve, strict=True), color=COLOURS[who], alpha=0.5, linewidth=1.2)
            label = f"{NAMES[who]}: {statistics.median(a.seconds for a in warm):.0f} s"
            axes.plot([a.seconds for a in warm], [a.val_loss for a in warm], "o", color=COLOURS[who], label=label)
        axes.axhline(goal, color="0.3", linewidth=1, linestyle="--", label=f"goal: {goal:g}")
        axes.set(xlabel="seconds since the process started", ylabel="loss, nats per character", xlim=(0, None))
        axes.set_ylim(1.4, 3.4)
        title = "thin: training; dots: validation, at the process's end"
        axes.legend(title=title, alignment="left", loc="upper right")
        save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="Shakespeare's plays in one file, as nanoGPT uses them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch", nargs="+", choices=("eager", "compile"), default=("eager", "compile"))
    parser.add_argument("--goal", type=float, default=GOAL)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    o, passed_on = parser.parse_known_args()
    require(o.corpus.is_file(), f"{o.corpus}: no such file; give nanoGPT's input.txt, 1.1 MB of Shakespeare")
    require(o.rounds >= 1, f"--rounds {o.rounds}: must be at least 1")
    require(o.figure.suffix in (".svg", ".png", ".pdf"), f"--figure {o.figure}: write a .svg, .png or .pdf")
    require(importlib.util.find_spec("torch") is not None, "the rival needs PyTorch: pip install -e '.[parity]'")

    attempts = measure(o.corpus.resolve(), ("lm", *dict.fromkeys(o.torch)), o.rounds, passed_on)
    rows = summary(attempts)
    print("| contestant | seconds | cold | validation loss | time over ours |\n|---|---|---|---|---|")
    print("\n".join(row.markdown() for row in rows))
    watching = max(a.said.get("watching_seconds", 0.0) for a in attempts)
    print(f"medians of {o.rounds} rounds (lowest to highest); PyTorch spent up to {watching:.1f} s on its curve")
    draw(attempts, o.goal, o.figure)
    print(o.figure)
    mean, above = statistics.mean(rows[0].losses), sum(loss > o.goal for loss in rows[0].losses)
    reached = "reached" if mean <= o.goal else "MISSED"
    print(f"goal {o.goal:g}: {reached} by the mean of our seeds, {mean:.4f}; {above} of {o.rounds} above it")
    return int(mean > o.goal)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except lm.UserError as error:
        print(f"time_to_loss: {error}", file=sys.stderr)
        sys.exit(2)
