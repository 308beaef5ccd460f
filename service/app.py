"""The wiring, top to bottom."""

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from starlette.routing import Route

from service import settings as environment
from service.database.pool import Database
from service.database.watchdog import Watchdog
from service.extras import affinity, docs, embedded, tracing, upgrade
from service.extras.admin import routes as admin
from service.extras.admin.publisher import Parts, Status
from service.extras.cors import Cors
from service.extras.http.backoff import Backoff, LoopLag
from service.extras.http.clients import max_clients
from service.extras.http.early_queue import EarlyQueue
from service.settings import Settings
from service.startup import Startup
from service.telemetry import log, metrics
from service.users.passwords import HASHES_PER_SECOND, cores
from service.users.routes import USERS
from service.web import health
from service.web.admission import Admission, thread_admission
from service.web.endpoint import Resources, endpoint_route
from service.web.health import Readiness
from service.web.middleware import BugMiddleware, RequestMiddleware
from service.web.problems import PROBLEMS, RETRY_AFTER, install
from service.web.resource import Resource
from service.web.workers import Workers

logger = logging.getLogger(__name__)

# Objects that may be left in cycles before they are looked for, then how many of such passes make a larger one.
# With 20 and 20, memory grew by 0.7 MB in each 10,000 requests of the soak test, as the largest pass hardly ever came.
GARBAGE = (10_000, 5, 5)

MAX_LAG = 0.02  # seconds that the event loop may be late before requests that take no thread have to wait

RESOURCES = (USERS,)  # add another resource here

UPGRADES = (upgrade.UPGRADE,)

DATA = Path(__file__).parents[1] / ".data"  # of the embedded PostgreSQL


def create_app(settings: Settings | None = None, *, resources: Sequence[Resource] = RESOURCES) -> FastAPI:
    """Return the service with `resources`, ready to be started by an ASGI server; it connects when it is."""
    settings = settings or _settings_or_exit()
    log.configure(settings.log_format)

    # Threads = connections: one number, two uses. Everything else waits in `queue`, on the event loop.
    workers = Workers(settings.worker_threads)
    queue = thread_admission(workers, queue_length=settings.queue_length, queue_wait=settings.queue_wait)
    at_once = cores(settings.workers)
    hashing = Admission(
        at_once,
        backlog=int(at_once + 1 < workers.size),  # one more is at hand, where that leaves a thread to all else
        name="hashing",
        queue_length=min(settings.queue_length, int(at_once * HASHES_PER_SECOND * settings.queue_wait)),
        queue_wait=settings.queue_wait,
    )
    database = Database(
        size=workers.size,
        watchdog=Watchdog(leak_threshold=settings.leak_threshold),
        cursor_class=tracing.cursor_class,
    )
    readiness = Readiness()
    status = Status(Parts(workers, queue, hashing, database))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            stack.callback(log.finish)
            server = stack.enter_context(embedded.running(DATA)) if settings.embedded else settings.server
            startup = Startup(server, settings, UPGRADES, database, readiness)
            stack.callback(database.close)
            stack.callback(startup.stop)
            _drain_at_the_end(readiness, startup)
            _end_with_the_supervisor()
            if settings.worker_affinity:
                logger.info(affinity.settle())
            await anyio.to_thread.run_sync(startup.begin)
            _spare_the_collector()
            await stack.enter_async_context(workers.running())
            await stack.enter_async_context(status.telling())
            lag = LoopLag()
            lag.start(asyncio.get_running_loop())
            yield {  # for extras/http/protocol.py
                "early_queue": EarlyQueue(queue, app.routes, traced=tracing.configured()),
                **_backoffs(queue, hashing, lag),
                "max_clients": max_clients(workers.size),
            }

    app = FastAPI(
        title="Users",
        version="1.0.0",
        description="A users API whose database connections hold under load.",
        lifespan=lifespan,
        openapi_url=None,  # extras/docs.py has it
        redirect_slashes=False,  # web/middleware.py answers both forms
        telemetry=tracing.CONFIGURATION,
    )
    table = dict(PROBLEMS)
    for resource in resources:
        table.update(resource.problems)
    install(app, table)
    app.add_middleware(BugMiddleware, table=table)  # innermost; the last one added is outermost
    if settings.allowed_origins:
        app.add_middleware(Cors, origins=settings.allowed_origins)
    app.add_middleware(tracing.HideQuery)
    app.add_middleware(RequestMiddleware, max_body_size=settings.max_body_size)

    route_class = endpoint_route(Resources(workers, queue, hashing, settings.request_deadline))
    links = {resource.path.strip("/"): resource.path for resource in resources}
    for router in (
        *(resource.routes(database, route_class) for resource in resources),
        health.routes(readiness, workers, database, message=app.description, links=links),
        admin.routes(settings),
        docs.routes(app),
    ):
        app.router.routes.extend(router.routes)  # flat, as include_router costs 8 % of a small request
    metrics.declare(
        (route.path_format, sorted(route.methods or ())) for route in app.routes if isinstance(route, Route)
    )
    return app


def _backoffs(queue: Admission, hashing: Admission, lag: LoopLag) -> dict[str, Backoff]:
    """Return who waits before a request is read, or an answer sent, for which no thread is taken."""

    def served() -> int:
        return queue.released

    def is_at_rest() -> bool:
        return not queue.in_flight and lag.seconds < MAX_LAG

    return {
        # After a 503, for those that come again before Retry-After.
        "refused_backoff": Backoff(
            rate=50, share=1 / 8, served=served, longest=5, pause=RETRY_AFTER,
            has_room=lambda: bool(queue.free and hashing.free),
        ),
        # After any other answer that took no thread.
        "cheap_backoff": Backoff(rate=100, share=1 / 4, served=served, longest=5, has_room=is_at_rest),
        # New connections, and the last answers on others: probes are among them, which give up after a second.
        "reconnect_backoff": Backoff(rate=100, share=1 / 4, served=served, longest=0.5, has_room=is_at_rest),
    }  # fmt: skip


def _spare_the_collector() -> None:
    """Leave what lives as long as the process out of every garbage collection, and collect less often.

    A full pass over the modules alone takes 70 ms, in which nothing else runs: it was the p99.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)


def _settings_or_exit() -> Settings:
    try:
        return environment.load()
    except environment.SettingsError as exc:
        print(exc, file=sys.stderr)  # noqa: T201 - before there is a log
        raise SystemExit(2) from None


def _drain_at_the_end(readiness: Readiness, startup: Startup) -> None:
    """Turn /readyz to 503 at SIGTERM, then let the server finish what is in progress."""
    if threading.current_thread() is not threading.main_thread():
        return
    finish = signal.getsignal(signal.SIGTERM)

    def drain(number: int, frame: FrameType | None) -> None:
        readiness.fails("draining")
        startup.stop()
        if callable(finish):
            finish(number, frame)

    signal.signal(signal.SIGTERM, drain)


def _end_with_the_supervisor() -> None:
    """End this worker when the process that started it was killed: it would hold the port for ever."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return

    def wait() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervisor-watch", daemon=True).start()
