"""Set the timeouts of each session, directly or behind a transaction pooler such as PgBouncer.

A transaction pooler hands one server session to many clients. It refuses or drops the options of a connection, and a
client's SET stays for the next client. So behind a pooler each statement follows SET LOCAL in one message, which is one
transaction: the timeouts hold, and it costs no round trip.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from random import shuffle
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import OperationalError

from service.database import libpq
from service.database.refusals import ConnectFailed, explain
from service.settings import Settings

C = TypeVar("C", bound=psycopg.Connection[Any])

# Both sides give up a peer that has vanished after 8 s at most: the first setting ends a send, the others a wait.
# By default, the server would keep the session of a vanished client for two hours, within max_connections.
TCP_USER_TIMEOUT = 6000  # ms
KEEPALIVES = {"idle": 5, "interval": 1, "count": 3}

# A setting of our own: the session has it only if the server received our options.
OPTIONS_MARKER = "-c service.options=received"

HEAD_START = 0.25  # seconds until the next host is tried as well, as RFC 8305 recommends

TAKES_WRITES, STANDBY = "read-write", "standby"  # libpq's target_session_attrs
UNFIT = {
    TAKES_WRITES: "session is read-only: the server is a standby, or default_transaction_read_only is on",
    STANDBY: "the server is not a standby",
}

SELECT_STATE = """
    SELECT current_setting('service.options', true) AS options,
           current_setting('transaction_read_only') = 'off' AS "read-write",
           pg_is_in_recovery() AS standby
"""


@dataclass(frozen=True)
class Session:
    """How to connect, and how to begin each statement."""

    server: Callable[[], str]  # called at each connect, as the file with the password may have changed
    parameters: dict[str, Any]
    options: str
    session_setup: str = ""  # SQL before each statement; empty when the options set everything
    pooled: "Session | None" = None  # how to connect when a pooler takes the place of the server

    def conninfo(self) -> str:
        """Return the connection string. The parameters in DATABASE_URL override the defaults."""
        given = conninfo_to_dict(self.server())
        given["options"] = f"{self.options} {given.get('options', '')}".strip()
        return make_conninfo(**{**self.parameters, **given, "client_encoding": "UTF8"})

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of psycopg.connect(). Behind a pooler, without prepared statements: the next session lacks them."""
        return {"autocommit": True, **({"prepare_threshold": None} if self.session_setup else {})}

    def connect(self) -> psycopg.Connection:
        """Open a connection. Raises ConnectFailed."""
        conninfo = self.conninfo()
        try:
            return connect_to_host(psycopg.Connection.connect, conninfo, **self.arguments)
        except psycopg.Error as exc:
            raise ConnectFailed(explain(conninfo, exc)) from exc


def connect_to_host(connect: Callable[..., C], conninfo: str, **arguments: Any) -> C:  # noqa: ANN401 - of psycopg
    """Call `connect` for the host that takes writes, or is a standby, and make sure that it received our options.

    A host that is silent keeps the next one waiting for HEAD_START only, as in RFC 8305. Costs a round trip more than
    `connect`. Raises psycopg.Error.
    """
    given = conninfo_to_dict(conninfo)
    if given.get("target_session_attrs") not in UNFIT:
        return _connect(connect, conninfo, arguments)
    arguments["target_session_attrs"] = "any"  # a pooler may report the state of before a failover: we ask for it
    hosts = [make_conninfo(conninfo, **host) for host in each_host(conninfo)]
    if len(hosts) == 1:
        return _connect(connect, conninfo, arguments)
    if given.get("load_balance_hosts") == "random":
        shuffle(hosts)
    attempts: set[Future[C]] = set()
    failures: list[BaseException] = []
    while hosts or attempts:
        if hosts:
            attempts.add(_begin(partial(_connect, connect, hosts.pop(0), arguments)))
        finished, attempts = wait(attempts, HEAD_START if hosts else None, FIRST_COMPLETED)
        for attempt in finished:
            if failure := attempt.exception():
                failures.append(failure)
                continue
            for other in (finished | attempts) - {attempt}:
                other.add_done_callback(_discard)
            return attempt.result()
    kinds = {type(each) for each in failures}
    kind = kinds.pop() if len(kinds) == 1 else OperationalError
    raise kind("; ".join(sorted(map(str, failures)))) from failures[0]


