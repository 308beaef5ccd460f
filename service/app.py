"""The wiring, top to bottom."""

import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI
from starlette.types import ASGIApp

from service import settings as environment
from service.database.threads import start_thread
from service.database.watchdog import Watchdog
from service.extras import affinity, docs, replicas, systemd, tracing, upgrade
from service.extras.admin import routes as admin
from service.extras.admin.publisher import MetricsPublisher
from service.extras.cors import Cors
from service.extras.http.early_queue import EarlyQueue
from service.extras.http.state import http_state
from service.extras.log_quota import LogQuota
from service.extras.log_writer import WRITER
from service.extras.replicas import ReadRouting, ReplicatedDatabase
from service.machine import check_threads, end_with_parent
from service.settings import Settings
from service.startup import Startup
from service.telemetry import log
from service.users.passwords import HASHES_PER_SECOND, concurrent_hashes, start_threads
from service.users.routes import USERS
from service.web import health, idempotency
from service.web.access import Access
from service.web.admission import Admission, expiring
from service.web.background import in_background
from service.web.endpoint import Runtime
from service.web.health import Readiness
from service.web.middleware import ProblemMiddleware, RequestMiddleware
from service.web.problems import PROBLEMS
from service.web.resource import Resource
from service.web.root_path import RootPath
from service.web.routing import EventLoopRoute, check_routes, endpoint_route, not_found
from service.web.stalled_commits import StalledCommits
from service.web.workers import BACKLOG, Workers

logger = logging.getLogger(__name__)

# Thresholds of the garbage collector: new objects before a pass over the young ones, then passes before a larger one.
# With 20 and 20, a full pass was so rare that memory grew by 0.7 MB in each 10,000 requests of the soak test.
GARBAGE = (10_000, 5, 5)

THREAD_LIMITS = ": the limit of threads (pids.max of a container, TasksMax, ulimit -u) is too low for WORKER_THREADS"
# Of a worker, at most: psycopg_pool has 4, FastAPI 1, each of our background tasks 1. Twice that with replicas.
OTHER_THREADS = 16

RESOURCES = (USERS,)  # add another resource here

UPGRADES = (upgrade.UPGRADE, idempotency.UPGRADE)


class StartError(Exception):
    """The machine does not allow what the settings ask for; the text is one line."""


