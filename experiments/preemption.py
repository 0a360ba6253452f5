"""Does a run that a queue preempts again and again come out as if it had been left alone?

python experiments/preemption.py            about 5 minutes on two idle CPU cores; as root, with Slurm installed by apt
A Slurm of this machine alone (tests/cluster.py) trains a small run in a partition whose jobs give way to another's; a
grace of 30 seconds. The signals come at random moments: some while it starts or compiles, the others while it trains.
Expected: 20 of 20 preemptions lead to status 75 within the grace; no step is made twice, no record lacks or is there
twice, the parameters are those of the run that was left alone, to the bit; figure experiments/figures/preemption.svg
"""

import argparse
import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

import cluster  # noqa: E402
import numpy as np  # noqa: E402

import lm  # noqa: E402
from lm.files import whole  # noqa: E402

GRACE = 30
"""Seconds between the signal and the kill, as cluster.py has them."""
STARTING = 0.3
"""Part of the preemptions that come within STARTS seconds of a start: while it imports, compiles, or has just begun."""
STARTS = 3.0
CONFIG = """
from lm.config import DataConfig, Experiment, ModelConfig, TrainConfig
experiment = Experiment(
    name="cut", model=ModelConfig(layers=2, width=32, heads=2, context=32, dtype="float32"),
    data=DataConfig(corpus="text.txt", tokenizer="chars"),
    train=TrainConfig(
        steps={steps}, batch=8, log_every={every}, eval_every={every}, checkpoint_every={steps}, eval_tokens=4096
    ),
)
"""


@dataclasses.dataclass(frozen=True)
class Preemption:
    """One time that the run gave way."""

    step: int
    """The last in the log when the signal was sent."""
    began: int
    """Where it had gone on from."""
    saved: int
    """Where it was saved: where it goes on."""
    seconds: float
    """From asking for the cores to having them."""


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "lm.cli", *words]


def step(run: Path) -> int:
    """The last step in a run's log; 0 without any."""
    log = run / "metrics.jsonl"
    found = re.findall(r'^\{"step": (\d+)', log.read_text() if log.is_file() else "", re.MULTILINE)
    return int(found[-1]) if found else 0


def saved(run: Path) -> int:
    """The step of a run's latest checkpoint; 0 where it has none yet."""
    return max((int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdigit()), default=0)


def state(job: str) -> str:
    """What Slurm says of a job, for some minutes after its end as well: PENDING, RUNNING, COMPLETING, or an end."""
    return re.search(r"JobState=(\w+)", cluster.output("scontrol", "show", "job", job))[1]


def over(job: str) -> bool:
    """Whether the job has come to an end; one that waits is started."""
    cluster.start_what_waits(job)
    return state(job) not in ("PENDING", "RUNNING", "COMPLETING")


def preempt(job: str, run: Path, rng: random.Random) -> Preemption | None:
    """Start the job, wait for a moment, and take its cores; None where it came to its end before that."""
    cluster.wait_for(lambda: over(job) or state(job) == "RUNNING", 120)
    before = saved(run)
    if rng.random() < STARTING:
        time.sleep(rng.uniform(0, STARTS))
    else:
        cluster.wait_for(lambda: over(job) or step(run) > before, 120)
        time.sleep(rng.uniform(0, 0.5))
    reached, began = step(run), time.monotonic()
    high = ["sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wait", "--wrap=true"]
    subprocess.run(high, capture_output=True, check=True, timeout=120)
    seconds = time.monotonic() - began
    return None if over(job) else Preemption(reached, before, saved(run), seconds)


def log_of(run: lm.Run) -> list[dict]:
    """A run's records without what depends on the clock."""
    timings = {"seconds", "tokens_per_second", "mfu", "data_wait"}
    return [{key: value for key, value in record.items() if key not in timings} for record in run.metrics()]


def differences(cut: lm.Run, alone: lm.Run) -> list[str]:
    """In what the two runs differ, and what is wrong with the log."""
    import jax

    found = [record["step"] for record in cut.metrics()]
    wrong = [] if found == [record["step"] for record in alone.metrics()] else ["steps of the log"]
    wrong += [] if log_of(cut) == log_of(alone) else ["figures of the log"]
    pairs = zip(jax.tree.leaves(lm.load(cut).params), jax.tree.leaves(lm.load(alone).params), strict=True)
    same = all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
    return wrong + ([] if same else ["parameters"])


