"""Compare the connections that the server allows with those that this service may open."""

from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from service.settings import Settings

OLDEST_VERSION = 140000

# All limits in one round trip. PostgreSQL has `reserved_connections` since version 16.
SELECT_LIMITS = """
    SELECT current_setting('server_version'),
           current_setting('server_version_num')::int,
           current_setting('server_encoding'),
           current_setting('max_connections')::int,
           current_setting('superuser_reserved_connections')::int,
           coalesce(current_setting('reserved_connections', true)::int, 0),
           (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
           (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
           (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())
"""


class ServerUnfit(Exception):
    """The server cannot serve this configuration; the text gives the reason and the remedy."""


@dataclass(frozen=True)
class Budget:
    """The connections that one server, role and database allow, and those that this service may open."""

    version: str
    version_number: int
    encoding: str
    max_connections: int
    superuser_reserved: int
    reserved: int
    role_limit: int  # -1: none
    database_limit: int  # -1: none
    in_use: int  # by all other clients, at the moment
    workers: int
    threads: int
    instances: int

    @property
    def needed(self) -> int:
        """How many connections this service opens at most."""
        return self.workers * self.threads * self.instances

    @property
    def allowed(self) -> int:
        """How many connections the tightest limit allows."""
        limits = [self.max_connections - self.superuser_reserved - self.reserved, self.role_limit, self.database_limit]
        return min(limit for limit in limits if limit >= 0)

    def __str__(self) -> str:
        """Return the sum in words."""
        limits = f"max_connections {self.max_connections} - {self.superuser_reserved + self.reserved} reserved"
        limits += "" if self.role_limit < 0 else f", role limit {self.role_limit}"
        limits += "" if self.database_limit < 0 else f", database limit {self.database_limit}"
        return (
            f"{self.needed} needed = {self.workers} workers x {self.threads} threads x {self.instances} instances;"
            f" {self.allowed} allowed = {limits}; {self.in_use} in use by others now"
        )

    def check(self) -> None:
        """Raise ServerUnfit unless the server can serve this configuration."""
        if self.version_number < OLDEST_VERSION:
            raise ServerUnfit(f"PostgreSQL {self.version} is too old: 14 or newer is needed")
        if self.encoding != "UTF8":
            raise ServerUnfit(f"the database's encoding is {self.encoding}: create it with ENCODING 'UTF8'")
        if self.needed > self.allowed:
            raise ServerUnfit(
                f"the connections do not fit: {self}. Lower WORKERS or WORKER_THREADS, or raise the limit"
            )


def read(conn: Connection[Any], settings: Settings) -> Budget:
    """Read the server's limits: one round trip."""
    row = conn.execute(SELECT_LIMITS).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    ours: tuple[Any, ...] = (settings.workers, settings.worker_threads, settings.instances)
    return Budget(*row, *ours)
