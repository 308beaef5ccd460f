"""Check what the role may do with the tables of schema.sql, so that a missing right is found at the start."""

from typing import Any

from psycopg import Connection

from service.database.refusals import ServerUnfit
from service.database.schema import tables

# One row for each missing GRANT. A right on some columns is enough: others may be kept from the role. A sequence of a
# column is needed to generate its values.
SELECT_MISSING = """
    WITH tables AS (
        SELECT oid, oid::regclass::text AS name
        FROM unnest(%(tables)s::text[]) AS given (name), to_regclass(given.name) AS oid
        WHERE oid IS NOT NULL
    )
    SELECT concat('GRANT ', string_agg(needed, ', '), ' ON ', name)
    FROM tables, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS needed
    WHERE NOT CASE needed WHEN 'DELETE' THEN has_table_privilege(oid, needed)
                          ELSE has_any_column_privilege(oid, needed) END
    GROUP BY name
    UNION ALL
    SELECT concat('GRANT USAGE ON SEQUENCE ', sequence.oid::regclass)
    FROM tables
    JOIN pg_depend ON refclassid = 'pg_class'::regclass AND refobjid = tables.oid AND deptype IN ('a', 'i')
    JOIN pg_class AS sequence ON classid = 'pg_class'::regclass AND sequence.oid = objid
    WHERE CASE relkind WHEN 'S' THEN NOT has_sequence_privilege(sequence.oid, 'USAGE') END
"""


def check(conn: Connection[Any]) -> None:
    """Check the tables that exist. Costs one round trip. Raises ServerUnfit, which names each missing GRANT."""
    missing = conn.execute(SELECT_MISSING, {"tables": tables()}).fetchall()
    if missing:
        role = conn.execute("SELECT quote_ident(current_user)").fetchone()[0]  # type: ignore[index]
        raise ServerUnfit(f"the role lacks rights: {'; '.join(f'{grant} TO {role}' for (grant,) in missing)}")