def create_app(settings: Settings | None = None, *, resources: Sequence[Resource] = RESOURCES) -> FastAPI:  # noqa: PLR0915 - the wiring
    """Return the service with `resources`, ready to be started by an ASGI server; it connects when it is."""
    settings = settings or _settings_or_exit()
    quota = LogQuota()
    log.configure(settings.log_format, WRITER.write, quota.is_logged)

    # Threads = connections: one number, two uses. Everything else waits in `queue`, on the event loop.
    workers = Workers(settings.worker_threads)
    backlog = min(BACKLOG * workers.size, settings.queue_length)
    queue = Admission(
        workers.size,
        backlog=backlog,
        name="threads",
        queue_length=settings.queue_length - backlog,
        queue_wait=settings.queue_wait,
    )
    at_once = concurrent_hashes(settings.workers, workers.size)
    hashing = Admission(
        at_once,
        backlog=int(at_once + 1 < workers.size),  # one more is ready, if that leaves a thread for other requests
        name="hashing",
        queue_length=min(settings.queue_length, int(at_once * HASHES_PER_SECOND * settings.queue_wait)),
        queue_wait=settings.queue_wait,
    )
    watchdog = Watchdog(leak_threshold=settings.leak_threshold)
    database = replicas.database(settings, workers.size, watchdog, tracing.connection_class)
    readiness = Readiness()
    stalled_commits = StalledCommits(workers, database, patience=min(2.0, settings.request_deadline / 4))
    publisher = MetricsPublisher(workers, queue, hashing, database)
    access = Access(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            check_routes(app.routes)
            stack.callback(WRITER.flush)
            stack.callback(quota.summarize)
            startup = Startup(settings.server, settings, UPGRADES, database, readiness)
            stack.callback(database.close)
            stack.callback(startup.stop)
            startup.drain_on_sigterm(settings.drain_delay)
            with _limits_reported():
                check_threads(workers.size + at_once + OTHER_THREADS * (2 if settings.watch_connections else 1))
                end_with_parent(signal.SIGTERM)  # a worker whose supervisor was killed would hold the port for ever
                if settings.worker_affinity:
                    logger.info(affinity.pin())
                start_threads(at_once)
                await stack.enter_async_context(workers.running())
                if isinstance(database, ReplicatedDatabase):
                    start_thread("replica", database.run_replica)
                await anyio.to_thread.run_sync(startup.begin)
                _spare_the_collector()
                await stack.enter_async_context(expiring(queue.expire, hashing.expire, workers.expire))
                await stack.enter_async_context(in_background(idempotency.sweep(workers, database, stalled_commits)))
                await stack.enter_async_context(in_background(stalled_commits.watch()))
                await stack.enter_async_context(publisher.run(app.routes))
            systemd.notify("READY=1")
            early_queue = EarlyQueue(queue, access, app.routes, settings.root_path, traced=tracing.configured())
            yield {"http": http_state(early_queue, hashing)}

    app = FastAPI(
        title="Users",
        version="1.0.0",
        description="A users API whose database connections hold under load.",
        lifespan=lifespan,
        openapi_url=None,  # extras/docs.py has it
        servers=[{"url": settings.root_path}] if settings.root_path else None,
        redirect_slashes=False,  # web/middleware.py answers both forms
        telemetry=tracing.configuration(),
    )
    app.state.access = access
    app.router.default = not_found
    table = dict(PROBLEMS)
    for resource in resources:
        table.update(resource.problems)

    route_class = endpoint_route(Runtime(workers, queue, hashing, stalled_commits, settings.request_deadline))
    paths = (*(resource.path for resource in resources), "/docs", "/readyz")
    links = {path.strip("/"): settings.root_path + path for path in paths}
    for router in (
        *(resource.routes(database, route_class) for resource in resources),
        health.routes(readiness, workers, database, message=app.description, links=links),
        admin.routes(publisher, settings.root_path),
        docs.routes(app, settings.root_path, has_replicas=settings.database_read_url is not None),
    ):
        app.router.routes.extend(router.routes)  # flat, as include_router costs 8 % of a small request

    app.router.route_class = EventLoopRoute  # of `@app.get`
    # In place of FastAPI's own stack, of which five layers would do nothing here.
    stack: ASGIApp = ProblemMiddleware(app.router, table=table)
    if isinstance(database, ReplicatedDatabase):
        stack = ReadRouting(stack)
    if settings.allowed_origins:
        stack = Cors(stack, origins=settings.allowed_origins)
    if tracing.is_wanted():
        stack = tracing.HideQuery(stack)
    stack = RequestMiddleware(stack, max_body_size=settings.max_body_size, readiness=readiness)
    if settings.root_path:
        stack = RootPath(stack, root_path=settings.root_path)
    app.build_middleware_stack = lambda: stack  # type: ignore[method-assign]
    return app


def _spare_the_collector() -> None:
    """Leave what lives as long as the process out of every garbage collection, and collect less often.

    A full pass over the modules alone takes 70 ms, during which nothing else runs: that was the p99.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)


@contextmanager
def _limits_reported() -> Iterator[None]:
    """Raise StartError when the system refuses a thread or a file: after the start, a request would fail."""
    try:
        yield
    except (OSError, RuntimeError) as exc:
        refused = "new thread" in str(exc)
        if isinstance(exc, RuntimeError) and not refused:
            raise
        sys.tracebacklimit = 0  # Starlette logs the exception with its traceback
        raise StartError(f"{exc}{THREAD_LIMITS if refused else ''}") from None


def _settings_or_exit() -> Settings:
    try:
        environment.export_telemetry()
        for line in environment.remove_libpq_variables():  # `serve` has removed and reported them for its workers
            print(line, file=sys.stderr)  # noqa: T201 - before there is a log
        settings = environment.load()
        settings.server()  # refuse to start without a database, as `serve` does: any ASGI server may be in production
    except environment.SettingsError as exc:
        print(exc, file=sys.stderr)  # noqa: T201 - before there is a log
        raise SystemExit(2) from None
    return settings
