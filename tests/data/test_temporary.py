"""What a killed process leaves behind is cleared away by the next, and never what another still works on."""

import signal
import subprocess
import sys

from lm.config import DataConfig
from lm.data.corpora import cache_folder
from lm.data.supply import prepare
from lm.data.temporary import PREFIX, clear_abandoned, temporary_folder

KILLED = """
import os, signal, sys
from lm.config import DataConfig
from lm.data.supply import prepare

def report(stage, done, total):
    if stage == "tokens":
        os.kill(os.getpid(), signal.SIGKILL)

prepare(DataConfig(corpus=sys.argv[1]), report=report)
"""


def test_a_killed_preparation_leaves_nothing_for_long(tmp_path):
    (tmp_path / "a.txt").write_text("the king sat on a mat. " * 50)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.txt")])
    left = list((cache_folder() / "tokens").glob(".*"))
    assert done.returncode == -signal.SIGKILL and len(left) == 1
    prepare(DataConfig(corpus=str(tmp_path / "a.txt")))
    assert list((cache_folder() / "tokens").glob(".*")) == []


def test_a_folder_in_use_stays(tmp_path):
    with temporary_folder(tmp_path) as one:
        (one / "file").write_text("being made")
        (tmp_path / f"{PREFIX}abandoned").mkdir()
        (tmp_path / f"{PREFIX}abandoned" / "file").write_text("left behind")
        clear_abandoned(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [one.name] and (one / "file").exists()
    assert list(tmp_path.iterdir()) == []
