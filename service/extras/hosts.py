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
from psycopg import OperationalError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from service.database import libpq
from service.database.connection import PooledConnection
from service.database.pool import Database
from service.database.refusals import ConnectFailed, explain, one_line
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


@dataclass
class Host:
    """What one server answered. A thread of its own asks it."""

    session: Session
    parameters: dict[str, str]  # of the connection string: host, hostaddr and port, as far as they are given
    timeline: str = ""  # of a primary; empty for a standby. The last known when it does not answer
    answered_at: float = field(default_factory=time.monotonic)
    refuses: bool = False  # whether it refused the last connection at once, so that the next try costs no time

    @property
    def address(self) -> Address:
        """Its host and port."""
        given = self.parameters
        return given.get("host") or given.get("hostaddr", ""), int(given.get("port") or DEFAULT_PORT)

    @property
    def is_silent(self) -> bool:
        """Whether it does not answer, or is not up. A server that refuses us, as at a limit, is up."""
        return time.monotonic() - self.answered_at > PERIOD + SILENCE

    def ask_until(self, stopped: threading.Event) -> None:
        """Ask every PERIOD."""
        conn: psycopg.Connection | None = None
        while not stopped.wait(PERIOD):
            asked_at = time.monotonic()
            try:
                if conn is None or conn.closed:
                    conn = self._connect()
                [row] = libpq.ask(conn, SELECT_TIMELINE, SILENCE)  # closes the connection when it fails
                self.timeline, self.refuses = row["timeline"], False
            except (OperationalError, SettingsError):
                continue
            except ConnectFailed as exc:
                self.refuses = time.monotonic() - asked_at < SILENCE
                if not (exc.refusal.is_limit or exc.refusal.is_permanent):  # these come from a server that is up
                    continue
            except psycopg.Error as exc:
                logger.warning("%s:%d is not watched: %s", *self.address, one_line(exc))
                self.answered_at = math.inf
                return
            self.answered_at = time.monotonic()
        if conn:
            conn.close()

    def _connect(self) -> psycopg.Connection:
        ours = {**self.parameters, "target_session_attrs": "any", "application_name": "users-service-watch"}
        conninfo = make_conninfo(self.session.conninfo(), **ours)
        try:
            return libpq.connect(psycopg.connect, conninfo, autocommit=True)
        except psycopg.Error as exc:
            refusal = explain(conninfo, exc)
            if refusal.may_be_about_options and not refusal.is_timeout:
                self.session = self.session.pooled or self.session
            raise ConnectFailed(refusal) from exc


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
        self.hosts = tuple(Host(session, parameters) for parameters in each_host(given))
        server = partial(self._server, session.server)
        pooled = session.pooled and replace(session.pooled, server=server)
        super().open(replace(session, server=server, pooled=pooled))
        for host in self.hosts:
            start_thread("host", partial(host.ask_until, self._closed))
        if target == TAKES_WRITES and not session.session_setup:  # a pooler decides itself to which server it leads
            start_thread("leader", self._follow_leader)

    def _server(self, server: Callable[[], str]) -> str:
        """Return the connection string of the hosts that answer or refuse, but for primaries of an older timeline."""
        newest = self.newest
        fit = [host for host in self.hosts if not "" < host.timeline < newest]
        tried = [host for host in fit if host.refuses or not host.is_silent] or fit
        given = [host.parameters for host in tried]
        return make_conninfo(server(), **{name: ",".join(each[name] for each in given) for name in given[0]})

    def _follow_leader(self) -> None:
        """Replace the connections to other hosts when one begins to lead."""
        former = ""
        while not self._closed.wait(TICK):
            newest = self.newest
            self._others = frozenset(host.address for host in self.hosts if host.timeline < newest)
            if newest in {"", former}:  # while nobody leads, the one that did may lead again
                continue
            self.watchdog.break_connections(self._is_elsewhere)
            if former:
                logger.warning("another host leads, on timeline %s: the connections are replaced", newest)
                self.drain()
                if self._pool:
                    self._pool.check()  # connects at once where it had given up
            former = newest

    def _is_elsewhere(self, lease: Lease) -> bool:
        return address(lease.connection) in self._others

    def _check(self, conn: PooledConnection) -> None:
        """Leave a host that does not lead, and one that was promoted where a standby is wanted."""
        if (self._others and address(conn) in self._others) or (
            self._needs_standby and conn.pgconn.parameter_status(b"in_hot_standby") == b"off"
        ):
            conn.close()
        super()._check(conn)
