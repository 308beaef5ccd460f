"""Write the log from a thread of its own, so that a slow reader of standard output delays nothing else.

Only that thread waits when a pipe is full, a terminal is stopped or a disk hangs. O_NONBLOCK is no alternative: the
flag belongs to the open file description, which the shell and the other workers share.
"""

import atexit
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

from prometheus_client import REGISTRY, Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from service.telemetry import log

BUFFER = 1 << 20  # bytes of lines that may wait; about 1.2 MiB with Python's overhead

# Lines of several workers on one pipe do not mix: POSIX makes a write of at most PIPE_BUF bytes atomic.
CHUNK = select.PIPE_BUF

# Seconds that the thread sleeps after it has written, so that the event loop seldom hands the GIL over to it. It writes
# the first line after a sleep at once. SIGKILL can lose the lines of as many seconds.
PAUSE = 0.05

FLUSH_TIMEOUT = 1.0  # seconds that the end of the process waits for unwritten lines, in all


class LogWriter(Collector):
    """Write lines to standard output. When the buffer is full, drop lines until it is empty, and log their number."""

    def __init__(self) -> None:
        """Start the thread with the first line."""
        self._reset()
        os.register_at_fork(after_in_child=self._reset)  # the thread and the lines stay with the parent
        atexit.register(self.flush)

    def _reset(self) -> None:
        self._lock = threading.Condition()  # on an RLock: a signal handler may log while its thread is in here
        self._started = False
        self._lines: deque[bytes] = deque()
        self._size = 0  # bytes of unwritten lines
        self._full = False
        self._idle = True  # all lines are written
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._deadline = 0.0  # of `flush`
        self._dropped = 0  # lines, since the start
        self._mentioned = 0  # those of them that the log mentions
        self._torn = False  # the last write ended inside a line

    def write(self, line: str) -> None:
        """Write a line soon, or drop it; return at once."""
        data = f"{line}\n".encode(errors="backslashreplace")
        with self._lock:
            self._idle = False
            self._full = self._full or self._size + len(data) > BUFFER
            if self._full:
                self._dropped += 1
            else:
                self._lines.append(data)
                self._size += len(data)
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, args=(_descriptor(),), name="log", daemon=True).start()
        if not self._wake.is_set():
            self._wake.set()
        if self._ending.is_set():
            self.flush()

    def flush(self) -> None:
        """Write everything, now and after each later line. Wait for FLUSH_TIMEOUT seconds from the first call at most.

        Call it when a worker ends: uvicorn may then kill its process with the signal that it received.
        """
        self._deadline = self._deadline or time.monotonic() + FLUSH_TIMEOUT
        self._ending.set()
        with self._lock:
            self._lock.wait_for(lambda: self._idle, max(0.0, self._deadline - time.monotonic()))

    def collect(self) -> Iterator[Metric]:
        """Yield the number of dropped lines. Not a Counter: whoever calls `write` may hold the lock of the metrics."""
        documentation = "Log lines dropped because standard output was slow or failed."
        yield CounterMetricFamily("log_lines_dropped", documentation, self._dropped)

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
                    self._dropped += len(chunk)
        dropped = self._dropped
        if dropped > self._mentioned and self._write(descriptor, _gap(dropped - self._mentioned)):
            self._mentioned = dropped
        with self._lock:
            self._full = False
            self._idle = not self._lines
            self._lock.notify_all()

    def _next_chunk(self) -> list[bytes]:
        """Return the lines to write together; a line that is longer than CHUNK is alone."""
        chunk: list[bytes] = []
        size = 0
        with self._lock:
            while self._lines and (not chunk or size + len(self._lines[0]) <= CHUNK):
                chunk.append(self._lines.popleft())
                size += len(chunk[-1])
        return chunk

    def _write(self, descriptor: int, data: bytes) -> bool:
        """Write everything, however long it takes; return False when that fails."""
        rest = memoryview(b"\n" + data if self._torn else data)
        size = len(rest)
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:  # another process made it non-blocking
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                poll.poll()
            except OSError:  # the reader has ended, the disk is full, the terminal was closed
                self._torn = self._torn or len(rest) < size
                return False
        self._torn = False
        return True


def _gap(dropped: int) -> bytes:
    text = f"{dropped:,} lines were dropped here: the reader of the log was too slow"
    return f"{log.format_line('WARNING', text)}\n".encode()


def _descriptor() -> int:
    try:
        return sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # it is closed, or a test has replaced it
        return os.open(os.devnull, os.O_WRONLY)


WRITER = LogWriter()  # one for each process, as it has one standard output
REGISTRY.register(WRITER)
