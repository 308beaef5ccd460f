"""The command line: run, serve, check, schema, psql, backup, restore, export, import, key, unit."""

import argparse
import ipaddress
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from socket import socket

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import ChangeReload

from service import settings as environment
from service.app import UPGRADES
from service.database.refusals import ServerUnfit
from service.database.schema import SCHEMA, SchemaError, build_list_indexes
from service.database.sessions import STANDBY
from service.extras import client_programs, embedded, systemd, transfer
from service.extras.client_programs import ProgramError
from service.extras.embedded import EmbeddedError
from service.extras.http import listen
from service.extras.http.supervisor import Supervisor
from service.extras.log_writer import WRITER
from service.extras.transfer import TransferError
from service.settings import Settings, SettingsError
from service.startup import ServerRefused, ServerUnreachable, inspect_server, prepare_server
from service.telemetry import log
from service.web.api_keys import GRANTS, ApiKeys, add_key

DATA = Path(__file__).parents[1] / ".data"  # of the embedded PostgreSQL

PAGE_FILES = ["*.sql", "*.html", "*.css", "*.js", "*.svg"]  # that change what `run` serves, besides Python's

# What the user can correct: exit status 2.
USAGE_ERRORS = (SettingsError, EmbeddedError, ProgramError, ServerRefused, ServerUnfit, SchemaError, ServerUnreachable)

# Seconds that a worker may take to start, and to answer its supervisor. Healthy workers of a busy machine exceed
# uvicorn's 5.
WORKER_TIMEOUT = 30

logger = logging.getLogger("service")

report = partial(print, flush=True)  # progress must be visible at once, in a file or a pipe too


def warn(text: object) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr)


def main() -> None:
    """Run the command. What the user can correct ends it with one line on standard error and exit status 2."""
    _open_closed_streams()
    parser = argparse.ArgumentParser(prog="python -m service", description="A users API over PostgreSQL.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (run, serve, check, schema, psql, backup, restore, export, import_, key, unit):
        words = (command.__doc__ or "").partition("\n")[0]
        commands.add_parser(command.__name__.rstrip("_"), help=words, description=words).set_defaults(command=command)
    now = f"users-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.dump"
    commands.choices["backup"].add_argument("file", type=Path, nargs="?", default=now)
    commands.choices["restore"].add_argument("file", type=Path)
    commands.choices["export"].add_argument("file", type=Path, nargs="?", help="a new file; default: standard output")
    commands.choices["import"].add_argument("file", type=Path, nargs="?", help="default, or -: standard input")
    commands.choices["import"].add_argument("--dry-run", action="store_true", help="check all lines and change nothing")
    commands.choices["import"].add_argument("--skip-bad", type=Path, metavar="BADFILE", help="a new file for bad lines")
    commands.choices["key"].add_argument("name", help="whom it is for, as the log shows it")
    commands.choices["key"].add_argument("--scope", choices=GRANTS, required=True)
    arguments = vars(parser.parse_args())
    command = arguments.pop("command")
    stopped = 0 if command in (run, serve) else 128 + signal.SIGTERM  # the exit status; the others have not finished
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(stopped))  # so that `with` blocks end, and PostgreSQL with them
    # The terminal was closed: end, as at SIGTERM. With several workers, uvicorn replaces them one by one at SIGHUP.
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        for line in (*environment.remove_libpq_variables(), *environment.near_misses()):
            warn(line)
        settings = environment.load()
        for line in settings.warnings:
            warn(line)
        command(settings, **arguments)
    except TransferError as exc:
        sys.exit(str(exc))
    except USAGE_ERRORS as exc:
        warn(exc)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)  # the exit status that shells give to Ctrl-C


