"""Log lines are put into a buffer, and one thread writes them: nobody else waits for whoever reads them.

Only that thread stands still when a pipe is full, a terminal is stopped or a disk hangs. O_NONBLOCK would not do:
the flag belongs to the open file description, which the shell and the other workers share.
"""

import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

BUFFER = 1 << 20  # bytes of lines that may wait to be written; about 1.2 MiB with Python's own

# Lines of several workers on one pipe do not mix: POSIX has a write of at most PIPE_BUF bytes be atomic.
CHUNK = select.PIPE_BUF

# Seconds that the thread rests after it has written, so that the event loop seldom hands the GIL over to it. The first
# line after a rest is written at once. SIGKILL can lose the lines of as many seconds.
PAUSE = 0.05

FLUSH = 1.0  # seconds, in all, that the process waits at its end for what is not written


class LogWriter:
    """Writes lines to standard output. When the buffer is full, drops lines until it is empty and says how many."""

    def __init__(self, gap: Callable[[int], str], on_drop: Callable[[int], object]) -> None:
        """Start with the first line. `gap` makes the line that tells of dropped ones, `on_drop` counts them."""
        self._gap = gap
        self._on_drop = on_drop
        self._reset()
        os.register_at_fork(after_in_child=self._reset)  # the thread and the lines are the parent's

    def _reset(self) -> None:
        self._lock = threading.Condition()  # on an RLock: a signal handler may log while its thread is in here
        self._thread: threading.Thread | None = None
        self._lines: deque[bytes] = deque()
        self._size = 0  # bytes of lines that are not written
        self._full = False
        self._idle = True  # the thread has nothing to write
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._deadline = 0.0  # of `flush`
        self._dropped = 0  # lines that no gap was written for
        self._uncounted = 0  # lines that `on_drop` was not called for
        self._torn = False  # the last thing that was written is a part of a line

    def write(self, line: str) -> None:
        """Write a line soon, or drop it; return at once."""
        data = f"{line}\n".encode(errors="backslashreplace")
        with self._lock:
            self._idle = False
            self._full = self._full or self._size + len(data) > BUFFER
            if self._full:
                self._drop(1)
            else:
                self._lines.append(data)
                self._size += len(data)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(_descriptor(),), name="log", daemon=True)
                self._thread.start()
        if not self._wake.is_set():
            self._wake.set()
        if self._ending.is_set():
            self.flush()

    def flush(self) -> None:
        """Wait until everything is written, and do so after each later line: for FLUSH seconds from the first call."""
        self._deadline = self._deadline or time.monotonic() + FLUSH
        self._ending.set()
        with self._lock:
            self._lock.wait_for(lambda: self._idle, max(0.0, self._deadline - time.monotonic()))

    def count_drops(self) -> None:
        """Call `on_drop`. Apart from `write`, whose caller may hold a lock that `on_drop` needs."""
        if self._uncounted:
            with self._lock:
                lines, self._uncounted = self._uncounted, 0
            self._on_drop(lines)

    def _drop(self, lines: int) -> None:
        self._dropped += lines
        self._uncounted += lines

    def _run(self, descriptor: int) -> None:
        while self._wake.wait():
            self._wake.clear()
            self._drain(descriptor)
            self._ending.wait(PAUSE)

    def _drain(self, descriptor: int) -> None:
        while chunk := self._next_chunk():
            data = b"".join(chunk)
            written = self._write(descriptor, data)
            with self._lock:
                self._size -= len(data)
                if not written:
                    self._drop(len(chunk))
        dropped = self._dropped
        if dropped and self._write(descriptor, f"{self._gap(dropped)}\n".encode()):
            with self._lock:
                self._dropped -= dropped
        self.count_drops()
        with self._lock:
            self._full = False
            self._idle = not self._lines
            self._lock.notify_all()

    def _next_chunk(self) -> list[bytes]:
        """Return the lines that are written together; one that is longer than CHUNK is alone."""
        chunk: list[bytes] = []
        size = 0
        with self._lock:
            while self._lines and (not chunk or size + len(self._lines[0]) <= CHUNK):
                chunk.append(self._lines.popleft())
                size += len(chunk[-1])
        return chunk

    def _write(self, descriptor: int, data: bytes) -> bool:
        """Write everything, however long it takes; False when that fails."""
        rest = memoryview(b"\n" + data if self._torn else data)
        size = len(rest)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:  # somebody else has made it non-blocking
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                poll.poll()
            except OSError:  # the reader has gone, the disk is full, the terminal was closed
                self._torn = self._torn or len(rest) < size
                return False
        self._torn = False
        return True


def _descriptor() -> int:
    try:
        return sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # it is closed, or something that a test has put in its place
        return os.open(os.devnull, os.O_WRONLY)
