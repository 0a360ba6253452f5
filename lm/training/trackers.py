"""Optional sinks for metrics beside metrics.jsonl, which stays the source of truth."""

import importlib
from collections.abc import Callable
from typing import Any

from lm.errors import UserError
from lm.run import Run

Tracker = Callable[[dict[str, Any]], None]


def tensorboard(run: Run) -> Tracker:
    """Writes scalars under <run>/tensorboard."""
    writer = _import("tensorboardX").SummaryWriter(str(run.path / "tensorboard"))

    def track(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, int | float):
                writer.add_scalar(name, value, record["step"])
        writer.flush()

    return track


def wandb(run: Run) -> Tracker:
    """Logs to a Weights & Biases run of the same name; a resumed run goes on in the same one."""
    module = _import("wandb")
    identity = f"{run.name.replace('/', '-')}-{run.record['fingerprint'][:8]}"
    session = module.init(project="lm", name=run.name, id=identity, resume="allow", config=run.record["experiment"])
    return lambda record: session.log(record, step=record["step"])


TRACKERS: dict[str, Callable[[Run], Tracker]] = {"tensorboard": tensorboard, "wandb": wandb}


def _import(package: str):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"train.trackers needs the package {package}: pip install -e '.[trackers]'") from error
