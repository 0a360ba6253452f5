"""Is a run that was killed again and again the run that never was?

python experiments/kill_resume.py --kills 20      about 3 minutes on two CPU cores
Trains 1,200 steps once without interruption, then once more in processes killed by SIGKILL at random (seeded) moments,
some while starting, most while training, saving or evaluating, each time resumed by the same command. Compares
parameters, optimizer state, running sums and the log bit for bit (only timings may differ).
Expected: "bit for bit the same" after 20 kills, several of them during a checkpoint save, exit status 0;
figure experiments/figures/kill_resume.png.
This file is also the configuration that both runs use: lm train experiments/kill_resume.py
"""

import argparse
import dataclasses
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import lm

experiment = lm.Experiment(  # everything that could depend on where a run is cut
    model=lm.ModelConfig(layers=2, width=32, heads=2, context=64, dropout=0.1),
    data=lm.DataConfig(corpus="stdlib", tokenizer="bytes"),
    optimizer=lm.OptimizerConfig(name="muon"),
    schedule=lm.ScheduleConfig(name="wsd"),
    train=lm.TrainConfig(
        steps=1200, batch=8, accumulation=2, log_every=7, eval_every=30, eval_tokens=8192, checkpoint_every=10
    ),
)
TIMINGS = {"seconds", "tokens_per_second", "mfu"}


@dataclasses.dataclass(frozen=True)
class Kill:
    """One SIGKILL: the last step seen in the log, the checkpoint to resume from, and whether it cut a save short."""

    step: int
    resume: int
    saving: bool


def command(name: str) -> list[str]:
    return [sys.executable, "-m", "lm.cli", "train", str(Path(__file__).resolve()), "--name", name, "--json"]


