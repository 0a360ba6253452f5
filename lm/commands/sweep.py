"""lm sweep CONFIG: train a list, a grid or a design of experiments to one table of points."""

import dataclasses
import math
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Literal

from lm import settings
from lm.arguments import parse, parse_train, tell_surprises
from lm.commands.common import Json, prepare_jax, print_json, split, without
from lm.config import Experiment
from lm.errors import UserError, require
from lm.records import RUNS
from lm.training.stopping import end_when_told_to_stop


@dataclasses.dataclass(frozen=True)
class Options:
    """Train many experiments, or go on: lm sweep CONFIG --grid model.width=32,64 train.seed=0,1

    CONFIG builds `experiments = [...]`, or one `experiment` for --grid or --design; or is the file of a design.
    """

    design: Path | None = None
    """Train the rows of this file, from lm plan --out."""
    grid: tuple[str, ...] = ()
    """Every combination of these settings' values: model.width=32,64 train.seed=0,1. Multiplies a design or a list."""
    out: Path | None = None
    """The sweep's directory; runs/NAME unless given."""
    pack: int = 8
    """Most runs side by side."""
    retry: bool = False
    """Try runs that diverged again."""
    stop_worse: float | None = None
    """Stop runs that at a quarter or half of their steps are worse by so many nats a token than the best of those that
    differ in rates, decay, schedule or seed alone: 0.3 spares what a high rate makes good at the end. Without it the
    same command goes on with them."""
    part: str | None = None
    """i/n: train only the i-th of n parts, from 0/n on, while other machines train the others. Parts are packs, or with
    --stop-worse all runs that are compared; the results of all parts come together in one points.csv."""
    on: Literal["here", "slurm"] = "here"
    """slurm: write a script with a task for each part, and submit it (docs/clusters.md)."""
    slurm: tuple[str, ...] = ()
    """Options of sbatch for the tasks: partition=gpu gres=gpu:1."""
    status: bool = False
    """Show how far the runs and their job are; train nothing."""
    dry_run: bool = False
    """List the runs with their FLOPs, and the time at a measured rate with what has to be compiled; train nothing."""
    json: Json = False


def run(arguments: list[str]) -> int:
    """Exit status: 0; 1 where runs failed, whatever became of the others; 75 where the sweep was stopped and saved."""
    config, own, rest = split("sweep", Options, arguments)
    o = parse(Options, own, "lm sweep CONFIG")
    require(o.stop_worse is None or 0 < o.stop_worse < math.inf, f"--stop-worse {o.stop_worse}: nats above 0, as 0.3")
    require(o.pack >= 1, f"--pack {o.pack}: at least one run at a time")
    name, experiments = _experiments(config, o, rest)
    folder = o.out or RUNS / name
    require(not folder.exists() or folder.is_dir(), f"--out {folder}: a file, where the sweep's folder would be")
    part = _part(o)
    if o.status:
        return _status(experiments, folder, o)
    end_when_told_to_stop()
    prepare_jax()
    from lm.sweep import Board, jobs_of, sweep
    from lm.training.display import Display

    with Display() as display:
        jobs = jobs_of(experiments, display)
        if o.dry_run:
            return _estimate(jobs, o, display)
    if o.on == "slurm":
        return _submit(jobs, folder, o, arguments)
    result = sweep(jobs, folder, board=Board(), most=o.pack, retry=o.retry, margin=o.stop_worse, part=part)
    best = result.standings[0]["name"] if result.standings else None
    following = [] if result.stopped else next_commands(result, best, arguments)
    if o.json:
        paths = {"folder": str(result.folder), "points": result.points and str(result.points)}
        print_json(dataclasses.asdict(result) | paths | {"best": best, "next": following})
    else:
        print(report(result, len(jobs), following), end="")
    if result.stopped:
        done = f"{folder} was stopped and saved, {len(result.finished)} of {len(jobs)} runs finished"
        print(f"lm: {done}; the same command goes on", file=sys.stderr)
        return os.EX_TEMPFAIL
    if result.failed:
        print(f"lm: {len(result.failed)} of {len(jobs)} runs failed: {', '.join(result.failed)}", file=sys.stderr)
    return int(any(name in result.failed for name in result.trained))


