"""Apply schema.sql safely: from many processes at once, and to tables in use.

`CREATE TABLE IF NOT EXISTS` from 16 sessions at once failed in 40 of 160 tries, so one process at a time applies the
schema, under an advisory lock. The lock is polled: a statement that waits for it holds a snapshot, and deadlocks with
somebody's `CREATE INDEX CONCURRENTLY`. The hash of the applied text is stored: a start that finds its own hash takes
no lock.
"""

import re
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
TABLE = re.compile(r"^CREATE (?:UNLOGGED )?TABLE IF NOT EXISTS (\S+)", re.MULTILINE)
LOCK = 0x736368656D61  # an arbitrary number; in ASCII it spells "schema"
POLL_INTERVAL = 0.1  # seconds between two tries for the lock
ATTEMPTS = 5  # at a busy table
PAUSE = 2.0  # seconds between two attempts: schema.sql's lock_timeout may have kept others waiting as long

# The number is part of the text, and the statement is not prepared: the extended protocol would make PostgreSQL hold a
# snapshot between two tries.
TRY_LOCK = f"SELECT pg_try_advisory_xact_lock({LOCK})"

SELECT_APPLIED = """
    SELECT EXISTS (SELECT FROM public.schema_applied WHERE sha256 = sha256(%(text)s))
"""

SELECT_HAS_TABLES = """
    SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest(%(tables)s::text[]) AS name
"""

SELECT_COLUMNS = """
    SELECT concat(attname, ' ', format_type(atttypid, NULL))
    FROM pg_attribute
    WHERE attrelid = to_regclass(%(table)s) AND attnum > 0 AND NOT attisdropped
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

# Without an index of that name, or with an invalid one, which a build that failed or was killed left behind.
SELECT_MISSING_INDEXES = """
    SELECT array_agg(name)
    FROM unnest(%(names)s::text[]) AS name
    WHERE NOT EXISTS (SELECT FROM pg_class LEFT JOIN pg_index ON indexrelid = oid
                      WHERE oid = to_regclass('public.' || name) AND indisvalid IS NOT FALSE)
