"""Is work that was killed again and again the work that never was: a run, a pack, a sweep, a preparation of data?

python experiments/kill_resume.py --kills 25                 100 kills in about 12 minutes on two quiet CPU cores
python experiments/kill_resume.py --kills 3 --kinds sweep data
Each kind is done once without interruption, then again in processes killed by SIGKILL at random (seeded) moments, some
while starting, most while training, saving, branching or writing tokens, each time begun again by the same command.
Compared bit for bit: parameters, optimizer state, running sums and log of every run (timings apart), points.csv without
its seconds, and the token files. Whatever unfinished file or folder is there at the end is counted.
Expected: "the same to the bit" for each kind, kills during a save among them, nothing left over, exit status 0; figure
experiments/figures/kill_resume.svg and a line for RESULTS.
This file is also the configuration of all runs: lm train experiments/kill_resume.py
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lm
from lm.files import whole

HERE = Path(__file__).resolve()
TEXT = "text.txt"
experiment = lm.Experiment(  # everything that could depend on where a run is cut
    model=lm.ModelConfig(layers=2, width=32, heads=2, context=64, dropout=0.1),
    data=lm.DataConfig(corpus=TEXT, tokenizer="bytes"),
    optimizer=lm.OptimizerConfig(name="muon"),
    schedule=lm.ScheduleConfig(name="wsd", warmup=50, decay="30%"),
    train=lm.TrainConfig(
        steps=1200, batch=8, accumulation=2, log_every=7, eval_every=30, eval_tokens=8192, checkpoint_every=10
    ),
)
TIMINGS = {"seconds", "tokens_per_second", "mfu", "data_wait"}
STARTING = 0.2
"""Part of the kills that come while a process starts."""


# --- the four kinds of work ------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Kind:
    """Work that one command does in a folder, and that the same command goes on with."""

    name: str
    command: list[str]
    progress: Callable[[Path, float], float]
    """How much of it a folder holds, from 0 to 1; of what is begun anew each time, as written since a time."""
    state: Callable[[Path], dict[str, str]]
    """What was made, by name: equal where it is the same to the bit."""


def lm_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "lm.cli", *words]


PACK = """
import sys, lm
e = lm.load_experiment(sys.argv[1])
changes = ({"name": f"seed{seed}", "train.seed": seed, "train.steps": 600} for seed in range(3))
lm.train_pack([lm.replace(e, each) for each in changes])
"""
GRID = ("train.steps=150,300,600", "train.seed=0,1")
TOKENIZER = ("--tokenizer", "bpe", "--vocab", "1024")


def kinds() -> dict[str, Kind]:
    config = str(HERE)
    made = [
        Kind("train", lm_command("train", config, "--name", "run", "--json"), steps_made(1200), runs_and_points),
        Kind("pack", [sys.executable, "-c", PACK, config], steps_made(3 * 600), runs_and_points),
        Kind("sweep", lm_command("sweep", config, "--grid", *GRID), steps_made(2 * 1050), runs_and_points),
        Kind("data", lm_command("data", "prepare", TEXT, *TOKENIZER), bytes_written, token_files),
    ]
    return {kind.name: kind for kind in made}


def steps_made(total: int) -> Callable[[Path, float], float]:
    """Logged steps of all runs over those there will be."""

    def progress(place: Path, _: float) -> float:
        return min(1.0, sum(newest(path.parent) for path in place.glob("runs/**/experiment.json")) / total)

    return progress


def newest(run: Path) -> int:
    """The last step in a run's log."""
    log = run / "metrics.jsonl"
    for line in reversed(log.read_text().splitlines() if log.is_file() else []):
        try:
            return json.loads(line)["step"]
        except ValueError:  # cut short
            continue
    return 0


def bytes_written(place: Path, since: float) -> float:
    """Bytes of training tokens, of two bytes each, over the text's bytes of which each stands for some three."""
    files = [*place.glob("cache/tokens/*/train.bin"), *place.glob("cache/tokens/.*/train.bin")]
    sizes = [file.stat().st_size for file in files if file.stat().st_mtime > since]
    return min(1.0, max(sizes, default=0) / (0.6 * (place / TEXT).stat().st_size))


def runs_and_points(place: Path) -> dict[str, str]:
    """Every run's last state and log, and the points without their seconds."""
    made = {}
    for file in sorted(place.glob("runs/**/experiment.json")):
        made |= {f"{file.parent.name} {part}": digest for part, digest in state_of(lm.Run(file.parent)).items()}
    for file in place.glob("runs/*/points.csv"):
        with file.open() as table:
            rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(table)]
        made["points.csv"] = json.dumps(rows)
    return made


