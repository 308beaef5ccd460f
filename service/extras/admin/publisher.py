"""What each worker tells of itself ten times a second, and what GET /pool makes of it.

/metrics and /pool ask nobody: however many look at them, PostgreSQL is asked once in five seconds.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import psycopg
from anyio import to_thread

from service.database.errors import DatabaseFailure
from service.database.pool import Database
from service.database.watchdog import DEADLINE
from service.extras.admin import history
from service.extras.admin.history import Chronicle, Json
from service.extras.admin.server_stats import census
from service.telemetry import metrics
from service.telemetry.board import BOARD, Row
from service.telemetry.metrics import buckets, total, whole
from service.telemetry.record import RECORD, Record
from service.web.admission import Admission
from service.web.workers import Workers

logger = logging.getLogger(__name__)

TICK = 0.1  # seconds
CENSUS = 5.0  # seconds between two questions to the database
PATIENCE = 2.0  # seconds it has for the answer


@dataclass(frozen=True)
class Parts:
    """What there is to look at in a worker."""

    workers: Workers
    queue: Admission
    hashing: Admission
    database: Database


class Status:
    """Of one worker. To be used on its event loop only."""

    def __init__(self, parts: Parts) -> None:
        """Tell nothing until `telling`."""
        self._parts = parts
        self._chronicle = Chronicle(parts.database.outage)
        self._next_census = 0.0

    @asynccontextmanager
    async def telling(self) -> AsyncIterator[None]:
        """Tell while the block runs. Raises OSError when there is no room for it in the folder for temporary files."""
        self._chronicle.open(BOARD.open())
        self._introduce()
        tasks = [
            asyncio.create_task(_every(seconds, step))
            for seconds, step in (
                (TICK, self._tell),
                (history.EVERY, partial(to_thread.run_sync, self._chronicle.write)),  # 1 to 3 ms
                (history.EVERY, self._count),
            )
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._chronicle.close()
            BOARD.close()

    def _introduce(self) -> None:
        metrics.STARTS.add()
        for family in metrics.ALL:
            if isinstance(family, metrics.Gauge):  # which may be those of a worker that has ended
                for labels in family.places:
                    family.set(0, *labels)
        metrics.PID.set(os.getpid())
        metrics.SINCE.set(time.time())
        metrics.SIZE.set(self._parts.workers.size, "threads")
        metrics.SIZE.set(self._parts.hashing.limit, "hashing")
        metrics.SIZE.set(self._parts.queue.length + self._parts.queue.backlog, "queue")
        metrics.CONNECTIONS_MAX.set(self._parts.workers.size)

    async def _tell(self) -> None:
        workers, queue, hashing = self._parts.workers, self._parts.queue, self._parts.hashing
        idle = max(0, workers.idle)
        metrics.THREADS.set(workers.size - idle, "used")
        metrics.THREADS.set(idle, "idle")
        metrics.IN_PROGRESS.set(queue.in_flight)
        metrics.QUEUED.set(queue.waiting + max(0, -workers.idle), "threads")
        busy = min(hashing.in_flight, hashing.limit)
        metrics.QUEUED.set(hashing.waiting + hashing.in_flight - busy, "hashing")
        metrics.HASHING.set(busy, "used")
        metrics.HASHING.set(hashing.limit - busy, "idle")
        size, used, pending = self._parts.database.connections()
        metrics.CONNECTIONS.set(used, "used")
        metrics.CONNECTIONS.set(size - used, "idle")
        metrics.PENDING.set(pending)
        holders = self._parts.database.holders()[: metrics.HOLDERS]
        for number in range(metrics.HOLDERS):
            since, route = holders[number] if number < len(holders) else (0.0, "")
            metrics.HOLDER.set(since, "since", str(number))
            metrics.HOLDER.set(metrics.ROUTES.get(route, 0), "route", str(number))

    async def _count(self) -> None:
        """Ask the database how it is, on a thread that is idle: seldom, or each time while it is in trouble."""
        now = time.monotonic()
        if not self._chronicle.ours or (now < self._next_census and not self._chronicle.trouble):
            return
        if self._parts.workers.idle <= 0:
            return  # every thread is busy with the database, and the queue is for users
        self._next_census = now + CENSUS
        RECORD.set(Record("-", "census", ""))
        DEADLINE.set(now + PATIENCE)
        try:
            self._chronicle.census = await self._parts.workers.run(
                census, {"database": self._parts.database}, start_by=now + PATIENCE
            )
        except (DatabaseFailure, psycopg.Error) as exc:
            self._chronicle.trouble = " ".join(str(exc).split())
        else:
            self._chronicle.trouble = ""
            metrics.LATENCY.set(self._chronicle.census["latency"])
            for whose, number in self._chronicle.census["budget"].items():
                metrics.SERVER_CONNECTIONS.set(number, whose)


async def _every(seconds: float, step: Callable[[], Awaitable[None]]) -> None:
    """Take a step again and again; one that fails is told of when the one before did not."""
    failed = False
    while True:
        try:
            await step()
            failed = False
        except Exception:
            if not failed:
                logger.exception("what /metrics and /pool tell is not up to date")
            failed = True
        await asyncio.sleep(seconds)


def view(workers: int) -> Json:
    """Return what GET /pool tells of all workers together: 1 to 5 ms, so not on the event loop."""
    rows = BOARD.rows()
    told = history.read(BOARD.folder)
    living = [row for row, alive in rows if alive and _at(row, metrics.PID)]
    return {
        "at": time.time(),
        "workers": sorted((_worker(row) for row in living), key=lambda worker: worker["since"]),
        "holders": sorted(
            (holder for row in living for holder in _holders(row)), key=lambda holder: -holder["seconds"]
        ),
        "history": {"every": history.EVERY, "until": told.get("until"), **told.get("history", {})},
        "totals": {
            "requests": sum(buckets(rows, metrics.REQUESTS, metrics.REQUESTS.places)),
            "refused": whole(rows, metrics.REFUSED),
            "abandoned": whole(rows, metrics.ABANDONED),
            "problems": {
                code: number for (code,) in metrics.PROBLEMS.places
                if (number := total(rows, metrics.PROBLEMS, (code,)))
            },
            "leaks": total(rows, metrics.LEAKS),
            "cut": total(rows, metrics.CUT),
            "retried": total(rows, metrics.RETRIES),
            "reconnects": total(rows, metrics.RECONNECTS),
            "restarts": max(0.0, total(rows, metrics.STARTS) - workers),
        },
        "database": told.get("database", {"state": "unknown"}),
        "budget": told.get("budget"),
    }  # fmt: skip


def _at(row: Row, family: metrics.Family, *labels: str) -> int:
    return int(row[family.places[labels]])


def _worker(row: Row) -> Json:
    used, idle = _at(row, metrics.CONNECTIONS, "used"), _at(row, metrics.CONNECTIONS, "idle")
    threads = _at(row, metrics.SIZE, "threads")
    return {
        "pid": _at(row, metrics.PID),
        "since": row[metrics.SINCE.places[()]],
        "threads": {"size": threads, "busy": _at(row, metrics.THREADS, "used")},
        "connections": {"size": threads, "open": used + idle, "used": used},
        "queue": {"length": _at(row, metrics.SIZE, "queue"), "waiting": _at(row, metrics.QUEUED, "threads")},
        "hashing": {
            "size": _at(row, metrics.SIZE, "hashing"),
            "busy": _at(row, metrics.HASHING, "used"),
            "waiting": _at(row, metrics.QUEUED, "hashing"),
        },
    }


def _holders(row: Row) -> list[Json]:
    names = list(metrics.ROUTES)
    now = time.monotonic()  # one clock for all processes of a machine
    return [
        {
            "worker": _at(row, metrics.PID),
            "route": names[_at(row, metrics.HOLDER, "route", str(number))],
            "seconds": round(max(0.0, now - since), 3),
        }
        for number in range(metrics.HOLDERS)
        if (since := row[metrics.HOLDER.places["since", str(number)]])
    ]
