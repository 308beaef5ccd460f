"""A connection of the pool."""

import re
import time
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b
from itertools import count
from typing import Any, Self

from psycopg import Connection, Error, OperationalError, errors
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import DiagnosticField, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import TupleRow

from service.database.outage import Outage
from service.database.refusals import explain
from service.database.sessions import connect_to_host
from service.telemetry import metrics

PARAMETER = re.compile(r"%\((\w+)\)s")
NUMBERS = count(1)  # of prepared statements

# SQLSTATEs of a prepared statement: somebody deallocated it, a column has another type, or it is there already.
NOT_PREPARED, OUTDATED, PREPARED = b"26000", b"0A000", b"42P05"

SHARED_ATTEMPTS = 4  # behind a pooler, until a read is sent unprepared


class PooledConnection(Connection[TupleRow]):
    """A connection that knows when it was opened, and which statements it has prepared."""

    opened_at = 0.0  # on the monotonic clock
    session_setup: str  # SQL before each statement, behind a pooler
    statements: dict[bytes, bytes]  # the names of the prepared statements, by their texts

    @classmethod
    def connect(cls, conninfo: str = "", *, outage: Outage, session_setup: str = "", **kwargs: Any) -> Self:  # type: ignore[override] # noqa: ANN401 - psycopg's
        """Connect, and have `outage` begin or end. Raises psycopg.Error."""
        started = time.monotonic()
        try:
            conn = connect_to_host(super().connect, conninfo, **kwargs)
        except Error as exc:
            metrics.CONNECTION_FAILURES.inc()
            outage.begin(explain(conninfo, exc))
            raise
        outage.end()
        metrics.CONNECTION_CREATE_TIME.observe(time.monotonic() - started)
        conn.opened_at = started
        conn.session_setup = session_setup
        conn.statements = {}
        return conn

    def fetchone(self, query: str, params: Mapping[str, Any], setup: str = "") -> TupleRow | None:
        """Run a statement and return the first row of its result, if it has one. `query` is a constant with `%(name)s`.

        With `setup`, SQL that is to hold for this statement only, it is not prepared, and planned for its values.

        libpq's blocking call releases the GIL once. A cursor does so some eight times for each statement, and each
        time another thread takes it: on more than one core that cost half of the throughput. Raises psycopg.Error.
        """
        adapter = Transformer(self)
        if self.session_setup or setup:
            literals = {name: adapter.as_literal(params[name]).decode() for name in params}
            # PostgreSQL logs a message that finds no prepared statement, with its values: no email may be among them.
            has_numbers_only = all(isinstance(value, int) for value in params.values())
            is_idle = self.pgconn.transaction_status == TransactionStatus.IDLE
            if has_numbers_only and is_idle and not setup and query.lstrip().startswith("SELECT"):
                result = self._execute_shared(query, literals)
            else:
                result = self._execute_with_setup(setup, query % literals)
        else:
            text, names, _ = _positional(query)
            values = adapter.dump_sequence([params[name] for name in names], [PyFormat.TEXT] * len(names))
            result = self._execute_prepared(text, values)
            if result.error_field(DiagnosticField.SQLSTATE) in (NOT_PREPARED, OUTDATED):
                del self.statements[text]
                result = self._execute_prepared(text, values)
        _check(result, self.pgconn)
        if not result.ntuples:
            return None
        adapter.set_pgresult(result)
        return adapter.load_row(0, tuple)

    def _execute_with_setup(self, *statements: str) -> PGresult:
        """Send all setup and the statements as one message, which is one transaction, and return the last result.

        Such a message takes no parameters, so their values are in it as literals that psycopg has quoted.
        """
        return self.pgconn.exec_("; ".join(filter(None, (self.session_setup, *statements))).encode())

    def _execute_shared(self, query: str, literals: Mapping[str, str]) -> PGresult:
        """Execute a read that stays prepared in each session behind the pooler, whichever client prepared it.

        SQL prepares it, because every pooler passes that on. To parse and plan it each time took half of all that it
        cost.
        """
        text, names, shared_name = _positional(query)
        remedies = {
            NOT_PREPARED: f"PREPARE {shared_name} AS {text.decode()}",
            OUTDATED: f"DEALLOCATE {shared_name}",
        }
        values = f"({', '.join(literals[name] for name in names)})" if names else ""
        for _ in range(SHARED_ATTEMPTS):
            result = self._execute_with_setup(f"EXECUTE {shared_name}{values}")
            remedy = remedies.get(result.error_field(DiagnosticField.SQLSTATE) or b"")
            if not remedy:
                return result
            result = self._execute_with_setup(remedy)
            if result.error_field(DiagnosticField.SQLSTATE) not in (None, NOT_PREPARED, PREPARED):  # another session's
                return result
        return self._execute_with_setup(query % literals)

    def _execute_prepared(self, text: bytes, values: Sequence[Any]) -> PGresult:
        name = self.statements.get(text)
        if name is None:
            name = b"s%d" % next(NUMBERS)
            _check(self.pgconn.prepare(name, text), self.pgconn)
            self.statements[text] = name
        return self.pgconn.exec_prepared(name, values)

    def raise_if_dead(self) -> None:
        """Raise OperationalError when the connection ended while it was idle.

        Costs 2 µs and no round trip, and keeps the GIL.
        """
        self.pgconn.consume_input()  # reads the server's last words, if there are any
        self.pgconn.consume_input()  # raises at the end of the stream


@cache
def _positional(query: str) -> tuple[bytes, list[str], str]:
    """Return a statement with $1, $2 … in place of its named parameters, their names, and a name that only it has."""
    names = list(dict.fromkeys(PARAMETER.findall(query)))
    text = PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", query).replace("%%", "%").encode()
    return text, names, f"service_{blake2b(text, digest_size=16).hexdigest()}"


def _check(result: PGresult, pgconn: PGconn) -> None:
    """Raise the error of a result, if it is one."""
    if result.status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        return
    if result.error_field(DiagnosticField.SQLSTATE) is None:  # it comes from libpq: the connection broke
        raise OperationalError(pgconn.get_error_message())  # with the server's last words, which the result lacks
    raise errors.error_from_result(result)
