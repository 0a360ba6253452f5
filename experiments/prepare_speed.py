"""How fast does a large corpus become tokens, with how many processes, and in how much memory?

python experiments/prepare_speed.py              2 GB with 1 and 2 workers, formats of 0.3 GB: 15 minutes, 2 cores
python experiments/prepare_speed.py --quick      a look: 0.2 GB, formats of 0.03 GB; 2 minutes
The text is Python's standard library over and over, each document numbered; the encoding is byte-pair with 4096
entries, trained before the clock starts. Each contestant is `lm data prepare`, starting and reading included, in a
cache of its own (the system keeps the file in memory, as far as there is room). Memory is the peak of each process as
Linux counts it.
Expected: the same digests for any number of workers and every format that holds the same documents, the speed nearly
proportional to cores, some 150 MB a process (parquet 220) whatever the size: experiments/RESULTS.md; figure
experiments/figures/prepare_speed.svg.
"""

import argparse
import dataclasses
import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt

import lm
from lm.errors import require
from lm.figures import STYLE, save

FIGURE = Path(__file__).parent / "figures" / "prepare_speed.svg"
SEPARATOR = lm.DataConfig().separator


@dataclasses.dataclass(frozen=True)
class Measured:
    """One preparation."""

    name: str
    bytes: int
    """UTF-8 bytes of text."""
    seconds: float
    peaks: tuple[int, ...]
    """The most resident bytes of the command and of each worker."""
    digests: tuple[str, str]
    """Of the training and of the validation tokens."""

    @property
    def speed(self) -> float:
        """MB of text a second."""
        return self.bytes / self.seconds / 1e6


# --- text ------------------------------------------------------------------------------------------------------------
def documents(size: int) -> Iterator[str]:
    """Numbered documents of the standard library, over and over, of `size` characters together."""
    texts = [text for text in lm.data.open_corpus(lm.DataConfig()).documents() if SEPARATOR not in text]
    for number, text in enumerate(itertools.cycle(texts)):
        yield f"{number}\n{text}"
        size -= len(text)
        if size <= 0:
            return


def write(path: Path, size: int) -> Path:
    """The documents in a file of the suffix's format, in many files where it has none."""
    if path.suffix == ".parquet":
        return _write_parquet(path, size)
    if not path.suffix:
        path.mkdir()
        for number, text in enumerate(documents(size)):
            path.joinpath(f"{number:07}.txt").write_text(text)
        return path
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        for number, text in enumerate(documents(size)):
            if ".jsonl" in path.name:
                file.write(json.dumps({"text": text}) + "\n")
            else:
                file.write(SEPARATOR * (number > 0 and path.stem != "one") + text)
    return path


def _write_parquet(path: Path, size: int) -> Path:
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(path, pyarrow.schema([("text", pyarrow.string())])) as file:
        texts = documents(size)
        while rows := list(itertools.islice(texts, 500)):
            file.write_table(pyarrow.table({"text": rows}))
    return path


# --- measure ---------------------------------------------------------------------------------------------------------
def measure(name: str, corpus: Path, workers: int, tokenizer: str) -> Measured:
    """Prepare a corpus in a new cache, which is removed again."""
    cache = Path(tempfile.mkdtemp(dir=corpus.parent))
    command = [sys.executable, "-m", "lm.cli", "data", "prepare", str(corpus), "--json", "--validation", "0.01"]
    command += ["--tokenizer", tokenizer, "--workers", str(workers)]
    start, peaks = time.perf_counter(), {}
    try:
        with open(cache / "said", "w+b") as said:
            process = subprocess.Popen(command, stdout=said, env=os.environ | {"LM_CACHE": str(cache)})
            while process.poll() is None:
                peaks |= resident(process.pid)
                time.sleep(0.1)
            seconds = time.perf_counter() - start
            require(process.returncode == 0, f"{' '.join(command)} ended with status {process.returncode}")
            said.seek(0)
            made = json.load(said)
    finally:
        shutil.rmtree(cache)
    train, held = made["train"], made["validation"]
    command_peak = peaks.pop(process.pid)
    digests = train["sha256"], held["sha256"]
    return Measured(name, train["bytes"] + held["bytes"], seconds, (command_peak, *peaks.values()), digests)