def _part(o: Options) -> tuple[int, int] | None:
    """--part as two numbers, and whether it goes with the other options."""
    from lm.sweep import slurm

    elsewhere = o.on == "slurm"
    require(elsewhere or not o.slurm, "--slurm is for a job: give --on slurm")
    if elsewhere and not (o.dry_run or o.status):
        require(o.part is None, "--part is for a sweep that is trained here: with --on slurm every part is a task")
        several = [word for word in slurm.options(o.slurm) if re.match(r"ntasks.*=(?!1$)", word)]
        require(not several, f"--slurm {' '.join(several)}: a part is one process; several are for lm train")
        slurm.require_slurm()
    if o.part is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", o.part, re.ASCII)
    require(found is not None, f"--part {o.part}: give i/n, from 0/n on, such as 0/4")
    return int(found[1]), int(found[2])


def _submit(jobs, folder: Path, o: Options, arguments: list[str]) -> int:
    """Hand every part to Slurm."""
    from lm.sweep import parts, slurm, trunks

    count = len(parts(trunks(jobs), o.pack, compared=o.stop_worse is not None))
    words = without(arguments, {"on", "slurm", "json"})
    command = (sys.executable, "-m", "lm.cli", "sweep", *words)
    job = slurm.submit(slurm.Batch(folder, command, slurm.options(o.slurm), parts=count))
    if o.json:
        print_json({"folder": str(folder), "job": job, "parts": count, "script": str(folder / slurm.SCRIPT)})
    else:
        following = shlex.join(["lm", "sweep", *words, "--status"])
        print(f"job {job}: {count} parts, {len(jobs)} runs; {folder / slurm.SCRIPT}\n\nNext:\n  {following}")
    return 0


def _status(experiments: list[Experiment], folder: Path, o: Options) -> int:
    """Show how far the sweep is."""
    from lm.sweep import status

    found = status(experiments, folder)
    if o.json:
        print_json(dataclasses.asdict(found) | {"folder": str(folder), "counts": found.counts()})
        return 0
    rows = [
        [
            run["name"], run["state"], f"{run['step']:,}" + (f"/{run['steps']:,}" if run["steps"] else ""),
            "" if run["val_loss"] is None else f"{run['val_loss']:.4f}",
        ]
        for run in found.runs
    ]  # fmt: skip
    print(_aligned(["run", "state", "step", "validation"], rows))
    counts = ", ".join(f"{count} {state}" for state, count in found.counts().items())
    print(f"{len(found.runs)} runs in {folder}: {counts}")
    if found.job is not None:
        tasks = ", ".join(f"part {task} {state}" for task, state in (found.parts or {}).items())
        unknown = "no squeue on this machine, or it does not answer" if found.parts is None else "not in the queue"
        print(f"job {found.job}: {tasks or unknown}")
    return 0


def _estimate(jobs, o: Options, display) -> int:
    import jax

    from lm.bench.sweeps import estimate

    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)  # compile afresh: how long that takes is measured
    try:
        found = estimate(jobs, most=o.pack, display=display)
    finally:
        jax.config.update("jax_compilation_cache_dir", kept)
    display.clear()
    if o.json:
        print_json(dataclasses.asdict(found))
    else:
        print(table(found), end="")
    return 0


def _experiments(config: str, o: Options, rest: list[str]) -> tuple[str, list[Experiment]]:
    """The sweep's name and its experiments."""
    from lm.sweep import Design, from_design, grid

    if config.endswith(".json"):
        require(o.design is None, f"{config} is a design already; give --design with a CONFIG")
        design = Design.read(config)
        require(not rest, f"{' '.join(rest)}: settings of a design are in its file; give --design with a CONFIG")
        try:
            e = settings.from_dict(design.experiment)
        except UserError as error:
            raise UserError(f"{config}: {error}") from error
        name, experiments = Path(config).stem, from_design(e, design)
    elif (several := settings.load_experiments(config)) is not None:
        require(o.design is None, f"{config} builds its own list of experiments; --design is for a single one")
        require(not rest, f"{' '.join(rest)}: {config} builds a list; change settings there, or with --grid KEY=VALUE")
        name, experiments = Path(config).stem, several
    else:
        e = parse_train([config, *rest]).experiment
        require(bool(o.design or o.grid), f"{config} is one experiment: give --grid KEY=A,B or --design sweep.json")
        name, experiments = e.name, from_design(e, Design.read(o.design)) if o.design else [e]
    made = grid(experiments, o.grid)
    tell_surprises(made, [word.partition("=")[0].replace("-", "_") for word in o.grid])
    return name, made


