"""Watch the servers behind a connection string: which of them answer, and which leads.

After a failover the former primary may still run and take writes, which are lost when it is repaired. Each promotion
begins a new timeline, so the primary with the newest one leads. Until it is found, writes reach the former one: only
synchronous replication or fencing prevents that.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import psycopg
from psycopg import OperationalError, errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from service.database import libpq
from service.database.connection import PooledConnection
from service.database.pool import Database
from service.database.refusals import one_line
from service.database.sessions import STANDBY, TAKES_WRITES, Session, each_host
from service.database.threads import start_thread
from service.database.watchdog import Lease
from service.settings import SettingsError

logger = logging.getLogger(__name__)

PERIOD = 0.2  # seconds between two questions to a server
SILENCE = 0.5  # seconds until a question without an answer makes a server count as silent
TICK = 0.05  # seconds between two looks at the answers

# The name of a WAL file begins with 8 digits for the timeline, so timelines compare as text. A standby writes no file.
SELECT_TIMELINE = """
    SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END AS timeline
"""

Address = tuple[str, int]
DEFAULT_PORT = 5432


def address(conn: psycopg.Connection[Any]) -> Address:
    """Return the host and the port of a connection; nobody's after it was closed."""
    try:
        return conn.info.host, conn.info.port
    except OperationalError:
        return "", 0


def _address(conninfo: str) -> Address:
    given = conninfo_to_dict(conninfo)
    return str(given.get("host") or given.get("hostaddr", "")), int(given.get("port") or DEFAULT_PORT)


@dataclass
class Host:
    """What one server answered. A thread of its own asks it."""

    session: Session
    number: int  # of the host in the connection string, from 0
    address: Address
    timeline: str = ""  # of a primary; empty for a standby. The last known when it does not answer
    timed_out: bool = False  # whether the last question had no answer in time
    answered_at: float = field(default_factory=time.monotonic)

    @property
    def is_silent(self) -> bool:
        """Whether it does not answer, or refuses connections."""
        return time.monotonic() - self.answered_at > PERIOD + SILENCE

    def ask_until(self, stopped: threading.Event) -> None:
        """Ask every PERIOD."""
        conn: psycopg.Connection | None = None
        while not stopped.wait(PERIOD):
            try:
                if conn is None or conn.closed:
                    conn = self._connect()
                [row] = libpq.ask(conn, SELECT_TIMELINE, SILENCE)  # closes the connection when it fails
            except (OperationalError, SettingsError) as exc:
                self.timed_out = isinstance(exc, errors.ConnectionTimeout)
            except psycopg.Error as exc:
                logger.warning("%s:%d is not watched: %s", *self.address, one_line(exc))
                self.answered_at = math.inf
                return
            else:
                self.timeline, self.timed_out, self.answered_at = row["timeline"], False, time.monotonic()
        if conn:
            conn.close()

    def _connect(self) -> psycopg.Connection:
        conninfo = list(each_host(self.session.conninfo()))[self.number]
        return libpq.connect(
            psycopg.connect, conninfo,
            target_session_attrs="any", application_name="users-service-watch", autocommit=True,
        )  # fmt: skip


class WatchedDatabase(Database):
    """Connects to the hosts that answer, and of the primaries only to those of the newest timeline."""

    hosts: tuple[Host, ...] = ()  # none before `open()`
    _others: frozenset[Address] = frozenset()  # the hosts that do not lead; empty until one is found that does
    _needs_standby = False

    @property
    def newest(self) -> str:
        """The newest timeline; empty while no primary was found."""
        return max((host.timeline for host in self.hosts), default="")

    @property
    def is_away(self) -> bool:
        """Whether no host that leads answers; several do when they are ways to one server."""
        newest = self.newest
        return bool(self.hosts) and all(host.is_silent for host in self.hosts if host.timeline == newest)

    def is_silent(self, conn: psycopg.Connection[Any]) -> bool:
        """Return whether the host of `conn` does not answer."""
        return any(host.is_silent and host.address == address(conn) for host in self.hosts)

    def open(self, session: Session) -> None:
        """Begin to watch, and to connect."""
        given = session.conninfo()
        target = conninfo_to_dict(given).get("target_session_attrs")
        self._needs_standby = target == STANDBY
        hosts = enumerate(each_host(given))
        self.hosts = tuple(Host(session, number, _address(conninfo)) for number, conninfo in hosts)
        server = partial(self._server, session.server)
        pooled = session.pooled and replace(session.pooled, server=server)
        super().open(replace(session, server=server, pooled=pooled))
        for host in self.hosts:
            start_thread("host", partial(host.ask_until, self._closed))
        if target == TAKES_WRITES and not session.session_setup:  # a pooler decides itself to which server it leads
            start_thread("leader", self._follow_leader)

    def _server(self, server: Callable[[], str]) -> str:
        """Return the connection string of the hosts that answer, but for primaries of an older timeline."""
        given, newest = server(), self.newest
        known = [
            (host, conninfo_to_dict(each))
            for host, each in zip(self.hosts, each_host(given), strict=True)
            if not "" < host.timeline < newest
        ]
        parts = [part for host, part in known if not host.timed_out] or [part for _, part in known]
        names = [name for name in ("host", "hostaddr", "port") if name in parts[0]]
        return make_conninfo(given, **{name: ",".join(str(part[name]) for part in parts) for name in names})

    def _follow_leader(self) -> None:
        """Replace the connections to other hosts when one begins to lead."""
        while not self._closed.wait(TICK):
            newest, former = self.newest, self._others
            others = frozenset(host.address for host in self.hosts if host.timeline < newest)
            if not newest or others == former:  # while nobody leads, the one that did may lead again
                continue
            self._others = others
            self.watchdog.break_connections(self._is_elsewhere)
            if former:
                logger.warning("another host leads, on timeline %s: the connections are replaced", newest)
                self.drain()
                if self._pool:
                    self._pool.check()  # connects at once where it had given up

    def _is_elsewhere(self, lease: Lease) -> bool:
        return address(lease.connection) in self._others

    def _check(self, conn: PooledConnection) -> None:
        """Leave a host that does not lead, and one that was promoted where a standby is wanted."""
        if (self._others and address(conn) in self._others) or (
            self._needs_standby and conn.pgconn.parameter_status(b"in_hot_standby") == b"off"
        ):
            conn.close()
        super()._check(conn)
