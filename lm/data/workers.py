"""Large corpora are encoded by several processes, into shards of bounded size.

One process reads the text and cuts it, whatever the number of workers, at the same places; each worker encodes a shard
at a time and writes it whole beside a note of what it is, so that what is finished stays when anything is killed.
A worker is this module run as a program: each shard arrives on its standard input as a line of JSON and the text, and
it answers lines of JSON: bytes done so far, then {"made": the note} or what went wrong. Nothing is pickled, no script
is imported again, and a worker whose parent has ended ends too.
"""

import contextlib
import hashlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from lm import tokenizer as tokenizers
from lm.data.token_files import Writer
from lm.errors import UserError
from lm.files import whole
from lm.tokenizer import Tokenizer

SHARD = 32 << 20
"""UTF-8 bytes of text in a shard: it closes before the part that comes after so many."""
OPENS, GOES_ON = b"\xff", b"\xfe"
"""Before a part of the text that opens a document and before any other. UTF-8 has neither byte."""
PART = re.compile(rb"([\xfe\xff])([^\xfe\xff]*)")


def cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group where there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # none, or "max"
        return count


# --- cut -------------------------------------------------------------------------------------------------------------
def cut(parts: Iterable[tuple[str, str, bool]], ended: set[str]) -> Iterator[tuple[str, bytearray]]:
    """The name and the marked text of every shard.

    parts: (side, text, whether it opens a document after an end of text), each of which encodes independently.
    ended: the sides whose last shard ends with an end of text.
    """
    texts: dict[str, bytearray] = {}
    numbers: dict[str, int] = {}
    for side, text, opens in parts:
        if len(texts.setdefault(side, bytearray())) >= SHARD:
            yield f"{side}/{numbers.setdefault(side, 0):06}.bin", texts.pop(side)
            numbers[side] += 1
            texts[side] = bytearray()
        texts[side] += OPENS if opens else GOES_ON
        texts[side] += text.encode()
    for side, text in texts.items():
        yield f"{side}/{numbers.get(side, 0):06}.bin", text + (OPENS if side in ended else b"")


# --- encode ----------------------------------------------------------------------------------------------------------
def encode_shards(
    texts: Iterable[tuple[str, bytearray]], folder: Path, workers: int, report: Callable[[int], None]
) -> dict[str, dict[str, Any]]:
    """Encode marked texts, by the tokenizer.json in `folder`, into files there; the note of each, by its name.

    A shard that is there already, made of the same text, is kept. report(bytes): how much text is encoded.
    Raises UserError for text that cannot be encoded and for workers that are killed, OSError for a disk that is full;
    all workers have ended then, and what they finished stays.
    """
    made: dict[str, dict[str, Any]] = {}
    with Crew(folder, workers) as crew:
        for name, text in texts:
            note = {"name": name, "text": hashlib.blake2b(text, digest_size=16).hexdigest()}
            if there := _finished(folder / name, note):
                made[name] = there
                crew.done += there["bytes"]
                report(crew.done)
            else:
                made |= crew.hand_out(note, text, report)
        made |= crew.finish(report)
    return made