def _begin(call: Callable[[], C]) -> Future[C]:
    """Call `call` on a thread of its own, which does not keep the process from ending."""
    future: Future[C] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:  # noqa: BLE001 - raised where the result is used
            future.set_exception(exc)

    threading.Thread(target=run, name="connect", daemon=True).start()
    return future


def _discard(attempt: Future[C]) -> None:
    """Close a connection that came too late."""
    if attempt.exception() is None:
        attempt.result().close()


def _connect(connect: Callable[..., C], conninfo: str, arguments: dict[str, Any]) -> C:
    """Connect. Raises OperationalError unless the session has our options and is what `conninfo` asks for."""
    wanted = conninfo_to_dict(conninfo)
    target = str(wanted.get("target_session_attrs"))
    conn = libpq.connect(connect, conninfo, **arguments)
    [state] = libpq.ask(conn, SELECT_STATE, libpq.connect_timeout(conninfo))  # closes the connection when it fails
    if OPTIONS_MARKER in str(wanted.get("options", "")) and not state["options"]:
        unfit = "the options of the connection were dropped on the way: there is a pooler"
    elif target in UNFIT and state[target] == "f":
        unfit = UNFIT[target]
    else:
        return conn
    conn.close()
    raise OperationalError(unfit)


def each_host(conninfo: str) -> Iterator[dict[str, str]]:
    """Return the parameters of each host: host, hostaddr and port, as far as they are given."""
    given = conninfo_to_dict(conninfo)
    lists = {name: str(given[name]).split(",") for name in ("host", "hostaddr", "port") if given.get(name)}
    for number in range(max(map(len, lists.values()), default=1)):
        yield {name: each[number % len(each)] for name, each in lists.items()}


def encryption(conn: psycopg.Connection[Any]) -> str:
    """Return whether TLS is in force: without a sslmode, libpq goes on without it when it fails."""
    if conn.pgconn.ssl_in_use:
        return "in force"
    if conn.info.host.startswith("/"):
        return "not needed on a Unix socket"
    return "not in force: whoever is on the way can read along. DATABASE_URL takes ?sslmode=verify-full"


def negotiate(
    server: Callable[[], str], settings: Settings, target: str = TAKES_WRITES
) -> tuple[Session, psycopg.Connection]:
    """Connect to `server` and find out whether it takes options. The caller closes the connection.

    A pooler may refuse them in any words, close the connection or not answer: then connect without options.
    Costs a connection and one round trip, or two connections behind a pooler. Raises ConnectFailed.
    """
    timeouts = {  # ms
        "statement_timeout": round(settings.statement_timeout * 1000),
        "lock_timeout": round(settings.lock_timeout * 1000),
        "idle_in_transaction_session_timeout": round(settings.idle_in_transaction_timeout * 1000),
    }
    parameters = {
        "application_name": "users-service",
        "connect_timeout": round(settings.connect_timeout),
        "target_session_attrs": target,  # of several hosts, take the one that is not a standby, or one that is
        "tcp_user_timeout": TCP_USER_TIMEOUT,
        **{f"keepalives_{name}": value for name, value in KEEPALIVES.items()},
    }
    statement_settings = {
        **timeouts,
        "timezone": "UTC",
        # Each statement here has one good plan. Planning a page anew each time took a fifth of its cost.
        "plan_cache_mode": "force_generic_plan",
    }
    server_settings = {
        **statement_settings,
        "tcp_user_timeout": TCP_USER_TIMEOUT,
        **{f"tcp_keepalives_{name}": value for name, value in KEEPALIVES.items()},
    }
    options = " ".join([OPTIONS_MARKER, *(f"-c {name}={value}" for name, value in server_settings.items())])
    session_setup = "; ".join(f"SET LOCAL {name} = '{value}'" for name, value in statement_settings.items())
    pooled = Session(server, parameters, "", session_setup)
    direct = Session(server, parameters, options, pooled=pooled)
    try:
        return direct, direct.connect()
    except ConnectFailed as exc:
        if not exc.refusal.may_be_about_options:
            raise
    return pooled, pooled.connect()
