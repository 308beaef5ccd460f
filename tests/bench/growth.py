"""How cost grows: with users, with threads, with workers, and with requests served.

One service at a time, as each takes a core for itself; the variants take turns in every round. PostgreSQL has a
quarter of the memory for its buffers, as its manual advises, and was given the users just before: they are cached.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import psutil  # type: ignore[import-untyped]

from tests.bench import database, machine, wrk
from tests.bench.contenders import OURS
from tests.bench.server import Server, processor_seconds
from tests.bench.workloads import WORKLOADS
from tests.bench.wrk import Load
from tests.support.postgres import Cluster, TestDatabase

USERS = (1_000, 1_000_000, 10_000_000)
THREADS = (1, 2, 4, 8, 16, 32, 64)
WORKERS = (1, 2)
REQUESTS = 1_000_000
WARM_UP = 0.5

Say = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """Our service with something different: `value` says how much of what the table is about."""

    value: int
    users: int
    database: TestDatabase
    settings: Mapping[str, str]


def measure(rounds: int, seconds: float, say: Say) -> Iterator[dict[str, Any]]:
    """Measure everything; yield what there is so far, after each round of each table."""
    buffers = {"shared_buffers": f"{psutil.virtual_memory().total // 2**22}MB", "wal_level": "minimal"}
    with database.cluster({**buffers, "max_wal_senders": "0"}) as cluster:
        results: dict[str, Any] = {"machine": machine.describe(cluster)}
        tables = {}
        for users in (database.USERS, *USERS):
            tables[users] = database.create(cluster, users)
            say(f"{users:,} users are in")
        usual = tables[database.USERS]
        by_users = [Variant(users, users, tables[users], {}) for users in USERS]
        by_threads = [Variant(n, database.USERS, usual, {"WORKER_THREADS": str(n)}) for n in THREADS]
        by_workers = [Variant(n, database.USERS, usual, {"WORKERS": str(n)}) for n in WORKERS]
        turns = Turns(cluster, rounds, seconds, say)
        for what, variants, concurrency in (
            ("users", by_users, (1, 64)),
            ("threads", by_threads, (64,)),
            ("workers", by_workers, (64,)),
        ):
            for rows in turns.take(what, variants, concurrency):
                yield results | {what: rows}
            results[what] = rows
        yield results | {"memory": memory(usual, say)}


@dataclass(frozen=True)
class Turns:
    """How the variants are driven."""

    cluster: Cluster
    rounds: int
    seconds: float
    say: Say

    def take(self, what: str, variants: Sequence[Variant], concurrency: tuple[int, ...]) -> Iterator[list[Row]]:
        """Yield, after each round, one row for each round, variant, workload and concurrency so far."""
        rows: list[Row] = []
        for number in range(1, self.rounds + 1):
            for variant in variants:
                with Server(OURS, variant.database, variant.settings) as server:
                    for workload in ("one", "page"):
                        for connections in concurrency:
                            load = Load(workload, connections, variant.users)
                            row = {"round": number, "value": variant.value, **self._one(server, load, number)}
                            rows.append(row)
                            self.say(
                                f"{number}/{self.rounds} {variant.value:10,} {what:8} {workload:5} {connections:3}"
                                f"  {row['rate']:7.0f}/s  p50 {row['p50']:.3f} ms  p99 {row['p99']:.3f} ms"
                            )
            yield rows

    def _one(self, server: Server, load: Load, number: int) -> Row:
        wrk.drive(server.url, load, WARM_UP, 2 * number)
        used, theirs = server.processor_seconds(), processor_seconds(self.cluster.process.pid)
        driven = wrk.drive(server.url, load, self.seconds, 2 * number + 1)
        per_answer = 1e6 / max(1, driven.answers)
        return {
            "workload": load.workload,
            "connections": load.connections,
            "rate": driven.rate,
            "p50": driven.p50,
            "p99": driven.p99,
            "server_us": (server.processor_seconds() - used) * per_answer,
            "postgres_us": (processor_seconds(self.cluster.process.pid) - theirs) * per_answer,
            "errors": driven.errors,
        }


def memory(users: TestDatabase, say: Say) -> list[Row]:
    """Return what one worker takes at its start, and after so many requests."""
    rows = []
    with Server(OURS, users) as server:
        process, done = psutil.Process(server.process.pid), 0
        for goal in (0, REQUESTS // 100, REQUESTS // 10, REQUESTS // 2, REQUESTS):
            while done < goal:
                seconds = min(10.0, 0.2 + (goal - done) / 5000)
                done += wrk.drive(server.url, Load("one", 64, database.USERS), seconds, done + 1).answers
            held = process.memory_full_info()
            rows.append({"requests": done, "rss": held.rss / 2**20, "uss": held.uss / 2**20})
            say(f"{done:10,} requests  RSS {rows[-1]['rss']:.1f} MiB  USS {rows[-1]['uss']:.1f} MiB")
    return rows


def sections(saved: dict[str, Any]) -> list[str]:
    """Return the tables."""
    introduction = (
        f"Medians of {saved['users'][-1]['round']} rounds, the variants in turn. One service at a time,"
        " one worker and 8 threads unless said, over 10,000 users unless said. Times are milliseconds of a closed loop,"
        " processor times microseconds per request."
    )
    text = [introduction, ""]
    for what in ("users", "threads", "workers"):
        text += _table(what, saved[what]) if what in saved else []
    if "memory" not in saved:
        return text
    text += ["## Memory of one worker, MiB", "", "| requests served | RSS | USS |", "|---:|---:|---:|"]
    text += [f"| {row['requests']:,} | {row['rss']:.1f} | {row['uss']:.1f} |" for row in saved["memory"]]
    return [*text, ""]


def _table(what: str, rows: list[Row]) -> list[str]:
    cells: dict[tuple[str, int], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["workload"], row["connections"]][row["value"]].append(row)
    lines = []
    for (workload, connections), values in cells.items():
        title = f"{WORKLOADS[workload].title.lower()}, {connections} connection{'s'[: connections > 1]}"
        lines += [
            f"## {what.capitalize()}: {title}",
            "",
            f"| {what} | a second | p50 | p99 | server | PostgreSQL | p50 to the first's | rate to the first's |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|",
            *(_line(value, measured, values[rows[0]["value"]]) for value, measured in values.items()),
            "",
        ]
    return lines


def _line(value: int, measured: list[Row], first: list[Row]) -> str:
    slower, faster = (
        median(row[name] / other[name] for row, other in zip(measured, first, strict=True)) for name in ("p50", "rate")
    )
    shown = {name: median(row[name] for row in measured) for name in measured[0] if name != "workload"}
    return (
        f"| {value:,} | {shown['rate']:,.0f} | {shown['p50']:.3g} | {shown['p99']:.3g} | {shown['server_us']:.0f}"
        f" | {shown['postgres_us']:.0f} | {slower:.2f} | {faster:.2f} |"
    )
