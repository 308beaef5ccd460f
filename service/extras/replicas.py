"""Reads from replicas: when the primary does not serve them, or always (READS=replica).

The answer of a replica may lack the newest writes. A header field of its own says so, as no standard one fits: RFC 9111
made `Warning` obsolete, and `Age` is that of an HTTP cache, which knows how old its answer is.
"""

import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType

import psycopg
from psycopg import Error, errors
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.database import budget, sessions
from service.database.connection import PooledConnection
from service.database.errors import ConnectionBroke, DatabaseUnavailable, DeadlineExceeded
from service.database.outage import PATIENCE
from service.database.pool import Checkout, Database
from service.database.refusals import ConnectFailed, ServerUnfit, one_line
from service.database.watchdog import Lease, Watchdog
from service.extras.hosts import SILENCE, TICK, WatchedDatabase
from service.settings import Settings, SettingsError
from service.telemetry import metrics

logger = logging.getLogger(__name__)

REPLICA_FIRST = 1.0  # seconds for which reads go to the replica first after the primary failed to serve one
CONNECT_INTERVAL = 0.5  # seconds between two attempts to find the replica at the start

POSITION = re.compile(r"([0-9A-F]{8})-([0-9A-F]{1,8}/[0-9A-F]{1,8})")  # a timeline, and a place in the WAL

# After the commit. The insert position, as with synchronous_commit = off the commit may not be written yet.
SELECT_POSITION = """
    SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) || '-' || pg_current_wal_insert_lsn()
"""

# Goes before the read, in one message: a condition inside the read would be checked after its snapshot was taken. Only
# an error keeps PostgreSQL from the rest of the message, so a replica that is behind divides by zero. The timeline is
# that of the last checkpoint: for minutes after a failover, reads after a write go to the primary.
CHECK_POSITION = """
    SELECT 1 / coalesce((pg_last_wal_replay_lsn() >= '{lsn}'::pg_lsn
                         AND (SELECT timeline_id FROM pg_control_checkpoint()) >= {timeline})::int, 0)
"""


@dataclass(slots=True)
class Request:
    """What decides which server a request may read from, and what its response says of that."""

    is_read: bool
    after: re.Match[str] | None  # the POSITION that a replica must have replayed
    needs_primary: bool
    from_replica: bool = False
    position: str = ""  # after its write


REQUEST: ContextVar[Request | None] = ContextVar("REQUEST", default=None)


