"""What psycopg does not offer of libpq: queries that end in time, failures that close, and a trace of connecting."""

import os
import select
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from psycopg import Connection, Error, errors, pq
from psycopg.conninfo import conninfo_to_dict, timeout_from_conninfo
from psycopg.pq import ExecStatus, PollingStatus
from psycopg.pq.abc import PGconn

C = TypeVar("C", bound=Connection[Any])


def connect(opener: Callable[..., C], conninfo: str, **arguments: Any) -> C:  # noqa: ANN401 - psycopg's
    """Call `opener`, psycopg's own `connect`; when it fails, close its socket. Raises psycopg.Error.

    The frames of its exception refer to each other, and would keep the socket open until the garbage collector runs: a
    server that shuts down waits for it, and many are more files than the process may open.
    """
    try:
        return opener(conninfo, **arguments)
    except Error as exc:
        traceback.clear_frames(exc.__traceback__)
        raise


def connect_timeout(conninfo: str) -> float:
    """Return how many seconds a connection may take, and how many the first answer."""
    return timeout_from_conninfo(conninfo_to_dict(conninfo))


def ask(conn: Connection[Any], query: str, seconds: float) -> list[dict[str, str]]:
    """Return the rows of a query without parameters, as text. Raises psycopg.Error: ConnectionTimeout after `seconds`.

    psycopg waits without a limit, and a pooler may accept a client and then keep it waiting for a server. Closes the
    connection when the query fails.
    """
    try:
        return _ask(conn.pgconn, query, time.monotonic() + seconds)
    except BaseException:
        conn.close()
        raise


def _ask(pgconn: PGconn, query: str, deadline: float) -> list[dict[str, str]]:
    pgconn.send_query(query.encode())
    pgconn.flush()
    rows: list[dict[str, str]] = []
    while True:
        while pgconn.is_busy():
            _wait(pgconn.socket, select.POLLIN, deadline)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return rows
        if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            raise errors.error_from_result(result)
        names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
        for row in range(result.ntuples):
            values = [(result.get_value(row, column) or b"").decode() for column in range(result.nfields)]
            rows.append(dict(zip(names, values, strict=True)))


def trace(conninfo: str) -> str:
    """Connect, disconnect, and return the messages in libpq's form.

    They may hold the password. Raises OperationalError for a wrong `conninfo`, and NotSupportedError or AttributeError
    where libpq cannot trace, which is everywhere but on Linux.
    """
    deadline = time.monotonic() + connect_timeout(conninfo)
    with os.fdopen(os.memfd_create("trace"), "rb") as file:
        pgconn = pq.PGconn.connect_start(conninfo.encode())
        try:
            pgconn.trace(file.fileno())
            status = pgconn.connect_poll()
            while status in (PollingStatus.READING, PollingStatus.WRITING):
                event = select.POLLIN if status == PollingStatus.READING else select.POLLOUT
                _wait(pgconn.socket, event, deadline)
                status = pgconn.connect_poll()
        except errors.ConnectionTimeout:
            pass  # return the messages until now
        finally:
            pgconn.untrace()
            pgconn.finish()
        file.seek(0)
        return file.read().decode(errors="replace")


def _wait(descriptor: int, event: int, deadline: float) -> None:
    ready = select.poll()
    ready.register(descriptor, event)
    if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise errors.ConnectionTimeout("connection timeout expired")
