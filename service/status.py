"""What each worker tells of itself ten times a second, and what one of them writes down for all once a second.

/metrics and /pool read both, and ask nobody: however many look at them, PostgreSQL is asked once in five seconds.
"""

import asyncio
import fcntl
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from anyio import to_thread

from service.database.deadlines import DEADLINE, DeadlineExceeded
from service.database.pool import Database, DatabaseUnavailable, PooledConnection
from service.http.admission import Admission
from service.http.threads import START_BY, Threads
from service.telemetry import metrics
from service.telemetry.board import BOARD, Row, locked
from service.telemetry.metrics import buckets, quantile, total, whole
from service.telemetry.record import RECORD, Record

logger = logging.getLogger(__name__)

TICK = 0.1  # seconds
SAMPLE = 1.0  # seconds between two points of the history
HISTORY = 120  # points
CENSUS = 5.0  # seconds between two questions to the database
PATIENCE = 2.0  # seconds it has for the answer

Json = dict[str, Any]
Rows = list[tuple[Row, bool]]

# What PostgreSQL says of itself, and who is connected to it. `reserved_connections` came with PostgreSQL 16.
SELECT_CENSUS = """
    SELECT current_setting('server_version'),
           extract(epoch FROM pg_postmaster_start_time())::float8,
           current_setting('max_connections')::int,
           current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true)::int, 0),
           count(*) FILTER (WHERE application_name = 'users-service' AND datname = current_database()),
           count(*)
    FROM pg_stat_activity
    WHERE backend_type = 'client backend'
"""


@dataclass(frozen=True)
class Parts:
    """What there is to look at in a worker."""

    threads: Threads
    queue: Admission
    hashing: Admission
    database: Database


class Status:
    """Of one worker. To be used on its event loop only."""

    def __init__(self, parts: Parts) -> None:
        """Tell nothing until `telling`."""
        self._parts = parts
        self._chronicle = Chronicle()
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
                (SAMPLE, partial(to_thread.run_sync, self._chronicle.write)),  # 1 to 3 ms
                (SAMPLE, self._count),
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
        metrics.SIZE.set(self._parts.threads.size, "threads")
        metrics.SIZE.set(self._parts.hashing.limit, "hashing")
        metrics.SIZE.set(self._parts.queue.length + self._parts.queue.limit - self._parts.threads.size, "queue")
        metrics.CONNECTIONS_MAX.set(self._parts.threads.size)

    async def _tell(self) -> None:
        threads, queue, hashing = self._parts.threads, self._parts.queue, self._parts.hashing
        idle = max(0, threads.idle)
        metrics.THREADS.set(threads.size - idle, "used")
        metrics.THREADS.set(idle, "idle")
        metrics.IN_PROGRESS.set(queue.limit - queue.free)
        metrics.QUEUED.set(queue.waiting + max(0, -threads.idle), "threads")
        metrics.QUEUED.set(hashing.waiting, "hashing")
        metrics.HASHING.set(hashing.limit - hashing.free, "used")
        metrics.HASHING.set(hashing.free, "idle")
        size, used, pending = self._parts.database.connections
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
        if self._parts.threads.idle <= 0:
            return  # every thread is busy with the database, and the queue is for users
        self._next_census = now + CENSUS
        RECORD.set(Record("-", "census", ""))
        DEADLINE.set(now + PATIENCE)
        START_BY.set(DEADLINE.get())
        try:
            self._chronicle.census = await self._parts.threads.run(_census, {"database": self._parts.database})
        except (DatabaseUnavailable, DeadlineExceeded, psycopg.Error) as exc:
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


def _census(database: Database) -> Json:
    with database.connection() as conn:
        began = time.perf_counter()
        conn.execute("SELECT 1")
        latency = time.perf_counter() - began
        row = conn.execute(SELECT_CENSUS).fetchone()
    assert row is not None  # noqa: S101 - an aggregate has one row
    version, up_since, limit, reserved, ours, everybody = row
    return {
        "version": version,
        "up_since": up_since,
        "latency": latency,
        "budget": {
            "limit": limit,
            "ours": ours,
            "others": everybody - ours,
            "reserved": reserved,
            "free": max(0, limit - reserved - everybody),
        },
    }


