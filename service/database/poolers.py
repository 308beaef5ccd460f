"""What a pooler such as PgBouncer allows: by its own word where this role may ask, else by trying."""

from contextlib import ExitStack, closing
from dataclasses import dataclass

import psycopg
from psycopg import errors
from psycopg.conninfo import make_conninfo

from service.database import libpq
from service.database.refusals import ConnectFailed, ServerUnfit
from service.database.sessions import Session

CONSOLE = "pgbouncer"  # the database that stands for the pooler itself
TIMEOUT = 3.0  # seconds for an answer

STATEMENT_MODE = "the pooler is in statement mode, which has no transactions: set its pool_mode to transaction"


@dataclass(frozen=True)
class PoolerLimits:
    """How many connections a pooler allows: of its clients, and to the server for this database and role."""

    clients: int
    servers: int
    mode: str  # "session", "transaction" or "statement"


def read_limits(session: Session, database: str) -> PoolerLimits | None:
    """Return the limits of PgBouncer; None when this role is not one of its stats_users. Costs a connection."""
    conninfo = make_conninfo(session.conninfo(), dbname=CONSOLE, target_session_attrs="any")
    try:
        with closing(psycopg.connect(conninfo, **session.arguments)) as console:
            config = {row["key"]: row["value"] for row in libpq.ask(console, "SHOW CONFIG", TIMEOUT)}
            databases = {row["name"]: row for row in libpq.ask(console, "SHOW DATABASES", TIMEOUT)}
        ours = databases[database]
        servers = int(ours["pool_size"]) + int(ours["reserve_pool"])
        most = int(ours["max_connections"])  # 0: no limit
        mode = ours["pool_mode"] or config["pool_mode"]
        return PoolerLimits(int(config["max_client_conn"]), min(servers, most or servers), mode)
    except (psycopg.Error, KeyError, ValueError):
        return None


def check_mode(session: Session, conn: psycopg.Connection, threads: int) -> None:
    """Raise ServerUnfit unless transactions work, and on so many connections at once.

    Costs a connection in transaction mode, and `threads` in session mode. Raises psycopg.Error and ConnectFailed.
    """
    try:
        for statement in ("BEGIN", "SELECT 1", "COMMIT"):
            libpq.ask(conn, statement, TIMEOUT)
    except errors.ProtocolViolation as exc:
        raise ServerUnfit(STATEMENT_MODE) from exc
    with ExitStack() as stack:
        for number in range(1, threads):
            try:
                other = stack.enter_context(closing(session.connect()))
            except ConnectFailed as exc:
                if not exc.refusal.is_timeout:
                    raise
                _backend(conn)  # raises when the pooler answers nobody
                raise ServerUnfit(
                    f"the pooler is in session mode and has only {number} server connections for {threads} threads:"
                    " set its pool_mode to transaction, raise its pool size, or lower WORKER_THREADS"
                ) from exc
            if _backend(other) == _backend(conn):
                return  # one server connection serves both: transaction mode


def _backend(conn: psycopg.Connection) -> str:
    return libpq.ask(conn, "SELECT pg_backend_pid() AS pid", TIMEOUT)[0]["pid"]