def table(found) -> str:
    """An estimate as lines for a person."""
    from lm.sweep import clock

    titles, rows = ["run", "parameters", "tokens", "steps", "branch", "FLOPs", "adds", "time"], []
    for row in found.runs:
        branch = "" if row["branch_step"] is None else f"{row['branch_step']:,}"
        counts = [f"{row[key]:,}" for key in ("params_total", "tokens", "steps")]
        costs = [f"{row[key]:.2e}" for key in ("flops", "flops_added")]
        rows.append([row["name"], *counts, branch, *costs, clock(row["seconds"])])
    saved = found.flops_without_trunks / found.flops
    trunks = len({row["trunk"] for row in found.runs})
    lines = [
        _aligned(titles, rows),
        f"{len(found.runs)} runs from {trunks} trunks: {found.flops:.3e} FLOPs, {saved:.2f} times cheaper than alone",
        f"about {clock(found.seconds)} at the rate measured now, up to {found.side_by_side} side by side; of it "
        f"{clock(found.compile_seconds)} to compile {found.programs} program{'s' * (found.programs > 1)}",
    ]
    return "\n".join(lines + ([found.note] if found.note else [])) + "\n"


SHOWN = 20
"""Most runs in the table at the end."""


def report(result, count: int, following: list[str]) -> str:
    """What a sweep has come to, for a person: the finished runs, best first, then those that are not, then what to
    type next."""
    told = f"{len(result.finished)} of {count} runs finished"
    for how, names in (("failed", result.failed), ("stopped early", result.stopped_early)):
        told += f", {len(names)} {how}" if names else ""
    lines = [told]
    if result.standings:
        shown = result.standings[:SHOWN]
        heads = [key.split(".")[-1] for key in shown[0]]
        lines += ["", _aligned(heads, [[_cell(key, row[key]) for key in row] for row in shown])]
    if (more := len(result.standings) - SHOWN) > 0:
        lines.append(f"and {more} more in {result.points}")
    if missing := result.failed | result.stopped_early:
        lines += ["", *(f"{name}: {why}" for name, why in missing.items())]
    if following:
        lines += ["", "Next:", *(f"  {command}" for command in following)]
    return "\n".join(lines) + "\n"


def _aligned(titles: list[str], rows: list[list[str]]) -> str:
    """A table as text, as wide as it needs: names to the left, numbers to the right."""
    from lm.console import as_text
    from lm.tables import table as drawn

    return as_text(drawn(titles, rows), width=10_000).rstrip("\n")


def _cell(key: str, value) -> str:
    return f"{value:.4f}" if key in ("loss", "bits_per_byte") else f"{value:.1f}" if key == "seconds" else str(value)


def next_commands(result, best: str | None, arguments: list[str]) -> list[str]:
    """Commands that work on what this sweep left."""
    commands = [] if best is None else [["lm", "eval", str(result.folder / best)]]
    if len(result.standings) > 1:
        shown = [str(result.folder / row["name"]) for row in result.standings[:4]]
        commands.append(["lm", "plot", *shown, "--out", str(result.folder / "loss.png")])
    if result.points:
        commands += [["lm", *words] for words in _for_points(result.points, str(result.folder / "figures"))]
    if result.failed:
        commands.append(["lm", "sweep", *arguments, *([] if "--retry" in arguments else ["--retry"])])
    return [shlex.join(command) for command in commands]


def _for_points(path: Path, figures: str) -> list[list[str]]:
    """What the points can carry: a law where they tell size from data, or rates where several were tried."""
    from lm.scaling import read_points
    from lm.sweep import BYTES, obstacle

    points = read_points(path)
    if obstacle(BYTES, points.params, points.tokens) is None:
        return [["fit", str(path)], ["plot", str(path), "--out", figures]]
    rates: dict[tuple, set] = {}
    for *alike, rate in zip(*(points.column(name) for name in ALIKE), points.column("learning_rate"), strict=True):
        rates.setdefault(tuple(map(str, alike)), set()).add(rate)
    if max(map(len, rates.values())) > 1:
        return [["plot", str(path), "--figures", "learning_rates", "--out", figures]]
    return []


ALIKE = ("width", "base_width", "tokens")
"""Columns of points.csv that are the same for runs whose rates are compared."""