def _finished(path: Path, note: dict[str, Any]) -> dict[str, Any] | None:
    """The note of a shard that is there, made of this text, with the digest it was written with."""
    try:
        there = json.loads(path.with_suffix(".json").read_text())
        with open(path, "rb") as file:
            undamaged = hashlib.file_digest(file, "sha256").hexdigest() == there["sha256"]
        known = there | note == there and all(isinstance(there[name], int) for name in ("count", "bytes"))
        return there if undamaged and known else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Crew:
    """Worker processes, started as there is work, and a thread for each that speaks with it."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self.workers: list[subprocess.Popen] = []
        self.idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
        self.threads = ThreadPoolExecutor(size, thread_name_prefix="encode")
        self.pending: set[Future] = set()
        self.lock, self.done = threading.Lock(), 0

    def hand_out(self, note: dict[str, Any], text: bytearray, report: Callable[[int], None]) -> dict[str, Any]:
        """Give a shard to a worker, when one has time; notes that were finished meanwhile, by name."""
        made = self._collect(self.size - 1, report)
        if len(self.workers) < self.size and self.idle.empty():
            self.workers.append(start(self.folder))
            self.idle.put(self.workers[-1])
        self.pending.add(self.threads.submit(self._encode, note, text))
        return made

    def finish(self, report: Callable[[int], None]) -> dict[str, Any]:
        """Wait for all; the notes of the last, by name."""
        return self._collect(0, report)

    def _collect(self, allowed: int, report: Callable[[int], None]) -> dict[str, Any]:
        """What is finished once at most so many shards are being encoded. Raises what went wrong with one."""
        made = {}
        while len(self.pending) > allowed:
            finished, self.pending = wait(self.pending, timeout=0.5, return_when=FIRST_COMPLETED)
            made |= {future.result()["name"]: future.result() for future in finished}
            report(self.done)
        return made

    def _encode(self, note: dict[str, Any], text: bytearray) -> dict[str, Any]:
        """Have a worker encode a shard. Runs in a thread; the text is let go as soon as the worker has it."""
        worker, before = self.idle.get(), 0
        try:
            worker.stdin.write(json.dumps(note | {"size": len(text)}).encode() + b"\n")
            worker.stdin.write(text)
            worker.stdin.flush()
            text.clear()
            for line in worker.stdout:
                said = json.loads(line)
                done = said["made"]["bytes"] if "made" in said else said.get("done", before)
                with self.lock:
                    self.done += done - before
                before = done
                if "made" in said:
                    self.idle.put(worker)
                    return said["made"]
                if "refused" in said:
                    raise UserError(said["refused"])
                if "errno" in said:
                    raise OSError(said["errno"], said["strerror"])
        except BrokenPipeError:
            pass
        ended = worker.wait()
        how = f"was killed by signal {-ended} (is there memory enough?)" if ended < 0 else f"ended with status {ended}"
        raise UserError(f"a process that encodes text {how}; run again: what was finished is kept")

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_) -> None:
        for worker in self.workers:
            worker.kill()
        self.threads.shutdown(wait=True, cancel_futures=True)
        for worker in self.workers:
            worker.wait()
            worker.stdout.close()
            with contextlib.suppress(BrokenPipeError):  # it was killed with text on its way
                worker.stdin.close()


def start(folder: Path) -> subprocess.Popen:
    """A worker that writes into the folder, apart from the terminal, whose Ctrl-C is for this process to handle."""
    path = os.pathsep.join(os.path.abspath(part) for part in sys.path)
    command = [sys.executable, "-P", "-m", "lm.data.workers", str(folder), str(os.getpid())]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    return subprocess.Popen(command, **pipes, env=os.environ | {"PYTHONPATH": path}, start_new_session=True)


# --- the worker ------------------------------------------------------------------------------------------------------
def work(folder: Path, parent: int) -> None:
    """Encode shards until standard input ends."""
    tokenizer = tokenizers.load(folder / "tokenizer.json")
    for line in sys.stdin.buffer:
        note = json.loads(line)
        text = bytearray(note.pop("size"))
        if sys.stdin.buffer.readinto(text) < len(text):
            return
        try:
            answer = {"made": _encode_shard(folder, tokenizer, note, text, parent)}
        except UserError as error:
            answer = {"refused": str(error)}
        except OSError as error:
            answer = {"errno": error.errno, "strerror": error.strerror}
        _say(answer)


def _encode_shard(
    folder: Path, tokenizer: Tokenizer, note: dict[str, Any], text: bytearray, parent: int
) -> dict[str, Any]:
    """Write a shard and, after it, its note."""
    path, said = folder / note["name"], 0
    with whole(path, "wb") as file:
        writer = Writer(file, tokenizer, end_of_text=True)
        for part in PART.finditer(text):
            writer.part(part[2].decode(), opens=part[1] == OPENS)
            if writer.bytes - said >= 2_000_000:
                if os.getppid() != parent:
                    sys.exit(1)
                said = writer.bytes
                _say({"done": said})
        writer.close()
    note |= {"count": writer.count, "bytes": writer.bytes, "sha256": writer.hash.hexdigest()}
    with whole(path.with_suffix(".json")) as file:
        json.dump(note, file)
    return note


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]), int(sys.argv[2]))
    except BrokenPipeError:  # nobody listens any more
        os._exit(1)
