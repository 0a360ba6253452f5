"""How fast does this checkout train beside another one, by shape?

python experiments/training_speed.py --against FOLDER     20 minutes on two CPU cores, on which nothing else should run
FOLDER is another checkout of lm (git worktree add FOLDER COMMIT). Each of the two has a process of its own for a shape,
which trains on random tokens in turns of --seconds while the other waits: the programs of `lm train`, compiled before.
A ratio is of neighbouring turns. Prints a markdown table of tokens a second before and after, and of how many times
faster this checkout is: medians (quartiles) over --rounds. Expected results: experiments/RESULTS.md.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from checkouts import OURS, require_checkout

RECIPE = dict(activation="swiglu", embedding_norm=True, dropout=0.1)
SHAPES = {
    "GPT-2, L=2 D=64 T=128 B=32": (dict(layers=2, width=64, heads=2, context=128), 32, "adamw"),
    "GPT-2, L=4 D=128 T=64 B=12": (dict(layers=4, width=128, heads=4, context=64), 12, "adamw"),
    "GPT-2, L=6 D=384 T=256 B=16": (dict(layers=6, width=384, heads=6, context=256), 16, "adamw"),
    "recipe, L=4 D=128 T=64 B=16": (RECIPE | dict(layers=4, width=128, heads=4, context=64), 16, "muon"),
    "recipe, L=6 D=128 T=256 B=16": (RECIPE | dict(layers=6, width=128, heads=4, context=256), 16, "muon"),
    "recipe, L=6 D=192 T=128 B=32": (RECIPE | dict(layers=6, width=192, heads=6, context=128), 32, "muon"),
    "recipe, L=6 D=192 T=256 B=16": (RECIPE | dict(layers=6, width=192, heads=6, context=256), 16, "muon"),
    "the same, no dropout": (RECIPE | dict(layers=6, width=192, heads=6, context=256, dropout=0.0), 16, "muon"),
    "recipe, L=6 D=192 T=512 B=8": (RECIPE | dict(layers=6, width=192, heads=6, context=512), 8, "muon"),
    "recipe, L=6 D=384 T=256 B=16": (RECIPE | dict(layers=6, width=384, heads=6, context=256), 16, "muon"),
}
"""The model, sequences in a step, and the optimizer: AdamW trains GPT-2's architecture, Muon the one we recommend."""
VOCABULARY = dict(vocab=65, vocab_multiple=8)
"""Characters of Shakespeare."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="another checkout of lm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a turn")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=SHAPES)
    o = parser.parse_args()
    against = require_checkout(parser, o.against)
    if o.rounds < 1 or o.seconds <= 0:
        parser.error(f"--rounds {o.rounds} --seconds {o.seconds:g}: must be positive")
    sys.path.insert(0, str(OURS))
    from lm.bench import Contestant, compare

    print("| shape | before, tokens/s | after | times faster |\n|---|---|---|---|")
    for name in o.shapes:
        model, batch, _ = SHAPES[name]
        with trainer(OURS, name) as new, trainer(against, name) as old:
            after, before = compare([Contestant("after", new), Contestant("before", old)], o.seconds, o.rounds)
        was, now = (one.seconds.per(batch * model["context"]).median for one in (before, after))
        r = before.ratio
        print(f"| {name} | {was:,.0f} | {now:,.0f} | {r.median:.2f} ({r.low:.2f} to {r.high:.2f}) |", flush=True)


@contextlib.contextmanager
def trainer(folder: Path, name: str) -> Iterator[Callable[[int], object]]:
    """run(n): n steps of a shape by the package of a checkout, in a process whose program is compiled before."""
    command = [sys.executable, "-c", "import training_speed; training_speed.serve()", name]
    paths = os.pathsep.join((str(folder), str(Path(__file__).parent)))
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": paths}, cwd=folder, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def run(n: int) -> None:
        process.stdin.write(f"{n}\n")
        process.stdin.flush()
        answered()

    def answered() -> None:
        if process.stdout.readline() != "done\n":
            raise SystemExit(f"{folder}: could not train {name}")

    try:
        answered()
        yield run
    finally:
        process.stdin.close()
        process.wait()


def serve() -> None:
    """Serves a trainer: for each line a number of steps, told when they are done; first, that it is ready."""
    import lm

    model, batch, optimizer = SHAPES[sys.argv[1]]
    make = lm.ModelConfig if optimizer == "muon" else lm.ModelConfig.gpt2
    experiment = lm.Experiment(
        model=make(**model, **VOCABULARY),
        optimizer=lm.OptimizerConfig(name=optimizer),
        train=lm.TrainConfig(batch=batch, diverged=1e6),
    )
    program = lm.bench.Program(experiment, dispatch=4)
    program.run(4)
    print("done", flush=True)
    for line in sys.stdin:
        program.run(int(line))
        print("done", flush=True)


if __name__ == "__main__":
    main()