def resident(pid: int) -> dict[int, int]:
    """The peak of resident bytes so far of a process and of its children, by their numbers."""
    peaks = {}
    children = [thread.joinpath("children").read_text().split() for thread in Path(f"/proc/{pid}/task").glob("*")]
    for number in [pid, *map(int, itertools.chain.from_iterable(children))]:
        try:
            lines = Path(f"/proc/{number}/status").read_text().splitlines()
        except OSError:  # ended meanwhile
            continue
        for line in lines:
            if line.startswith("VmHWM"):  # not there once it has ended
                peaks[number] = int(line.split()[1]) << 10
    return peaks


def table(rows: list[Measured]) -> str:
    """The rows for RESULTS."""
    lines = ["| what | text, MB | seconds | MB/s | peak of the command, MB | of the largest worker, MB |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        numbers = f"{row.bytes / 1e6:,.0f} | {row.seconds:.1f} | {row.speed:.1f} | {row.peaks[0] / 1e6:.0f}"
        lines.append(f"| {row.name} | {numbers} | {max(row.peaks[1:], default=0) / 1e6:.0f} |")
    return "\n".join(lines)


def draw(rows: list[Measured]) -> plt.Figure:
    """Speed and peaks, a bar each."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, sharey=True, layout="constrained", figsize=(10, 4.4))
        names = [row.name for row in rows]
        left.barh(names, [row.speed for row in rows])
        left.set_xlabel("MB of text a second")
        right.barh(names, [row.peaks[0] / 1e6 for row in rows], height=0.4, align="edge", label="command")
        workers = [max(row.peaks[1:], default=0) / 1e6 for row in rows]
        right.barh(names, workers, height=-0.4, align="edge", label="largest worker")
        right.set_xlabel("peak memory, MB")
        right.legend()
        left.invert_yaxis()
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="0.2 GB")
    parser.add_argument("--megabytes", type=int, help="size of the large corpus; formats are a seventh of it")
    parser.add_argument("--out", type=Path, default=FIGURE)
    options = parser.parse_args(arguments)
    size = (options.megabytes or (200 if options.quick else 2000)) * 1_000_000
    require(Path("/proc/self/status").is_file(), "memory is measured as Linux counts it: there is no /proc here")
    rows = []

    def add(row: Measured) -> None:
        rows.append(row)
        print(table([row]).splitlines()[-1], *(digest[:12] for digest in row.digests), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LM_CACHE"] = str(folder / "own")
        tokenizer = str(folder / "tokenizer.json")
        train = [sys.executable, "-m", "lm.cli", "tokenizer", "train", "stdlib", "--vocab", "4096"]
        subprocess.run([*train, "--out", tokenizer], check=True, stdout=subprocess.DEVNULL)
        large = write(folder / "large.txt", size)
        for workers in (1, 2):
            add(measure(f"{workers} worker{'s' * (workers > 1)}", large, workers, tokenizer))
        require(rows[0].digests == rows[1].digests, "one worker and two made other tokens")
        add(measure("2 workers, bytes", large, 2, "bytes"))
        large.unlink()
        for kind in ("one.txt", "many.jsonl", "many.parquet", "many.jsonl.gz", "files"):
            path = write(folder / kind, size // 7)
            add(measure(kind, path, 2, tokenizer))
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        require(len({row.digests for row in rows[4:]}) == 1, "formats of the same documents made other tokens")
        add(measure("with a tokenizer of its own", write(folder / "own.txt", size // 7), 2, "bpe"))
    print(table(rows))
    save(draw(rows), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
