"""Who holds a connection, since when: cuts what hangs, reports what leaks.

A frozen server keeps acknowledging packets, so no timeout of TCP or PostgreSQL ends the wait for it.
What does is shutting the connection's socket down from another thread: the waiting read returns at once.
"""

import logging
import socket
import sys
import threading
import time
import traceback
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass

from psycopg import Connection, OperationalError

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


class DeadlineExceeded(Exception):
    """The request ran out of time. Nothing was done: PostgreSQL stopped its statement, or never had it."""


class ConnectionCut(DeadlineExceeded):
    """The connection was cut at the request's deadline: its statement may have been carried out."""


@dataclass(eq=False, slots=True)
class Loan:
    """A connection in use."""

    connection: Connection
    thread: int
    since: float
    deadline: float
    context: Context  # of the request: what is logged within it carries the request's id
    reported: bool = False
    cut: bool = False


class Watchdog:
    """Looks at every loan ten times a second, from a thread of its own."""

    def __init__(self, *, leak_threshold: float) -> None:
        """Report a loan after `leak_threshold` seconds; each loan's deadline is its request's own."""
        self._leak_threshold = leak_threshold
        self._loans: set[Loan] = set()
        self._most = 0  # at once, since `most` was asked
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the watch, and what still waits for a connection: nobody waits for its answer, and the process ends."""
        with self._lock:
            self._stopped.set()
            for loan in self._loans:
                _end(loan)

    def watch(self, connection: Connection) -> Loan:
        """Watch `connection`, in use by the current thread and request, until the loan is given to `unwatch`."""
        loan = Loan(connection, threading.get_ident(), time.monotonic(), DEADLINE.get(), copy_context())
        with self._lock:
            self._loans.add(loan)
            self._most = max(self._most, len(self._loans))
            if self._stopped.is_set():
                _end(loan)
        return loan

    def unwatch(self, loan: Loan) -> None:
        """Watch no longer: after this the watchdog cannot touch the connection, and `loan.cut` tells whether it did."""
        with self._lock:
            self._loans.remove(loan)

    def most(self) -> int:
        """Return how many connections were in use at once, at the most, since this was last asked.

        How many are just now would mislead: the event loop, which asks, has the GIL, mostly while none is in use.
        """
        with self._lock:
            most, self._most = self._most, len(self._loans)
        return most

    def holders(self) -> list[tuple[float, str]]:
        """Return since when each connection in use is held, and by which route, the longest first."""
        with self._lock:
            loans = [(loan.since, loan.context.get(RECORD)) for loan in self._loans]
        return sorted((since, record.name if record else "") for since, record in loans)

    def _run(self) -> None:
        while not self._stopped.wait(TICK):
            now = time.monotonic()
            with self._lock:
                leaks = [loan for loan in self._loans if not loan.reported and now - loan.since > self._leak_threshold]
                for loan in self._loans:
                    if loan.deadline and now > loan.deadline and not loan.cut:
                        _end(loan)
                        metrics.CUT.add(number=loan.cut)
            for loan in leaks:  # without the lock: a log that blocks must not keep anybody from a connection
                loan.reported = True
                metrics.LEAKS.add()
                loan.context.run(_report, loan, now)


def _end(loan: Loan) -> None:
    loan.cut = True  # before the thread can wake up and ask
    loan.cut = _shut_down(loan.connection)  # or once more at the next look


def _shut_down(connection: Connection) -> bool:
    """End whatever waits for the connection. Takes no descriptor of its own: there may be none left."""
    try:
        borrowed = socket.socket(fileno=connection.fileno())
    except (OSError, OperationalError):
        return False  # it is closed already
    try:
        borrowed.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    finally:
        borrowed.detach()
    return True


def _report(loan: Loan, now: float) -> None:
    record = RECORD.get()
    frame = sys._current_frames().get(loan.thread)  # noqa: SLF001 - documented for exactly this
    if record.duration:
        where = "its request has been answered: it was never given back"  # and the thread does something else by now
    else:
        where = "".join(traceback.format_stack(frame)) if frame else "the thread has ended"
    logger.warning("connection held for %.1f s by %s:\n%s", now - loan.since, record.name, where)
