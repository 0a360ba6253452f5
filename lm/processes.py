"""Several processes that train one run: who speaks, what they agree on, and that they end together.

Each holds some of the devices and runs the same program. Process 0 alone decides, writes and speaks; what it decides
reaches the others by `leads`, and what each must know of all by `agree`. JAX's distributed runtime starts them, carries
their words and their arrays. A process that ends takes the others with it: each says every other second that it lives,
and how it ended. Alone, a process needs none of this, and everything here does nothing.
"""

import atexit
import contextlib
import functools
import importlib.util
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from lm import errors
from lm.errors import UserError, require

ASKED = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""What says that this is one of several processes: host:port of the first, how many there are, and which this is."""
BEAT = 2.0
"""Seconds between two signs of life."""
SILENCE = float(os.environ.get("LM_HEARTBEAT", 30))
"""Seconds without one, after which a process is taken for dead. JAX's own limit is 100 seconds, and less polite."""
LONG = 24 * 3600.0
"""Seconds to wait for what may take hours, such as data that is prepared; a process that dies ends the wait."""
T = TypeVar("T")


# --- starting --------------------------------------------------------------------------------------------------------
def asked() -> dict[str, Any] | None:
    """Returns what jax.distributed.initialize is to be called with, None where this process is alone.

    A step of Slurm with several tasks says so, a TPU host does, and ASKED does anywhere. Raises UserError where only a
    part of that is there.
    """
    environment = {name: os.environ[name] for name in ASKED if os.environ.get(name)}
    step = {name: os.environ.get(f"SLURM_{name}", "") for name in ("STEP_NODELIST", "PROCID", "NTASKS")}
    if all(step.values()) and step["NTASKS"].isdecimal() and int(step["NTASKS"]) > 1:
        gpus = os.environ.get("SLURM_GPUS_ON_NODE", "")
        alone = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").partition("(")[0] == "1"
        # JAX would give each task one device: right for a task for each, not for one task that has them all.
        mine = {"local_device_ids": list(range(int(gpus)))} if alone and gpus.isdecimal() and int(gpus) else {}
        return {"num_processes": int(step["NTASKS"]), "process_id": int(step["PROCID"]), **mine}
    if environment:
        return _by_hand(environment)
    return {} if _on_tpu_hosts() else None


def _on_tpu_hosts() -> bool:
    """Tells whether JAX should ask where a TPU's other hosts are. (Without chips, importing it says to skip that.)"""
    hosts = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if hosts or "TPU_SKIP_MDS_QUERY" in os.environ:
        return "," in (hosts or "")
    return "jax" in sys.modules and importlib.util.find_spec("libtpu") is not None


def _by_hand(environment: dict[str, str]) -> dict[str, Any]:
    """Returns what ASKED says."""
    address, count, number = map(environment.get, ASKED)
    missing = ", ".join(name for name in ASKED if name not in environment)
    require(not missing, f"{', '.join(environment)} without {missing}: several processes need all three")
    host, _, port = address.rpartition(":")
    require(bool(host) and port.isdecimal(), f"JAX_COORDINATOR_ADDRESS {address}: a host and a port, as node1:1234")
    require(
        count.isdecimal() and number.isdecimal() and int(number) < int(count),
        f"JAX_PROCESS_ID {number} of JAX_NUM_PROCESSES {count}: numbers, counted from 0",
    )
    by_hand = {"coordinator_address": address, "num_processes": int(count), "process_id": int(number)}
    return (by_hand | {"cluster_detection_method": "deactivate"}) if int(count) > 1 else None


def start() -> None:
    """Joins the other processes, where there are any, and waits for them. To be called before JAX is used.

    Raises UserError where the environment says only half, or the others do not come.
    """
    import jax

    how = asked()
    if how is None or count() > 1:
        return
    try:
        jax.distributed.initialize(**how)
    except (RuntimeError, ValueError) as error:
        if not how:  # a TPU that JAX knows no other hosts of
            return
        said = str(error).strip().partition("\n")[0]
        raise UserError(f"the processes did not find each other: {said[:200]}") from error
    if (handler := signal.getsignal(signal.SIGTERM)) is not None:
        signal.signal(signal.SIGTERM, handler)  # JAX has put its own below Python's
    if jax.process_count() > 1:
        _keep_standard_output(jax.default_backend() == "cpu")
        if not lead():
            errors.silence()
        _life().start()
        sys.excepthook = functools.partial(_end_with_error, sys.excepthook)
        atexit.register(finish)


def _keep_standard_output(drop: bool) -> None:
    """Keeps what libraries print from standard output, and the output of all processes but the first."""
    speech = os.fdopen(
        os.dup(1) if lead() else os.open(os.devnull, os.O_WRONLY),
        "w",
        encoding=sys.stdout.encoding,
        errors="backslashreplace",
    )
    os.dup2(os.open(os.devnull, os.O_WRONLY) if drop else 2, 1)  # on a CPU they only tell who is connected to whom
    sys.stdout = speech


def count() -> int:
    """Returns how many processes there are. Starts no device."""
    return getattr(_runtime(), "num_processes", 1)


def number() -> int:
    """Returns which of them this is."""
    return getattr(_runtime(), "process_id", 0)


def lead() -> bool:
    """Tells whether this is the process that decides, writes and speaks."""
    return number() == 0


def _runtime():
    # Its client has no public name, here as in orbax. A signal's handler asks while JAX is being imported, too.
    return getattr(sys.modules.get("jax._src.distributed"), "global_state", None)


# --- agreeing --------------------------------------------------------------------------------------------------------
_calls: dict[str, Iterator[int]] = defaultdict(itertools.count)
"""All processes make the same calls in the same order: a name and a number are a key that they share."""


def leads(name: str, work: Callable[[], T], seconds: float = 600) -> T:
    """Returns what the work gives in process 0, which alone does it: something that JSON can carry.

    Raises UserError where process 0 has not come so far within these seconds.
    """
    if count() == 1:
        return work()
    key, client = f"lm/leads/{name}/{next(_calls[name])}", _runtime().client
    if lead():
        value = work()
        client.key_value_set(key, json.dumps(value))
        return value
    with _in_time(f"process 0 did not come to {name!r}", seconds):
        return json.loads(client.blocking_key_value_get(key, int(1000 * seconds)))


def lead_first(name: str, work: Callable[[], T], seconds: float = LONG) -> T:
    """Does the work in process 0, and then in the others, which find there what is to be made only once."""
    made = work() if lead() else None
    leads(name, lambda: None, seconds)
    return made if lead() else work()


def agree(value: float) -> list[float]:
    """Returns every process's value, in their order; float32. Costs about two milliseconds, however many they are."""
    if count() == 1:
        return [value]
    import numpy as np
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.float32(value)).tolist()


