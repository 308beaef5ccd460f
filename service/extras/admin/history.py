"""The last two minutes of all workers, and the state of the database, for /pool."""

import time
from collections.abc import Container, Iterable, Sequence
from typing import Any

from service.database.outage import Outage
from service.extras.admin.exposition import Snapshot
from service.extras.admin.worker_files import WorkerFiles
from service.telemetry import metrics
from service.telemetry.metrics import BUCKETS

PERIOD = 1.0  # seconds between two points
POINTS = 120

FILE = "history"

Json = dict[str, Any]


class PoolHistory:
    """A file that the leading worker writes once a second."""

    def __init__(self, files: WorkerFiles, outage: Outage) -> None:
        self.is_writer = False
        self.server_stats: Json = {}
        self.error = ""  # why the server gave no answer the last time it was asked
        self._files = files
        self._outage = outage
        self._content: Json = {"until": 0.0, "series": {}, "database": {"state": "unknown"}, "budget": None}
        self._next_point = 0.0
        self._routes: Container[str] = ()

    def open(self, routes: Container[str]) -> None:
        """Count the requests of `routes`. Raises OSError."""
        self._routes = routes
        self.is_writer = self._files.leads()
        self._content = self._files.read(FILE) or self._content

    def read(self) -> Json:
        """Return `history`, `database` and `budget` of /pool, as the last writer left them."""
        content = self._newest()
        history = {"every": PERIOD, "until": content["until"] or None, **content["series"]}
        return {"history": history, "database": content["database"], "budget": content["budget"]}

    def is_due(self) -> bool:
        """Return whether this worker is to add a point now."""
        self.is_writer = self._files.leads()
        return self.is_writer and time.monotonic() >= self._next_point

    def add_point(self, snapshot: Snapshot) -> None:
        """Add what was counted since the last point. Raises OSError."""
        self._next_point = time.monotonic() + PERIOD
        before = self._newest()
        if not self.server_stats and before["database"].get("version"):  # until this worker has asked
            self.server_stats = {**before["database"], "budget": before["budget"]}
            self.error = before["database"]["trouble"] or ""
        error = self._outage.error or self.error
        metrics.DATABASE_UP.set(not error)
        counted = self._count(snapshot)
        self._content = {
            "until": time.time(),
            "counted": counted,
            "series": _longer_series(before, counted, snapshot.sum("admission_queued")),
            "database": {
                "state": "down" if error else "up" if self.server_stats else "unknown",
                **{name: self.server_stats.get(name) for name in ("version", "up_since", "latency")},
                "trouble": error or None,
            },
            "budget": None if error else self.server_stats.get("budget"),
        }
        self._files.write(FILE, self._content)

    def _newest(self) -> Json:
        others = [content for content, _ in self._files.read_others(FILE)]
        return max([self._content, *others], key=lambda content: content["until"])

    def _count(self, snapshot: Snapshot) -> Json:
        requests = [
            (status, counts)
            for (route, _, status), (_, *counts) in snapshot.histograms[metrics.REQUEST_DURATION.name].items()
            if route in self._routes
        ]
        held = snapshot.histograms[metrics.CONNECTION_USE_TIME.name].values()
        return {
            "requests": _add_up(counts for _, counts in requests),
            "held": _add_up(counts for _, *counts in held),
            "refused": snapshot.sum("admission_refused_total"),
            "errors": sum(sum(counts) for status, counts in requests if status.startswith("5")),
        }


def _longer_series(before: Json, counted: Json, queued: float) -> dict[str, list[float | None]]:
    """Return each series of `before` with one more point: what was counted since then."""
    last = before.get("counted", counted)
    requests, held = (
        [new - old for new, old in zip(counted[name], last[name], strict=True)] for name in ("requests", "held")
    )
    refused = counted["refused"] - last["refused"]
    point = {
        "requests": sum(requests),
        "refused": refused,
        "failed": max(0.0, counted["errors"] - last["errors"] - refused),
        "p50": quantile(requests, 0.5),
        "p99": quantile(requests, 0.99),
        "held_p50": quantile(held, 0.5),
        "held_p99": quantile(held, 0.99),
        "queued": queued,
    }
    return {name: [*before["series"].get(name, []), value][-POINTS:] for name, value in point.items()}


def quantile(counts: Sequence[float], share: float) -> float | None:
    """Return the value that `share` of the observations do not exceed, interpolated in its bucket; None without any."""
    rank = share * sum(counts)
    if not rank:
        return None
    below = 0.0
    for lower, upper, number in zip((0.0, *BUCKETS), (*BUCKETS, BUCKETS[-1]), counts, strict=True):
        if number and below + number >= rank:
            return lower + (upper - lower) * (rank - below) / number
        below += number
    return BUCKETS[-1]


def _add_up(counts: Iterable[Sequence[float]]) -> list[float]:
    """Return the count of each bucket, those above the last bound included."""
    return [sum(bucket) for bucket in zip([0.0] * (len(BUCKETS) + 1), *counts, strict=True)]
