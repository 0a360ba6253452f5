"""Which loss on Shakespeare's characters can eight minutes on two CPU cores buy? nanoGPT's published 1.4697, or less?

python experiments/loss_in_minutes.py path/to/input.txt      an hour on two CPU cores, on which nothing else should run
python experiments/loss_in_minutes.py path/to/input.txt --seconds 1800 --train.steps 4000 --figure longer.svg
nanoGPT publishes 1.4697 for 10.65M parameters after 5,000 steps of 64 x 256, some 3 minutes on an A100. Ours is `lm
train` of a configuration (--config), to which options that are not this script's are passed on, in a process from its
start to its end, for each seed. The first finds no compiled programs and no prepared data ("cold"), the others what it
left. The rivals then have the same time: nanoGPT's recipe in PyTorch as it is published (torch_recipe.py), and with a
schedule that ends when the time does, in batches of 64 and of 12. Their importing PyTorch and the watching of their
validation loss are not counted; ours are. Everyone scores the whole last tenth of the text in the end, in windows of
256 side by side. Prints a markdown table; keeps everything as .json beside the figure of validation loss over seconds,
experiments/figures/loss_in_minutes.svg; exit status 1 when the mean of ours misses the goal or one of ours takes longer
than --seconds. Expected results: experiments/RESULTS.md.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from race import Attempt, attempt, lm_train, mean_and_each, require_corpus, torch_recipe

import lm
from lm.errors import require
from lm.figures import STYLE, check_format, plt, save
from lm.files import whole
from lm.hardware import processor

FIGURE = Path(__file__).parent / "figures" / "loss_in_minutes.svg"
GOAL = 1.4697
"""Nats a character: what nanoGPT's README reports for config/train_shakespeare_char.py."""
CONTEXT = 256
OURS = "lm"
RIVALS = {
    "published": ("nanoGPT's recipe, PyTorch", []),
    "fit": ("nanoGPT's, fitted to the time, PyTorch", ["--fit"]),
    "fit-12": ("nanoGPT's, fitted, batches of 12, PyTorch", ["--fit", "--batch", "12"]),
}
"""What they are called in table and figure, and the options of torch_recipe.py."""
COLOURS = ("C1", "C3", "C4")


def main() -> int:
    o, passed_on = options()
    attempts = []
    with tempfile.TemporaryDirectory() as folder:
        for who, seed, (command, log) in contestants(o, passed_on):
            attempts.append(attempt(who, seed, command, Path(folder), Path(folder, log)))
            if who == OURS:
                require_whole(lm.Run(Path(folder, log).parent), o.corpus)
            keep(attempts, o, passed_on)
    print(table(attempts))
    draw(attempts, o.goal, o.figure)
    print(o.figure)
    return verdict([a for a in attempts if a.who == OURS], o.goal, o.seconds)


def contestants(o: argparse.Namespace, passed_on: Sequence[str]) -> Iterator[tuple[str, int, tuple[list[str], str]]]:
    """Who, with which seed, and the command with the log it writes."""
    for seed in o.seeds:
        yield OURS, seed, lm_train(o.config, o.corpus.resolve(), seed, passed_on)
    for name in o.rivals:
        words, how = RIVALS[name]
        how = ["--recipe", "gpu", "--seconds", f"{o.seconds:g}", *how, *o.torch]
        yield words, o.seeds[0], torch_recipe(o.corpus.resolve(), o.seeds[0], how)


def options() -> tuple[argparse.Namespace, list[str]]:
    """This script's own, and the settings that are passed on to `lm train`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="Shakespeare's plays in one file, as nanoGPT uses them")
    parser.add_argument("--config", default="shakespeare_char_laptop")
    parser.add_argument("--seconds", type=float, default=480.0, help="that ours may take, and rivals take")
    parser.add_argument("--goal", type=float, default=GOAL)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of ours; rivals have the first")
    parser.add_argument("--rivals", nargs="*", choices=tuple(RIVALS), default=tuple(RIVALS))
    parser.add_argument("--compile", dest="torch", action="append_const", const="--compile", default=[],
                        help="rivals by torch.compile")  # fmt: skip
    parser.add_argument("--bfloat16", dest="torch", action="append_const", const="--bfloat16",
                        help="rivals in bfloat16")  # fmt: skip
    parser.add_argument("--figure", type=Path, default=FIGURE)
    o, passed_on = parser.parse_known_args()
    require_corpus(o.corpus)
    require(o.seconds > 0, f"--seconds {o.seconds:g}: must be above 0")
    check_format(o.figure, "--figure")
    has_torch = importlib.util.find_spec("torch") is not None
    require(has_torch or not o.rivals, "rivals need PyTorch: pip install -e '.[parity]'; or give --rivals and no name")
    return o, passed_on


def require_whole(run: lm.Run, corpus: Path) -> None:
    """Refuse a run whose validation loss is not of the whole split in windows of CONTEXT, as the rivals' is."""
    e, characters = run.experiment, len(corpus.read_text(encoding="utf-8"))
    context, scored = e.model.context, e.train.eval_tokens
    require(context == CONTEXT, f"model.context {context}: the rivals are scored in windows of {CONTEXT}")
    enough = scored >= round(0.1 * characters)
    require(enough, f"train.eval_tokens {scored}: the validation split is a tenth of {characters:,} characters")


