"""What must be true before a request is served: the server is reachable, fits, and has the schema. And how it ends."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import psycopg

from service.database import budget, collations, rights, schema, sessions
from service.database.budget import Budget
from service.database.pool import Database
from service.database.refusals import ConnectFailed, ServerUnfit, one_line
from service.database.schema import Report, SchemaError, Upgrade
from service.database.sessions import STANDBY, TAKES_WRITES, Session
from service.database.threads import start_thread
from service.settings import Settings, SettingsError
from service.web.health import Readiness

logger = logging.getLogger(__name__)

RETRY_INTERVAL = 0.5  # seconds: requests are served within a second of the database's return

# Seconds until a worker begins to answer /livez and /readyz, although the database has not answered.
START_TIMEOUT = 2.0


class ServerUnreachable(Exception):
    """The server does not answer, or not yet."""


class ServerRefused(Exception):
    """The server answered that these credentials, or this database, are wrong."""


def inspect_server(
    server: Callable[[], str], settings: Settings, report: Report, target: str = TAKES_WRITES
) -> tuple[Session, Budget, str]:
    """Find out how to talk to the server, and check that it can serve `settings`; change nothing.

    The last value says whether TLS is in force.

    Costs a connection and four round trips. Raises ServerUnreachable when a retry may help, and ServerRefused or
    ServerUnfit when it does not. The text of each is one line that says what is wrong.
    """
    with _inspected(server, settings, report, target) as (session, found, conn):
        if target == TAKES_WRITES:
            rights.check(conn)
        return session, found, sessions.encryption(conn)


def prepare_server(
    server: Callable[[], str], settings: Settings, upgrades: Sequence[Upgrade], report: Report
) -> tuple[Session, bool]:
    """Inspect the server and apply the schema: five more round trips when the schema is up to date.

    The last value says whether `schema.build_list_indexes` has something to do. Raises what `inspect_server` raises,
    and SchemaError.
    """
    with _inspected(server, settings, report) as (session, _, conn):
        schema.apply(conn, session, upgrades, report)
        rights.check(conn)
        return session, bool(schema.missing_indexes(conn, schema.list_indexes(upgrades)))


@contextmanager
def _inspected(
    server: Callable[[], str], settings: Settings, report: Report, target: str = TAKES_WRITES
) -> Iterator[tuple[Session, Budget, psycopg.Connection]]:
    source = "DATABASE_URL" if settings.database_url else "the database"
    source = "DATABASE_READ_URL" if target == STANDBY else source
    try:
        session, conn = sessions.negotiate(server, settings, target)
        with conn:
            found = budget.read(conn, session, settings)
            found.check()
            if names := collations.mismatches(conn):
                report(collations.warning(names))
            yield session, found, conn
    except ConnectFailed as exc:
        failure = ServerRefused if exc.refusal.is_permanent else ServerUnreachable
        raise failure(f"{source}: {exc}") from exc
    except psycopg.Error as exc:
        failure = ServerUnreachable if isinstance(exc, psycopg.OperationalError) else ServerRefused
        raise failure(f"{source}: {one_line(exc)}") from exc


class Startup:
    """Prepare the server for one worker: at once, or as soon as the database is there."""

    def __init__(
        self,
        server: Callable[[], str],
        settings: Settings,
        upgrades: Sequence[Upgrade],
        database: Database,
        readiness: Readiness,
    ) -> None:
        """Open `database` and set `readiness` once the server is prepared."""
        self._server = server
        self._settings = settings
        self._upgrades = upgrades
        self._database = database
        self._readiness = readiness
        self._stopped = threading.Event()
        self._tried = threading.Event()
        self._last_error = ""
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Try until it succeeds, in the background. Wait for the first try, for START_TIMEOUT seconds at most."""
        start_thread("startup", self._run)
        self._tried.wait(START_TIMEOUT)

    def stop(self) -> None:
        """Stop trying. Do not wait for a try in progress: it may wait for another process's lock."""
        self._stopped.set()
        self._tried.set()
        if self._timer:
            self._timer.cancel()

    def drain_on_sigterm(self, delay: float) -> None:
        """At SIGTERM, turn /readyz to 503 and stop trying; then let the former handler of SIGTERM end the process.

        It does so after `delay` seconds, or at the next SIGTERM: until then, requests are taken. For a worker its
        supervisor waits, and sends SIGUSR1 first; that of `uvicorn --workers` does not.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        former = signal.getsignal(signal.SIGTERM)
        if former is None or former is signal.SIG_IGN:
            return  # a handler that Python cannot restore, or SIGTERM does not end this process

        def drain(*_: object) -> None:
            self._readiness.set_failed("draining")
            self.stop()

        def end(number: int, frame: FrameType | None) -> None:
            nonlocal delay
            drain()
            if delay:
                self._timer = threading.Timer(delay, os.kill, (os.getpid(), number))
                self._timer.daemon = True
                self._timer.start()
                delay = 0
            elif callable(former):
                former(number, frame)
            else:  # SIG_DFL: the signal ends the process, as if this handler had never been
                signal.signal(number, former)
                signal.raise_signal(number)

        if multiprocessing.parent_process():
            delay = 0
            signal.signal(signal.SIGUSR1, drain)
        signal.signal(signal.SIGTERM, end)

    def _run(self) -> None:
        while not self._stopped.is_set() and not self._try():
            self._tried.set()
            self._stopped.wait(RETRY_INTERVAL)

    def _try(self) -> bool:
        try:
            session, incomplete = prepare_server(self._server, self._settings, self._upgrades, logger.info)
        except SchemaError as exc:
            self._report("schema", exc)
        except (ServerUnreachable, ServerRefused, ServerUnfit, SettingsError) as exc:
            self._report("database", exc)
        else:
            self._database.open(session)
            self._readiness.set_failed(None)
            self._tried.set()
            if incomplete:
                self._build_list_indexes(session)
            return True
        return False

    def _build_list_indexes(self, session: Session) -> None:
        try:
            schema.build_list_indexes(session, self._upgrades, logger.info)
        except (SchemaError, SettingsError, ConnectFailed, psycopg.Error) as exc:
            logger.warning("some lists stay slow until the next start: %s", one_line(exc))

    def _report(self, failed: str, exc: Exception) -> None:
        self._readiness.set_failed(failed)
        if str(exc) != self._last_error:  # log it once, not at every try
            self._last_error = str(exc)
            logger.error("not ready: %s", exc)