def environment() -> dict[str, str]:
    """The project importable from any folder."""
    root = str(Path(__file__).resolve().parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


def start(folder: Path, name: str) -> subprocess.Popen:
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(command(name), cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=log)


def newest(path: Path) -> int:
    """The last step in a run's log."""
    records = lm.Run(path).metrics() if (path / "experiment.json").exists() else []
    return records[-1]["step"] if records else 0


def wait_for_progress(process: subprocess.Popen, path: Path) -> None:
    """Until the process has made steps of its own: first it cuts the log back to its checkpoint, in a new file."""
    log = path / "metrics.jsonl"
    inode = lambda: log.stat().st_ino if log.exists() else None  # noqa: E731
    before, old = max(lm.Run(path).steps(), default=0) if log.exists() else 0, inode()
    while process.poll() is None and not (inode() != old and newest(path) > before):
        time.sleep(0.02)


def train_whole(folder: Path) -> float:
    """Train the run `whole`; returns the seconds from its first steps to its end."""
    process = start(folder, "whole")
    wait_for_progress(process, folder / "runs" / "whole")
    begun = time.perf_counter()
    if process.wait() != 0:
        raise SystemExit((folder / "whole.log").read_text())
    return time.perf_counter() - begun


def train_killed(folder: Path, kills: int, seconds: float, seed: int) -> list[Kill]:
    """Train the run `killed` to its end in spite of `kills` kills.

    One kill in five comes while the process starts, the others at a random moment of the training, early enough that
    all of them come before the end: `seconds` is what the whole training takes.
    """
    rng, made = random.Random(seed), []
    while True:
        started, process = time.time(), start(folder, "killed")
        if len(made) < kills:
            if rng.random() < 0.2:
                time.sleep(rng.uniform(0, 4))
            else:
                wait_for_progress(process, folder / "runs" / "killed")
                time.sleep(rng.uniform(0, 2 * seconds / (kills + 4)))
            process.send_signal(signal.SIGKILL)
        status = process.wait()
        if status == 0:
            return made
        if status != -signal.SIGKILL:
            raise SystemExit((folder / "killed.log").read_text())
        made.append(look(folder / "runs" / "killed", started))
        print(f"kill {len(made)}: {made[-1]}", file=sys.stderr)


def look(path: Path, started: float) -> Kill:
    """What a kill left behind. An unfinished checkpoint younger than the process was being written."""
    folder = path / "checkpoints"
    if not (path / "experiment.json").exists():
        return Kill(0, 0, False)
    entries = folder.iterdir() if folder.is_dir() else ()
    saving = any(not entry.name.isdigit() and entry.stat().st_mtime > started for entry in entries)
    return Kill(newest(path), max(lm.Run(path).steps(), default=0), saving)


def differences(a: lm.Run, b: lm.Run) -> list[str]:
    """Everything in which two runs differ, timings apart."""
    import warnings

    import jax
    from orbax.checkpoint import v1 as ocp

    if a.steps()[-1] != b.steps()[-1]:
        return [f"last step: {a.steps()[-1]} and {b.steps()[-1]}"]
    warnings.filterwarnings("ignore", message="Sharding info")
    states = [ocp.load_checkpointables((run.checkpoint_folder / str(run.steps()[-1])).resolve()) for run in (a, b)]
    parts = [dict(jax.tree.leaves_with_path({key: s[key] for key in ("params", "training")})) for s in states]
    found = [] if parts[0].keys() == parts[1].keys() and len(parts[0]) > 20 else ["not the same leaves"]
    for path, leaf in parts[0].items():
        if np.asarray(leaf).tobytes() != np.asarray(parts[1].get(path)).tobytes():
            found.append(jax.tree_util.keystr(path))
    logs = [[{k: v for k, v in record.items() if k not in TIMINGS} for record in run.metrics()] for run in (a, b)]
    return found + ([] if logs[0] == logs[1] else ["metrics.jsonl"])


def draw(kills: list[Kill], total: int, out: Path) -> None:
    """A timeline of the kills: the step each came at, and the step the next process resumed from."""
    import matplotlib.pyplot as plt

    from lm.figures import STYLE, save

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        number = np.arange(1, len(kills) + 1)
        step, resume = np.array([k.step for k in kills]), np.array([k.resume for k in kills])
        saving = np.array([k.saving for k in kills])
        axes.plot(number, resume, "C0_", markersize=11, markeredgewidth=2.5, label="checkpoint resumed from")
        axes.plot(number[~saving], step[~saving], "C1o", label="killed (last logged step)")
        axes.plot(number[saving], step[saving], "C3X", markersize=9, label="killed during a save")
        axes.axhline(total, color="0.3", linewidth=1, linestyle="--")
        axes.set(xlabel="kill", ylabel="optimizer step", ylim=(-0.03 * total, 1.08 * total), xticks=number[::2])
        axes.legend(loc="lower right")
        save(figure, out)


def study(folder: Path, kills: int, seed: int, out: Path) -> int:
    seconds = train_whole(folder)
    whole = lm.Run(folder / "runs" / "whole")
    made = train_killed(folder, kills, seconds, seed)
    found = differences(whole, lm.Run(folder / "runs" / "killed"))
    total = whole.steps()[-1]
    draw(made, total, out)
    saving = sum(kill.saving for kill in made)
    verdict = "bit for bit the same" if not found else f"DIFFERENT in {', '.join(found)}"
    lost = sum(kill.step - kill.resume for kill in made)
    print(f"{len(made)} kills, {saving} during a save, at least {lost} of {total} steps made again: {verdict}")
    return int(bool(found) or len(made) < kills)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, help="keep both runs here; by default they are thrown away")
    parser.add_argument("--out", type=Path, default=Path("experiments/figures/kill_resume.png"))
    o = parser.parse_args()
    if o.folder is not None:
        o.folder.mkdir(parents=True, exist_ok=True)
        return study(o.folder.resolve(), o.kills, o.seed, o.out)
    with tempfile.TemporaryDirectory() as folder:
        return study(Path(folder), o.kills, o.seed, o.out)


if __name__ == "__main__":
    sys.exit(main())
