"""What the service needs of the users table, whatever else others have added to it."""

import re
from typing import Any

from psycopg import Connection, errors

from service.database.schema import SCHEMA, Index, Report, SchemaError, build_index, has_table, missing_indexes

EMAIL_INDEX = "unique index user_email_folded_key on user_email_fold(email)"

REQUIRED_PARTS = (
    "column id bigint",
    "column fname text",
    "column lname text",
    "column email text",
    "column password_hash text",
    "column created_at timestamp with time zone",
    "column updated_at timestamp with time zone",
    "column version bigint",
    "sequence of id",
    "unique index user_pkey on id",
    EMAIL_INDEX,
    "trigger user_version",
)

# How schema.sql adds a part to an older table.
ADDS_PART = {"column": r'ALTER TABLE public\."user" ADD COLUMN (IF NOT EXISTS )?', "trigger": "CREATE TRIGGER "}

# Each part of the table: its name, its description in the form of REQUIRED_PARTS, and whether an INSERT must give it a
# value. A varchar or a domain of text counts as text, char(n) does not, as it pads. pg_get_indexdef() is not used, as
# it waits for a locked table.
SELECT_PARTS = """
    SELECT attname::text,
           concat('column ', attname, ' ',
                  CASE WHEN typcategory = 'S' AND atttypid <> 'bpchar'::regtype THEN 'text'
                       ELSE format_type(atttypid, NULL) END,
                  CASE WHEN attidentity = 'a' OR attgenerated <> '' THEN ' generated always' END),
           attnotnull AND NOT atthasdef AND attidentity = ''
    FROM pg_attribute
    JOIN pg_type ON pg_type.oid = atttypid
    WHERE attrelid = to_regclass('public."user"') AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT relname::text,
           concat(CASE WHEN indisunique AND indimmediate AND indisvalid AND indpred IS NULL AND indnkeyatts = 1
                       THEN 'unique ' END,
                  'index ', relname, ' on ',
                  (SELECT attname FROM pg_attribute WHERE attrelid = indexrelid AND attnum = 1),
                  (SELECT '(' || string_agg(attname, ', ') || ')'
                   FROM pg_depend
                   JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
                   WHERE objid = indexrelid AND refobjid = indrelid AND indkey[0] = 0)),
           false
    FROM pg_index
    JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = to_regclass('public."user"')
    UNION ALL
    SELECT relname::text, 'sequence of ' || attname, false
    FROM pg_depend
    JOIN pg_class ON pg_class.oid = objid
    JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
    WHERE classid = 'pg_class'::regclass AND relkind = 'S' AND deptype IN ('a', 'i')
          AND refclassid = 'pg_class'::regclass AND refobjid = to_regclass('public."user"')
    UNION ALL
    SELECT tgname::text, concat('trigger ', tgname, CASE WHEN tgenabled NOT IN ('O', 'A') THEN ' disabled' END), false
    FROM pg_trigger
    WHERE tgrelid = to_regclass('public."user"') AND NOT tgisinternal
"""

FAILED_LOGIN_COLUMNS = {"email_hash bytea", "failures integer", "retry_at timestamp with time zone"}

USER = 'public."user"'
FOLDED_EMAIL = Index("user_email_folded_key", USER, 'public.user_email_fold(email) COLLATE "C"', "emails", unique=True)
LIST_INDEXES = (
    Index("user_lname_folded_idx", USER, 'public.user_email_fold(lname) COLLATE "C"', "last names"),
    Index("user_updated_at_idx", USER, "updated_at, id", "times of change"),
)

# Of a constraint that is valid already, this costs nothing.
VALIDATE_HASHES = """
    ALTER TABLE public."user" VALIDATE CONSTRAINT user_password_hash_check
"""


def check(conn: Connection[Any], report: Report) -> bool:
    """Return whether the table has all that the service needs; False when schema.sql adds what is missing.

    Costs two round trips. Raises SchemaError when schema.sql cannot add it. Reports what keeps users from being
    created.
    """
    parts = conn.execute(SELECT_PARTS).fetchall()
    if not parts:
        return False
    found = {part for _, part, _ in parts}
    missing = [part for part in REQUIRED_PARTS if part not in found]
    if missing and all(_is_added(conn, part, found) for part in missing):
        return False
    if missing:
        raise SchemaError(
            f'public."user" lacks what this service needs: {", ".join(missing)}.'
            " Add it, or give this service a database of its own"
        )
    for name, part, needs_value in parts:
        if needs_value and part not in REQUIRED_PARTS:
            report(
                f'no user can be created unless a trigger fills public."user".{name}: it is NOT NULL with no default'
            )
    return has_table(conn, "public.failed_login", FAILED_LOGIN_COLUMNS)


def _is_added(conn: Connection[Any], part: str, found: set[str]) -> bool:
    """Return whether schema.sql adds a missing part. It does not when another has the name."""
    if part == EMAIL_INDEX:
        return bool(missing_indexes(conn, [FOLDED_EMAIL]))
    kind, name = part.split()[:2]
    if kind not in ADDS_PART or any(f"{other} ".startswith(f"{kind} {name} ") for other in found):
        return False
    return re.search(f"{ADDS_PART[kind]}{name} ", SCHEMA.read_text(encoding="utf-8")) is not None


def build_email_index(conn: Connection[Any], report: Report) -> None:
    """Build the unique index of emails if schema.sql left that out. Raises SchemaError."""
    for index in missing_indexes(conn, [FOLDED_EMAIL]):
        try:
            build_index(conn, index, report)
        except errors.UniqueViolation as exc:  # its detail would put an email into the log
            conn.execute(f"DROP INDEX CONCURRENTLY IF EXISTS public.{index.name}")
            raise SchemaError("while the index of emails was built, two users got the same email: try again") from exc


def validate_hashes(conn: Connection[Any]) -> None:
    """Scan the table if schema.sql left that out: seconds for ten million rows. Blocks no reads and writes."""
    conn.execute(VALIDATE_HASHES)
