"""What must be true of the server before a request is served: reachable, fit, with the schema in place."""

import logging
import threading
from collections.abc import Callable

import psycopg

from service.database import budget, schema
from service.database.budget import Budget, ServerUnfit
from service.database.pool import Database
from service.database.schema import SchemaError
from service.http.health import Readiness
from service.settings import Settings
from service.users import upgrade

logger = logging.getLogger(__name__)

RETRY = 0.5  # seconds: a service that waits for its database serves within a second of its arrival

# A refused connection carries no SQLSTATE. These are mistakes that waiting does not mend.
MISTAKES = ("authentication failed", "does not exist", "pg_hba.conf", "no password supplied", "not permitted to log in")


class ServerUnreachable(Exception):
    """The server does not answer, or not yet."""


class ServerRefused(Exception):
    """The server answered that these credentials, or this database, are wrong."""


def prepare_server(conninfo: str, settings: Settings, say: Callable[[str], None]) -> Budget:
    """Check the server and apply the schema. Costs a connection and two round trips when all is well.

    Raises ServerUnreachable when it is worth trying again, and ServerRefused, ServerUnfit or SchemaError
    when it is not; each says what is wrong in one line.
    """
    try:
        with psycopg.connect(conninfo, autocommit=True) as conn:
            found = budget.read(conn, settings)
            found.check()
            schema.apply(conn, conninfo, prepare=upgrade.prepare, say=say)
            return found
    except psycopg.OperationalError as exc:
        text = " ".join(str(exc).split())  # libpq never puts the password in it
        if any(mistake in text for mistake in MISTAKES):
            raise ServerRefused(text) from exc
        raise ServerUnreachable(text) from exc


class Startup:
    """Brings one worker into service: at once, or when its database arrives."""

    def __init__(self, conninfo: str, settings: Settings, database: Database, readiness: Readiness) -> None:
        """Open `database` and clear `readiness` when the server is prepared."""
        self._conninfo = conninfo
        self._settings = settings
        self._database = database
        self._readiness = readiness
        self._stopped = threading.Event()
        self._told = ""

    def begin(self) -> None:
        """Try once, then go on trying in the background."""
        if not self._try():
            threading.Thread(target=self._go_on, name="startup", daemon=True).start()

    def stop(self) -> None:
        """Try no more."""
        self._stopped.set()

    def _go_on(self) -> None:
        while not self._stopped.wait(RETRY) and not self._try():
            pass

    def _try(self) -> bool:
        try:
            prepare_server(self._conninfo, self._settings, logger.info)
        except SchemaError as exc:
            self._tell("schema", exc)
        except (ServerUnreachable, ServerRefused, ServerUnfit) as exc:
            self._tell("database", exc)
        else:
            self._database.open(self._conninfo)
            self._readiness.failed = None
            return True
        return False

    def _tell(self, failed: str, exc: Exception) -> None:
        self._readiness.failed = failed
        if str(exc) != self._told:  # once, not twice a second
            self._told = str(exc)
            logger.error("not ready: %s", exc)
