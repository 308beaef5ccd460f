"""Threads = connections, and the one place that lends a connection.

The pool holds exactly as many connections as the worker has threads, and an endpoint borrows at most
one at a time, inside its own body. So a running thread always finds a connection free; it waits only
while PostgreSQL is away. The queue of requests stands before the threads, in `web/admission.py`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Self

from psycopg import Connection, Cursor, Error, OperationalError, errors
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from service.database.sessions import Session
from service.database.watchdog import ConnectionCut, DeadlineExceeded, Watchdog, time_left
from service.settings import SettingsError
from service.telemetry import metrics
from service.telemetry.record import RECORD

logger = logging.getLogger(__name__)

# Seconds that requests wait when PostgreSQL has just gone, to ride over a fast restart. Counted from the first
# failure to connect: in an outage that lasts longer, a request is refused after the second number.
OUTAGE_PATIENCE = 1.0
LEAST_PATIENCE = 0.05

# psycopg_pool doubles its delay between attempts to connect until, after so many seconds, it gives up; the next
# request, or `_refill`, then starts afresh. At its default of 300 s a pool came back 46 s late from an outage of
# 70 s; at 3 s, up to 1.1 s late under load; at 0.5 s, 0.07 s.
RECONNECT_TIMEOUT = 0.5


# The server's last words in a session.
GOODBYES = (errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow, errors.IdleInTransactionSessionTimeout)

# An administrator's doing, under the running service: a table that is being restored, a privilege revoked, a sequence
# limited.
REFUSALS = (errors.UndefinedTable, errors.InsufficientPrivilege, errors.SequenceGeneratorLimitExceeded)


class DatabaseUnavailable(Exception):
    """No connection can be had, or the server cannot carry out a statement. Nothing was done."""


class ConnectionBroke(DatabaseUnavailable):
    """The connection broke under a statement, which may have been carried out."""


class TooManyConnections(DatabaseUnavailable):
    """PostgreSQL is up and refuses another connection: `max_connections`, or a limit of the role or database."""


_OUTAGE = threading.Lock()  # the pool connects on several threads


class PooledConnection(Connection[TupleRow]):
    """A connection that knows since when it is open."""

    opened_at = 0.0  # on the monotonic clock
    said_goodbye = False  # by the server, while nobody used it
    _cursor: Cursor[TupleRow] | None = None

    # Why the newest attempt to connect failed, and since when they all do; the pool itself only logs it.
    failure: Exception | None = None
    failing_since = 0.0
    failures = 0

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 - passed on to psycopg as they are
        """Connect, and remember why when that fails."""
        started = time.monotonic()
        try:
            conn = super().connect(*args, **kwargs)
        except OperationalError as exc:
            PooledConnection.failed(exc)
            raise
        metrics.CREATE_TIME.observe(time.monotonic() - started)
        PooledConnection.worked()
        conn.opened_at = started
        conn.add_notice_handler(conn.heard)
        return conn

    def row(self, query: str, params: Mapping[str, Any]) -> TupleRow | None:
        """Run a statement and return the first row of its result, if it has one."""
        # One cursor for all statements, as no result outlives its call: to make one for each cost 9 µs.
        if self._cursor is None:
            self._cursor = self.cursor()
        return self._cursor.execute(query.encode(), params).fetchone()

    def heard(self, diagnostic: errors.Diagnostic) -> None:
        """Take a notice; to an idle session, the server's last words come as one."""
        self.said_goodbye |= diagnostic.severity_nonlocalized == "FATAL"

    @staticmethod
    def failed(exc: Exception) -> None:
        """Remember that no connection could be made; tell it once, whichever of the pool's threads finds out."""
        metrics.CREATE_FAILED.add()
        with _OUTAGE:
            begins = PooledConnection.failure is None
            if begins:
                PooledConnection.failing_since, PooledConnection.failures = time.monotonic(), 0
            PooledConnection.failures += 1
            PooledConnection.failure = exc
        if begins:
            logger.error("cannot connect: %s", " ".join(str(exc).split()))

    @staticmethod
    def worked() -> None:
        """Remember that a connection could be made; tell the end of an outage once."""
        with _OUTAGE:
            ends, PooledConnection.failure = PooledConnection.failure is not None, None
            away = time.monotonic() - PooledConnection.failing_since
        if ends:
            logger.info("connected again, %.1f s and %d attempts later", away, PooledConnection.failures)


