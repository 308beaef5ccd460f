"""Set the timeouts of each session, directly or behind a transaction pooler such as PgBouncer.

A transaction pooler hands one server session to many clients. It refuses or drops the options of a connection, and a
client's SET stays for the next client. So behind a pooler each transaction begins with SET LOCAL: the timeouts hold,
and it costs two round trips more.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import OperationalError

from service.settings import Settings

# Both sides give up a peer that has vanished after 8 s at most: the first setting ends a send, the others a wait.
# By default, the server would keep the session of a vanished client for two hours, within max_connections.
TCP_USER_TIMEOUT = 6000  # ms
KEEPALIVES = {"idle": 5, "interval": 1, "count": 3}

# A setting of our own: the session has it only if the server received our options.
OPTIONS_MARKER = "-c service.options=received"

SELECT_OPTIONS_MARKER = """
    SELECT current_setting('service.options', true) = 'received'
"""


@dataclass(frozen=True)
class Session:
    """How to connect, and how to begin each transaction."""

    server: Callable[[], str]  # called at each connect, as the file with the password may have changed
    parameters: dict[str, Any]
    options: str
    session_setup: str = ""  # SQL for the beginning of each transaction; empty when the options set everything

    def conninfo(self) -> str:
        """Return the connection string. The parameters in DATABASE_URL override the defaults."""
        given = conninfo_to_dict(self.server())
        if self.options:
            given["options"] = f"{self.options} {given.get('options', '')}".strip()
        return make_conninfo(**{**self.parameters, **given, "client_encoding": "UTF8"})

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of psycopg.connect(). Behind a pooler, without prepared statements: the next session lacks them."""
        return {"autocommit": True, **({"prepare_threshold": None} if self.session_setup else {})}

    def connect(self) -> psycopg.Connection:
        """Open a connection. Raises psycopg.OperationalError."""
        return psycopg.connect(self.conninfo(), **self.arguments)


def negotiate(server: Callable[[], str], settings: Settings) -> tuple[Session, psycopg.Connection]:
    """Connect to `server` and find out whether it takes options. The caller closes the connection.

    Costs a connection and one round trip, or two connections behind a pooler. Raises psycopg.OperationalError.
    """
    timeouts = {  # ms
        "statement_timeout": round(settings.statement_timeout * 1000),
        "lock_timeout": round(settings.lock_timeout * 1000),
        "idle_in_transaction_session_timeout": round(settings.idle_in_transaction_timeout * 1000),
    }
    parameters = {
        "application_name": "users-service",
        "connect_timeout": round(settings.connect_timeout),
        "target_session_attrs": "read-write",  # of several hosts, take the one that is not a standby
        "tcp_user_timeout": TCP_USER_TIMEOUT,
        **{f"keepalives_{name}": value for name, value in KEEPALIVES.items()},
    }
    server_settings = {
        **timeouts,
        "timezone": "UTC",
        # Each statement here has one good plan. Planning a page anew each time took a fifth of its cost.
        "plan_cache_mode": "force_generic_plan",
        "tcp_user_timeout": TCP_USER_TIMEOUT,
        **{f"tcp_keepalives_{name}": value for name, value in KEEPALIVES.items()},
    }
    options = " ".join([OPTIONS_MARKER, *(f"-c {name}={value}" for name, value in server_settings.items())])
    direct = Session(server, parameters, options)
    try:
        conn = direct.connect()
    except OperationalError as exc:
        if "unsupported startup parameter" not in str(exc):
            raise
    else:
        row = conn.execute(SELECT_OPTIONS_MARKER).fetchone()
        if row and row[0]:
            return direct, conn
        conn.close()  # a pooler dropped the options silently
    session_setup = "; ".join(f"SET LOCAL {name} = {value}" for name, value in timeouts.items())
    pooled = Session(server, parameters, "", session_setup)
    return pooled, pooled.connect()
