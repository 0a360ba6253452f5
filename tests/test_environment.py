"""What surrounds the command: JAX's variables, streams, the cache, a home folder, names in brackets."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest

from lm.commands import common
from lm.console import as_text
from lm.data.corpora import cache_folder
from lm.errors import UserError

TABLE = "params,tokens,flops,loss\n1e6,1e8,6e14,3\n"


def command(*arguments, stdout=subprocess.PIPE, **environment):
    """The command in a process of its own."""
    line = [sys.executable, "-m", "lm.cli", *arguments]
    known = os.environ | environment
    return subprocess.run(line, stdout=stdout, stderr=subprocess.PIPE, text=True, env=known, timeout=300)


@pytest.mark.parametrize("platform", ["junk", "rocm"])
def test_a_device_that_is_not_there_is_told_on_one_line(workplace, platform):
    (workplace / "points.csv").write_text(TABLE)
    done = command("fit", "points.csv", JAX_PLATFORMS=platform)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"lm: JAX_PLATFORMS={platform}: ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith("unset it, or say JAX_PLATFORMS=cpu\n")


def test_double_precision_elsewhere_changes_nothing_here(workplace, tiny_run, lm):
    """The environment of a user whose other programs want float64: losses and tokens are the same to the bit."""
    arguments = ("eval", str(tiny_run.path), "--json")
    done = command(*arguments, JAX_ENABLE_X64="1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(lm(*arguments)[1])


def test_double_precision_in_ones_own_program_is_refused(tiny_run):
    """The library leaves the setting alone, and says what it wants."""
    import jax

    from lm.model.api import build

    with jax.enable_x64(True), pytest.raises(UserError, match="computed in float32, and JAX_ENABLE_X64"):
        build(dataclasses.replace(tiny_run.experiment.model, vocab=99)).shapes()


def test_what_ascii_cannot_spell_is_escaped():
    done = command("tokenizer", "show", "bytes", "--text", "é", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and "2 tokens" in done.stdout
    done = command("tokenizer", "show", "é🙂", PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "\\xe9\\U0001f642" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_told_once():
    with open("/dev/full", "w") as full:
        done = command("--help", stdout=full)
    assert (done.returncode, done.stderr) == (2, "lm: No space left on device\n")


def test_closed_streams_are_no_hindrance(workplace):
    """Nothing that is opened later may take their numbers: figures would end with the logs of a library."""
    line = f"{sys.executable} -m lm.cli data kingdom --documents 3 --out a >&- 2>&- <&-"
    assert subprocess.run(line, shell=True, timeout=300).returncode == 0
    assert json.loads((workplace / "a" / "entropy.json").read_text())["documents"] == 3
    line = f"{sys.executable} -m lm.cli tokenizer show none >&- 2>&-"
    assert subprocess.run(line, shell=True, timeout=300).returncode == 2


@pytest.mark.parametrize("trouble", ["no folder", "full"])
def test_a_cache_without_room_is_told_once(workplace, monkeypatch, capsys, trouble):
    """Compiled programs are not kept then, and JAX's warnings about each are not shown."""
    (workplace / "file").write_text("")
    kept = []
    monkeypatch.setattr("lm.hardware.keep_compiled_programs", kept.append)
    monkeypatch.setenv("LM_CACHE", str(workplace / ("file" if trouble == "no folder" else "cache")))
    if trouble == "full":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 50_000))
    common.prepare_jax()
    said = capsys.readouterr().err
    assert said.startswith("lm: compiled programs are not kept in ") and said.count("\n") == 1
    assert ("0.1 MB free" in said) == (trouble == "full") and not kept


def test_without_a_home_folder_the_cache_must_be_named(monkeypatch):
    """Of a container's user that has no entry in the list of users."""
    for name in ("LM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match="set LM_CACHE"):
        cache_folder()
    monkeypatch.setenv("LM_CACHE", "here")
    assert str(cache_folder()) == "here"


def test_names_in_brackets_are_no_markup(capsys):
    """d[/x] is a folder's name, lm[bench] an extra, :smile: a word."""
    from rich.table import Table

    from lm.sweep.board import Board
    from lm.training.display import Display

    names = "d[/x] lm[bench] :smile: [bold]"
    table = Table(names, title=names, caption=names)
    table.add_row(names)
    assert as_text(table, names, width=150).count(names) == 5
    with Display() as display:
        display.say(names)
        display.stage(names, 1, 2)
    board = Board()
    with board.watching({names: 3}):
        board.tell_end(names, names)
    board.console.print(board.table())
    assert capsys.readouterr().err.count(names) == 4
