"""Adapters merged: a run that changes another becomes one that stands alone."""

import dataclasses
import hashlib
import os
from pathlib import Path

from lm import checkpoints
from lm.errors import require
from lm.exchange.incoming import write_run
from lm.model.trained import Trained
from lm.records import RUNS
from lm.run import Run


def merge(m: Trained, name: str, *, folder: str | Path = RUNS) -> Run:
    """Make a run of the parameters of a run of adapters, each matrix W0 + alpha / r A B, at step 0.

    Raises UserError, leaving nothing behind, for a run that holds no adapters, and for a name that is taken.
    """
    e = m.experiment
    require(e.optimizer.lora is not None, f"{m.run.path} holds no adapters: it stands alone already")
    target = Path(folder) / name
    require(not os.path.lexists(target), f"{target} is there already: choose another --name")
    whole = dataclasses.replace(
        e, name=name, optimizer=dataclasses.replace(e.optimizer, lora=None),
        train=dataclasses.replace(e.train, start=None, objective="next_token"),
    )  # fmt: skip
    digest = checkpoints.digest(m.params)
    source = {"path": str(m.run.path), "family": "lm", "files": {f"step {m.step}": digest}}
    hashes = {name: m.run.record["hashes"][name] for name in ("corpus", "validation")}
    hashes |= {"source": hashlib.sha256(digest.encode()).hexdigest()}
    write_run(whole, m.params, m.tokenizer, source, hashes, Path(folder), documents=m.run.record["documents"])
    return Run(target)
