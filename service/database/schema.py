"""Applies schema.sql, safely, from many processes at once and to tables in use.

`CREATE TABLE IF NOT EXISTS` from 16 sessions at once failed in 40 of 160 tries. So one process at a time
does it, under an advisory lock that is polled for: waiting for it inside a statement would hold a
snapshot, and deadlock with somebody's `CREATE INDEX CONCURRENTLY`. Which text was applied is written down
by its hash: a start that finds its own takes one round trip and no lock.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection, errors

SCHEMA = Path(__file__).parents[2] / "schema.sql"
LOCK = 0x736368656D61  # any number will do; this one spells "schema"
POLL = 0.1  # seconds between two tries for the lock
ATTEMPTS = 5  # at a busy table
PAUSE = 2.0  # seconds between two of them: as long as schema.sql's lock_timeout may have kept others waiting

SELECT_APPLIED = """
    SELECT EXISTS (SELECT FROM public.schema_applied WHERE sha256 = %(sha256)s)
"""

CREATE_APPLIED = """
    CREATE TABLE IF NOT EXISTS public.schema_applied (
        sha256 text        CONSTRAINT schema_applied_pkey PRIMARY KEY,
        at     timestamptz NOT NULL DEFAULT now()
    );
    GRANT SELECT ON public.schema_applied TO PUBLIC
"""

INSERT_APPLIED = """
    INSERT INTO public.schema_applied (sha256) VALUES (%(sha256)s)
"""

Prepare = Callable[[Connection[Any], Callable[[str], None]], None]


class SchemaError(Exception):
    """The schema cannot be brought up to date, and nothing was lost; the text says why and what to do."""


def apply(conn: Connection[Any], conninfo: str, *, prepare: Prepare, say: Callable[[str], None]) -> None:
    """Bring the schema up to date over `conn`, which is in autocommit mode, and leads to `conninfo`.

    `prepare(conn, say)` readies what is there already. What takes long is told through `say`.
    Raises SchemaError.
    """
    text = SCHEMA.read_bytes()
    sha256 = hashlib.sha256(text).hexdigest()
    if _applied(conn, sha256):
        return
    with _alone(conninfo), _told_in_one_line(conn):
        if _applied(conn, sha256):
            return  # by another process, meanwhile
        conn.execute("SET statement_timeout = 0")  # a large table takes as long as it takes
        for _ in range(ATTEMPTS):
            try:
                prepare(conn, say)
                with conn.transaction():
                    conn.execute(text)
                    conn.execute(CREATE_APPLIED)
                    conn.execute(INSERT_APPLIED, {"sha256": sha256})
            except (errors.LockNotAvailable, errors.DeadlockDetected):
                say("the tables are busy, trying again")
                time.sleep(PAUSE)
            except errors.CheckViolation as exc:  # rows that came after `prepare`
                say(f"rows that break {exc.diag.constraint_name} keep arriving, trying again")
            else:
                say("schema.sql is applied")
                return
        raise SchemaError("the tables are too busy to change: stop the older service, or try at a quieter time")


def _applied(conn: Connection[Any], sha256: str) -> bool:
    try:
        row = conn.execute(SELECT_APPLIED, {"sha256": sha256}).fetchone()
    except errors.UndefinedTable:
        return False
    return bool(row and row[0])


@contextmanager
def _told_in_one_line(conn: Connection[Any]) -> Iterator[None]:
    try:
        yield
    except errors.UniqueViolation as exc:
        raise SchemaError(f"rows break a unique constraint, nothing was changed: {exc.diag.message_detail}") from exc
    except errors.InsufficientPrivilege as exc:
        raise SchemaError(
            f"the role {conn.info.user} may not change the schema: run `make schema` as the owner,"
            f" or GRANT CREATE ON SCHEMA public TO it ({exc.diag.message_primary})"
        ) from exc
    except (psycopg.ProgrammingError, psycopg.IntegrityError, psycopg.NotSupportedError) as exc:
        raise SchemaError(f"schema.sql cannot be applied to this database: {exc.diag.message_primary}") from exc


@contextmanager
def _alone(conninfo: str) -> Iterator[None]:
    # A transaction of its own holds the lock, so that it works behind a transaction pooler too.
    with psycopg.connect(conninfo) as conn:
        conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        while not conn.execute("SELECT pg_try_advisory_xact_lock(%s)", (LOCK,)).fetchone()[0]:  # type: ignore[index]
            time.sleep(POLL)
        yield