class Chronicle:
    """The last two minutes of all workers, in a file that one of them writes: whoever has the lock on it."""

    def __init__(self) -> None:
        """Be nobody's yet."""
        self.ours = False
        self.census: Json = {}
        self.trouble = ""
        self._content: Json = {}
        self._lock = -1
        self._path = Path()

    def open(self, folder: Path) -> None:
        """Be where all workers find it."""
        self._path = folder / "chronicle.json"
        self._lock = os.open(folder / "chronicle.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Leave it to another worker."""
        self.ours = False
        os.close(self._lock)

    def write(self) -> None:
        """Add a point, when it is ours to write."""
        if not self.ours:
            if not locked(self._lock, fcntl.LOCK_EX):
                return
            self.ours, self._content = True, read(self._path)
            before = self._content.get("database", {})
            if before.get("version"):  # what the worker before this one knew, until this one has asked
                self.census, self.trouble = {**before, "budget": self._content["budget"]}, before["trouble"] or ""
            return
        failure = PooledConnection.failure
        trouble = " ".join(str(failure).split()) if failure else self.trouble
        metrics.UP.set(not trouble)
        self._content = {
            **_longer(self._content, BOARD.rows()),
            "database": {
                "state": "down" if trouble else "up" if self.census else "unknown",
                **{name: self.census.get(name) for name in ("version", "up_since", "latency")},
                "trouble": trouble or None,
            },
            "budget": self.census.get("budget") if not trouble else None,
        }
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._content))
        new.replace(self._path)


def read(path: Path) -> Json:
    """Return what was written; nothing when nothing was."""
    try:
        found: Json = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _longer(content: Json, rows: Rows) -> Json:
    """Return the history with one point more: what came about since the last one."""
    users = [labels for labels in metrics.REQUESTS.places if labels[0].startswith("/users")]
    now: Json = {
        "answers": buckets(rows, metrics.REQUESTS, users),
        "held": buckets(rows, metrics.USE_TIME),
        "refused": whole(rows, metrics.REFUSED),
        "errors": sum(buckets(rows, metrics.REQUESTS, [labels for labels in users if labels[2][0] == "5"])),
    }
    before = content.get("counted", now)
    answers, held = (
        [new - old for new, old in zip(now[name], before[name], strict=True)] for name in ("answers", "held")
    )
    refused = now["refused"] - before["refused"]
    point = {
        "requests": sum(answers),
        "refused": refused,
        "failed": max(0.0, now["errors"] - before["errors"] - refused),
        "p50": quantile(answers, 0.5),
        "p99": quantile(answers, 0.99),
        "held_p50": quantile(held, 0.5),
        "held_p99": quantile(held, 0.99),
        "queued": whole(rows, metrics.QUEUED),
    }
    history = content.get("history", {})
    return {
        "until": time.time(),
        "counted": now,
        "history": {name: [*history.get(name, []), value][-HISTORY:] for name, value in point.items()},
    }


def view(workers: int) -> Json:
    """Return what GET /pool tells of all workers together: 1 to 5 ms, so not on the event loop."""
    rows = BOARD.rows()
    chronicle = read(BOARD.folder / "chronicle.json")
    living = [row for row, alive in rows if alive and _at(row, metrics.PID)]
    return {
        "at": time.time(),
        "workers": sorted((_worker(row) for row in living), key=lambda worker: worker["since"]),
        "holders": sorted(
            (holder for row in living for holder in _holders(row)), key=lambda holder: -holder["seconds"]
        ),
        "history": {"every": SAMPLE, "until": chronicle.get("until"), **chronicle.get("history", {})},
        "totals": {
            "requests": sum(buckets(rows, metrics.REQUESTS, metrics.REQUESTS.places)),
            "refused": whole(rows, metrics.REFUSED),
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
        "database": chronicle.get("database", {"state": "unknown"}),
        "budget": chronicle.get("budget"),
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
