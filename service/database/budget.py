"""Compare the connections that the server allows with those that this service may open."""

from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from service.database import poolers
from service.database.poolers import PoolerLimits
from service.database.refusals import ServerUnfit
from service.database.sessions import Session
from service.settings import Settings

OLDEST_VERSION = 140000

# All limits in one round trip. PostgreSQL has `reserved_connections` since version 16. It hides backend_type from other
# roles: what has a user and a database counts.
SELECT_LIMITS = """
    SELECT current_setting('server_version'),
           current_setting('server_version_num')::int,
           current_setting('server_encoding'),
           current_setting('max_connections')::int,
           current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true)::int, 0),
           (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
           (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
           (SELECT count(*) FROM pg_stat_activity
            WHERE usesysid IS NOT NULL AND datid IS NOT NULL AND pid <> pg_backend_pid())
"""


@dataclass(frozen=True)
class Budget:
    """The connections that one server, role and database allow, and those that this service may open."""

    version: str
    version_number: int
    encoding: str
    max_connections: int
    reserved: int
    role_limit: int  # -1: none
    database_limit: int  # -1: none
    in_use: int  # by all other clients, at the moment
    pooled: bool  # whether a pooler stands before the server, whose own limits then do not count
    pooler: PoolerLimits | None  # None when it is not known
    settings: Settings

    @property
    def needed(self) -> int:
        """How many connections this service opens at most."""
        return self.settings.workers * self.settings.instances * self.per_worker

    @property
    def per_worker(self) -> int:
        """How many a worker opens at most. While SIGHUP replaces one, there is one worker more."""
        return self.settings.worker_threads + self.settings.watch_connections

    @property
    def limits(self) -> dict[str, int]:
        """The limits that count, and how many connections each allows."""
        if self.pooler:
            limits = {f"max_client_conn {self.pooler.clients} of the pooler": self.pooler.clients}
            if self.pooler.mode == "session":
                limits[f"{self.pooler.servers} server connections of its session mode"] = self.pooler.servers
            return limits
        if self.pooled:
            return {}
        limits = {
            f"max_connections {self.max_connections} - {self.reserved} reserved": self.max_connections - self.reserved,
            f"role limit {self.role_limit}": self.role_limit,
            f"database limit {self.database_limit}": self.database_limit,
        }
        return {name: limit for name, limit in limits.items() if limit >= 0}

    def __str__(self) -> str:
        """Return the sum in words."""
        given = self.settings
        each = f"{given.worker_threads} threads"
        if given.watch_connections:
            each = f"({each} + {given.watch_connections} watches)"
        needed = f"{self.needed} needed = {given.workers} workers x {each} x {given.instances} instances"
        if not self.limits:
            return f"{needed}; what the pooler allows is not known, as this role is not one of its stats_users"
        limit = min(self.limits.values())
        allowed = f"{needed}; {limit} allowed = {', '.join(self.limits)}"
        if 0 <= limit - self.needed < self.per_worker:
            allowed += f"; a restart without refused requests needs {self.per_worker} more"
        return allowed if self.pooled else f"{allowed}; {self.in_use} in use by others now"

    def check(self) -> None:
        """Raise ServerUnfit unless the server can serve this configuration."""
        if self.version_number < OLDEST_VERSION:
            raise ServerUnfit(f"PostgreSQL {self.version} is too old: 14 or newer is needed")
        if self.encoding != "UTF8":
            raise ServerUnfit(f"the database's encoding is {self.encoding}: create it with ENCODING 'UTF8'")
        if self.pooler and self.pooler.mode == "statement":
            raise ServerUnfit(poolers.STATEMENT_MODE)
        if self.limits and self.needed > min(self.limits.values()):
            raise ServerUnfit(
                f"the connections do not fit: {self}. Lower WORKERS or WORKER_THREADS, or raise the limit"
            )


def read(conn: Connection[Any], session: Session, settings: Settings) -> Budget:
    """Read the limits of the server: one round trip. Those of a pooler cost connections.

    Raises ServerUnfit, psycopg.Error and ConnectFailed.
    """
    row = conn.execute(SELECT_LIMITS).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    pooled = bool(session.session_setup)
    limits = poolers.read_limits(session, conn.info.dbname) if pooled else None
    if pooled and limits is None:
        poolers.check_mode(session, conn, settings.worker_threads)
    fields: tuple[Any, ...] = (*row, pooled, limits, settings)
    return Budget(*fields)
