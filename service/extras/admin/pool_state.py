"""What the threads, queues and connections of this worker do at the moment."""

import os
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from service.database.pool import Database
from service.web.admission import Admission
from service.web.workers import Workers

Json = dict[str, Any]


class PoolState(Collector):
    """As JSON for /pool, and as metrics."""

    def __init__(self, workers: Workers, queue: Admission, hashing: Admission, database: Database) -> None:
        self._workers = workers
        self._queue = queue
        self._hashing = hashing
        self._database = database
        self._since = time.time()
        self._used = 0

    def sample_connections(self) -> None:
        """Read how many connections were in use at once since the last call. Only one caller may do so."""
        self._used = self._database.watchdog.high_water()

    def json(self) -> Json:
        """Return one worker of /pool, and `holders`: since when and by which route each connection is held."""
        size = self._workers.size
        busy = size - self._workers.idle
        hashes = min(self._hashing.in_flight, self._hashing.limit)
        opened = self._database.stats().get("pool_size", 0)
        return {
            "pid": os.getpid(),
            "since": self._since,
            "threads": {"size": size, "busy": busy},
            "connections": {"size": size, "open": opened, "used": min(opened, self._used)},
            "queue": {
                "length": self._queue.length + self._queue.backlog,
                "waiting": self._queue.waiting + self._workers.in_flight - busy,
            },
            "hashing": {
                "size": self._hashing.limit,
                "busy": hashes,
                "waiting": self._hashing.waiting + self._hashing.in_flight - hashes,
            },
            "holders": self._database.watchdog.holders(),
        }

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, and the one counter that psycopg_pool keeps."""
        state, stats = self.json(), self._database.stats()
        connected = stats.get("connections_num", 0) - stats.get("connections_errors", 0)
        threads, hashing, connections = state["threads"], state["hashing"], state["connections"]
        queued = {"threads": state["queue"]["waiting"], "hashing": hashing["waiting"]}
        yield _gauge("admission_queued", "Requests that wait for a thread, or for a core to hash on.", queue=queued)
        yield _gauge("admission_in_progress", "Requests admitted and not answered.", self._queue.in_flight)
        yield _gauge("worker_threads", "Threads that run endpoints.", state=_states(threads["size"], threads["busy"]))
        yield _gauge("hashing_cores", "Cores that may hash.", state=_states(hashing["size"], hashing["busy"]))
        yield _gauge(
            "db_client_connections",
            "Open connections. used: the most at once within half a second.",
            state=_states(connections["open"], connections["used"]),
        )
        yield _gauge("db_client_connection_max", "Connections that may be open.", connections["size"])
        yield _gauge(
            "db_client_connection_pending_requests",
            "Threads that wait for a connection, which happens only during an outage.",
            stats.get("requests_waiting", 0),
        )
        yield CounterMetricFamily(
            "db_client_connection_reconnects",
            "Connections opened in place of lost ones, or of those an hour old.",
            max(0, connected - self._workers.size),
        )


def _gauge(name: str, documentation: str, value: float | None = None, **label: dict[str, float]) -> GaugeMetricFamily:
    """Return a gauge that has one value, or one for each value of its label."""
    gauge = GaugeMetricFamily(name, documentation, value, labels=list(label) or None)
    for values in label.values():
        for labelvalue, number in values.items():
            gauge.add_metric([labelvalue], number)
    return gauge


def _states(size: int, used: int) -> dict[str, float]:
    return {"used": used, "idle": size - used}
