"""Publishes what this worker counts and does, so that any worker can show /metrics and /pool of all workers.

A request for these does not ask the database: one of the workers does, every five seconds.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress

import psycopg
from prometheus_client import REGISTRY
from prometheus_client.registry import Collector
from starlette.routing import BaseRoute

from service.database.errors import DatabaseFailure
from service.database.pool import Database
from service.database.refusals import one_line
from service.database.watchdog import DEADLINE
from service.extras.admin.exposition import AllWorkers, Snapshot
from service.extras.admin.history import Json, PoolHistory
from service.extras.admin.pool_state import PoolState
from service.extras.admin.server_stats import NAME, server_stats
from service.extras.admin.worker_files import WorkerFiles
from service.telemetry import metrics
from service.telemetry.record import RECORD, Record
from service.web.admission import Admission, Overloaded
from service.web.background import in_background
from service.web.routing import EndpointRoute
from service.web.workers import Workers

logger = logging.getLogger(__name__)

PUBLISH_PERIOD = 0.5  # seconds: SIGKILL loses the counts of as many
ASK_PERIOD = 5.0  # seconds between two questions to the database
RETRY_PERIOD = 1.0  # seconds, while it does not answer
ASK_TIMEOUT = 2.0  # seconds

FILE = "pool"


class MetricsPublisher:
    """Of one worker."""

    def __init__(self, workers: Workers, queue: Admission, hashing: Admission, database: Database) -> None:
        self._workers = workers
        self._database = database
        self._state = PoolState(workers, queue, hashing, database)
        self._files = WorkerFiles()
        self._metrics = AllWorkers(self._files)
        self._history = PoolHistory(self._files, database.outage)

    @asynccontextmanager
    async def run(self, routes: Iterable[BaseRoute]) -> AsyncIterator[None]:
        """Publish while the block runs. Raises OSError when temporary files cannot be written."""
        self._files.open()
        self._history.open({route.path_format for route in routes if isinstance(route, EndpointRoute)})
        REGISTRY.register(self._state)
        metrics.WORKER_STARTS.inc()
        self._metrics.open()
        self._files.write(FILE, self._state.json())
        stopped = threading.Event()
        thread = threading.Thread(target=self._publish_until, args=[stopped], name="metrics", daemon=True)
        thread.start()
        try:
            async with in_background(self._ask_regularly()):
                yield
        finally:
            stopped.set()
            thread.join()
            with suppress(OSError):
                self._metrics.publish()
            REGISTRY.unregister(self._state)
            self._files.close()

    def metrics(self, encode: Callable[[Collector], bytes]) -> bytes:
        """Return /metrics, in the format of `encode`. Takes 5 to 20 ms, so not on the event loop."""
        return encode(self._metrics)

    def pool(self) -> Json:
        """Return the JSON of /pool. Takes 3 to 10 ms, so not on the event loop."""
        now = time.monotonic()  # one clock for all processes of a machine
        living = [self._state.json(), *(state for state, is_alive in self._files.read_others(FILE) if is_alive)]
        holders = [
            {"worker": worker["pid"], "route": "" if name == NAME else name, "seconds": round(max(0.0, now - since), 3)}
            for worker in living
            for since, name in worker.pop("holders")
        ]
        return {
            "at": time.time(),
            "workers": sorted(living, key=lambda worker: worker["since"]),
            "holders": sorted(holders, key=lambda holder: -holder["seconds"]),
            "totals": _totals(self._metrics.snapshot(), len(living)),
            **self._history.read(),
        }

    def _publish_until(self, stopped: threading.Event) -> None:
        failed = False
        while not stopped.wait(PUBLISH_PERIOD):
            try:
                self._publish()
                failed = False
            except Exception:
                if not failed:
                    logger.warning("cannot publish /metrics and /pool for the other workers", exc_info=True)
                failed = True

    def _publish(self) -> None:
        self._state.sample_connections()
        self._metrics.publish()
        self._files.write(FILE, self._state.json())
        if self._history.is_due():
            self._history.add_point(self._metrics.snapshot())

    async def _ask_regularly(self) -> None:
        """Ask the database how it is, while this worker writes the history and a thread is idle."""
        next_time = 0.0
        while True:
            await asyncio.sleep(RETRY_PERIOD)
            now = time.monotonic()
            is_due = now >= next_time or self._history.error or self._database.outage.refusal
            if self._history.is_writer and is_due and self._workers.idle:
                next_time = now + ASK_PERIOD
                await self._ask(now + ASK_TIMEOUT)

    async def _ask(self, deadline: float) -> None:
        RECORD.set(Record("-", NAME, ""))
        DEADLINE.set(deadline)
        try:
            stats = await self._workers.run(server_stats, {"database": self._database}, start_by=deadline)
        except (DatabaseFailure, psycopg.Error) as exc:
            self._history.error = one_line(exc)
        except Overloaded:
            pass  # requests took all threads meanwhile
        else:
            self._history.server_stats, self._history.error = stats, ""
            metrics.DATABASE_LATENCY.set(stats["latency"])
            metrics.COLLATION_VERSION_MISMATCH.set(stats["collation_mismatch"])
            for whose, number in stats["budget"].items():
                metrics.DATABASE_SERVER_CONNECTIONS.labels(whose).set(number)


def _totals(snapshot: Snapshot, workers: int) -> Json:
    return {
        "requests": sum(sum(counts) for _, *counts in snapshot.histograms[metrics.REQUEST_DURATION.name].values()),
        "refused": snapshot.sum("admission_refused_total"),
        "abandoned": snapshot.sum("admission_abandoned_total"),
        "problems": {
            code: number for ((_, code),), number in snapshot.values("http_server_problems_total").items() if number
        },
        "leaks": snapshot.sum("db_client_connection_leaks_total"),
        "cut": snapshot.sum("db_client_connection_cut_total"),
        "retried": snapshot.sum("http_server_reads_retried_total"),
        "reconnects": snapshot.sum("db_client_connection_reconnects_total"),
        "restarts": max(0.0, snapshot.sum("worker_starts_total") - workers),
    }