class Database:
    """The pool of one worker process: `size` connections for `size` threads."""

    def __init__(
        self, *, size: int, watchdog: Watchdog, cursor_class: Callable[[], type[Cursor[TupleRow]]] = lambda: Cursor
    ) -> None:
        """Have nothing to lend until `open()`, which asks for `cursor_class`."""
        self._size = size
        self._watchdog = watchdog
        self._cursor_class = cursor_class
        self._drained_at = 0.0
        self._preamble = ""
        self._connected = 0  # how often
        self._counting = threading.Lock()
        self._closed = threading.Event()
        self._pool: ConnectionPool[PooledConnection] | None = None

    def open(self, session: Session) -> None:
        """Begin to connect, in the background and for as long as it takes."""

        def conninfo() -> str:
            try:
                return session.conninfo()
            except SettingsError as exc:  # the file with the password is not there just now
                PooledConnection.failed(exc)
                raise

        self._preamble = session.preamble
        self._pool = ConnectionPool(
            conninfo,
            connection_class=PooledConnection,
            kwargs={**session.arguments, "cursor_factory": self._cursor_class()},
            min_size=self._size,
            max_size=self._size,
            open=True,
            configure=self._opened,
            check=self._check,
            reconnect_timeout=RECONNECT_TIMEOUT,
        )
        self._watchdog.start()
        threading.Thread(target=self._refill, args=(self._pool,), name="refill", daemon=True).start()

    def connections(self) -> tuple[int, int, int]:
        """Return how many are open, how many were lent at once since this was last asked, how many threads wait."""
        stats = self._pool.get_stats() if self._pool else {}
        size = stats.get("pool_size", 0)
        return size, min(size, self._watchdog.most()), stats.get("requests_waiting", 0)

    def holders(self) -> list[tuple[float, str]]:
        """Return since when each lent connection is held, and by which route, the longest first."""
        return self._watchdog.holders()

    def close(self) -> None:
        """Close every connection; one that is lent is closed when it comes back."""
        self._closed.set()
        self._watchdog.stop()
        if self._pool:
            self._pool.close()

    def connection(self) -> AbstractContextManager[PooledConnection]:
        """Lend a connection for the length of the block, in autocommit mode: each statement is its own transaction.

        Where two statements belong together, put `with conn.transaction():` around them.

        Costs no round trip, and the connection comes back whatever happens. Here the driver's errors become
        the service's. Raises DatabaseUnavailable when there is none to lend, ConnectionBroke when the one lent
        breaks, DeadlineExceeded when a statement, or the request, runs out of time, and ConnectionCut when it had
        to be cut for that.
        """
        if self._pool is None:
            raise DatabaseUnavailable("not connected yet")
        lent = _Lent(self._pool, self._watchdog, self._drain)
        return self._told(lent) if self._preamble else lent

    @contextmanager
    def _told(self, lent: "_Lent") -> Iterator[PooledConnection]:
        """Tell the connection its timeouts. Where the session itself knows them, these round trips are spared."""
        with lent as conn, conn.transaction():
            conn.execute(self._preamble.encode())
            yield conn

    def _refill(self, pool: ConnectionPool[PooledConnection]) -> None:
        """Connect again where the pool has given up: by itself it does so only when a request finds no connection.

        A worker that was asked for nothing had none after an outage, and with a limit that was lifted too few.
        """
        while not self._closed.wait(RECONNECT_TIMEOUT):
            with pool._lock:  # noqa: SLF001 - resize() is public, and can make more connections than there may be
                pool._maybe_grow_pool()  # noqa: SLF001 - nothing when it is full, or growing

    def _opened(self, _conn: PooledConnection) -> None:
        with self._counting:
            self._connected += 1
            if self._connected > self._size:
                metrics.RECONNECTS.add()

    def _check(self, conn: PooledConnection) -> None:
        """Refuse a connection that died while it was idle.

        Costs 2 µs for one that lives, no round trip, and the GIL is kept: with poll(), which lets it go, 30 µs.
        """
        try:
            conn.pgconn.consume_input()  # read what has come, if anything; the end of the stream raises
            conn.pgconn.is_busy()  # take in what it says
        except OperationalError:
            self._drain(conn)
            raise
        if conn.said_goodbye:
            self._drain(conn)
            raise OperationalError("the server ended the session")

    def _drain(self, corpse: PooledConnection) -> None:
        """Replace every connection as old as `corpse`, once.

        A server that ended one session has mostly ended them all, and each would otherwise be found by a
        request of its own.
        """
        if self._pool and corpse.opened_at > self._drained_at:
            self._drained_at = time.monotonic()
            self._pool.drain()


