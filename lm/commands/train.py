"""lm train CONFIG, or lm train RUN: train or resume, or show what it would cost."""

import dataclasses
import os

from lm.arguments import parse_train
from lm.commands.common import prepare_jax, print_json


def run(arguments: list[str]) -> int:
    """Returns the exit status: 75 of a run that was told to stop, saved, and goes on by the same command."""
    options = parse_train(arguments)
    prepare_jax()
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
    if options.json:
        print_json(summary(trained, sample=False).json())
    elif trained.finished:  # else it was told to stop, and has said so
        print(summary(trained, sample=had != trained.reached).text(), end="")
    return 0 if trained.finished else os.EX_TEMPFAIL