def barrier(name: str, seconds: float = 600) -> None:
    """Waits until all processes have come here. Raises UserError, which names who is missing, where some do not."""
    if count() > 1:
        with _in_time(f"not all processes came to {name!r}", seconds):
            _runtime().client.wait_at_barrier(f"{name}/{next(_calls[name])}", int(1000 * seconds))


@contextlib.contextmanager
def _in_time(what: str, seconds: float) -> Iterator[None]:
    """Tells on one line that a wait was in vain."""
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        if "DEADLINE_EXCEEDED" not in said:
            raise
        raise UserError(f"{what} within {seconds:g} seconds: {said[:300]}") from error


# --- ending ----------------------------------------------------------------------------------------------------------
class Life(threading.Thread):
    """Tells the others every BEAT seconds that this process lives, and ends it once one of them has ended."""

    def __init__(self):
        super().__init__(name="life", daemon=True)
        self.over = threading.Event()
        self.beats = itertools.count()
        self.dead: set[int] = set()
        """Processes that fell silent."""

    def say(self, status: int | None = None, said: str | None = None) -> None:
        """Tells the others that this process lives; or with which status it ends, and what it said."""
        words = json.dumps({"beat": next(self.beats), "status": status, "said": said})
        _runtime().client.key_value_set(f"lm/life/{number()}", words, allow_overwrite=True)

    def others(self) -> dict[int, dict]:
        """Returns the last words of every other process that has spoken."""
        found = _runtime().client.key_value_dir_get("lm/life/")
        heard = {int(key.rpartition("/")[2]): json.loads(words) for key, words in found}
        return {process: words for process, words in heard.items() if process != number()}

    def run(self) -> None:
        last: dict[int, dict] = {}
        silent = dict.fromkeys(set(range(count())) - {number()}, 0)  # rounds of ours: a machine may sleep
        while not self.over.wait(BEAT):
            try:
                self.say()
                heard = self.others()
            except RuntimeError:  # process 0 is gone, which carried the words
                self.follow(0, None)
            for process in silent:
                words = heard.get(process)
                silent[process] = silent[process] + 1 if words == last.get(process) else 0
                ended = words is not None and words["status"] is not None
                if ended or silent[process] * BEAT > SILENCE:
                    self.follow(process, words["status"] if ended else None)
            last = heard

    def follow(self, process: int, status: int | None) -> None:
        """Ends this process after another: with its status, or as what is to be tried again where it was killed."""
        if self.over.is_set():
            return
        if status is None:
            self.dead.add(process)
            self.tell(f"process {process} has died: the same command goes on from the last checkpoint")
        elif lead():
            self.tell(f"process {process} has ended with status {status}, and says why")
        self.end(os.EX_TEMPFAIL if status is None else status, None)

    @staticmethod
    def tell(what: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, b"\x1b[?25h" * os.isatty(2) + f"lm: {what}\n".encode())  # a live display hides the cursor

    def end(self, status: int, said: str | None) -> None:
        """Ends the process at once. The first waits for the others, SILENCE or longer: their words go through it."""
        self.over.set()
        with contextlib.suppress(RuntimeError):
            self.say(status, said)
            patience = time.monotonic() + max(SILENCE, 5 * BEAT)
            while lead() and not self.alone() and time.monotonic() < patience:
                time.sleep(BEAT / 4)
            time.sleep(BEAT / 4 if lead() else 0)  # those who said so are about to be gone
        os._exit(status)

    def alone(self) -> bool:
        """Tells whether every other process has said that it ends, or is dead."""
        ended = {process for process, words in self.others().items() if words["status"] is not None}
        return len(ended | self.dead) == count() - 1


