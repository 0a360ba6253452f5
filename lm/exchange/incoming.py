"""Models that others trained become runs: at step 0, with the hashes of the files they were made from."""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm import tokenizer as lm_tokenizer
from lm.checkpoints import Checkpoints
from lm.config import DataConfig, Experiment, ModelConfig, Steps
from lm.errors import UserError, require
from lm.exchange import gguf, huggingface, shapes, tensors, tokenizers
from lm.exchange.checking import ALIKE, NONE, Check, check_folder
from lm.model.api import build
from lm.records import RUNS
from lm.run import Run, open_run

USUAL_CONTEXT = 2048
"""Tokens that an imported model reads at once, unless it reads fewer or is asked for more."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """A run that was made, of which family, and how its logits were checked."""

    run: Run
    family: str
    context: int
    check: Check


def import_model(
    source: str | Path,
    name: str,
    *,
    context: int | None = None,
    ignore: Iterable[str] = (),
    folder: str | Path = RUNS,
    check: bool = True,
    say: Callable[[str], Any] = lambda _: None,
) -> Imported:
    """Make a run of a Hugging Face folder or a GGUF file; nothing of it is run as code, nothing is downloaded.

    context: tokens that it reads at most; by default its own, and 2,048 where that is more. ignore: keys of config.json
    to leave aside. check: compare its logits with `transformers`' where that is installed. say: told what happens.
    Raises UserError, leaving nothing behind, for what is not understood, and for a name that is taken.
    """
    path = Path(source)
    experiment = Experiment(name=name)
    target = Path(folder) / experiment.name
    require(not os.path.lexists(target), f"{target} is there already: choose another --name")
    published = gguf.read(path) if path.is_file() else huggingface.read(path)
    with _naming(path):
        c = shapes.read(published.config, frozenset(ignore))
        f = shapes.family(published.config["model_type"])
        c = dataclasses.replace(c, context=_context(c, context, say))
        tokenizer = tokenizers.from_texts(published.texts, published.config)
        require(
            tokenizer.n_vocab <= c.vocab,
            f"its tokenizer has {tokenizer.n_vocab:,} tokens, its embedding {c.vocab:,} rows",
        )
        say(f"reading {len(published.tensors):,} tensors of a {f.model_type}")
        params = tensors.to_ours(f, published.config, c, published.tensors)
    data = DataConfig(corpus="unknown", tokenizer=str(target / "tokenizer.json"))
    experiment = dataclasses.replace(experiment, model=c, data=data)
    source_record = {"path": path.name, "family": f.model_type, "files": dict(published.hashes)}
    checked = check_folder(path, build(c), params) if check and path.is_dir() else NONE
    checked.require_alike(ALIKE, "it is not imported")
    digests = json.dumps(sorted(published.hashes.items()))
    hashes = {"source": hashlib.sha256(digests.encode()).hexdigest(), "corpus": "", "validation": ""}
    write_run(experiment, params, tokenizer, source_record, hashes, Path(folder))
    return Imported(Run(target), f.model_type, c.context, checked)


def from_state_dict(config: Mapping[str, Any], tensors_by_name: Mapping[str, np.ndarray]) -> tuple[ModelConfig, dict]:
    """The shape and the parameters of a model in hand, as from_state_dict(theirs.config.to_dict(), {name: array}).

    config: as in config.json. tensors_by_name: NumPy arrays under transformers' names, with or without the prefix.
    Raises UserError for what is not understood.
    """
    c = shapes.read(config)
    return c, tensors.to_ours(shapes.family(config["model_type"]), config, c, tensors_by_name)


@contextlib.contextmanager
def _naming(path: Path):
    """Say of which files it is that something is not understood."""
    try:
        yield
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith(str(path)) else f"{path}: {said}") from error


def _context(c: ModelConfig, asked: int | None, say: Callable[[str], Any]) -> int:
    """The context that the run gets."""
    if asked is not None:
        longer = asked > c.context
        require(
            not (longer and c.positions == "learned"),
            f"--model.context {asked}: it has {c.context} learned positions; give at most that",
        )
        if longer:
            say(f"a context of {asked:,} tokens is more than the {c.context:,} that it was made for")
        return asked
    if c.context > USUAL_CONTEXT:
        say(f"context {USUAL_CONTEXT:,} of its {c.context:,} tokens; --model.context asks for more")
    return min(c.context, USUAL_CONTEXT)


def write_run(
    experiment: Experiment,
    params: dict,
    tokenizer,
    source: dict[str, Any],
    hashes: dict[str, str],
    folder: Path,
    *,
    documents: int = 2,
) -> None:
    """Make the directory of a run at step 0 that has nothing to go on with, whole or not at all.

    source: what it was made from. hashes: of that, and of text that it knows. documents: how many it was trained on,
    of which all that matters here is whether they are more than one, as of others' models is taken for granted.
    """
    model = build(experiment.model)
    total, nonembedding = model.parameter_count()
    nothing = {field.name: 0 for field in dataclasses.fields(Steps)}
    facts = dict(
        documents=documents, train_tokens=0, epoch_tokens=0, params_total=total, params_nonembedding=nonembedding,
        flops_per_token=model.cost().training_flops, steps=nothing, source=source,
    )  # fmt: skip
    hashes = hashes | {"tokenizer": lm_tokenizer.digest(tokenizer)}
    target = folder / experiment.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:40]}.") as partial:
        with open_run(experiment, hashes, tokenizer, facts, Path(partial), lambda run: None) as run:
            checkpoints = Checkpoints(run.checkpoint_folder, keep=1)
            checkpoints.save(0, None, params=params)
            checkpoints.close()
            (run.path / "metrics.jsonl").touch()
        (Path(partial) / experiment.name).rename(target)
