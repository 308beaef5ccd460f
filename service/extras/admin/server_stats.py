"""What PostgreSQL says of itself, for those who look at the pool."""

import time
from typing import Any

from service.database.pool import Database

# `reserved_connections` came with PostgreSQL 16.
SELECT_CENSUS = """
    SELECT current_setting('server_version'),
           extract(epoch FROM pg_postmaster_start_time())::float8,
           current_setting('max_connections')::int,
           current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true)::int, 0),
           count(*) FILTER (WHERE application_name = 'users-service' AND datname = current_database()),
           count(*)
    FROM pg_stat_activity
    WHERE backend_type = 'client backend'
"""


def census(database: Database) -> dict[str, Any]:
    """Ask, as any request does. Takes two round trips. Raises what `Database.connection` does."""
    with database.connection() as conn:
        began = time.perf_counter()
        conn.execute("SELECT 1")
        latency = time.perf_counter() - began
        row = conn.execute(SELECT_CENSUS).fetchone()
    assert row is not None  # noqa: S101 - an aggregate has one row
    version, up_since, limit, reserved, ours, everybody = row
    return {
        "version": version,
        "up_since": up_since,
        "latency": latency,
        "budget": {
            "limit": limit,
            "ours": ours,
            "others": everybody - ours,
            "reserved": reserved,
            "free": max(0, limit - reserved - everybody),
        },
    }
