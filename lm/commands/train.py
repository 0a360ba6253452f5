"""lm train CONFIG: train or resume, or show what it would cost."""

import dataclasses

from lm.arguments import parse_train
from lm.commands.common import prepare_jax, print_json


def run(arguments: list[str]) -> None:
    options = parse_train(arguments)
    prepare_jax()
    from lm.training.display import Display, patience

    if options.dry_run:
        with patience("starting"):
            from lm.training.dry_run import dry_run

        cost = dry_run(options.experiment, display=Display())
        if options.json:
            print_json(dataclasses.asdict(cost))
        else:
            print(cost.table(), end="")
        return

    from lm.training.loop import train
    from lm.training.report import summary

    trained = train(options.experiment, display=Display())
    if options.json:
        print_json(summary(trained, sample=False).json())
    elif trained.steps()[-1] == trained.record["steps"]["total"]:  # else it was told to stop, and has said so
        print(summary(trained).text(), end="")