@functools.cache
def _life() -> Life:
    return Life()


def speaks(said: str) -> bool:
    """Tells whether this process is to say why it ends: the first is, and one that it did not speak for."""
    if count() == 1 or lead():
        return True
    with contextlib.suppress(RuntimeError):
        for _ in range(4):
            if _life().others().get(0, {}).get("said") == said:
                return False
            time.sleep(BEAT / 4)
    return True


def leave(status: int, said: str | None = None) -> None:
    """Ends this process, and so all others, where one of several cannot go on. Alone, returns."""
    if count() > 1:
        sys.stdout.flush()
        _life().end(status, said)


def _end_with_error(hook: Callable, kind: type, error: BaseException, trace) -> None:
    """Ends all processes on a defect, which is told as usual. What a library says of a peer that is gone is none."""
    if issubclass(kind, RuntimeError) or "Gloo" in str(error):
        _life().join(SILENCE + 2 * BEAT)  # it ends this process when it finds one dead
    if _life().over.is_set():
        _life().join()  # it is about to
    hook(kind, error, trace)
    leave(1)


def finish() -> None:
    """Parts from the other processes when all have come to their end, within ten minutes."""
    if count() == 1:
        return
    import jax

    try:
        barrier("the end")
        _life().over.set()
        jax.distributed.shutdown()
    except (UserError, RuntimeError) as error:
        Life.tell(str(error).strip().partition("\n")[0])
        leave(os.EX_TEMPFAIL)
