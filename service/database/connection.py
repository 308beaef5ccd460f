"""A connection of the pool."""

import time
from collections.abc import Mapping
from typing import Any, Self

from psycopg import Connection, Cursor, OperationalError, errors
from psycopg.rows import TupleRow

from service.database.outage import Outage
from service.telemetry import metrics


class PooledConnection(Connection[TupleRow]):
    """A connection that knows when it was opened and whether the server ended its session."""

    opened_at = 0.0  # on the monotonic clock
    terminated = False
    _cursor: Cursor[TupleRow] | None = None

    @classmethod
    def connect(cls, conninfo: str = "", *, outage: Outage, **kwargs: Any) -> Self:  # type: ignore[override] # noqa: ANN401 - psycopg's
        """Connect, and have `outage` begin or end. Raises OperationalError."""
        started = time.monotonic()
        try:
            conn = super().connect(conninfo, **kwargs)
        except OperationalError as exc:
            metrics.CONNECTION_FAILURES.inc()
            outage.begin(exc)
            raise
        outage.end()
        metrics.CONNECTION_CREATE_TIME.observe(time.monotonic() - started)
        conn.opened_at = started
        conn.add_notice_handler(conn.on_notice)
        return conn

    def row(self, query: str, params: Mapping[str, Any]) -> TupleRow | None:
        """Run a statement and return the first row of its result, if it has one."""
        if self._cursor is None:  # one for all statements: a new one for each costs 9 µs
            self._cursor = self.cursor()
        return self._cursor.execute(query.encode(), params).fetchone()

    def raise_if_dead(self) -> None:
        """Raise OperationalError when the connection died while it was idle. Costs 2 µs and no round trip."""
        self.pgconn.consume_input()  # raises at the end of the stream
        self.pgconn.is_busy()  # parses what has come
        if self.terminated:
            raise OperationalError("the server ended the session")

    def on_notice(self, diagnostic: errors.Diagnostic) -> None:
        """Take a notice. To an idle session, the server says as a notice that it ends it."""
        self.terminated |= diagnostic.severity_nonlocalized == "FATAL"
