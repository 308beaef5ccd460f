"""What PostgreSQL says about itself."""

import time
from typing import Any

from service.database import collations
from service.database.pool import Database

NAME = "server_stats"  # in the log, where a request has its route

# `reserved_connections` came with PostgreSQL 16. Other roles' sessions have no backend_type for us, but a user and a
# database. DATABASE_URL may have an application_name of its own.
SELECT_SERVER_STATS = """
    SELECT current_setting('server_version'),
           extract(epoch FROM pg_postmaster_start_time())::float8,
           current_setting('max_connections')::int,
           current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true)::int, 0),
           count(*) FILTER (WHERE application_name = current_setting('application_name')
                                  AND datname = current_database() AND usename = current_user),
           count(*)
    FROM pg_stat_activity
    WHERE usesysid IS NOT NULL AND datid IS NOT NULL
"""


def server_stats(database: Database) -> dict[str, Any]:
    """Return the server's version, start, latency and connections. Takes three round trips.

    Raises what `Database.connection` raises.
    """
    with database.connection() as conn:
        started = time.perf_counter()
        conn.fetchone("SELECT 1", {})
        latency = time.perf_counter() - started
        row = conn.fetchone(SELECT_SERVER_STATS, {})
        collation_mismatch = bool(collations.mismatches(conn))
    assert row is not None  # noqa: S101 - an aggregate has one row
    version, up_since, limit, reserved, ours, total = row
    return {
        "version": version,
        "up_since": up_since,
        "latency": latency,
        "collation_mismatch": collation_mismatch,
        "budget": {
            "limit": limit,
            "ours": ours,
            "others": total - ours,
            "reserved": reserved,
            "free": max(0, limit - reserved - total),
        },
    }
