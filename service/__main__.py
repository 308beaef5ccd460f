"""The command line: run, serve, check, schema."""

import argparse
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import itemgetter
from pathlib import Path

import uvicorn
from uvicorn.supervisors import ChangeReload

from service import settings as environment
from service.app import DATA, UPGRADES
from service.database.budget import ServerUnfit
from service.database.schema import SchemaError
from service.extras import embedded
from service.extras.embedded import EmbeddedError
from service.extras.http import clients
from service.extras.http.supervisor import Supervisor
from service.settings import Settings, SettingsError
from service.startup import ServerRefused, ServerUnreachable, inspect_server, prepare_server
from service.telemetry import log

WRONG = 2  # exit status: something is to be corrected
FAILED = 3  # exit status of uvicorn: the application could not be started

# Seconds that an idle connection stays open: longer than the 60 of usual proxies and load balancers, so that it is
# they who close it. At uvicorn's 5 a request now and then met the closing, and a client saw its connection reset.
KEEP_ALIVE = 75

# Seconds a worker has to start in, and to answer its supervisor: uvicorn's 5 give up on healthy ones when all is busy.
WORKER_PATIENCE = 30

# Clients that a worker accepts in one turn of its event loop: libuv accepts one from each listening socket, and these
# are copies of one. With one alone, of 200 new clients a second beside a crowd of 300, half waited for 1.1 s to be
# refused and some for 2.1; of 600 a second with 4, 0.7 and 1.0 s, and with 16, 13 and 34 ms.
ACCEPTS = 16

# Where workers share them: with 8 and more, one of two took up to 15 of 16 clients that came at once. With 4 they share
# as with one, and of 400 new clients a second beside 700, half wait for 23 ms and some for 49, not for 1.4 and 2.7 s.
ACCEPTS_SHARED = 4

logger = logging.getLogger("service")

say = partial(print, flush=True)  # progress is to be seen as it is made, in a file or a pipe too


def main() -> None:
    """Do what the command line says; a mistake of the user's is told in one line, with exit status 2."""
    _open_closed_streams()
    parser = argparse.ArgumentParser(prog="python -m service", description="A users API over PostgreSQL.")
    commands = {"run": run, "serve": serve, "check": check, "schema": schema}
    parser.add_argument(
        "command", choices=commands, help="develop with reload, serve, check the settings, or apply schema.sql"
    )
    command = commands[parser.parse_args().command]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that `with` blocks end, and PostgreSQL with them
    # The terminal was closed: as SIGTERM. With several workers uvicorn takes it for "replace them one by one".
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        command(environment.load())
    except (SettingsError, EmbeddedError, ServerRefused, ServerUnfit, SchemaError, ServerUnreachable) as exc:
        print(exc, file=sys.stderr)
        sys.exit(WRONG)
    except KeyboardInterrupt:
        sys.exit(130)  # as shells have it for Ctrl-C


def _open_closed_streams() -> None:
    """Open /dev/null for each standard stream that is closed, or the next file or socket takes its descriptor."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: PTH123, SIM115 - for as long as the process lives
            os.set_inheritable(stream.fileno(), True)  # noqa: FBT003 - by the workers and PostgreSQL
            setattr(sys, name, stream)


def run(settings: Settings) -> None:
    """Develop: one process that starts anew when a file under service/ changes."""
    form = settings.log_format if "log_format" in settings.model_fields_set else "text"
    os.environ["LOG_FORMAT"] = form  # for the process that it starts
    _start(settings.model_copy(update={"workers": 1, "log_format": form}), reload=True)


def serve(settings: Settings) -> None:
    """Serve in production: WORKERS processes."""
    _start(settings, reload=False)


def check(settings: Settings) -> None:
    """Print the settings in force, without secrets, and what the server says to them."""
    for name in Settings.model_fields:
        value = getattr(settings, name)
        print(f"{name.upper()}={'' if value is None else value}")
    with _server(settings) as server:
        session, budget = inspect_server(server, settings)
    print(f"PostgreSQL {budget.version}{' behind a transaction pooler' if session.session_setup else ''}")
    print(f"connections: {budget}")


def schema(settings: Settings) -> None:
    """Apply schema.sql to the configured database."""
    with _server(settings) as server:
        prepare_server(server, settings, UPGRADES, say)
    print("the schema is up to date")


def _start(settings: Settings, *, reload: bool) -> None:
    log.configure(settings.log_format)
    # In this order: the second may take long.
    with _bind(settings) as address, _server(settings, logger.info) as server:
        try:
            prepare_server(server, settings, UPGRADES, logger.info)
        except ServerUnreachable as exc:
            logger.warning("the database does not answer, /readyz is 503 until it does: %s", exc)
        config = uvicorn.Config(
            "service.app:create_app",
            factory=True,
            workers=settings.workers,
            reload=reload,
            reload_dirs=[str(Path(__file__).parent)] if reload else None,
            timeout_graceful_shutdown=math.ceil(settings.graceful_shutdown_timeout),
            timeout_keep_alive=KEEP_ALIVE,
            timeout_worker_healthcheck=WORKER_PATIENCE,
            log_config=None,  # service/telemetry/log.py
            http="service.extras.http.protocol:Protocol",
            access_log=False,  # service/web/middleware.py writes it, with the request's id
            server_header=False,
            proxy_headers=False,  # extras/admin/routes.py asks who is there, and not who says to be
        )
        sockets = _listen(address, config, settings)
        if settings.workers > 1:
            supervisor = Supervisor(config, sockets)
            supervisor.run()
            if any(each.exitcode == FAILED for each in supervisor.processes):
                sys.exit(FAILED)
        elif reload:
            ChangeReload(config, uvicorn.Server(config).run, sockets).run()
        else:
            with suppress(KeyboardInterrupt):  # it has ended as it should
                uvicorn.Server(config).run(sockets)


def _bind(settings: Settings) -> socket.socket:
    with _address_is_told(settings):
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = min(found, key=itemgetter(0))  # IPv4 when there are both, as for localhost
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        clients.limit_buffers(bound)
        if family == socket.AF_INET6:  # or :: would take IPv4 too, whose clients seem to come from elsewhere
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
        return bound


def _listen(bound: socket.socket, config: uvicorn.Config, settings: Settings) -> list[socket.socket]:
    with _address_is_told(settings):
        bound.listen(config.backlog)  # who comes before all has started waits for it
    host, port = bound.getsockname()[:2]
    logger.info("running on http://%s:%d (Ctrl-C stops it)", f"[{host}]" if ":" in host else host, port)
    accepts = ACCEPTS if settings.workers == 1 else ACCEPTS_SHARED
    return [bound, *(bound.dup() for _ in range(1, accepts))]


@contextmanager
def _address_is_told(settings: Settings) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as exc:
        raise SettingsError(
            f"HOST={settings.host} PORT={settings.port} cannot be listened on: {getattr(exc, 'strerror', exc)}"
        ) from exc


@contextmanager
def _server(settings: Settings, say: Callable[[str], object] = say) -> Iterator[Callable[[], str]]:
    """Have a server while the block runs; yields what returns its connection string."""
    if not settings.embedded:
        yield settings.server
        return
    with embedded.running(DATA) as server:
        say(f"Using the embedded PostgreSQL, data in {DATA}; set DATABASE_URL to use your own.")
        yield server


if __name__ == "__main__":
    main()
