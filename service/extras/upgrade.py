"""Readies a table of the older form, with passwords in plain text, for schema.sql."""

from collections.abc import Collection
from typing import Any

from psycopg import Connection

from service.database.schema import Say, SchemaError, Upgrade
from service.users.passwords import hash_passwords

BATCH = 100  # rows: two seconds of one core, and as long as an interrupted run repeats at most

# A whole hash, not just its beginning: somebody's plain password may begin like one.
HASH = r"^\$argon2id\$v=\d+\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+$"

OLDER_COLUMNS = {"email", "fname", "id", "lname", "password"}

# What the service needs of the table; whatever else it has is somebody else's.
EMAIL_INDEX = "unique index user_email_lower_key on lower(email)"
TODAYS_FORM = (
    "column id bigint",
    "column fname text",
    "column lname text",
    "column email text",
    "column password_hash text",
    "column created_at timestamp with time zone",
    "column updated_at timestamp with time zone",
    "sequence of id",
    "unique index user_pkey on id",
    EMAIL_INDEX,
)

# Each part of the table, by name, in the words of TODAYS_FORM; and whether a new row must give it a value.
# All kinds of text that keep what they are given are as good as text. pg_get_indexdef() would wait for a locked table.
SELECT_FORM = """
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
"""

SELECT_EMAIL_INDEX = """
    SELECT to_regclass('public.user_email_lower_key') IS NOT NULL
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


def check(conn: Connection[Any], say: Say) -> bool:
    """Tell whether the table has today's form, whatever else it has. Raises SchemaError when it cannot be given it."""
    parts = conn.execute(SELECT_FORM).fetchall()
    if not parts:
        return False
    names = {name for name, _, _ in parts}
    if _is_older(names):
        if same := conn.execute(SELECT_SAME_EMAILS).fetchall():
            groups = "; ".join(", ".join(map(str, ids)) for (ids,) in same)
            raise SchemaError(f"users have the same email but for its case, change or delete all but one: ids {groups}")
        return False
    found = {part for _, part, _ in parts}
    missing = [part for part in TODAYS_FORM if part not in found]
    if missing == [EMAIL_INDEX] and not conn.execute(SELECT_EMAIL_INDEX).fetchone()[0]:  # type: ignore[index]
        return False
    if missing:
        raise SchemaError(
            f'public."user" lacks what this service needs: {", ".join(missing)}.'
            " Mend it, or give this service a database of its own"
        )
    for name, part, needs_value in parts:
        if needs_value and part not in TODAYS_FORM:
            say(f'no user can be created, unless a trigger fills public."user".{name}: it is NOT NULL with no default')
    return True


def prepare(conn: Connection[Any], say: Say) -> None:
    """Hash every password that is plain text, in batches, each of them final: an interrupted run goes on.

    Costs 19 ms of one core for each row; uses every core.
    """
    if not _is_older({name for name, _, _ in conn.execute(SELECT_FORM)}):
        return
    conn.execute(WIDEN_COLUMN)
    total = conn.execute(COUNT_PLAIN, {"hash": HASH}).fetchone()[0]  # type: ignore[index]
    done, after = 0, -(2**63)
    while rows := conn.execute(SELECT_PLAIN, {"after": after, "hash": HASH, "batch": BATCH}).fetchall():
        ids, plain = zip(*rows, strict=True)
        conn.execute(UPDATE_HASHED, {"ids": list(ids), "plain": list(plain), "hashes": hash_passwords(plain)})
        done, after = done + len(rows), ids[-1]
        say(f"passwords hashed: {done} of {max(done, total)}")


def _is_older(names: Collection[str]) -> bool:
    return OLDER_COLUMNS.issubset(names) and "password_hash" not in names


UPGRADE = Upgrade(check, prepare)
