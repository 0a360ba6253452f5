"""lm merge RUN --name NAME: a run of adapters becomes one that stands alone."""

import dataclasses

from lm.arguments import parse
from lm.commands.common import Checkpoint, Json, RunName, prepare_jax, print_json
from lm.errors import require


@dataclasses.dataclass(frozen=True)
class Options:
    """Add a run's adapters (optimizer.lora) to the matrices that they change, in a run of its own."""

    run: RunName
    """A run's directory, or its name under runs/."""
    name: str | None = None
    """The new run's name under runs/."""
    checkpoint: Checkpoint = "latest"
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm merge")
    require(o.name is not None, "which name? The new run's name under runs/: --name NAME")
    prepare_jax()
    from lm.exchange.merging import merge
    from lm.run import load

    m = load(o.run, o.checkpoint)
    made = merge(m, o.name)
    rank = m.experiment.optimizer.lora
    if o.json:
        print_json({"run": str(made.path), "rank": rank, "parameters": made.record["params_total"]})
        return
    print(
        f"{made.path}: {made.record['params_total']:,} parameters, with adapters of rank {rank} of {m.run.path} in them"
    )