def keep(attempts: Sequence[Attempt], o: argparse.Namespace, passed_on: Sequence[str]) -> None:
    """All that was found so far, as JSON beside the figure."""
    about = {
        "config": o.config, "settings": list(passed_on), "seconds": o.seconds, "rivals": o.torch,
        "date": f"{datetime.date.today()}", "hardware": f"{os.cpu_count()} cores, {processor()}",
    }  # fmt: skip
    o.figure.parent.mkdir(parents=True, exist_ok=True)
    with whole(o.figure.with_suffix(".json")) as file:
        file.write(json.dumps(about | {"attempts": [dataclasses.asdict(a) for a in attempts]}) + "\n")


# --- what a person sees ----------------------------------------------------------------------------------------------
def by_name(attempts: Sequence[Attempt]) -> dict[str, list[Attempt]]:
    return {who: [a for a in attempts if a.who == who] for who in dict.fromkeys(a.who for a in attempts)}


def table(attempts: Sequence[Attempt]) -> str:
    """A row for each contestant: what it did in how long, and the loss in the end."""
    head = ("contestant", "million parameters", "steps", "characters a step", "seconds, start to end",
            "watching", "validation loss, mean (seeds)")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for who, some in by_name(attempts).items():
        said = some[0].said
        seconds = f"{some[0].seconds:.0f} cold" if who == OURS else f"{some[0].seconds:.0f}"
        seconds += f", {' '.join(f'{a.seconds:.0f}' for a in some[1:])} warm" * (len(some) > 1)
        watching = f"{said['watching_seconds']:.0f} of them" if "watching_seconds" in said else "counted"
        cells = (
            who, f"{said.get('parameters', said.get('params_total')) / 1e6:.2f}", f"{said['step']:,}",
            f"{said['tokens'] / said['step']:,.0f}", seconds, watching, mean_and_each([a.val_loss for a in some]),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def curve(a: Attempt) -> list[tuple[float, float]]:
    """Validation loss over seconds of work; the last point is the process's end and of the whole split."""
    end = a.seconds - a.said.get("watching_seconds", 0)
    return [*a.curve("val_loss"), *a.curve("subset_loss"), (end, a.val_loss)]


def draw(attempts: Sequence[Attempt], goal: float, path: Path) -> None:
    """Validation loss over seconds: ours a line for each seed with its end marked, rivals, and the goal."""
    with plt.rc_context(STYLE | {"font.size": 13}):
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        for (who, some), colour in zip(by_name(attempts).items(), ("C2", *COLOURS), strict=False):
            for a in some:
                seconds, losses = zip(*curve(a), strict=True)
                axes.plot(seconds, losses, color=colour, alpha=0.7, linewidth=1.5, marker=".", markersize=5)
                axes.plot(seconds[-1], losses[-1], "o", color=colour, markersize=8)
            mean = statistics.mean(a.val_loss for a in some)
            seeds = f"mean of {len(some)} seeds" if len(some) > 1 else "one seed"
            axes.plot([], [], "o-", color=colour, label=f"{who}: {mean:.4f}, {seeds}")
        axes.axhline(goal, color="0.3", linewidth=1.2, linestyle="--", label=f"{goal:g}: nanoGPT on an A100, published")
        ends = [goal, *(a.val_loss for a in attempts)]
        axes.set(xlabel="seconds since the process started", ylabel="validation loss, nats per character")
        axes.set(xlim=(0, None), ylim=(min(ends) - 0.08, max(2.6, max(ends) + 0.2)))
        figure.legend(loc="outside upper left")
        save(figure, path)


def verdict(ours: Sequence[Attempt], goal: float, seconds: float) -> int:
    """Say whether the mean of ours reaches the goal and each is in time; the exit status."""
    mean, longest = statistics.mean(a.val_loss for a in ours), max(a.seconds for a in ours)
    above = sum(a.val_loss > goal for a in ours)
    print(f"mean {mean:.4f}: {'reaches' if mean <= goal else 'MISSES'} {goal:g}; {above} of {len(ours)} seeds above it")
    print(f"longest process {longest:.0f} s: {'within' if longest <= seconds else 'LONGER THAN'} {seconds:g} s")
    return int(mean > goal or longest > seconds)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except lm.UserError as error:
        print(f"loss_in_minutes: {error}", file=sys.stderr)
        sys.exit(2)
