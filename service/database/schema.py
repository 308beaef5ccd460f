"""Applies schema.sql, safely, from many processes at once and to a table in use.

`CREATE TABLE IF NOT EXISTS` from 16 sessions at once failed in 40 of 160 tries. So one process at a time
does it, under an advisory lock that is polled for: waiting for it inside a statement would hold a
snapshot, and deadlock with somebody's `CREATE INDEX CONCURRENTLY`. A start that finds the schema in place
takes one round trip and no lock at all.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection, errors

SCHEMA = Path(__file__).parents[2] / "schema.sql"
LOCK = 0x75736572  # any number will do; this one spells "user"
POLL = 0.1  # seconds between two tries for the lock
ATTEMPTS = 5  # at a busy table, each as long as schema.sql's lock_timeout, with as long a pause between

# The last things that schema.sql makes; it is applied whole or not at all.
SELECT_IN_PLACE = """
    SELECT to_regclass('public.user_email_lower_key') IS NOT NULL
       AND EXISTS (SELECT FROM pg_constraint
                   WHERE conrelid = to_regclass('public."user"') AND conname = 'user_password_hash_check')
"""

SELECT_COLUMNS = """
    SELECT array_agg(attname::text ORDER BY attname)
    FROM pg_attribute
    WHERE attrelid = to_regclass('public."user"') AND attnum > 0 AND NOT attisdropped
"""

OLDER_FORM = ["email", "fname", "id", "lname", "password"]
TODAYS_FORM = ["created_at", "email", "fname", "id", "lname", "password_hash", "updated_at"]

Prepare = Callable[[Connection[Any], Callable[[str], None]], None]


class SchemaError(Exception):
    """The schema cannot be brought up to date, and nothing was lost; the text says why and what to do."""


def apply(conn: Connection[Any], conninfo: str, *, prepare: Prepare, say: Callable[[str], None]) -> None:
    """Bring the schema up to date over `conn`, which is in autocommit mode, and leads to `conninfo`.

    `prepare(conn, say)` readies a table of the older form. What takes long is told through `say`.
    Raises SchemaError.
    """
    if _in_place(conn):
        return
    with _alone(conninfo):
        conn.execute("SET statement_timeout = 0")  # a large table takes as long as it takes
        for attempt in range(1, ATTEMPTS + 1):
            if _in_place(conn):
                return
            try:
                _apply(conn, prepare, say)
            except (errors.LockNotAvailable, errors.DeadlockDetected) as exc:
                if attempt == ATTEMPTS:
                    raise SchemaError('the table "user" is too busy to change: try again at a quieter time') from exc
                say('the table "user" is busy, trying again')
                time.sleep(2)
            except errors.CheckViolation as exc:  # somebody still writes plain text; hash that too
                if attempt == ATTEMPTS:
                    raise SchemaError("plain-text passwords keep arriving: stop the older service first") from exc
            except errors.UniqueViolation as exc:
                raise SchemaError("two users have one email, but for its case: change or delete one") from exc
            except errors.InsufficientPrivilege as exc:
                raise SchemaError(
                    f"the role {conn.info.user} may not change the schema: run `make schema` as the owner,"
                    f" or GRANT CREATE ON SCHEMA public TO it ({exc.diag.message_primary})"
                ) from exc


def _apply(conn: Connection[Any], prepare: Prepare, say: Callable[[str], None]) -> None:
    columns = conn.execute(SELECT_COLUMNS).fetchone()[0]  # type: ignore[index]
    if columns not in (None, OLDER_FORM, TODAYS_FORM):
        raise SchemaError(
            f'there is a table public."user" of another kind, with the columns {", ".join(columns)}:'
            " use a database of its own for this service"
        )
    if columns == OLDER_FORM:
        prepare(conn, say)
    with conn.transaction():
        conn.execute(SCHEMA.read_bytes())
    say("schema.sql is applied")


def _in_place(conn: Connection[Any]) -> bool:
    row = conn.execute(SELECT_IN_PLACE).fetchone()
    return bool(row and row[0])


@contextmanager
def _alone(conninfo: str) -> Iterator[None]:
    # A transaction of its own holds the lock, so that it works behind a transaction pooler too.
    with psycopg.connect(conninfo) as conn:
        conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        while not conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (LOCK,)).fetchone()[0]:  # type: ignore[index]
            time.sleep(POLL)
        yield
