"""What must be true of the server before a request is served: reachable, fit, with the schema in place."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psycopg

from service.database import budget, schema, sessions
from service.database.budget import Budget, ServerUnfit
from service.database.pool import Database
from service.database.schema import SchemaError, Upgrade
from service.database.sessions import Session
from service.settings import Settings, SettingsError
from service.web.health import Readiness

logger = logging.getLogger(__name__)

RETRY = 0.5  # seconds: a service that waits for its database serves within a second of its arrival

# Seconds before a worker serves, though the database has not answered: /livez, and that it is starting.
PATIENCE = 2.0

# A refused connection carries no SQLSTATE. These are mistakes that waiting does not mend.
MISTAKES = (
    "authentication failed",
    "does not exist",
    "no password supplied",
    "not permitted to log in",
    "pg_hba.conf",
    "invalid",  # an sslmode, say
)


class ServerUnreachable(Exception):
    """The server does not answer, or not yet."""


class ServerRefused(Exception):
    """The server answered that these credentials, or this database, are wrong."""


def inspect_server(server: Callable[[], str], settings: Settings) -> tuple[Session, Budget]:
    """Find out how to talk to the server, and check that it can serve `settings`; change nothing.

    Costs a connection and two round trips. Raises ServerUnreachable when it is worth trying again, and
    ServerRefused or ServerUnfit when it is not; each says what is wrong in one line.
    """
    with _inspected(server, settings) as (session, found, _):
        return session, found


def prepare_server(
    server: Callable[[], str], settings: Settings, upgrades: Sequence[Upgrade], say: Callable[[str], None]
) -> Session:
    """Inspect the server and apply the schema: two round trips more when it is in place.

    Raises what `inspect_server` does, and SchemaError.
    """
    with _inspected(server, settings) as (session, _, conn):
        schema.apply(conn, session, upgrades, say)
        return session


@contextmanager
def _inspected(server: Callable[[], str], settings: Settings) -> Iterator[tuple[Session, Budget, psycopg.Connection]]:
    try:
        session, conn = sessions.negotiate(server, settings)
        with conn:
            found = budget.read(conn, settings)
            found.check()
            yield session, found, conn
    except psycopg.Error as exc:
        where = "DATABASE_URL" if settings.database_url else "the database"
        text = f"{where}: {' '.join(str(exc).split())}"  # libpq never puts the password in it
        if not isinstance(exc, psycopg.OperationalError) or any(mistake in text for mistake in MISTAKES):
            raise ServerRefused(text) from exc
        raise ServerUnreachable(text) from exc


class Startup:
    """Brings one worker into service: at once, or when its database arrives."""

    def __init__(
        self,
        server: Callable[[], str],
        settings: Settings,
        upgrades: Sequence[Upgrade],
        database: Database,
        readiness: Readiness,
    ) -> None:
        """Open `database` and clear `readiness` when the server is prepared."""
        self._server = server
        self._settings = settings
        self._upgrades = upgrades
        self._database = database
        self._readiness = readiness
        self._stopped = threading.Event()
        self._tried = threading.Event()
        self._told = ""

    def begin(self) -> None:
        """Try once, for PATIENCE seconds at the most, and go on trying in the background."""
        threading.Thread(target=self._run, name="startup", daemon=True).start()
        self._tried.wait(PATIENCE)

    def stop(self) -> None:
        """Try no more, and do not wait for a try that takes long, behind another process's lock, say."""
        self._stopped.set()
        self._tried.set()

    def _run(self) -> None:
        while not self._stopped.is_set() and not self._try():
            self._tried.set()
            self._stopped.wait(RETRY)
        self._tried.set()

    def _try(self) -> bool:
        try:
            session = prepare_server(self._server, self._settings, self._upgrades, logger.info)
        except SchemaError as exc:
            self._tell("schema", exc)
        except (ServerUnreachable, ServerRefused, ServerUnfit, SettingsError) as exc:
            self._tell("database", exc)
        else:
            self._database.open(session)
            self._readiness.passed()
            return True
        return False

    def _tell(self, failed: str, exc: Exception) -> None:
        self._readiness.fails(failed)
        if str(exc) != self._told:  # once, not twice a second
            self._told = str(exc)
            logger.error("not ready: %s", exc)