def state_of(run: lm.Run) -> dict[str, str]:
    """Digests of every array of the last checkpoint, and of the log."""
    import warnings

    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    warnings.filterwarnings("ignore", message="Sharding info")
    saved = ocp.load_checkpointables((run.checkpoint_folder / str(run.steps()[-1])).resolve())
    arrays = jax.tree.leaves_with_path({part: saved[part] for part in ("params", "training")})
    made = {jax.tree_util.keystr(path): digest(np.asarray(leaf).tobytes()) for path, leaf in arrays}
    log = [{key: value for key, value in record.items() if key not in TIMINGS} for record in run.metrics()]
    return made | {"step": str(run.steps()[-1]), "log": digest(json.dumps(log).encode())}


def token_files(place: Path) -> dict[str, str]:
    return {file.name: digest(file.read_bytes()) for file in place.glob("cache/tokens/*/*.*")}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def unfinished(place: Path) -> list[Path]:
    """Files and folders that are on their way to another name: a save, a copy, a table, tokens."""
    hidden = [path for path in place.rglob(".*") if path.name != ".lock" and "programs" not in path.parts]
    saves = [path for path in place.glob("runs/**/checkpoints/*") if not path.name.isdigit()]
    return [path for path in {*hidden, *saves} if not any(parent in hidden for parent in path.parents)]


# --- killing ---------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Kill:
    """One SIGKILL."""

    life: int
    """How often the work had been finished before, and was begun anew to have something to kill."""
    before: float
    """Progress when the killed process began, as logged."""
    progress: float
    saving: bool
    """Something was on its way to its name: the kill cut a save or a write short."""


def start(kind: Kind, place: Path) -> subprocess.Popen:
    """The command in its folder, with a cache of tokens there, and one of programs for all."""
    programs = place.parent / "programs"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")])),
        "LM_CACHE": str(place / "cache"), "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }  # fmt: skip
    with (place / "log.txt").open("w") as log:
        return subprocess.Popen(kind.command, cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=log)


def prepare_place(place: Path, text: Path) -> None:
    """A folder with the text, of one time stamp so that it counts as unchanged, and the programs compiled so far."""
    (place / "cache").mkdir(parents=True)
    shutil.copyfile(text, place / TEXT)
    os.utime(place / TEXT, (1, 1))
    (place.parent / "programs").mkdir(exist_ok=True)
    (place / "cache" / "programs").symlink_to(place.parent / "programs", target_is_directory=True)


def wait_for_work(kind: Kind, process: subprocess.Popen, place: Path, before: float, began: float) -> None:
    """Until the process has made steps of its own, beyond those logged before, or written tokens."""
    while process.poll() is None:
        try:
            if kind.progress(place, began) > before:
                return
        except FileNotFoundError:  # renamed meanwhile
            continue
        time.sleep(0.02)


def do_whole(kind: Kind, place: Path) -> tuple[float, float]:
    """Do the work without interruption; returns seconds in all, and of them those after the start."""
    began, process = time.time(), start(kind, place)
    wait_for_work(kind, process, place, 0.0, began)
    at_work = time.time()
    finish(process, place)
    return time.time() - began, time.time() - at_work


def finish(process: subprocess.Popen, place: Path) -> None:
    if process.wait() != 0:
        raise SystemExit(f"exit status {process.returncode}: {(place / 'log.txt').read_text()}")


def do_killed(kind: Kind, place: Path, kills: int, seconds: tuple[float, float], life: int, rng, say) -> list[Kill]:
    """Do the work to its end in spite of up to `kills` kills; seconds: what it takes whole."""
    made: list[Kill] = []
    in_all, at_work = seconds
    while len(made) < kills:
        began = time.time()
        before, process = kind.progress(place, began), start(kind, place)
        if rng.random() < STARTING:
            time.sleep(rng.uniform(0, in_all - at_work))
        else:
            wait_for_work(kind, process, place, before, began)
            # A preparation begins anew each time; training goes on, and the kills are to come before its end.
            time.sleep(rng.uniform(0, at_work if kind.name == "data" else 2 * at_work / (kills + 4)))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            return made
        if process.returncode != -signal.SIGKILL:
            finish(process, place)
        young = [path for path in unfinished(place) if path.stat().st_mtime > began]
        made.append(Kill(life, before, kind.progress(place, began), bool(young)))
        say()
    finish(start(kind, place), place)
    return made


