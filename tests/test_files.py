"""Files are there whole or not at all, and whoever writes one goes that way."""

import ast
import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lm import figures
from lm.files import whole

ROOT = Path(__file__).resolve().parents[1]

WRITERS = {"write_text", "write_bytes", "savefig", "save", "savez", "savez_compressed", "savetxt", "tofile", "to_csv",
           "imsave", "mkstemp", "NamedTemporaryFile", "open_memmap"}  # fmt: skip
OWN = {"write_text", "figures.save", "save", "tokenizers.save", "tokenizer.save", "trainer.save", "self.save",
       "checkpoints.save", "member.writer.save"}  # fmt: skip
"""Our own functions of such a name: those of figures and tokenizers go through `whole`, orbax saves atomically."""
ALLOWED = {
    ("lm/files.py", "open"): "the writer itself",
    ("lm/run.py", "self.path / 'metrics.jsonl'.open"): "appended to, a line at a time; a cut line is left out",
    ("lm/run.py", "path / '.lock'.open"): "an empty file that a process holds",
    ("lm/data/tokens.py", "open"): "too large to hold; written in a folder that is renamed when it is whole",
    ("lm/data/tokens.py", "temporary / path.name.write_text"): "in a temporary folder; moved when it is whole",
    ("experiments/prepare_speed.py", "path.joinpathf'{number:07}.txt'.write_text"): "in a temporary folder",
    ("experiments/prepare_speed.py", "path.open"): "in a temporary folder",
    ("experiments/prepare_speed.py", "gzip.open"): "in a temporary folder",
    ("experiments/prepare_speed.py", "open"): "in a temporary folder",
    ("lm/figures.py", "figure.savefig"): "into a file of `whole`",
    ("lm/cli.py", "os.fdopen"): "standard streams that were closed",
    ("lm/processes.py", "os.fdopen"): "standard output",
    ("experiments/processes_speed.py", "Pathplace, 'config.py'.write_text"): "in a temporary folder",
    ("experiments/google_set.py", "np.savez"): "into a file of `whole`",
    ("experiments/torch_recipe.py", "log.open"): "a log, line by line",
    ("experiments/kill_resume.py", "place / 'log.txt'.open"): "the standard error of a process",
    ("experiments/prediction_coverage.py", "options.keep.open"): "appended to, a line at a time",
    ("experiments/images.py", "self.path.open"): "appended to, a line at a time",
    ("experiments/masked.py", "results.open"): "appended to, a line at a time",
    ("experiments/recurrent.py", "path.open"): "appended to, a line at a time",
    ("experiments/sound.py", "kept.open"): "appended to, a line at a time",
    ("experiments/translate.py", "kept.open"): "appended to, a line at a time",
    ("experiments/images.py", "np.savez"): "into a file of `whole`",
    ("experiments/borrowed.py", "np.savez"): "into a file of `whole`",
    ("experiments/sound.py", "np.savez"): "into a file of `whole`",
    ("lm/data/examples.py", "open"): "too large to hold; written in a folder that is renamed when it is whole",
    ("lm/data/examples.py", "np.save"): "into that file",
    ("lm/exchange/huggingface.py", "made / 'config.json'.write_text"): "in a folder that is renamed when it is whole",
    ("lm/exchange/huggingface.py", "made / name.write_text"): "in that folder",
    ("experiments/exchange.py", "folder / file.write_text"): "in a temporary folder",
}
"""What may write otherwise, and why."""


def writing(call: ast.Call) -> bool:
    """Whether a call may write a file: by its name, or opening with a mode that is not for reading alone."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in ("open", "fdopen"):
        return name in WRITERS
    values = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    modes = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    chosen = [v for v in values if isinstance(v, ast.IfExp | ast.Call)]  # a mode that is computed
    return any(set(mode) & set("wax+") and set(mode) <= set("wabxrt+") for mode in modes) or bool(chosen)


def test_every_writer_goes_through_whole():
    """A call that may write a file stands in files.py, or on the list above with its reason; the list has no more."""
    found = set()
    for file in sorted([*ROOT.glob("lm/**/*.py"), *ROOT.glob("experiments/**/*.py"), *ROOT.glob("configs/*.py")]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and writing(node) and (said := ast.unparse(node.func)) not in OWN:
                found.add((str(file.relative_to(ROOT)), said.replace("(", "").replace(")", "")))
    assert not found - set(ALLOWED), "write through lm.files.whole, or say here why not"
    assert not set(ALLOWED) - found, "no longer written so; take it off the list"


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_file_takes_its_place_at_the_end(tmp_path, mode):
    """Text is UTF-8 with the line ends as written; the old file stands until then; umask decides who may read."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    before = os.umask(0o027)
    try:
        with whole(path, mode) as file:
            file.write("é\r\n" if mode == "w" else b"\xff")
            assert path.read_bytes() == b"old"
    finally:
        os.umask(before)
    assert path.read_bytes() == ("é\r\n".encode() if mode == "w" else b"\xff")
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole(path) as file:
        file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_links_are_followed_and_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a.txt")
    with whole(tmp_path / "link") as file:
        file.write("text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "a.txt").read_text() == "text"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "real", tmp_path / "pipe", "/dev/null"):
        with pytest.raises(OSError, match="Is not a regular file"), whole(path):
            pass
    long = tmp_path / ("n" * 250)
    with whole(long) as file:
        file.write("text")
    assert long.read_text() == "text"


@pytest.fixture
def limit():
    """limit(n): files of this process may have n bytes at most, as on a disk that is almost full (another errno)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_refuses_bytes_destroys_no_figure(tmp_path, limit):
    """The error names the file that was asked for; the old figure stays to the byte."""
    import matplotlib.pyplot as plt

    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    figure = plt.figure()
    limit(1000)
    with pytest.raises(figures.UserError, match=r"cannot write .*a\.png: File too large"):
        figures.save(figure, path)
    with pytest.raises(OSError) as failed, whole(path) as file:
        file.write("text" * 1000)
    assert failed.value.filename == str(path) and failed.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.png"]


def test_a_full_disk_is_told_on_one_line(tmp_path):
    """`lm data kingdom` over its own older files, where files may have 20 kB: they are as they were."""
    for name in ("kingdom.txt", "analogies.txt", "facts.jsonl", "entropy.json"):
        (tmp_path / name).write_text("old")
    code = (
        "import resource, signal, sys; from lm.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "sys.exit(main(['data', 'kingdom', '--documents', '10', '--out', sys.argv[1]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"lm: {tmp_path / 'analogies.txt'}: File too large\n"
    assert len(os.listdir(tmp_path)) == 4 and (tmp_path / "analogies.txt").read_text() == "old"
