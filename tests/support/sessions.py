"""PostgreSQL's side: which sessions the service has there, what they do, and what stands in their way."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.support.postgres import TestDatabase

OURS = "FROM pg_stat_activity WHERE application_name = 'users-service' AND datname = current_database()"


def sessions(database: TestDatabase) -> dict[int, str]:
    """Return the state of each session of the service, by its process."""
    with database.as_superuser() as conn:
        return dict(conn.execute(f"SELECT pid, state {OURS}").fetchall())


def waiting(database: TestDatabase) -> int:
    """Return how many of them wait for a lock."""
    with database.as_superuser() as conn:
        row = conn.execute(f"SELECT count(*) {OURS} AND wait_event_type = 'Lock'").fetchone()
        assert row
        return int(row[0])


def terminate(database: TestDatabase) -> None:
    """End all of them."""
    with database.as_superuser() as conn:
        conn.execute(f"SELECT pg_terminate_backend(pid) {OURS}")


@contextmanager
def locked(database: TestDatabase) -> Iterator[psycopg.Connection]:
    """Keep everybody from the table while the block runs."""
    with database.connect() as conn, conn.transaction():
        conn.execute('LOCK TABLE public."user" IN ACCESS EXCLUSIVE MODE')
        yield conn
