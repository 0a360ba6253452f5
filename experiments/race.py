"""Processes that race to a loss: each is timed from its start to its end, and its log is read as it goes.

What `time_to_loss.py` and `loss_in_minutes.py` have in common.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lm.errors import require

HERE = Path(__file__).resolve().parent
LOOK = 0.05
"""Seconds between two looks at a process's log."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One process, from start to end."""

    who: str
    seed: int
    seconds: float
    val_loss: float
    points: list[tuple[float, dict]]
    """Records of its log, and when each was written, in seconds since the process started."""
    said: dict
    """What it printed."""

    def curve(self, key: str) -> list[tuple[float, float]]:
        """(seconds, value) of the records that have this key, without the seconds that went into watching until then.

        A record says in `watching_seconds` how long that took, where it is not part of the work.
        """
        return [(seconds - record.get("watching_seconds", 0), record[key]) for seconds, record in self.points
                if key in record]  # fmt: skip


def require_corpus(corpus: Path) -> None:
    """Refuses a text that is not there."""
    require(corpus.is_file(), f"{corpus}: no such file; give nanoGPT's input.txt, 1.1 MB of Shakespeare")


def lm_train(config: str, corpus: Path, seed: int, settings: Sequence[str]) -> tuple[list[str], str]:
    """The command that trains a configuration on a text, and the log it writes, in the folder where it runs."""
    how = [*settings, "--data.corpus", str(corpus), "--train.seed", str(seed), "--name", f"seed{seed}", "--json"]
    return [sys.executable, "-m", "lm.cli", "train", config, *how], f"runs/seed{seed}/metrics.jsonl"


def torch_recipe(corpus: Path, seed: int, options: Sequence[str]) -> tuple[list[str], str]:
    """The command that trains by nanoGPT's recipe in PyTorch, and its log."""
    log = f"torch-{seed}-{'-'.join(option.strip('-') for option in options)}.jsonl"
    command = [sys.executable, str(HERE / "torch_recipe.py"), str(corpus), "--seed", str(seed), "--log", log, *options]
    return command, log


def attempt(who: str, seed: int, command: list[str], folder: Path, log: Path) -> Attempt:
    """Run a process in a folder, which also keeps its caches, timed; look at its log as it goes."""
    points = []
    caches = {"LM_CACHE": f"{folder}/lm", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
    paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | caches | {"PYTHONPATH": paths}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as complaints:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=complaints)
        ended = None
        while ended is None:
            ended = process.poll()
            now = time.perf_counter() - start
            lines = log.read_text().splitlines() if log.exists() else []
            points += [(now, json.loads(line)) for line in lines[len(points) :] if line.endswith("}")]
            if ended is None:
                time.sleep(LOOK)
        out.seek(0), complaints.seek(0)
        require(ended == 0, f"{who} failed: {complaints.read().strip()[-600:]}")
        said = json.loads(out.read().splitlines()[-1])
    print(f"{who}, seed {seed}: {now:.1f} s, validation loss {said['val_loss']:.4f}", file=sys.stderr)
    return Attempt(who, seed, now, said["val_loss"], points, said)


def mean_and_each(losses: Sequence[float]) -> str:
    """The mean loss, and each seed's."""
    return f"{statistics.mean(losses):.4f} ({' '.join(f'{loss:.4f}' for loss in losses)})"
