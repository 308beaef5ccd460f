"""Threads = connections, and the one place that lends a connection.

The pool holds exactly as many connections as the worker has threads, and an endpoint borrows at most
one at a time, inside its own body. So a running thread always finds a connection free; it waits only
while PostgreSQL is away. The queue of requests stands before the threads, in `http/admission.py`.
"""

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from psycopg import Connection, OperationalError, errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from service.database.deadlines import DeadlineExceeded, Watchdog
from service.settings import Settings

# A request that finds PostgreSQL away waits this long, in seconds, for it to come back. Long enough to
# ride over a fast restart, short enough that an outage does not fill the queue with waiting threads.
OUTAGE_PATIENCE = 1.0

# psycopg_pool doubles its delay between attempts to connect, without a limit but this one: after so many
# seconds it gives up, and the next request starts afresh. At the default of 300 s, a pool came back 46 s
# late from an outage of 70 s; at 3 s, 0.35 s late.
RECONNECT_TIMEOUT = 3.0


class DatabaseUnavailable(Exception):
    """No connection can be had, or the one in use broke."""


class TooManyConnections(DatabaseUnavailable):
    """PostgreSQL is up and refuses another connection: `max_connections`, or a limit of the role or database."""


def session(server: str, settings: Settings) -> str:
    """Return the connection string of a session on `server`, with timeouts and the signs of life that it needs.

    What the server's own string says, in DATABASE_URL, comes before the defaults here.
    """
    milliseconds = {
        "statement_timeout": settings.statement_timeout,
        "lock_timeout": settings.lock_timeout,
        "idle_in_transaction_session_timeout": settings.idle_in_transaction_timeout,
    }
    options = [f"-c {name}={round(seconds * 1000)}" for name, seconds in milliseconds.items()]
    defaults: dict[str, str | int | None] = {
        "application_name": "users-service",
        "connect_timeout": round(settings.connect_timeout),
        # A peer that went away without a word: the first ends a send, the others a wait, after 8 s at the most.
        "tcp_user_timeout": 6000,
        "keepalives_idle": 5,
        "keepalives_interval": 1,
        "keepalives_count": 3,
    }
    given = conninfo_to_dict(server)
    options += ["-c timezone=UTC", str(given.pop("options", ""))]
    return make_conninfo(**{**defaults, **given, "client_encoding": "UTF8", "options": " ".join(options).strip()})  # type: ignore[arg-type]


class PooledConnection(Connection[TupleRow]):
    """A connection that knows since when it is open."""

    opened_at = 0.0  # on the monotonic clock

    # Why the newest attempt to connect failed; the pool itself only logs it.
    last_failure: OperationalError | None = None

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: ANN401 - passed on to psycopg as they are
        """Connect, and remember why when that fails."""
        started = time.monotonic()
        try:
            conn = super().connect(*args, **kwargs)
        except OperationalError as exc:
            PooledConnection.last_failure = exc
            raise
        PooledConnection.last_failure = None
        conn.opened_at = started
        return conn


class Database:
    """The pool of one worker process: `size` connections for `size` threads."""

    def __init__(self, *, size: int, watchdog: Watchdog) -> None:
        """Have nothing to lend until `open()`."""
        self._size = size
        self._watchdog = watchdog
        self._drained_at = 0.0
        self._pool: ConnectionPool[PooledConnection] | None = None

    def open(self, conninfo: str) -> None:
        """Begin to connect, in the background and for as long as it takes."""
        self._pool = ConnectionPool(
            conninfo,
            connection_class=PooledConnection,
            kwargs={"autocommit": True},  # a single statement is one round trip, not three
            min_size=self._size,
            max_size=self._size,
            open=True,
            check=self._check,
            timeout=OUTAGE_PATIENCE,
            reconnect_timeout=RECONNECT_TIMEOUT,
        )
        self._watchdog.start()

    def close(self) -> None:
        """Close every connection; one that is lent is closed when it comes back."""
        self._watchdog.stop()
        if self._pool:
            self._pool.close()

    @contextmanager
    def connection(self) -> Iterator[PooledConnection]:
        """Lend a connection for the length of the block, in autocommit mode: each statement is its own transaction.

        Costs no round trip, and the connection comes back whatever happens. Here the driver's errors become
        the service's. Raises DatabaseUnavailable when there is none to lend or the one lent breaks, and
        DeadlineExceeded when a statement, or the request, runs out of time.
        """
        if self._pool is None:
            raise DatabaseUnavailable("not connected yet")
        try:
            with self._pool.connection() as conn:
                try:
                    with self._watchdog.watch(conn):
                        yield conn
                except (errors.QueryCanceled, errors.LockNotAvailable) as exc:
                    raise DeadlineExceeded("the statement ran past its limit") from exc
                except errors.ReadOnlySqlTransaction as exc:  # after a failover: this node is a standby now
                    self._drain()
                    raise DatabaseUnavailable("the server became read-only") from exc
        except (PoolTimeout, PoolClosed) as exc:
            raise self._reason() from exc
        except OperationalError as exc:
            raise DatabaseUnavailable("the connection broke") from exc

    @contextmanager
    def transaction(self) -> Iterator[PooledConnection]:
        """Lend a connection with a transaction around the block, for two statements that belong together."""
        with self.connection() as conn, conn.transaction():
            yield conn

    def _check(self, conn: PooledConnection) -> None:
        """Refuse a connection that died while it was idle. Costs 1 µs and no round trip for one that lives.

        An idle connection has nothing to say, unless the server said goodbye. The first corpse drains the
        pool, because a server that ended one session has mostly ended them all, and each would otherwise
        be found by a request of its own.
        """
        poll = select.poll()
        poll.register(conn.fileno(), select.POLLIN)
        if not poll.poll(0):
            return
        try:
            with self._watchdog.watch(conn):
                conn.execute("SELECT 1")  # a notice is no harm; the end of the stream raises
        except OperationalError:
            if conn.opened_at > self._drained_at:
                self._drain()
            raise

    def _drain(self) -> None:
        self._drained_at = time.monotonic()
        if self._pool:
            self._pool.drain()

    def _reason(self) -> DatabaseUnavailable:
        failure = str(PooledConnection.last_failure or "")
        # A failed connect carries no SQLSTATE: 53300 is known by its words.
        if "too many connections" in failure or "too many clients" in failure or "connection slots" in failure:
            return TooManyConnections("the server has no connection slot free")
        return DatabaseUnavailable("the server cannot be reached")
