"""A standby that has applied whatever its primary acknowledges, and its promotion."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.support.polling import until
from tests.support.postgres import Cluster

SET_SYNCHRONOUS = (
    "ALTER SYSTEM SET synchronous_standby_names = '*'",
    "ALTER SYSTEM SET synchronous_commit = 'remote_apply'",
    "SELECT pg_reload_conf()",
)


@contextmanager
def streaming_standby(primary: Cluster, **settings: str) -> Iterator[Cluster]:
    """Have a standby that streams from `primary` and has these settings, until the block ends."""
    standby = primary.standby()
    standby.settings.update(settings)
    try:
        standby.start()
        yield standby
    finally:
        standby.remove()


def start_standby(primary: Cluster, port: int | None = None) -> Cluster:
    """Start a standby of `primary`. From now on the primary acknowledges what the standby has applied."""
    standby = primary.standby()
    standby.port = port or standby.port
    try:
        standby.start()
        with psycopg.connect(primary.conninfo(), autocommit=True) as conn:
            for statement in SET_SYNCHRONOUS:
                conn.execute(statement)
            synchronous = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
            until(lambda: conn.execute(synchronous).fetchone(), "the standby is waited for")
    except BaseException:
        standby.remove()
        raise
    return standby


def promote(standby: Cluster) -> None:
    with psycopg.connect(standby.conninfo(), autocommit=True) as conn:
        assert conn.execute("SELECT pg_promote()").fetchone() == (True,)
