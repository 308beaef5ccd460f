"""Upgrade a users table of the older form, which holds passwords in plain text."""

from typing import Any

from psycopg import Connection

from service.database.schema import Report, SchemaError, Upgrade
from service.users import table
from service.users.passwords import hash_passwords

BATCH = 100  # rows: two seconds of one core, the most that an interrupted run repeats

# A whole hash, not just its beginning: a plain password may begin like one.
HASH = r"^\$argon2id\$v=\d+\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+$"

SELECT_IS_OLDER = """
    SELECT count(*) FILTER (WHERE attname IN ('id', 'fname', 'lname', 'email', 'password')) = 5
           AND count(*) FILTER (WHERE attname = 'password_hash') = 0
    FROM pg_attribute
    WHERE attrelid = to_regclass('public."user"') AND attnum > 0 AND NOT attisdropped
"""

# A varchar(64) is too short for a hash. Rewrites no row.
WIDEN_COLUMN = """
    ALTER TABLE public."user" ALTER COLUMN password TYPE text
"""

COUNT_PLAIN = """
    SELECT count(*) FROM public."user" WHERE password !~ %(hash)s
"""

SELECT_PLAIN = """
    SELECT id, password
    FROM public."user"
    WHERE id > %(after)s AND password !~ %(hash)s
    ORDER BY id
    LIMIT %(batch)s
"""

# Skip a password that the older service has changed since it was read.
UPDATE_HASHED = """
    UPDATE public."user" AS u
    SET password = new.hash
    FROM unnest(%(ids)s::bigint[], %(plain)s::text[], %(hashes)s::text[]) AS new (id, plain, hash)
    WHERE u.id = new.id AND u.password = new.plain
"""


def check(conn: Connection[Any], report: Report) -> bool:
    """Do what `table.check` does, but return False for a table of the older form, which can be upgraded."""
    try:
        return table.check(conn, report)
    except SchemaError:
        if not _is_older(conn):
            raise
    return False


def prepare(conn: Connection[Any], report: Report) -> None:
    """Hash every plain-text password, in batches. Each batch is committed, so an interrupted run continues there.

    Costs 19 ms of one core for each row; uses every core.
    """
    if not _is_older(conn):
        return
    conn.execute(WIDEN_COLUMN)
    total = conn.execute(COUNT_PLAIN, {"hash": HASH}).fetchone()[0]  # type: ignore[index]
    done, after = 0, -(2**63)
    while rows := conn.execute(SELECT_PLAIN, {"after": after, "hash": HASH, "batch": BATCH}).fetchall():
        ids, plain = zip(*rows, strict=True)
        conn.execute(UPDATE_HASHED, {"ids": list(ids), "plain": list(plain), "hashes": hash_passwords(plain)})
        done, after = done + len(rows), ids[-1]
        report(f"passwords hashed: {done} of {max(done, total)}")


def finish(conn: Connection[Any], report: Report) -> None:
    """Do what needs no exclusive lock: build the index of emails, and validate the constraint on hashes."""
    table.build_email_index(conn, report)
    table.validate_hashes(conn)


def _is_older(conn: Connection[Any]) -> bool:
    return bool(conn.execute(SELECT_IS_OLDER).fetchone()[0])  # type: ignore[index]


UPGRADE = Upgrade(check, prepare, finish, table.LIST_INDEXES)
