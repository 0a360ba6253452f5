"""A preparation of data that is killed, for the tests of what it leaves."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

from lm.config import DataConfig

CHILD = """
import json, os, signal, sys
from lm.config import DataConfig
from lm.data.supply import prepare

def report(stage, done, total):
    if stage == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3] == "rename":
    os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
prepare(DataConfig(**json.loads(sys.argv[1])), cache=sys.argv[2], report=report)
"""


def kill(data: DataConfig, cache: Path, place: str) -> None:
    """Prepare in a process that SIGKILL ends at a stage, or at the rename that gives the folder its name."""
    command = [sys.executable, "-c", CHILD, json.dumps(dataclasses.asdict(data)), str(cache), place]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    left = list((cache / "tokens").iterdir())
    assert [path.name[0] for path in left] == ["."], "the kill came while the folder had no name yet"
