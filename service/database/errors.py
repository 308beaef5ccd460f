"""The driver's errors become the service's. Each class says whether the statement may have been carried out.

DatabaseFailure
├── DatabaseUnavailable      no connection can be had, or the server refused: nothing was done
│   ├── NotSent              the session was refused before it took the statement
│   ├── TooManyConnections   the server is up, and has no connection left for us
│   └── CommitsStalled       the server is up, and a write would wait for a synchronous standby
├── DeadlineExceeded         stopped at its limit: nothing was done
└── OutcomeUnknown           the statement may have been carried out
    ├── ConnectionBroke      the connection broke under it
    └── ConnectionCut        the connection was cut at the request's deadline
"""

import logging
import re

from psycopg import Error, OperationalError, errors

from service.database.refusals import Refusal

logger = logging.getLogger(__name__)

# A server that ends a session says so with one of these.
SESSION_ENDED = (errors.AdminShutdown, errors.CrashShutdown, errors.IdleInTransactionSessionTimeout)

# A session that cannot begin is refused with one of these. A pooler begins one when there is a statement for it.
SESSION_REFUSED = (
    errors.CannotConnectNow,
    errors.InvalidAuthorizationSpecification,
    errors.InvalidCatalogName,
    errors.InvalidPassword,
    errors.TooManyConnections,
)

# PgBouncer's words for the same. Its SQLSTATE is 08P01 for these too, and libpq keeps none when the connection ends.
NO_SQLSTATE = (None, "08P01")
POOLER_REFUSED = re.compile(r"query_wait_timeout|server_login_retry|cannot connect to server|no such (user|database)")

# What an administrator changed under the running service: a table is being restored, a privilege was revoked, a
# sequence has a limit.
STATEMENT_REFUSED = (errors.UndefinedTable, errors.InsufficientPrivilege, errors.SequenceGeneratorLimitExceeded)


class DatabaseFailure(Exception):
    """The database did not serve a request."""


class DatabaseUnavailable(DatabaseFailure):
    """No connection can be had, or the server refused the statement. Nothing was done."""


class NotSent(DatabaseUnavailable):
    """The session was refused before it took the statement. Nothing was done."""


class TooManyConnections(DatabaseUnavailable):
    """The server is up and refuses another connection: `max_connections`, or a limit of the role or database."""


class CommitsStalled(DatabaseUnavailable):
    """A write would wait for a synchronous standby that does not answer. Nothing was done."""


class DeadlineExceeded(DatabaseFailure):
    """The statement or the request ran out of time. Nothing was done."""


class OutcomeUnknown(DatabaseFailure):
    """The statement may have been carried out, or not."""


class ConnectionBroke(OutcomeUnknown):
    """The connection broke under the statement."""


class ConnectionCut(OutcomeUnknown):
    """The watchdog cut the connection at the request's deadline."""


def connect_failure(refusal: Refusal | None) -> DatabaseUnavailable:
    """Return what it means that no connection can be had, when `refusal` is that of the last attempt."""
    if refusal and refusal.is_limit:
        return TooManyConnections("the server has no connection left")
    return DatabaseUnavailable("the server cannot be reached")


def statement_failure(exc: Error, *, broke: bool, cut: bool) -> DatabaseFailure | None:
    """Return what a driver's error means; None when it is about the data, which the resource knows about.

    `broke` says that the connection is closed, `cut` that the watchdog closed it.
    """
    if isinstance(exc, errors.ReadOnlySqlTransaction):  # after a failover, this node is a standby
        return DatabaseUnavailable("the server became read-only")
    if isinstance(exc, SESSION_REFUSED) or (exc.sqlstate in NO_SQLSTATE and POOLER_REFUSED.search(str(exc))):
        return NotSent("the session was refused")
    if isinstance(exc, STATEMENT_REFUSED):
        logger.error("the server refused a statement: %s", exc.diag.message_primary)
    elif not isinstance(exc, OperationalError):
        return None
    if cut:
        return ConnectionCut("the connection was cut at the request's deadline")
    if isinstance(exc, (errors.QueryCanceled, errors.LockNotAvailable)):
        return DeadlineExceeded("the statement ran past its limit")
    # Its disk is full, for example.
    unavailable = DatabaseUnavailable("the server could not carry out the statement")
    return ConnectionBroke("the connection broke") if broke else unavailable
