"""lm import FOLDER|FILE --name NAME: a model that others trained becomes a run."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from lm.arguments import parse
from lm.commands.common import Json, prepare_jax, print_json
from lm.errors import require, tell
from lm.limits import Count


@dataclasses.dataclass(frozen=True)
class Options:
    """Make a run of a Hugging Face folder (config.json, safetensors, tokenizer.json) or of a GGUF file. Probing,
    sampling, evaluation and fine-tuning then work as on any run."""

    source: Annotated[Path, tyro.conf.Positional]
    """The folder, or the .gguf file."""
    name: str | None = None
    """The run's name under runs/."""
    context: Annotated[Count | None, tyro.conf.arg(name="model.context")] = None
    """Tokens that it reads at once; by default its own, and 2,048 where that is more."""
    ignore: tuple[str, ...] = ()
    """Keys of config.json that are not known and to be left aside, because you know that they change nothing here."""
    check: bool = True
    """Compare its logits with what transformers computes, where that is installed."""
    json: Json = False


def run(arguments: list[str]) -> None:
    o = parse(Options, arguments, "lm import")
    require(o.name is not None, "which name? The run's name under runs/: --name NAME")
    require(o.source.exists(), f"{o.source}: no such folder or file")
    prepare_jax()
    from lm.exchange.incoming import import_model

    made = import_model(o.source, o.name, context=o.context, ignore=o.ignore, check=o.check, say=tell)
    total = made.run.record["params_total"]
    if o.json:
        print_json({
            "run": str(made.run.path), "family": made.family, "parameters": total, "context": made.context,
            "checked_against": made.check.against, "largest_difference": made.check.largest_difference,
        })  # fmt: skip
        return
    print(f"{made.run.path}: {made.family}, {total:,} parameters, context {made.context:,}, {made.check}")
    print(f"lm sample {made.run.path} --prompt TEXT continues a text; lm probe lists what can be asked")