"""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Index:
    """An index that schema.sql creates on an empty table only."""

    name: str
    table: str
    columns: str
    what: str  # for the log
    unique: bool = False


@dataclass(frozen=True)
class Upgrade:
    """How one resource checks its table, prepares the rows of an older one, and builds large indexes.

    `check(conn, report)` returns whether the table is current. It raises SchemaError when schema.sql cannot make it so.
    `prepare(conn, report)` runs before schema.sql; its changes stay when schema.sql fails.
    `build_indexes(conn, report)` runs after schema.sql, outside a transaction, so that it can build concurrently.
    `list_indexes` are built while the service answers: without them, some lists are slow.
    """

    check: Callable[[Connection[Any], Report], bool]
    prepare: Callable[[Connection[Any], Report], None] = lambda _conn, _report: None
    build_indexes: Callable[[Connection[Any], Report], None] = lambda _conn, _report: None
    list_indexes: Sequence[Index] = ()


class SchemaError(Exception):
    """The schema cannot be brought up to date. No data was lost; the text gives the reason and the remedy."""


def apply(conn: Connection[Any], session: Session, upgrades: Sequence[Upgrade], report: Report) -> None:
    """Bring the schema up to date over `conn`, an autocommit connection that `session` opened.

    Costs two round trips and those of the checks when it is up to date. Reports progress through `report`.
    Raises SchemaError.
    """
    text = SCHEMA.read_bytes()
    with _translate_errors(conn):
        if _is_applied(conn, text) and _is_current(conn, upgrades, report):
            return
    with _schema_lock(session, report), _translate_errors(conn):
        if _is_applied(conn, text) and _is_current(conn, upgrades, report):
            return  # another process applied it meanwhile
        if not session.session_setup:  # behind a pooler, this setting would stay for the session's next client
            conn.execute("SET statement_timeout = 0")  # a large table may take long
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE)
            try:
                _apply(conn, session, upgrades, report)
            except (errors.LockNotAvailable, errors.DeadlockDetected):
                report("the tables are busy, trying again")
            except errors.CheckViolation as exc:  # rows that arrived after `prepare`
                report(f"rows that break {exc.diag.constraint_name} keep arriving, trying again")
            else:
                return
        raise SchemaError("the tables are too busy to change: stop the older service, or try at a quieter time")


def tables() -> list[str]:
    """Return the names of the tables that schema.sql creates."""
    return TABLE.findall(SCHEMA.read_text(encoding="utf-8"))


def missing_indexes(conn: Connection[Any], indexes: Sequence[Index]) -> list[Index]:
    """Return those of `indexes` that must be built. Costs one round trip."""
    row = conn.execute(SELECT_MISSING_INDEXES, {"names": [index.name for index in indexes]}).fetchone()
    return [index for index in indexes if row and index.name in (row[0] or ())]


def build_index(conn: Connection[Any], index: Index, report: Report) -> None:
    """Build an index: a minute for ten million rows. It blocks no reads and writes, and waits for open transactions.

    Raises psycopg.Error.
    """
    report(f"building the index of {index.what}")
    conn.execute(f"DROP INDEX CONCURRENTLY IF EXISTS public.{index.name}")  # an invalid one
    unique = "UNIQUE " if index.unique else ""
    conn.execute(f"CREATE {unique}INDEX CONCURRENTLY {index.name} ON {index.table} ({index.columns})")
    conn.execute(f"ANALYZE {index.table}")  # until then PostgreSQL has no statistics of an expression


def build_list_indexes(session: Session, upgrades: Sequence[Upgrade], report: Report) -> None:
    """Build the indexes that lists are slow without, unless another process is at it. Raises SchemaError.

    Opens two connections.
    """
    with session.connect() as lock, lock.transaction(), session.connect() as conn, _translate_errors(conn):
        lock.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        if lock.execute(TRY_LOCK, prepare=False).fetchone()[0]:  # type: ignore[index]
            if not session.session_setup:
                conn.execute("SET statement_timeout = 0; SET lock_timeout = 0")
            for index in missing_indexes(conn, list_indexes(upgrades)):
                build_index(conn, index, report)


def list_indexes(upgrades: Sequence[Upgrade]) -> list[Index]:
    """Return the list indexes of all resources."""
    return [index for upgrade in upgrades for index in upgrade.list_indexes]


def _apply(conn: Connection[Any], session: Session, upgrades: Sequence[Upgrade], report: Report) -> None:
    text = SCHEMA.read_bytes()
    current = _is_current(conn, upgrades, report)
    try:
        with suppress(errors.CheckViolation), conn.transaction(force_rollback=True):
            conn.execute(text)  # a rehearsal: `prepare` cannot be undone, so first see that the rest succeeds
        for upgrade in upgrades:
            upgrade.prepare(conn, report)
        with conn.transaction():
            conn.execute(text)
            conn.execute(CREATE_APPLIED)
            conn.execute(INSERT_APPLIED, {"text": text})
        if not session.session_setup:
            conn.execute("SET lock_timeout = 0")  # to wait for open transactions blocks nobody here
        for upgrade in upgrades:
            upgrade.build_indexes(conn, report)
    except errors.InsufficientPrivilege:
        if not current:
            raise
        report("the schema is current: this role may not apply schema.sql, and need not")
    else:
        report("schema.sql is applied")


def has_table(conn: Connection[Any], table: str, columns: set[str]) -> bool:
    """Return whether `table`, which can be dropped without loss, exists. Costs one round trip.

    Raises SchemaError when it lacks one of `columns`, which are names with types.
    """
    found = {column for (column,) in conn.execute(SELECT_COLUMNS, {"table": table})}
    if found and not found >= columns:
        raise SchemaError(f"{table} lacks {', '.join(sorted(columns - found))}: drop this table, it is made again")
    return bool(found)


def _is_current(conn: Connection[Any], upgrades: Sequence[Upgrade], report: Report) -> bool:
    """Return whether every table of schema.sql is there, and current by the check of its resource.

    Raises one SchemaError for all that cannot be brought up to date.
    """
    current = bool(conn.execute(SELECT_HAS_TABLES, {"tables": tables()}).fetchone()[0])  # type: ignore[index]
    problems: list[str] = []
    for upgrade in upgrades:
        try:
            current &= upgrade.check(conn, report)
        except SchemaError as exc:
            problems.append(str(exc))
    if problems:
        raise SchemaError("; ".join(problems))
    return current


def _is_applied(conn: Connection[Any], text: bytes) -> bool:
    try:
        row = conn.execute(SELECT_APPLIED, {"text": text}).fetchone()
    except errors.UndefinedTable:
        return False
    return bool(row and row[0])


@contextmanager
def _translate_errors(conn: Connection[Any]) -> Iterator[None]:
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
def _schema_lock(session: Session, report: Report) -> Iterator[None]:
    # A transaction of its own holds the lock, so that it works behind a transaction pooler too.
    with session.connect() as conn, conn.transaction():
        conn.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        reported = False
        while not conn.execute(TRY_LOCK, prepare=False).fetchone()[0]:  # type: ignore[index]
            if not reported:
                reported = True
                report("waiting for another process to apply schema.sql")
            time.sleep(POLL_INTERVAL)
        yield
