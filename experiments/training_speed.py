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
import time
from pathlib import Path

OURS = Path(__file__).resolve().parents[1]
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
    if not (o.against / "lm" / "__init__.py").is_file():
        parser.error(f"--against {o.against}: no checkout of lm")
    sys.path.insert(0, str(OURS))
    from lm.bench import Spread

    print("| shape | before, tokens/s | after | times faster |\n|---|---|---|---|")
    for name in o.shapes:
        before, after = [], []
        with trainer(o.against, name) as old, trainer(OURS, name) as new:
            for turn in range(o.rounds):  # every other round in reverse, so that nobody always follows the same one
                for rates, process in ((before, old), (after, new))[:: -1 if turn % 2 else 1]:
                    rates.append(take_turn(process, o.seconds))
        ratio = Spread.over([new / old for old, new in zip(before, after, strict=True)])
        rates = f"{Spread.over(before).median:,.0f} | {Spread.over(after).median:,.0f}"
        print(f"| {name} | {rates} | {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) |", flush=True)


@contextlib.contextmanager
def trainer(checkout: Path, name: str):
    """A process that trains a shape with the package of a checkout whenever it is told to, its program compiled."""
    command = [sys.executable, "-c", "import training_speed; training_speed.serve()", name]
    paths = os.pathsep.join((str(checkout.resolve()), str(Path(__file__).parent)))
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": paths}, cwd=checkout, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        ready = process.stdout.readline()
        if ready.strip() != "ready":
            raise SystemExit(f"{checkout}: could not train {name}")
        yield process
    finally:
        process.stdin.close()
        process.wait()


def take_turn(process, seconds: float) -> float:
    """Tokens a second of a turn."""
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def serve() -> None:
    """What a trainer's process runs: a line of seconds in, a line of tokens a second out."""
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
    print("ready", flush=True)
    for line in sys.stdin:
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < float(line):
            program.run(4)
            steps += 4
        print(steps * experiment.batch_tokens / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