class ReadRouting:
    """ASGI middleware that reads `Read-After`, and adds it and `Read-From` to the responses."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("Read-After", "")
        after = POSITION.fullmatch(given)
        request = Request(scope["method"] == "GET", after, needs_primary=bool(given) and not after)
        REQUEST.set(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if request.from_replica:
                    headers["Read-From"] = "replica"
                if request.position:
                    headers["Read-After"] = request.position
            await send(message)

        await self._app(scope, receive, send_with_headers)


def database(
    settings: Settings, size: int, watchdog: Watchdog, connection_class: Callable[[], type[PooledConnection]]
) -> Database:
    """Return the pool that `settings` need: for a single server, the plain one."""
    if settings.database_read_url:
        return ReplicatedDatabase(settings, size, watchdog, connection_class)
    return (WatchedDatabase if settings.watch_connections else Database)(size, watchdog, connection_class)


class ReplicatedDatabase(WatchedDatabase):
    """The pool of the primary, with a second one of the same size for its replicas."""

    def __init__(
        self, settings: Settings, size: int, watchdog: Watchdog, connection_class: Callable[[], type[PooledConnection]]
    ) -> None:
        """Have no connection until `run_replica()`, and to the primary until `open()`."""
        super().__init__(size, watchdog, connection_class)
        self.replica = WatchedDatabase(size, watchdog, connection_class)
        self._settings = settings
        self.reads_replica = settings.reads == "replica"
        self.replica_first_until = 0.0  # on the monotonic clock

    def connection(self, patience: float = PATIENCE) -> Checkout:
        """Lend a connection to the server that is to serve the current request."""
        request = REQUEST.get()
        return RoutedCheckout(self, request) if request else super().connection(patience)

    def candidates(self, request: Request) -> list[Database]:
        """Return the databases that may serve a request, the first to be tried first."""
        if not request.is_read or request.needs_primary or not self._replica_serves:
            return [self]
        prefers_replica = self.reads_replica or self.is_away or time.monotonic() < self.replica_first_until
        if prefers_replica and not request.from_replica:  # otherwise a replica has failed to serve it
            return [self.replica, self]
        return [self, self.replica]

    def close(self) -> None:
        """Close every connection."""
        self.replica.close()
        super().close()

    @property
    def _replica_serves(self) -> bool:
        hosts = self.replica.hosts
        return bool(hosts) and not self.replica.outage.error and not all(host.is_silent for host in hosts)

    def run_replica(self) -> None:
        """Connect to the replica, however long it takes; then break the reads of silent hosts, until `close()`."""
        last_error = ""
        while not self.replica.hosts and not self._closed.wait(CONNECT_INTERVAL if last_error else 0):
            try:
                session, conn = sessions.negotiate(self._settings.read_server, self._settings, sessions.STANDBY)
                with conn:
                    budget.read(conn, session, self._settings).check()
                self.replica.open(session)
            except (ConnectFailed, psycopg.Error, ServerUnfit, SettingsError) as exc:
                if str(exc) != last_error:
                    logger.error("no read can go to a replica: %s", one_line(exc))  # noqa: TRY400
                last_error = str(exc)
        self._break_silent_reads()

    def _break_silent_reads(self) -> None:
        """Break the connection of each read whose host is silent, so that it is tried again at another.

        A slow read keeps its connection: its host answers the watch.
        """
        was_away = False
        while not self._closed.wait(TICK):
            is_away = self.is_away
            if is_away and not was_away:
                logger.warning("the primary has not answered for %g s: reads go to a replica", SILENCE)
            was_away = is_away
            if self._replica_serves or not is_away:
                self.watchdog.break_connections(self._is_silent_read)

    def _is_silent_read(self, lease: Lease) -> bool:
        request = lease.context.get(REQUEST)
        is_silent = self.is_silent(lease.connection) or self.replica.is_silent(lease.connection)
        return is_silent and request is not None and request.is_read


class RoutedCheckout(Checkout):
    """A connection to the first server that has one in time."""

    __slots__ = ("_checkout", "_request", "_session_setup")

    def __init__(self, database: ReplicatedDatabase, request: Request) -> None:
        self._database: ReplicatedDatabase = database
        self._request = request

    def __enter__(self) -> PooledConnection:
        first, *others = self._database.candidates(self._request)
        try:
            return self._borrow(first, SILENCE if others else PATIENCE)
        except DatabaseUnavailable:
            if not others:
                raise
        if first is self._database:
            self._database.replica_first_until = time.monotonic() + REPLICA_FIRST
        return self._borrow(others[0], PATIENCE)

    def _borrow(self, database: Database, patience: float) -> PooledConnection:
        self._checkout = Database.connection(database, patience)
        self._conn = self._checkout.__enter__()
        self._session_setup = self._conn.session_setup
        self._request.from_replica = database is self._database.replica
        if self._request.from_replica:
            metrics.READS_FROM_REPLICA.inc()
            if after := self._request.after:
                check = CHECK_POSITION.format(timeline=int(after[1], 16), lsn=after[2])
                self._conn.session_setup = "; ".join(filter(None, (self._session_setup, check)))
        return self._conn

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._conn.session_setup = self._session_setup
        if exc is None and not self._request.is_read and self._database.reads_replica:
            with suppress(Error):  # the write is done
                [self._request.position] = self._conn.fetchone(SELECT_POSITION, {}) or [""]
        # DivisionByZero: CHECK_POSITION. A lock that the replica replays may be long gone at the primary.
        is_behind = self._request.from_replica and isinstance(exc, (errors.DivisionByZero, errors.LockNotAvailable))
        try:
            self._checkout.__exit__(kind, exc, trace)
        except (DatabaseUnavailable, DeadlineExceeded) as failure:
            # Such as a conflict with what the replica replays, or a table that it lacks.
            is_behind |= self._request.from_replica and isinstance(failure, DatabaseUnavailable)
            if not is_behind:
                raise
        if is_behind:
            self._request.needs_primary = True
            raise ConnectionBroke("the replica cannot serve this read") from exc  # so it is tried again
