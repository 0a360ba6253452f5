"""lm train CONFIG, or lm train RUN: train or resume, or show what it would cost."""

import dataclasses
import os
import sys

from lm import processes
from lm.arguments import parse_train
from lm.commands.common import prepare_jax, print_json, without
from lm.errors import require
from lm.training.stopping import end_when_told_to_stop


def run(arguments: list[str]) -> int:
    """Returns the exit status: 75 of a run that was told to stop, saved, and goes on by the same command."""
    options = parse_train(arguments)
    require(options.nodes >= 1, f"--nodes {options.nodes}: at least 1")
    asked = options.on == "slurm"
    require(asked or not options.slurm, "--slurm is for a job: give --on slurm")
    require(asked or options.nodes == 1, f"--nodes {options.nodes}: give --on slurm")
    if asked and not options.dry_run:
        return _submit(options, arguments)
    end_when_told_to_stop()
    prepare_jax(several=not options.dry_run)
    from lm.training.display import Display, patience

    if options.dry_run:
        with patience("starting"):
            from lm.training.dry_run import dry_run

        forecast = dry_run(options.experiment, display=Display())
        if options.json:
            print_json(dataclasses.asdict(forecast))
        else:
            print(forecast.table(), end="")
        return 0

    from lm.run import Run
    from lm.training.loop import train
    from lm.training.report import summary

    path = options.folder / options.experiment.name
    had = Run(path).reached if (path / "experiment.json").is_file() else None
    trained = train(options.experiment, folder=options.folder, display=Display())
    if not processes.lead():
        pass
    elif options.json:
        print_json(summary(trained, sample=False).json())
    elif trained.finished:  # else it was told to stop, and has said so
        sample = had != trained.reached and processes.count() == 1
        print(summary(trained, sample=sample).text(), end="")
    return 0 if trained.finished else os.EX_TEMPFAIL


def _submit(options, arguments: list[str]) -> int:
    """Hand the run to Slurm."""
    from lm.sweep import slurm

    folder = options.folder / options.experiment.name
    words = without(arguments, {"on", "nodes", "slurm", "json"})
    command = (sys.executable, "-m", "lm.cli", "train", *words)
    batch = slurm.Batch(folder, command, slurm.options(options.slurm), nodes=options.nodes)
    job = slurm.submit(batch)
    if options.json:
        print_json({"run": str(folder), "job": job, "script": str(folder / slurm.SCRIPT)})
    else:
        print(f"job {job}: {folder / slurm.SCRIPT}; its log is {folder}/slurm-{job}.log, its state: squeue -j {job}")
    return 0