def compare(kind: Kind, whole: Path, killed: Path) -> list[str]:
    """Names of everything in which the two differ."""
    a, b = kind.state(whole), kind.state(killed)
    return [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)] if a else ["nothing was made"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one kind."""

    kills: list[Kill]
    differences: list[str]
    left: list[str]
    """Unfinished files and folders after the end, relative to the work's own."""


def try_kind(kind: Kind, folder: Path, text: Path, kills: int, rng: random.Random, say) -> Outcome:
    """Kill the work as often as asked for, anew where it was finished before that."""
    whole = folder / kind.name / "whole"
    prepare_place(whole, text)
    seconds = do_whole(kind, whole)
    made, found, left = [], [], []
    for life in range(kills):
        killed = folder / kind.name / f"killed{life}"
        prepare_place(killed, text)
        made += do_killed(kind, killed, kills - len(made), seconds, life, rng, say)
        found += compare(kind, whole, killed)
        left += [str(path.relative_to(killed)) for path in unfinished(killed)]
        if len(made) == kills:
            break
    return Outcome(made, found, left)


# --- telling ---------------------------------------------------------------------------------------------------------
def draw(outcomes: dict[str, Outcome], out: Path) -> None:
    """Of each kind, how far the work was at every kill, and where the killed process had begun."""
    import matplotlib.pyplot as plt
    import numpy as np

    from lm.figures import STYLE, save

    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            len(outcomes), figsize=(6, 1 + 1.5 * len(outcomes)), sharex=True, sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axes, (name, outcome) in zip(grid[:, 0], outcomes.items(), strict=True):
            number = np.arange(1, len(outcome.kills) + 1)
            saving = np.array([kill.saving for kill in outcome.kills], bool)
            progress = np.array([kill.progress for kill in outcome.kills])
            axes.plot(number, [kill.before for kill in outcome.kills], "C0_", markersize=7, label="log at the start")
            axes.plot(number[~saving], progress[~saving], "C1o", markersize=4, label="killed")
            axes.plot(number[saving], progress[saving], "C3X", markersize=6, label="killed while writing a file")
            axes.set(ylabel=name, ylim=(-0.05, 1.05))
        grid[-1, 0].set(xlabel="kill")
        grid[-1, 0].xaxis.get_major_locator().set_params(integer=True)
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
        figure.supylabel("part of the work that was done")
        save(figure, out)


def tell(outcomes: dict[str, Outcome], seconds: float) -> bool:
    """Print what came, and a line for RESULTS; whether everything was exact."""
    for name, o in outcomes.items():
        verdict = "the same to the bit" if not o.differences else f"DIFFERENT in {', '.join(o.differences[:8])}"
        left = f"; {len(o.left)} left over: {', '.join(sorted(o.left)[:4])}" if o.left else "; nothing left over"
        print(f"{name}: {len(o.kills)} kills, {sum(kill.saving for kill in o.kills)} during a write: {verdict}{left}")
    made, exact = sum(len(o.kills) for o in outcomes.values()), not any(o.differences for o in outcomes.values())
    writing = sum(kill.saving for o in outcomes.values() for kill in o.kills)
    each = ", ".join(f"{name} {len(o.kills)}" for name, o in outcomes.items())
    left = sum(len(o.left) for o in outcomes.values())
    print(f"{made} kills ({each}), {writing} during a write, {'all exact' if exact else 'NOT ALL EXACT'}, "
          f"{left} files left over, {seconds / 60:.0f} minutes")  # fmt: skip
    return exact and not left


def study(folder: Path, text: Path, o: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    began, outcomes = time.time(), {}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("kills", total=o.kills * len(o.kinds))
        for name in o.kinds:
            progress.update(task, description=f"killing: {name}")
            kind, rng = kinds()[name], random.Random(f"{o.seed} {name}")
            outcomes[name] = try_kind(kind, folder, text, o.kills, rng, lambda: progress.advance(task))
            progress.console.print(f"{name}: {len(outcomes[name].kills)} kills", highlight=False)
    draw(outcomes, o.out)
    exact = tell(outcomes, time.time() - began)
    return int(not exact or any(len(outcome.kills) < o.kills for outcome in outcomes.values()))


def write_text(path: Path, size: int = 6_000_000) -> None:
    """Text that needs no download: the standard library's, as one document."""
    import sysconfig

    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    content = "".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)
    with whole(path) as file:
        file.write(content[:size])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=list(kinds()), default=list(kinds()))
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, help="keep all work in this new folder; by default it is thrown away")
    parser.add_argument("--out", type=Path, default=HERE.parent / "figures" / "kill_resume.svg")
    o = parser.parse_args()
    if o.kills < 1:
        parser.error(f"--kills {o.kills}: at least 1")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (o.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"--folder {o.folder}: not empty")
        write_text(folder / "source.txt")
        return study(folder, folder / "source.txt", o)


if __name__ == "__main__":
    sys.exit(main())
