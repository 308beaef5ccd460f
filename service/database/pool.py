"""Threads = connections, and the one place that lends a connection.

The pool has exactly as many connections as the worker has threads, and an endpoint borrows at most one at a time,
inside its own body. So a running thread always finds a connection free; it waits only while PostgreSQL is away.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType

from psycopg import Error, OperationalError, errors
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from service.database.connection import PooledConnection
from service.database.errors import (
    SESSION_ENDED,
    ConnectionBroke,
    DatabaseUnavailable,
    DeadlineExceeded,
    connect_failure,
    statement_failure,
)
from service.database.outage import PATIENCE, Outage
from service.database.refusals import ConnectFailed, Refusal
from service.database.sessions import Session
from service.database.threads import start_thread
from service.database.watchdog import Watchdog, time_left
from service.settings import SettingsError
from service.telemetry import metrics
from service.telemetry.record import RECORD

logger = logging.getLogger(__name__)

# Seconds until psycopg_pool gives up connecting, with a delay that doubles from attempt to attempt. At its default of
# 300 s a pool came back 46 s after a long outage, at 0.5 s 0.07 s.
RECONNECT_TIMEOUT = 0.5


class Pool(ConnectionPool[PooledConnection]):
    """psycopg_pool's, which checks idle connections without a round trip: that has no deadline on a frozen server."""

    @staticmethod
    def check_connection(conn: PooledConnection) -> None:
        """Raise OperationalError when the connection ended."""
        conn.raise_if_dead()


class Database:
    """The pool of one worker process: `size` connections for `size` threads."""

    def __init__(
        self,
        size: int,
        watchdog: Watchdog,
        connection_class: Callable[[], type[PooledConnection]] = lambda: PooledConnection,
    ) -> None:
        """Have no connection until `open()`, which calls `connection_class`."""
        self.outage = Outage()
        self._size = size
        self.watchdog = watchdog
        self._connection_class = connection_class
        self._drained_at = 0.0
        self.read_only: PooledConnection | None = None  # the newest on which a write was refused for that
        self._closed = threading.Event()
        self._pool: Pool | None = None

    def open(self, session: Session) -> None:
        """Begin to connect, in the background and for as long as it takes."""

        def conninfo() -> str:
            try:
                return self._session.conninfo()
            except SettingsError as exc:  # the file with the password cannot be read
                self.outage.begin(Refusal(str(exc)))
                raise

        if self._closed.is_set():  # while the server was being prepared
            return
        self._session = session
        self._pool = Pool(
            conninfo,
            connection_class=self._connection_class(),
            kwargs=lambda: {
                **self._session.arguments,
                "session_setup": self._session.session_setup,
                "outage": self.outage,
            },
            min_size=self._size,
            max_size=self._size,
            open=True,
            check=self._check,
            reconnect_timeout=RECONNECT_TIMEOUT,
        )
        self.watchdog.start()
        start_thread("refill", partial(self._refill, self._pool))

    def connection(self, patience: float = PATIENCE) -> "Checkout":
        """Lend a connection for the length of the block, in autocommit mode: each statement is its own transaction.

        Where two statements belong together, put `with conn.transaction():` around them. Lending costs no round trip,
        and the connection comes back whatever happens. Waits for `patience` seconds. Raises the errors of errors.py.
        """
        if self._pool is None:
            raise DatabaseUnavailable("not connected yet")
        return Checkout(self, self._pool, patience)

    def drain(self, dead: PooledConnection | None = None) -> None:
        """Replace every connection, once for those as old as `dead`: a server that ended one mostly ended them all."""
        if self._pool and (dead is None or dead.opened_at > self._drained_at):
            self._drained_at = time.monotonic()
            self._pool.drain()

    def stats(self) -> dict[str, int]:
        """Return the statistics of psycopg_pool; none before `open()`."""
        return self._pool.get_stats() if self._pool else {}

    def close(self) -> None:
        """Close every connection; one that is lent is closed when it comes back."""
        self._closed.set()
        self.watchdog.stop()
        if self._pool:
            self._pool.close()

    def _refill(self, pool: Pool) -> None:
        """Have a pool that gave up connecting try again: by itself it does so only for a request."""
        while not self._closed.wait(RECONNECT_TIMEOUT):
            if self.read_only:
                self._leave_standby(self.read_only)
            if pool.get_stats()["pool_size"] < self._size:
                self._adapt_to_pooler()
                pool.check()

    def _leave_standby(self, refused: PooledConnection) -> None:
        """Replace the connections as soon as a server takes writes; until then, these serve reads."""
        self.read_only = None
        with suppress(ConnectFailed, SettingsError), self._session.connect() as conn:
            reported = map(conn.pgconn.parameter_status, (b"default_transaction_read_only", b"in_hot_standby"))
            if b"on" not in reported:  # DATABASE_URL may ask for any server
                self.drain(refused)

    def _adapt_to_pooler(self) -> None:
        """Connect without options from now on when only that succeeds: a pooler took the place of the server."""
        refusal, pooled = self.outage.refusal, self._session.pooled
        if not (refusal and refusal.may_be_about_options and pooled):
            return
        with suppress(ConnectFailed, SettingsError):
            pooled.connect().close()
            if self._options_are_refused():  # otherwise the server has just come back
                logger.warning("a pooler answers in the place of PostgreSQL: each statement sets its timeouts")
                self._session = pooled

    def _options_are_refused(self) -> bool:
        try:
            self._session.connect().close()
        except ConnectFailed as exc:
            return exc.refusal.may_be_about_options
        return False

    def _check(self, conn: PooledConnection) -> None:
        try:
            conn.raise_if_dead()
        except OperationalError:
            self.drain(conn)
            raise


