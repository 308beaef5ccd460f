"""Readies a table of the older form, with passwords in plain text, for schema.sql."""

from typing import Any

from psycopg import Connection

from service.database.schema import Say, SchemaError, Upgrade
from service.users.passwords import hash_passwords

BATCH = 100  # rows: two seconds of one core, and as long as an interrupted run repeats at most

# A whole hash, not just its beginning: somebody's plain password may begin like one.
HASH = r"^\$argon2id\$v=\d+\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+$"

OLDER_FORM = ["email", "fname", "id", "lname", "password"]
TODAYS_FORM = ["created_at", "email", "fname", "id", "lname", "password_hash", "updated_at"]

SELECT_COLUMNS = """
    SELECT array_agg(attname::text ORDER BY attname)
    FROM pg_attribute
    WHERE attrelid = to_regclass('public."user"') AND attnum > 0 AND NOT attisdropped
"""

SELECT_SAME_EMAILS = """
    SELECT array_agg(id ORDER BY id)
    FROM public."user"
    GROUP BY lower(email)
    HAVING count(*) > 1
    ORDER BY min(id)
    LIMIT 20
"""

# A varchar(64) would not hold a hash. Rewrites nothing.
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

# Only where the password is still the one that was hashed: the older service may be running.
UPDATE_HASHED = """
    UPDATE public."user" AS u
    SET password = new.hash
    FROM unnest(%(ids)s::bigint[], %(plain)s::text[], %(hashes)s::text[]) AS new (id, plain, hash)
    WHERE u.id = new.id AND u.password = new.plain
"""


def check(conn: Connection[Any]) -> bool:
    """Tell whether the table has today's form. Raises SchemaError when it cannot be brought to it."""
    columns = _columns(conn)
    if columns not in (None, OLDER_FORM, TODAYS_FORM):
        raise SchemaError(
            f'there is a table public."user" of another kind, with the columns {", ".join(columns)}:'
            " give this service a database of its own"
        )
    if columns == OLDER_FORM and (same := conn.execute(SELECT_SAME_EMAILS).fetchall()):
        groups = "; ".join(", ".join(map(str, ids)) for (ids,) in same)
        raise SchemaError(f"users have the same email but for its case, change or delete all but one: ids {groups}")
    return bool(columns == TODAYS_FORM)


def prepare(conn: Connection[Any], say: Say) -> None:
    """Hash every password that is plain text, in batches, each of them final: an interrupted run goes on.

    Costs 19 ms of one core for each row; uses every core.
    """
    if _columns(conn) != OLDER_FORM:
        return
    conn.execute(WIDEN_COLUMN)
    total = conn.execute(COUNT_PLAIN, {"hash": HASH}).fetchone()[0]  # type: ignore[index]
    done, after = 0, -(2**63)
    while rows := conn.execute(SELECT_PLAIN, {"after": after, "hash": HASH, "batch": BATCH}).fetchall():
        ids, plain = zip(*rows, strict=True)
        conn.execute(UPDATE_HASHED, {"ids": list(ids), "plain": list(plain), "hashes": hash_passwords(plain)})
        done, after = done + len(rows), ids[-1]
        say(f"passwords hashed: {done} of {max(done, total)}")


def _columns(conn: Connection[Any]) -> Any:  # noqa: ANN401 - a list of names, or None for no table
    row = conn.execute(SELECT_COLUMNS).fetchone()
    return row and row[0]


UPGRADE = Upgrade(check, prepare)
