"""What each session is told: its timeouts, directly or behind a transaction pooler such as PgBouncer.

A pooler hands one session to many clients. It refuses or drops the options of a connection, and what a
client sets with SET stays for the next one. So behind it every transaction is told anew, with SET LOCAL:
two round trips more, and the timeouts hold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import OperationalError

from service.settings import Settings

# A peer that went away without a word, for the client and for the server alike: the first ends a send, the others a
# wait, after 8 s at the most. A server that is not told keeps a session whose client has vanished for two hours, and it
# counts against max_connections beside the one that takes its place.
TCP_USER_TIMEOUT = 6000  # ms
KEEPALIVES = {"idle": 5, "interval": 1, "count": 3}

# A setting of our own: it is there exactly when the server was given our options.
MARK = "-c service.told=yes"

SELECT_MARK = """
    SELECT current_setting('service.told', true) = 'yes'
"""


@dataclass(frozen=True)
class Session:
    """How to connect, and what to say first in each transaction."""

    server: Callable[[], str]  # asked at each connect: a password in a file may have been changed
    parameters: dict[str, Any]
    options: str
    preamble: str = ""  # empty when the session itself knows

    def conninfo(self) -> str:
        """Return the connection string. What the server's own says, in DATABASE_URL, comes before the defaults."""
        given = conninfo_to_dict(self.server())
        if self.options:
            given["options"] = f"{self.options} {given.get('options', '')}".strip()
        return make_conninfo(**{**self.parameters, **given, "client_encoding": "UTF8"})

    @property
    def arguments(self) -> dict[str, Any]:
        """What psycopg must be told besides: behind a pooler, a prepared statement is on another session next time."""
        return {"autocommit": True, **({"prepare_threshold": None} if self.preamble else {})}

    def connect(self) -> psycopg.Connection:
        """Open a connection. Raises psycopg.OperationalError."""
        return psycopg.connect(self.conninfo(), **self.arguments)


def negotiate(server: Callable[[], str], settings: Settings) -> tuple[Session, psycopg.Connection]:
    """Connect to `server` and find out how its sessions are to be told. The caller closes the connection.

    Costs a connection and one round trip, two connections behind a pooler. Raises psycopg.OperationalError.
    """
    milliseconds = {
        "statement_timeout": round(settings.statement_timeout * 1000),
        "lock_timeout": round(settings.lock_timeout * 1000),
        "idle_in_transaction_session_timeout": round(settings.idle_in_transaction_timeout * 1000),
    }
    parameters = {
        "application_name": "users-service",
        "connect_timeout": round(settings.connect_timeout),
        "target_session_attrs": "read-write",  # of several hosts, the one that is no standby
        "tcp_user_timeout": TCP_USER_TIMEOUT,
        **{f"keepalives_{name}": value for name, value in KEEPALIVES.items()},
    }
    told = {
        **milliseconds,
        "timezone": "UTC",
        # Every statement here has one good plan. Without this a page was planned anew each time: a fifth of its cost.
        "plan_cache_mode": "force_generic_plan",
        "tcp_user_timeout": TCP_USER_TIMEOUT,
        **{f"tcp_keepalives_{name}": value for name, value in KEEPALIVES.items()},
    }
    options = " ".join([MARK, *(f"-c {name}={value}" for name, value in told.items())])
    direct = Session(server, parameters, options)
    try:
        conn = direct.connect()
    except OperationalError as exc:
        if "unsupported startup parameter" not in str(exc):
            raise
    else:
        row = conn.execute(SELECT_MARK).fetchone()
        if row and row[0]:
            return direct, conn
        conn.close()  # a pooler that drops the options without a word
    preamble = "; ".join(f"SET LOCAL {name} = {value}" for name, value in milliseconds.items())
    pooled = Session(server, parameters, "", preamble)
    return pooled, pooled.connect()
