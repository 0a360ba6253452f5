"""Our recipe against nanoGPT's: how long until a validation loss of 1.88 on Shakespeare's characters?

python experiments/time_to_loss.py path/to/input.txt      15 minutes on two CPU cores, on which nothing else should run
This races recipes, not only programs: both train 4 layers, D=128, 4 heads, T=64 from the start of a process to its end,
each in its own way. Ours is `lm train shakespeare_char_cpu` (Muon, SwiGLU, rotary positions) with the settings OURS;
options that are not this script's are passed on to it (--train.steps 500). The rival is nanoGPT's model and recipe for
a CPU in PyTorch (torch_recipe.py), eager and compiled: AdamW for 2,000 steps, for which nanoGPT publishes 1.88; what it
reaches here is in the table. In every round each starts afresh with a seed of the round's; before them comes a round
with empty caches of compiled programs ("cold"). Both score the whole last tenth of the text. Prints a markdown table of
each seed's loss, and how many miss the goal; exit status 1 when the mean of ours does. Draws
experiments/figures/time_to_loss.svg. Expected results: experiments/RESULTS.md.
"""

import argparse
import dataclasses
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from race import Attempt, attempt, lm_train, mean_and_each, require_corpus, torch_recipe

import lm
from lm.errors import require
from lm.figures import STYLE, check_format, plt, save

FIGURE = Path(__file__).parent / "figures" / "time_to_loss.svg"
GOAL = 1.88
"""Nats a character: what nanoGPT's README reports for this shape and recipe."""
OURS = {
    "train.steps": 176, "train.batch": 16, "optimizer.matrix-learning-rate": 0.042,
    "train.log-every": 10, "train.eval-every": "100%", "train.checkpoint-every": "100%",
}  # fmt: skip
RIVALS = {"eager": "PyTorch, eager", "compile": "PyTorch, torch.compile"}
RECIPES = {"lm": "ours: Muon, SwiGLU, rotary positions"} | dict.fromkeys(
    RIVALS.values(), "nanoGPT's: AdamW, GELU, learned positions"
)
COLOURS = {"lm": "C2", "PyTorch, eager": "C1", "PyTorch, torch.compile": "C3"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One contestant over the warm rounds."""

    who: str
    seconds: float
    """Median."""
    cold: float
    losses: list[float]
    """One of each seed."""
    ratio: list[float]
    """Its time over ours, in the same round."""
    steps: str
    """How many, and of how much."""

    def above(self, goal: float) -> str:
        """How many seeds miss the goal."""
        return f"{sum(loss > goal for loss in self.losses)} of {len(self.losses)}"

    def markdown(self, goal: float) -> str:
        ratio = f"{statistics.median(self.ratio):.2f} ({min(self.ratio):.2f} to {max(self.ratio):.2f})"
        cells = (
            self.who, f"{RECIPES[self.who]}, {self.steps}", f"{self.seconds:.1f}", f"{self.cold:.1f}",
            mean_and_each(self.losses), self.above(goal), "" if self.who == "lm" else ratio,
        )  # fmt: skip
        return f"| {' | '.join(cells)} |"


def summary(attempts: Sequence[Attempt]) -> list[Row]:
    """A row for each contestant, ours first and then the fastest; the first attempt of each is its cold one."""
    rows = []
    by = {who: [a for a in attempts if a.who == who] for who in dict.fromkeys(a.who for a in attempts)}
    for who, (cold, *warm) in by.items():
        require(len(warm) == len(by["lm"]) - 1 > 0, f"{who}: {len(warm)} rounds, lm made {len(by['lm']) - 1}")
        ratio = [theirs.seconds / ours.seconds for theirs, ours in zip(warm, by["lm"][1:], strict=True)]
        seconds = statistics.median(a.seconds for a in warm)
        steps = f"{cold.said['step']:,} steps of {cold.said['tokens'] // cold.said['step']:,} characters"
        rows.append(Row(who, seconds, cold.seconds, [a.val_loss for a in warm], ratio, steps))
    return sorted(rows, key=lambda row: (row.who != "lm", row.seconds))


# --- contestants -----------------------------------------------------------------------------------------------------
def commands(corpus: Path, passed_on: Sequence[str]) -> dict[str, Callable[[int], tuple[list[str], str]]]:
    """For each contestant and a seed: the command, and the log it writes."""
    settings = [piece for key, value in OURS.items() for piece in (f"--{key}", str(value))]
    return {
        "lm": lambda seed: lm_train("shakespeare_char_cpu", corpus, seed, [*settings, *passed_on]),
        RIVALS["eager"]: lambda seed: torch_recipe(corpus, seed, []),
        RIVALS["compile"]: lambda seed: torch_recipe(corpus, seed, ["--compile"]),
    }


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
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        for row in summary(attempts)[:2]:
            warm = [a for a in attempts if a.who == row.who][1:]
            for a in warm:
                axes.plot(*zip(*a.curve("loss"), strict=True), color=COLOURS[row.who], alpha=0.5, linewidth=1.2)
            whose = "our recipe" if row.who == "lm" else "nanoGPT's recipe"
            label = f"{whose}, {row.who}: {row.seconds:.0f} s, mean {statistics.mean(row.losses):.4f}\n"
            label += f"{row.above(goal)} seeds above {goal:g}"
            axes.plot([a.seconds for a in warm], row.losses, "o", color=COLOURS[row.who], label=label)
        axes.axhline(goal, color="0.3", linewidth=1, linestyle="--", label=f"{goal:g}, which nanoGPT publishes")
        axes.set(xlabel="seconds since the process started", ylabel="loss, nats per character", xlim=(0, None))
        axes.set_ylim(1.4, 3.4)
        title = "thin: training; dots: validation, at the process's end"
        axes.legend(title=title, alignment="left", loc="upper right")
        save(figure, path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="Shakespeare's plays in one file, as nanoGPT uses them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch", nargs="+", choices=tuple(RIVALS), default=tuple(RIVALS))
    parser.add_argument("--goal", type=float, default=GOAL)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    o, passed_on = parser.parse_known_args()
    require_corpus(o.corpus)
    require(o.rounds >= 1, f"--rounds {o.rounds}: must be at least 1")
    check_format(o.figure, "--figure")
    require(importlib.util.find_spec("torch") is not None, "the rival needs PyTorch: pip install -e '.[parity]'")

    attempts = measure(
        o.corpus.resolve(), ("lm", *(RIVALS[one] for one in dict.fromkeys(o.torch))), o.rounds, passed_on
    )
    rows = summary(attempts)
    head = ("contestant", "recipe", "seconds", "cold", "validation loss, mean (seeds)", f"above {o.goal:g}",
            "its time over ours")  # fmt: skip
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    print("\n".join(row.markdown(o.goal) for row in rows))
    watching = max(a.said.get("watching_seconds", 0.0) for a in attempts)
    print(f"medians of {o.rounds} rounds (lowest to highest); PyTorch spent up to {watching:.1f} s on its curve")
    draw(attempts, o.goal, o.figure)
    print(o.figure)
    means = [(row.who, statistics.mean(row.losses)) for row in rows]
    for who, mean in means:
        print(f"{who}: the mean {mean:.4f} {'reaches' if mean <= o.goal else 'MISSES'} {o.goal:g}")
    return int(means[0][1] > o.goal)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except lm.UserError as error:
        print(f"time_to_loss: {error}", file=sys.stderr)
        sys.exit(2)
