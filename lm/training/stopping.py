"""Being told to stop: SIGINT and SIGTERM are noted, and looked at wherever training can end without losing anything.

A compiler that is at work lets no handler run, and may be at work for minutes, while a cluster kills a job half a
minute after its signal. So a thread notices SIGTERM as well, and ends the process where there is nothing to save.
No handler raises an exception: JAX is called back at each garbage collection, and what is raised there is lost.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from lm import processes
from lm.errors import Stopped

PATIENCE = 5.0
"""Seconds in which the loop is to notice SIGTERM by itself, before a process with nothing to save is ended."""


class Stop:
    """What a training was told: true once it is to stop. Several processes stop together, whichever was told."""

    def __init__(self):
        self.numbers: list[int] = []
        """The signals that came."""
        self.unsaved = False
        """Whether something was made that is not saved yet, or is being saved."""
        self.over = threading.Event()
        self._agreed = False

    def __bool__(self) -> bool:
        """Asks all processes, which must all ask: two milliseconds where there are several."""
        self._agreed = self._agreed or any(processes.agree(bool(self.numbers)))
        return self._agreed

    def look(self, *_) -> None:
        """Raises Stopped once told to stop. Takes anything, as a callback of what takes long."""
        if self:
            raise Stopped("told to stop")

    def watch(self, pipe: int) -> None:
        """Reads the numbers of signals from a pipe until one is 0, and ends the process as this module says."""
        while number := os.read(pipe, 1)[0]:
            if number == signal.SIGTERM and not self.over.wait(PATIENCE) and not self.unsaved:
                end_with_nothing_to_save()


def end_with_nothing_to_save(*_) -> None:
    """Ends this process at once with status 75; a handler of signals. Takes what those take."""
    said = b"lm: stopped before there was anything new to save; the same command goes on\n"
    with contextlib.suppress(OSError):
        os.write(2, b"\x1b[?25h" * os.isatty(2) + said)  # a live display hides the cursor
    processes.leave(os.EX_TEMPFAIL)
    os._exit(os.EX_TEMPFAIL)


def end_when_told_to_stop() -> None:
    """Has SIGTERM end this process with status 75 until `stop_signals` collects it: nothing could be lost yet."""
    with contextlib.suppress(ValueError):  # signals belong to the main thread
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, end_with_nothing_to_save)


_outer: Stop | None = None
"""What the block that the main thread is in is told; a sweep's trainings share it, and each knows what the last was."""


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Collects SIGINT and SIGTERM instead of dying of them, in the main thread only; elsewhere the caller has them.

    A second SIGINT acts as usual. A second SIGTERM does not: clusters send several, and then SIGKILL. Within such a
    block another has the same Stop.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Stop()
    elif _outer is None:
        with _collected() as stop:
            yield stop
    else:
        try:
            yield _outer
        finally:
            _outer.unsaved = False


@contextlib.contextmanager
def _collected() -> Iterator[Stop]:
    """Has the main thread's signals go to a Stop, and a thread watch it."""
    global _outer
    stop = _outer = Stop()

    def note(number, _):
        stop.numbers.append(number)
        if number == signal.SIGINT:
            signal.signal(number, previous[number])

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=stop.watch, args=(reader,), daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        _outer = None
        signal.set_wakeup_fd(woken)
        for number, handler in previous.items():
            signal.signal(number, handler)
        stop.over.set()
        os.write(writer, b"\0")
        watcher.join()
        os.close(reader)
        os.close(writer)