class _Lent:
    """A connection, from the pool and back. As nested generators, its steps cost 4 % of a small request."""

    __slots__ = ("_conn", "_drain", "_loan", "_pool", "_record", "_watchdog")

    def __init__(
        self,
        pool: ConnectionPool[PooledConnection],
        watchdog: Watchdog,
        drain: Callable[[PooledConnection], None],
    ) -> None:
        self._pool = pool
        self._watchdog = watchdog
        self._drain = drain

    def __enter__(self) -> PooledConnection:
        started = time.monotonic()
        try:
            self._conn = self._pool.getconn(_patience())
        except (PoolTimeout, PoolClosed) as exc:
            metrics.TIMEOUTS.add()
            raise _reason() from exc
        self._loan = self._watchdog.watch(self._conn)
        self._record = RECORD.get()
        self._record.waited = (self._record.waited or 0) + self._loan.since - started
        return self._conn

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchdog.unwatch(self._loan)
        self._record.held = (self._record.held or 0) + time.monotonic() - self._loan.since
        try:
            if isinstance(exc, Error) and (meant := self._meant(exc)):
                raise meant from exc
        finally:
            self._pool.putconn(self._conn)  # which rolls back what was begun and replaces what is broken

    def _meant(self, exc: Error) -> Exception | None:
        """Return what the driver's error is to the service; None when it is not about the connection."""
        if isinstance(exc, errors.ReadOnlySqlTransaction):  # after a failover: this node is a standby now
            self._drain(self._conn)
            return DatabaseUnavailable("the server became read-only")
        if isinstance(exc, REFUSALS):
            logger.error("the server refused a statement: %s", exc.diag.message_primary)
        elif not isinstance(exc, OperationalError):
            return None
        if self._loan.cut:
            return ConnectionCut("the connection was cut at the request's deadline")
        if isinstance(exc, (errors.QueryCanceled, errors.LockNotAvailable)):
            return DeadlineExceeded("the statement ran past its limit")
        if self._conn.closed or isinstance(exc, GOODBYES):
            self._drain(self._conn)
            return ConnectionBroke("the connection broke")
        return DatabaseUnavailable("the server could not carry it out")  # its disk is full, say


def _patience() -> float:
    if PooledConnection.failure is None:
        return time_left(OUTAGE_PATIENCE)
    return time_left(max(LEAST_PATIENCE, OUTAGE_PATIENCE - (time.monotonic() - PooledConnection.failing_since)))


def _reason() -> DatabaseUnavailable | DeadlineExceeded:
    if PooledConnection.failure is None and not time_left(OUTAGE_PATIENCE):
        return DeadlineExceeded("the request had no time left to borrow a connection")  # its password took all, say
    failure = str(PooledConnection.failure or "")
    # A failed connect carries no SQLSTATE: 53300 is known by its words.
    if "too many connections" in failure or "too many clients" in failure or "connection slots" in failure:
        return TooManyConnections("the server has no connection slot free")
    return DatabaseUnavailable("the server cannot be reached")
