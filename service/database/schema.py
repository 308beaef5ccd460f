"""Applies schema.sql, safely, from many processes at once and to tables in use.

`CREATE TABLE IF NOT EXISTS` from 16 sessions at once failed in 40 of 160 tries. So one process at a time
does it, under an advisory lock that is polled for: waiting for it inside a statement would hold a
snapshot, and deadlock with somebody's `CREATE INDEX CONCURRENTLY`. Which text was applied is written down
by its hash: a start that finds its own takes two round trips and no lock.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection, errors

from service.database.sessions import Session

SCHEMA = Path(__file__).parents[2] / "schema.sql"
LOCK = 0x736368656D61  # any number will do; this one spells "schema"
POLL = 0.1  # seconds between two tries for the lock
ATTEMPTS = 5  # at a busy table
PAUSE = 2.0  # seconds between two of them: as long as schema.sql's lock_timeout may have kept others waiting

# The number is part of the text: a parameter would make PostgreSQL hold a snapshot between two tries.
TRY_LOCK = f"SELECT pg_try_advisory_xact_lock({LOCK})"

SELECT_APPLIED = """
    SELECT EXISTS (SELECT FROM public.schema_applied WHERE sha256 = sha256(%(text)s))
"""

CREATE_APPLIED = """
    CREATE TABLE IF NOT EXISTS public.schema_applied (
        sha256 bytea       CONSTRAINT schema_applied_pkey PRIMARY KEY,
        at     timestamptz NOT NULL DEFAULT now()
    );
    GRANT SELECT ON public.schema_applied TO PUBLIC
"""

INSERT_APPLIED = """
    INSERT INTO public.schema_applied (sha256) VALUES (sha256(%(text)s))
    ON CONFLICT DO NOTHING
"""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Upgrade:
    """What a resource does for a table of its own that is missing, or older than schema.sql.

    `check(conn, say)` tells whether the table has today's form, or raises SchemaError when schema.sql cannot bring
    it to that. `prepare(conn, say)` readies its rows, and what it does stays.
    """

    check: Callable[[Connection[Any], Say], bool]
    prepare: Callable[[Connection[Any], Say], None] = lambda _conn, _say: None


class SchemaError(Exception):
    """The schema cannot be brought up to date, and nothing was lost; the text says why and what to do."""


def apply(conn: Connection[Any], session: Session, upgrades: Sequence[Upgrade], say: Say) -> None:
    """Bring the schema up to date over `conn`, which is in autocommit mode, opened for `session`.

    What takes long is told through `say`. Raises SchemaError.
    """
    text = SCHEMA.read_bytes()
    with _told_in_one_line(conn):
        if _applied(conn, text) and _in_form(conn, upgrades, say):
            return
    with _alone(session, say), _told_in_one_line(conn):
        if _applied(conn, text) and _in_form(conn, upgrades, say):
            return  # by another process, meanwhile
        if not session.preamble:  # behind a pooler there is none, and this would stay there for others
            conn.execute("SET statement_timeout = 0")  # a large table takes as long as it takes
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE)
            try:
                _apply(conn, text, upgrades, say)
            except (errors.LockNotAvailable, errors.DeadlockDetected):
                say("the tables are busy, trying again")
            except errors.CheckViolation as exc:  # rows that came after `prepare`
                say(f"rows that break {exc.diag.constraint_name} keep arriving, trying again")
            else:
                return
        raise SchemaError("the tables are too busy to change: stop the older service, or try at a quieter time")


def _apply(conn: Connection[Any], text: bytes, upgrades: Sequence[Upgrade], say: Say) -> None:
    todays_form = _in_form(conn, upgrades, say)
    try:
        with suppress(errors.CheckViolation), conn.transaction(force_rollback=True):
            conn.execute(text)  # a rehearsal: what `prepare` does stays, so it must not be in vain
        for upgrade in upgrades:
            upgrade.prepare(conn, say)
        with conn.transaction():
            conn.execute(text)
            conn.execute(CREATE_APPLIED)
            conn.execute(INSERT_APPLIED, {"text": text})
    except errors.InsufficientPrivilege:
        if not todays_form:
            raise
        say("schema.sql was applied by another role, it seems, and this one need not do it again")
    else:
        say("schema.sql is applied")


def _in_form(conn: Connection[Any], upgrades: Sequence[Upgrade], say: Say) -> bool:
    return all(upgrade.check(conn, say) for upgrade in upgrades)


def _applied(conn: Connection[Any], text: bytes) -> bool:
    try:
        row = conn.execute(SELECT_APPLIED, {"text": text}).fetchone()
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
    except psycopg.OperationalError:
        raise
    except psycopg.DatabaseError as exc:
        raise SchemaError(
            f"schema.sql cannot be applied to this database, nothing was changed: {exc.diag.message_primary}"
        ) from exc


@contextmanager
def _alone(session: Session, say: Say) -> Iterator[None]:
    # A transaction of its own holds the lock, so that it works behind a transaction pooler too.
    with session.connect() as conn, conn.transaction():
        conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        told = False
        while not conn.execute(TRY_LOCK).fetchone()[0]:  # type: ignore[index]
            if not told:
                told = True
                say("waiting for another process to apply schema.sql")
            time.sleep(POLL)
        yield
