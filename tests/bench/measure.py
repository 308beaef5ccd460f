"""The rounds: A B C … A B C …, so that what the machine does meanwhile befalls all of them alike.

All servers run all the time, and the one that is driven has the machine to itself: the others are idle. A server that
does not come to rest after its turn is started anew.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tests.bench import agreement, database, limits, wrk
from tests.bench.contenders import CONTENDERS, OURS
from tests.bench.server import Server, processor_seconds
from tests.bench.workloads import CONCURRENCY, WORKLOADS, Workload
from tests.bench.wrk import Driven, Load
from tests.support.postgres import Cluster, TestDatabase

WARM_UP = 0.5  # seconds
SLOW = 8.0  # seconds at the most for each connection to be answered twice
LONG_LOOK = 40.0  # seconds: longer than SQLAlchemy's pool lets a request wait
SHORT_LOOK = 10.0  # when a long look showed already what becomes of it
FAILED = 0.01  # of the requests went wrong, or some clients were never answered

LIMITS = {"pgbench": tuple(limits.STATEMENTS), "hashing": ("create",)}


@dataclass(frozen=True)
class Plan:
    """What to measure, and for how long."""

    rounds: int
    seconds: float
    contenders: tuple[str, ...]
    workloads: tuple[str, ...]
    concurrency: tuple[int, ...]  # empty: each workload's own
    pin: bool = False

    def cells(self, number: int) -> Iterator[tuple[Workload, int, list[str]]]:
        """Yield each workload and concurrency of a round, with those who take part."""
        for name in self.workloads:
            able = [one for one in self.contenders if name in (LIMITS.get(one) or CONTENDERS[one].workloads)]
            for connections in self.concurrency or (CONCURRENCY if number == 1 else WORKLOADS[name].every_round):
                yield WORKLOADS[name], connections, able

    def minutes(self) -> float:
        """Return about how long it takes; those that are slow or fail make the second half of the first round."""
        cells = [len(able) for number in range(1, self.rounds + 1) for _, _, able in self.cells(number)]
        first = sum(len(able) for workload, connections, able in self.cells(1) if connections > 64)
        return (sum(cells) * (self.seconds + WARM_UP + 0.5) + first * 8) / 60


@dataclass(frozen=True)
class Sample:
    """One measurement. Times are milliseconds, and of processors microseconds per request."""

    round: int
    workload: str
    connections: int
    contender: str
    rate: float
    p50: float
    p99: float
    server_us: float
    postgres_us: float
    answers: int
    refused: int
    broken: int
    late: int
    seconds: float
    failed: bool


@dataclass
class Run:
    """All servers over one database, and what was measured so far."""

    plan: Plan
    cluster: Cluster
    database: TestDatabase
    servers: dict[str, Server]
    say: Callable[[str], None]
    samples: list[Sample] = field(default_factory=list)
    _looked: set[str] = field(default_factory=set)  # at whom a long look was had
    _decided: set[tuple[str, int, str]] = field(default_factory=set)  # by a longer look

    def rounds(self) -> Iterator[int]:
        """Measure everything, round by round; yield the number of each that is done."""
        for number in range(1, self.plan.rounds + 1):
            for workload, connections, able in self.plan.cells(number):
                for name in able:
                    if (workload.name, connections, name) not in self._decided:
                        sample = self._one(number, workload, connections, name)
                        self.samples.append(sample)
                        self.say(_line(sample, self.plan.rounds))
            yield number

    def _one(self, number: int, workload: Workload, connections: int, name: str) -> Sample:
        load = Load(workload.name, connections, database.USERS)
        if name in LIMITS:
            return self._limit(number, load, name)
        server = self.servers[name]
        seconds = self._seconds(wrk.drive(server.url, load, WARM_UP, 2 * number), connections)
        server.settle()  # nothing of the warm-up is left: 64 sign-ups take more than half a second
        sample = self._sample(number, load, seconds, server, 2 * number + 1)
        if sample.failed:
            # It may only be slow. One longer look decides, and stands for the other rounds.
            longer = max(seconds, SHORT_LOOK if name in self._looked else LONG_LOOK)
            self._looked.add(name)
            self._decided.add((workload.name, connections, name))
            server.stop()
            server.start()
            sample = self._sample(number, load, longer, server, 1000 + number)
        server.settle()
        if workload.writes:
            database.restore(self.database)
        return sample

    def _seconds(self, warm_up: Driven, connections: int) -> float:
        """Return how long to measure, so that each connection has its turn twice."""
        return max(self.plan.seconds, min(SLOW, 2 * connections / (warm_up.rate or 1)))

    def _sample(self, number: int, load: Load, seconds: float, server: Server, seed: int) -> Sample:
        used, theirs = server.processor_seconds(), processor_seconds(self.cluster.process.pid)
        driven = wrk.drive(server.url, load, seconds, seed)
        used = server.processor_seconds() - used
        theirs = processor_seconds(self.cluster.process.pid) - theirs
        return _sample(number, load, server.contender.name, driven, (used, theirs))

    def _limit(self, number: int, load: Load, name: str) -> Sample:
        theirs = processor_seconds(self.cluster.process.pid)
        seconds = self.plan.seconds
        driven = limits.hashing(seconds) if name == "hashing" else limits.pgbench(self.database, load, seconds)
        theirs = processor_seconds(self.cluster.process.pid) - theirs
        return _sample(number, load, name, driven, (0.0, theirs))


@contextmanager
def running(plan: Plan, say: Callable[[str], None]) -> Iterator[Run]:
    """Have PostgreSQL and all contenders while the block runs, their answers compared."""
    with database.cluster() as cluster, ExitStack() as stack:
        users = database.create(cluster)
        names = [name for name in plan.contenders if name in CONTENDERS]
        servers: dict[str, Server] = {}
        for name in names:
            core = _core(plan, name, servers.get(OURS.name))
            servers[name] = stack.enter_context(Server(CONTENDERS[name], users, core=core))
        if ours := servers.get(OURS.name):
            agreement.check(ours, [server for server in servers.values() if server is not ours], users)
            say("all contenders answer alike")
        yield Run(plan, cluster, users, servers, say)


def _core(plan: Plan, name: str, ours: Server | None) -> int | None:
    """Return the core to keep a contender to: ours chooses its own, and must be compared with itself on the same."""
    if name == "unpinned":
        return None
    if not CONTENDERS[name].ours:
        return max(os.sched_getaffinity(0)) if plan.pin else None
    found = re.search(r"keeps to core (\d+)", ours.log) if ours else None
    return int(found[1]) if found else None


def _sample(number: int, load: Load, name: str, driven: Driven, used: tuple[float, float]) -> Sample:
    per_answer = 1e6 / max(1, driven.answers)
    return Sample(
        round=number,
        workload=load.workload,
        connections=load.connections,
        contender=name,
        rate=round(driven.rate, 2),
        p50=driven.p50,
        p99=driven.p99,
        server_us=round(used[0] * per_answer, 1),
        postgres_us=round(used[1] * per_answer, 1),
        answers=driven.answers,
        refused=driven.refused,
        broken=driven.broken,
        late=driven.late,
        seconds=round(driven.seconds, 2),
        failed=name not in LIMITS and (driven.good < load.connections or driven.errors > FAILED * driven.answers),
    )


def _line(sample: Sample, rounds: int) -> str:
    errors = sample.refused + sample.broken + sample.late
    return (
        f"{sample.round}/{rounds} {sample.workload:8} {sample.connections:3} {sample.contender:10}"
        f" {sample.rate:7.0f}/s  p50 {sample.p50:7.1f} ms  p99 {sample.p99:7.1f} ms"
        f"  server {sample.server_us:5.0f} µs  PostgreSQL {sample.postgres_us:5.0f} µs"
        f"{f'  {errors} errors' if errors else ''}{'  FAILED' if sample.failed else ''}"
    )
