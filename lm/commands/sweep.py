"""lm sweep CONFIG: train a list, a grid or a design of experiments to one table of points."""

import dataclasses
import operator
from pathlib import Path

from lm import settings
from lm.arguments import parse, parse_train, tell_surprises
from lm.commands.common import Json, prepare_jax, print_json, split
from lm.config import Experiment
from lm.errors import UserError, require
from lm.run import RUNS


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
    dry_run: bool = False
    """List the runs with their FLOPs and the time at a measured rate; train nothing."""
    json: Json = False


def run(arguments: list[str]) -> None:
    config, own, rest = split("sweep", Options, arguments)
    o = parse(Options, own, "lm sweep CONFIG")
    require(o.stop_worse is None or o.stop_worse > 0, f"--stop-worse {o.stop_worse}: a number of nats above 0, as 0.3")
    require(o.pack >= 1, f"--pack {o.pack}: at least one run at a time")
    name, experiments = _experiments(config, o, rest)
    prepare_jax()
    from lm.scaling.board import Board
    from lm.scaling.sweep import jobs_of, parted, sweep, trunks
    from lm.training.display import Display

    with Display() as display:
        jobs = jobs_of(experiments, display)
        seconds = _rates(jobs, display) if o.dry_run else None
    if seconds:
        listed, why = listing(trunks(jobs), seconds), parted(jobs)
        if o.json:
            print_json({"runs": listed} | totals(listed) | {"note": why})
        else:
            print(table(listed) + (f"{why}\n" if why else ""), end="")
        return
    result = sweep(jobs, o.out or RUNS / name, board=Board(), most=o.pack, retry=o.retry, margin=o.stop_worse)
    if o.json:
        print_json(dataclasses.asdict(result) | {"folder": str(result.folder), "points": _text(result.points)})
    elif not result.stopped:
        told = f"{len(result.finished)} of {len(jobs)} runs finished"
        for how, names in (("failed", result.failed), ("stopped early", result.stopped_early)):
            told += f", {len(names)} {how}: {', '.join(names)}" if names else ""
        print(told)
        print(f"Next: lm fit {result.points}" if result.points else "Nothing to fit")


def _experiments(config: str, o: Options, rest: list[str]) -> tuple[str, list[Experiment]]:
    """The sweep's name and its experiments."""
    from lm.scaling.design import Design
    from lm.scaling.grid import grid, of_design

    if config.endswith(".json"):
        require(o.design is None, f"{config} is a design already; give --design with a CONFIG")
        design = Design.read(config)
        require(not rest, f"{' '.join(rest)}: settings of a design are in its file; give --design with a CONFIG")
        name, experiments = Path(config).stem, of_design(_known(design.experiment, config), design)
    elif (several := settings.load_experiments(config)) is not None:
        require(o.design is None, f"{config} builds its own list of experiments; --design is for a single one")
        require(not rest, f"{' '.join(rest)}: {config} builds a list; change settings there, or with --grid KEY=VALUE")
        name, experiments = Path(config).stem, several
    else:
        e = parse_train([config, *rest]).experiment
        require(bool(o.design or o.grid), f"{config} is one experiment: give --grid KEY=A,B or --design sweep.json")
        name, experiments = e.name, of_design(e, Design.read(o.design)) if o.design else [e]
    made = grid(experiments, o.grid)
    tell_surprises(made, [word.partition("=")[0].replace("-", "_") for word in o.grid])
    return name, made


def _known(values: dict, path: str) -> Experiment:
    try:
        return settings.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _rates(jobs, display):
    """Training FLOP/s, measured now with the smallest and the largest model."""
    from lm.scaling.plan import Rates
    from lm.training.dry_run import dry_run

    size = operator.attrgetter("params_total")
    ends = {job.params_total: job for job in (max(jobs, key=size), min(jobs, key=size))}
    found = {
        N: dry_run(job.experiment).tokens_per_second * job.flops_per_step / job.experiment.batch_tokens
        for N, job in sorted(ends.items())
    }
    return Rates(tuple(map(float, found)), tuple(found.values()))


def listing(trunks, rates) -> list[dict]:
    """What each run is and costs, in the order of training: `adds` is what it costs once those of its trunk are there.

    Seconds are of training one run after another and its evaluations, the forward pass a third of a training step.
    """
    from lm.scaling.sweep import added_steps

    listed = []
    for trunk in trunks:
        for job, steps in added_steps(trunk):
            flops_per_token = job.flops_per_step / job.experiment.batch_tokens
            evaluations = 1 + steps // min(job.steps.eval_every, job.steps.checkpoint_every)
            scored = evaluations * job.experiment.train.eval_tokens * flops_per_token / 3
            added = steps * job.flops_per_step
            listed.append(dict(
                name=job.name, trunk=trunk[-1].name, params_total=job.params_total, steps=job.steps.total,
                branch_step=job.branch_step if len(trunk) > 1 else None,
                tokens=job.steps.total * job.experiment.batch_tokens, flops=job.flops, flops_added=added,
                seconds=(added + scored) / rates.at(job.params_total),
            ))  # fmt: skip
    return listed


def totals(listed: list[dict]) -> dict:
    flops, seconds = (sum(row[key] for row in listed) for key in ("flops_added", "seconds"))
    return {"flops": flops, "flops_without_trunks": sum(row["flops"] for row in listed), "seconds": seconds}


def table(listed: list[dict]) -> str:
    """Lines for a person."""
    from lm.scaling.board import clock

    width = max(len(row["name"]) for row in listed)
    heads = f"{'parameters':>12}{'tokens':>14}{'steps':>9}{'branch':>9}{'FLOPs':>10}{'adds':>10}{'time':>9}"
    lines = [f"{'run':<{width}}  {heads}"]
    for row in listed:
        branch = "" if row["branch_step"] is None else f"{row['branch_step']:,}"
        lines.append(
            f"{row['name']:<{width}}  {row['params_total']:>12,}{row['tokens']:>14,}{row['steps']:>9,}{branch:>9}"
            f"{row['flops']:>10.2e}{row['flops_added']:>10.2e}{clock(row['seconds']):>9}"
        )
    whole = totals(listed)
    saved = whole["flops_without_trunks"] / whole["flops"]
    trunks = len({row["trunk"] for row in listed})
    lines += [
        f"{len(listed)} runs from {trunks} trunks: {whole['flops']:.3e} FLOPs, {saved:.2f} times cheaper than alone",
        f"about {clock(whole['seconds'])} one after another at the rate measured now; packs take less",
    ]
    return "\n".join(lines) + "\n"


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