class Checkout:
    """A connection, from the pool and back. A class, as nested generators cost 4 % of a small request."""

    __slots__ = ("_conn", "_database", "_lease", "_patience", "_pool", "_record", "_watchdog")

    def __init__(self, database: Database, pool: Pool, patience: float = PATIENCE) -> None:
        self._database = database
        self._pool = pool
        self._patience = patience
        self._watchdog = database.watchdog

    def __enter__(self) -> PooledConnection:
        outage, started = self._database.outage, time.monotonic()
        patience = time_left(min(self._patience, outage.patience()))
        try:
            self._conn = self._pool.getconn(patience)
        except (PoolTimeout, PoolClosed) as exc:
            metrics.CONNECTION_TIMEOUTS.inc()
            if not patience and outage.refusal is None:
                raise DeadlineExceeded("the request had no time left to borrow a connection") from exc
            raise connect_failure(outage.refusal) from exc
        self._lease = self._watchdog.begin(self._conn)
        self._record = RECORD.get()
        self._record.waited = (self._record.waited or 0) + self._lease.since - started
        return self._conn

    def __exit__(self, _: type[BaseException] | None, exc: BaseException | None, __: TracebackType | None) -> None:
        self._watchdog.end(self._lease)
        ended = time.monotonic()
        self._record.held = (self._record.held or 0) + ended - self._lease.since
        if exc is None:
            self._database.outage.served_at = ended
        try:
            if isinstance(exc, Error):
                self._translate(exc)
        finally:
            self._pool.putconn(self._conn)  # rolls back what was begun, replaces what is broken

    def _translate(self, exc: Error) -> None:
        """Raise the service's error for the driver's; return when it is about the data."""
        ended = self._conn.closed or isinstance(exc, SESSION_ENDED)
        failure = statement_failure(exc, broke=ended, cut=self._lease.cut)
        if isinstance(failure, ConnectionBroke):
            self._database.drain(self._conn)
        elif isinstance(exc, errors.ReadOnlySqlTransaction):
            self._database.read_only = self._conn
        if failure:
            raise failure from exc
