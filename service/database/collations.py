"""Find the collations that sort otherwise than when their indexes were built: after an upgrade of libc or ICU."""

from typing import Any

from psycopg import Connection

OLDEST_VERSION = 150000  # of PostgreSQL: it records the version of a database's own collation

# Of the other collations, those that something uses. The message of PostgreSQL itself is a warning to the client.
SELECT_MISMATCHES = """
    SELECT string_agg(name, ', ' ORDER BY name)
    FROM (SELECT 'the default of ' || datname AS name
          FROM pg_database
          WHERE datname = current_database() AND datcollversion <> pg_database_collation_actual_version(oid)
          UNION
          SELECT collname
          FROM pg_collation
          JOIN pg_depend ON refclassid = 'pg_collation'::regclass AND refobjid = pg_collation.oid
          WHERE collversion <> pg_collation_actual_version(pg_collation.oid)) AS mismatches
"""


def mismatches(conn: Connection[Any]) -> str:
    """Return the names of the collations whose version has changed, or an empty text. Costs one round trip."""
    if conn.info.server_version < OLDEST_VERSION:
        return ""
    row = conn.execute(SELECT_MISMATCHES).fetchone()
    return (row and row[0]) or ""


def warning(names: str) -> str:
    """Return what to do about the collations of `mismatches`."""
    return (
        f"the server's libc or ICU has changed, and with it the order of text: {names}. Indexes on text may be wrong:"
        " run REINDEX DATABASE, then ALTER DATABASE … REFRESH COLLATION VERSION, or ALTER COLLATION … REFRESH VERSION"
    )