def draw(made: list[Preemption], steps: int, out: Path) -> None:
    """How far the run was at each preemption, and how long it took to make room."""
    import matplotlib.pyplot as plt

    from lm.figures import STYLE, save

    with plt.rc_context(STYLE):
        figure, (above, below) = plt.subplots(2, figsize=(6, 4.6), sharex=True, layout="constrained")
        number = np.arange(1, len(made) + 1)
        above.plot(number, [p.saved for p in made], "C0_", markersize=9, label="saved")
        above.plot(number, [p.step for p in made], "C1o", markersize=4, label="last record at the signal")
        above.set(ylabel="step", ylim=(-0.03 * steps, 1.03 * steps))
        above.legend(fontsize="small")
        below.bar(number, [p.seconds for p in made], color="C0", width=0.6)
        below.axhline(GRACE, color="C3", linewidth=1)
        below.set(xlabel="preemption", ylabel="seconds to make room")
        below.annotate("grace", (1, GRACE), xytext=(0, -12), textcoords="offset points", color="C3", fontsize="small")
        below.xaxis.get_major_locator().set_params(integer=True)
        save(figure, out)


def study(folder: Path, o: argparse.Namespace) -> int:
    """Train the run alone, then among preemptions; tell what came. Returns 0 where everything was exact."""
    environment = {"PYTHONPATH": str(HERE.parent), "LM_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
    os.environ.update(environment)
    with whole(folder / "text.txt") as file:
        file.write(Path(argparse.__file__).read_text())
    with whole(folder / "config.py") as file:
        file.write(CONFIG.format(steps=o.steps, every=o.steps // 100))
    os.chdir(folder)
    subprocess.run(command("train", "config.py", "--name", "alone", "--json"), check=True, capture_output=True)
    rng, made, began = random.Random(o.seed), [], time.monotonic()
    with cluster.cluster(folder / "slurm"):
        words = command("train", "config.py", "--on", "slurm", "--slurm", "partition=low", "--json")
        job = str(json.loads(subprocess.run(words, capture_output=True, check=True).stdout)["job"])
        run = folder / "runs" / "cut"
        while len(made) < o.preemptions and (p := preempt(job, run, rng)):
            made.append(p)
            print(f"{len(made)}: record {p.step}, saved {p.saved}, {p.seconds:.1f} s", file=sys.stderr, flush=True)
        cluster.wait_for(lambda: over(job), 600)
        shown = cluster.output("scontrol", "show", "job", job)
    if state_at_end := re.search(r"JobState=(?!COMPLETED)\w+", shown):
        sys.exit(f"{len(made)} preemptions, then {state_at_end[0]}: {shown}")
    wrong = differences(lm.Run(run), lm.Run(folder / "runs" / "alone"))
    restarts = int(re.search(r"Restarts=(\d+)", shown)[1])
    lost = sum(p.saved < p.step for p in made)
    idle = sum(p.saved == p.began for p in made)
    print(
        f"{len(made)} preemptions, {restarts} restarts, {idle} before the job had made a step, "
        f"{lost} lost steps, {min(p.seconds for p in made):.1f} to {max(p.seconds for p in made):.1f} s to make room, "
        f"{(time.monotonic() - began) / 60:.0f} minutes: "
        + (f"DIFFERENT in {', '.join(wrong)}" if wrong else "log and parameters the same to the bit")
    )
    draw(made, o.steps, o.out)
    return int(bool(wrong) or len(made) < o.preemptions or restarts != len(made) or lost > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preemptions", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20_000, help="of the run; a hundred records")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=HERE / "figures" / "preemption.svg")
    o = parser.parse_args()
    o.out = o.out.resolve()
    if o.preemptions < 1 or o.steps < 100:
        parser.error("at least 1 preemption of at least 100 steps")
    if why := cluster.obstacle():
        parser.error(why)
    with tempfile.TemporaryDirectory() as folder:
        return study(Path(folder), o)


if __name__ == "__main__":
    sys.exit(main())
