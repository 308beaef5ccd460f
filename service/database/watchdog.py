"""Who holds a connection, and since when: cuts what hangs, reports what leaks.

A frozen server keeps acknowledging packets, so no timeout of TCP or PostgreSQL ends the wait for its answer. Shutting
down the connection's socket from another thread does: the waiting read returns at once.
"""

import logging
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass

from psycopg import Connection, OperationalError

from service.database.threads import start_thread
from service.telemetry import metrics
from service.telemetry.record import RECORD

logger = logging.getLogger(__name__)

TICK = 0.1  # seconds between two looks: how late a deadline may be

# The monotonic time at which the current request must be answered; 0 outside a request.
DEADLINE: ContextVar[float] = ContextVar("DEADLINE", default=0.0)


def time_left(seconds: float) -> float:
    """Return how long a wait of `seconds` may take: no longer than the current request has."""
    deadline = DEADLINE.get()
    return min(seconds, max(0.0, deadline - time.monotonic())) if deadline else seconds


@dataclass(eq=False, slots=True)
class Lease:
    """A connection in use, by which thread and for which request."""

    connection: Connection
    thread: int
    since: float
    deadline: float
    context: Context  # of the request: what is logged within it carries the request's id
    reported: bool = False
    cut: bool = False

    def cut_connection(self) -> None:
        """Shut the socket down, so that whatever waits for it returns."""
        self.cut = True  # before the thread wakes up and asks
        self.cut = _shut_down(self.connection)  # if this failed, the next look tries again


class Watchdog:
    """Looks at every lease ten times a second, from a thread of its own. Thread-safe."""

    def __init__(self, *, leak_threshold: float) -> None:
        """Report a lease after `leak_threshold` seconds."""
        self._leak_threshold = leak_threshold
        self._leases: set[Lease] = set()
        self._high_water = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch, unless another pool has begun it."""
        self._thread = self._thread or start_thread("watchdog", self._run)

    def stop(self) -> None:
        """Stop watching and cut every connection in use: the process ends, and nobody waits for their answers."""
        with self._lock:
            self._stopped.set()
            for lease in self._leases:
                lease.cut_connection()

    def begin(self, connection: Connection) -> Lease:
        """Watch `connection`, which the current thread uses for the current request."""
        lease = Lease(connection, threading.get_ident(), time.monotonic(), DEADLINE.get(), copy_context())
        with self._lock:
            self._leases.add(lease)
            self._high_water = max(self._high_water, len(self._leases))
            if self._stopped.is_set():
                lease.cut_connection()
        return lease

    def end(self, lease: Lease) -> None:
        """Stop watching. From here on the connection cannot be cut, and `lease.cut` says whether it was."""
        with self._lock:
            self._leases.remove(lease)

    def break_connections(self, which: Callable[[Lease], bool]) -> None:
        """Break the connections in use for which `which` is true, as if the server had ended them."""
        with self._lock:
            for lease in self._leases:
                if which(lease):
                    _shut_down(lease.connection)

    def high_water(self) -> int:
        """Return the most connections that were in use at once since the last call.

        The number at this moment would be too small: the event loop asks, and while it has the GIL few threads work.
        """
        with self._lock:
            high_water, self._high_water = self._high_water, len(self._leases)
        return high_water

    def holders(self) -> list[tuple[float, str]]:
        """Return since when each connection in use is held, and for which route; the longest first."""
        with self._lock:
            leases = [(lease.since, lease.context.get(RECORD)) for lease in self._leases]
        return sorted((since, record.name if record else "") for since, record in leases)

    def _run(self) -> None:
        while not self._stopped.wait(TICK):
            now = time.monotonic()
            with self._lock:
                leaks = [each for each in self._leases if not each.reported and now - each.since > self._leak_threshold]
                for lease in self._leases:
                    if lease.deadline and now > lease.deadline and not lease.cut:
                        lease.cut_connection()
                        metrics.CONNECTIONS_CUT.inc(lease.cut)
            for lease in leaks:  # without the lock: a slow log must not keep anybody from a connection
                lease.reported = True
                metrics.CONNECTION_LEAKS.inc()
                lease.context.run(_report_leak, lease, now)


def _shut_down(connection: Connection) -> bool:
    """Shut down the connection's socket; return whether it was open. Opens no descriptor: there may be none left."""
    try:
        borrowed = socket.socket(fileno=connection.fileno())
    except (OSError, OperationalError):
        return False
    try:
        borrowed.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    finally:
        borrowed.detach()
    return True


def _report_leak(lease: Lease, now: float) -> None:
    record = RECORD.get()
    frame = sys._current_frames().get(lease.thread)  # noqa: SLF001 - documented for exactly this
    if record.duration:  # the thread does something else by now
        where = "its request has been answered: it was never given back"
    else:
        where = "".join(traceback.format_stack(frame)) if frame else "the thread has ended"
    logger.warning("connection held for %.1f s by %s:\n%s", now - lease.since, record.name, where)