def _open_closed_streams() -> None:
    """Open /dev/null for each standard stream that is closed. Otherwise the next file or socket gets its descriptor."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: PTH123, SIM115 - for as long as the process lives
            os.set_inheritable(stream.fileno(), True)  # noqa: FBT003 - by the workers and PostgreSQL
            setattr(sys, name, stream)


def run(settings: Settings) -> None:
    """Develop: one process that restarts when schema.sql or a file under service/ changes."""
    os.environ["WORKERS"] = "1"  # in the environment, as the process that serves reads its settings there
    # An editor replaces a file, and the kernel's notifications about schema.sql would end with the first one.
    os.environ.setdefault("WATCHFILES_FORCE_POLLING", "true")
    if "log_format" not in settings.model_fields_set:
        os.environ["LOG_FORMAT"] = "text"
    _start(environment.load(), reload=True)


def serve(settings: Settings) -> None:
    """Serve in production: WORKERS processes.

    Raises SettingsError when no database is configured.
    """
    settings.server()
    _start(settings, reload=False)


def check(settings: Settings) -> None:
    """Print the settings in force, without secrets, and whether the server can serve them."""
    for name in Settings.model_fields:
        value = getattr(settings, name)
        print(f"{name.upper()}={'' if value is None else value}")
    with _with_database(settings, report) as configured:
        inspected = {"": inspect_server(configured.server, configured, report)}
        if settings.database_read_url:
            inspected["replica: "] = inspect_server(configured.read_server, configured, report, STANDBY)
    for name, (session, budget, encryption) in inspected.items():
        print(f"{name}PostgreSQL {budget.version}{' behind a pooler' if session.session_setup else ''}")
        print(f"{name}TLS: {encryption}")
        print(f"{name}connections: {budget}")


def schema(settings: Settings) -> None:
    """Apply schema.sql to the configured database."""
    with _with_database(settings, report) as configured:
        session, incomplete = prepare_server(configured.server, configured, UPGRADES, report)
        if incomplete:
            build_list_indexes(session, UPGRADES, report)
    print("the schema is up to date")


def psql(settings: Settings) -> None:
    """Open a shell on the configured database, or on the embedded one."""
    with _with_database(settings, warn) as configured:
        status = client_programs.shell(configured.server())
    sys.exit(status)


def backup(settings: Settings, file: Path) -> None:
    """Write a backup of the database to a new file, which only its owner may read."""
    with _with_database(settings, warn) as configured:
        client_programs.back_up(configured.server(), file)
    print(f"{file} holds the database; `make restore FILE={file}` puts it back")


def restore(settings: Settings, file: Path) -> None:
    """Put a backup back into an empty database, and bring its schema up to date."""
    with _with_database(settings, warn) as configured:
        if warnings := client_programs.restore(configured.server(), file):
            warn(warnings)
        prepare_server(configured.server, configured, UPGRADES, report)
    print(f"the database holds what {file} held")


def export(settings: Settings, file: Path | None) -> None:
    """Write all users as NDJSON, with the hashes of their passwords, to a file or to standard output."""
    try:
        with _with_database(settings, warn) as configured:
            session, _, _ = inspect_server(configured.server, configured, warn)
            transfer.export_users(session, file, warn)
    except BrokenPipeError:  # the reader has enough; Python would complain when it closes standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def import_(settings: Settings, file: Path | None, skip_bad: Path | None, *, dry_run: bool) -> None:
    """Create a user for each line of NDJSON that is not there yet. Change nothing when a line is bad.

    The lines are as `export` writes them; each has a password_hash, of Argon2id or bcrypt, or a password.
    """
    with _with_database(settings, warn) as configured:
        session, _ = prepare_server(configured.server, configured, UPGRADES, warn)
        transfer.import_users(session, None if file == Path("-") else file, skip_bad, warn, dry_run=dry_run)


def key(settings: Settings, name: str, scope: str) -> None:
    """Make an API key: print it, append its hash to API_KEYS_FILE. Nothing shows it again."""
    if settings.api_keys_file is None:
        raise SettingsError(f"API_KEYS_FILE is missing: it takes {environment.takes('api_keys_file')}")
    print(add_key(settings.api_keys_file, name, scope))
    print(f"Its hash is in {settings.api_keys_file}: delete the line to revoke it.", file=sys.stderr)


def unit(settings: Settings) -> None:
    """Print a unit for systemd."""
    print(systemd.unit(settings), end="")


def _check_access(settings: Settings, bound: Sequence[socket]) -> str:
    """Return who may do what, in one line. Raises SettingsError when that is more than anybody has asked for."""
    if settings.is_local_only:
        if not all(ipaddress.ip_address(each.getsockname()[0]).is_loopback for each in bound):
            raise SettingsError(
                f"HOST={settings.host}: without API keys only this machine may reach the service. Set API_KEYS_FILE"
                " and make a key with `python -m service key`, or ANONYMOUS_ACCESS=read or write if everybody is meant"
            )
        return "whoever is on this machine may do everything: no API keys are set (API_KEYS_FILE)"
    others = f"whoever has none may {settings.anonymous_access or 'do nothing'}"
    if settings.api_keys_file is None:
        return f"no API keys are set, so nobody may see /metrics and /pool; {others}"
    if not os.access(settings.api_keys_file, os.R_OK):
        raise SettingsError(
            f"API_KEYS_FILE={settings.api_keys_file} cannot be read:"
            " `python -m service key NAME --scope read` makes it, with a key in it"
        )
    return f"API keys in {settings.api_keys_file}: {len(ApiKeys(settings.api_keys_file))}; {others}"


def _start(settings: Settings, *, reload: bool) -> None:
    log.configure(settings.log_format, WRITER.write)
    # Bind first: to start PostgreSQL may take long.
    with listen.bind(settings) as bound, _with_database(settings, logger.info) as configured:
        logger.info(_check_access(settings, bound))
        if os.geteuid() == 0 and not reload:
            logger.info("serving as root: whoever breaks in has the whole machine; run it as an ordinary user")
        try:
            prepare_server(configured.server, configured, UPGRADES, logger.info)
        except ServerUnreachable as exc:
            logger.warning("the database does not answer, /readyz is 503 until it does: %s", exc)
        config = uvicorn.Config(
            "service.app:create_app",
            factory=True,
            workers=settings.workers,
            reload=reload,
            reload_dirs=[str(Path(__file__).parent)] if reload else None,
            reload_includes=PAGE_FILES if reload else None,
            timeout_graceful_shutdown=math.ceil(settings.graceful_shutdown_timeout),
            timeout_keep_alive=settings.keep_alive,
            timeout_worker_healthcheck=WORKER_TIMEOUT,
            log_config=None,  # service/telemetry/log.py
            http="service.extras.http.protocol:Protocol",
            access_log=False,  # service/web/middleware.py writes it, with the request's id
            server_header=False,
            proxy_headers=False,  # web/access.py needs the real peer, not what a header claims
        )
        if reload:
            logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it also counts what reloads nothing
            config.reload_dirs.append(SCHEMA)  # uvicorn's parameter takes folders only
        sockets = listen.listen(bound, config.backlog, settings)
        logger.info("running on %s (Ctrl-C stops it)", ", ".join(map(listen.url, bound)))
        if settings.workers > 1:
            supervisor = Supervisor(config, sockets, drain_delay=settings.drain_delay)
            supervisor.run()
            if supervisor.failed_to_start:
                sys.exit(STARTUP_FAILURE)
        elif reload:
            ChangeReload(config, uvicorn.Server(config).run, sockets).run()
        else:
            with suppress(KeyboardInterrupt):  # uvicorn raises it after a graceful shutdown
                uvicorn.Server(config).run(sockets)


@contextmanager
def _with_database(settings: Settings, report: Callable[[str], object]) -> Iterator[Settings]:
    """Start the embedded PostgreSQL while the block runs, unless a database is configured; yield settings with one."""
    if settings.has_database:
        yield settings
        return
    with embedded.running(DATA) as variables:
        report(f"Using the embedded PostgreSQL, data in {DATA}; set DATABASE_URL to use your own.")
        os.environ.update(variables)  # for the process that `run` starts
        yield environment.load()


if __name__ == "__main__":
    main()
