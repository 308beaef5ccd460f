"""Every metric, declared once. Counters and histograms only grow; a gauge is set anew ten times a second."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from service.telemetry.board import BOARD, Row
from service.telemetry.record import Record, name_of

# Seconds: four to each power of ten, from 10 µs to 10 s.
BOUNDS = tuple(round(10 ** (exponent / 4), 8) for exponent in range(-20, 5))

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other")
STATUSES = (200, 201, 204, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 431, 499, 500, 503, 504)

SUM = len(BOUNDS) + 1  # where the sum of seconds stands

Labels = tuple[str, ...]

ALL: "list[Family]" = []


class Family:
    """The numbers of one name: one for each combination of labels, or as many as there are bounds."""

    numbers = 1

    def __init__(self, name: str, words: str, labels: Labels = (), values: Iterable[Labels] = ((),)) -> None:
        """Have a place on the board for each of `values`, which are those that `labels` may take."""
        self.name = name
        self.words = words
        self.labels = labels
        self.places: dict[Labels, int] = {}
        self.extend(values)
        ALL.append(self)

    def extend(self, values: Iterable[Labels]) -> None:
        """Have places for more combinations."""
        for value in values:
            if value not in self.places:
                self.places[value] = BOARD.reserve(f"{self.name}{value}", self.numbers)


class Gauge(Family):
    """A number that goes up and down."""

    def set(self, number: float, *labels: str) -> None:
        """Be `number` now."""
        BOARD.row[self.places[labels]] = number


class Counter(Family):
    """A number that only grows."""

    def add(self, *labels: str, number: float = 1) -> None:
        """Be more by `number`."""
        with BOARD.lock:
            BOARD.row[self.places[labels]] += number


class Histogram(Family):
    """How many took how long: a number for each bound, one for what is longer, and the sum of seconds."""

    numbers = SUM + 1

    def observe(self, seconds: float, labels: Labels = ()) -> None:
        """Note one."""
        with BOARD.lock:
            self.put(seconds, labels)

    def put(self, seconds: float, labels: Labels = ()) -> None:
        """Note one, by who has the lock."""
        row, place = BOARD.row, self.places[labels]
        row[place + bisect_left(BOUNDS, seconds)] += 1
        row[place + SUM] += seconds


def _each(*values: str) -> Iterator[Labels]:
    return ((value,) for value in values)


QUEUES = ("threads", "hashing")
STATES = ("idle", "used")

REQUESTS = Histogram(
    "http_server_request_duration_seconds",
    "Requests by the template of their route, from the first byte to the last.",
    ("http_route", "http_request_method", "http_response_status_code"),
    [("", "other", "other")],
)
PROBLEMS = Counter("http_server_problems_total", "Answers that were problems, by their code.", ("code",), ())

IN_PROGRESS = Gauge("admission_in_progress", "Requests that were admitted and are not answered.")
QUEUED = Gauge(
    "admission_queued", "Requests that wait, for a thread or for a core to hash on.", ("queue",), _each(*QUEUES)
)
QUEUE_WAIT = Histogram(
    "admission_queue_wait_seconds", "How long admitted requests waited, for a thread or a core.",
    ("queue",), _each(*QUEUES),
)  # fmt: skip
REFUSED = Counter(
    "admission_refused_total", "Requests refused, as the queue was full or the wait in it too long.",
    ("queue", "reason"), product(QUEUES, ("full", "late")),
)  # fmt: skip
ABANDONED = Counter(
    "admission_abandoned_total", "Requests whose clients left while they waited in the queue.",
    ("queue",), _each(*QUEUES),
)  # fmt: skip

THREADS = Gauge("worker_threads", "Threads that endpoints run on.", ("state",), _each(*STATES))
HASHING = Gauge("hashing_cores", "Cores that passwords may be hashed on.", ("state",), _each(*STATES))

CONNECTIONS = Gauge(
    "db_client_connection_count", "Open connections; used: the most at once within a tenth of a second.",
    ("state",), _each(*STATES),
)  # fmt: skip
CONNECTIONS_MAX = Gauge("db_client_connection_max", "Connections that may be open.")
PENDING = Gauge(
    "db_client_connection_pending_requests", "Threads that wait for a connection: while there is an outage."
)
TIMEOUTS = Counter("db_client_connection_timeouts_total", "Threads that waited for a connection in vain.")
CREATE_TIME = Histogram("db_client_connection_create_time_seconds", "How long it took to open a connection.")
WAIT_TIME = Histogram("db_client_connection_wait_time_seconds", "How long a thread waited for a connection.")
USE_TIME = Histogram("db_client_connection_use_time_seconds", "How long a request held a connection.")
CREATE_FAILED = Counter("db_client_connection_create_failed_total", "Attempts to open a connection that failed.")
RECONNECTS = Counter("db_client_connection_reconnects_total", "Connections opened in place of others that were lost.")

LEAKS = Counter("db_client_connection_leaks_total", "Connections held for longer than LEAK_THRESHOLD.")
CUT = Counter("db_client_connection_cut_total", "Connections cut at the deadline of their request.")
EVICTED = Counter(
    "http_server_connections_evicted_total", "Connections of clients, idle for longest, closed to make room for others."
)
RETRIES = Counter("http_server_reads_retried_total", "Reads tried once more, as the connection broke under them.")

LOG_LINES_DROPPED = Counter(
    "log_lines_dropped_total", "Log lines dropped, as whoever reads standard output was too slow, or it failed."
)

STARTS = Counter("worker_starts_total", "Worker processes started: with WORKERS of them taken off, the restarts.")

UP = Gauge("database_up", "1 while connections can be made, else 0.")
LATENCY = Gauge("database_latency_seconds", "How long the database took to answer SELECT 1, lately.")
SERVER_CONNECTIONS = Gauge(
    "database_server_connections", "Connections of the whole server: its limit, and whose they are.",
    ("whose",), _each("limit", "ours", "others", "reserved", "free"),
)  # fmt: skip

# What /pool shows beside these.
PID = Gauge("worker_pid", "")
SINCE = Gauge("worker_since", "")
SIZE = Gauge("worker_size", "", ("what",), _each("threads", "hashing", "queue"))
HOLDERS = 16  # shown for each worker
HOLDER = Gauge("worker_holder", "", ("what", "number"), product(("route", "since"), map(str, range(HOLDERS))))
PRIVATE = {PID, SINCE, SIZE, HOLDER}

ROUTES: dict[str, int] = {"": 0}  # "GET /users" and so on: the number of each


def declare(routes: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Have places for these routes, each with the methods that it takes."""
    for route, takes in [("", ()), *routes]:
        for method in METHODS:
            common = method in takes or (method == "HEAD" and "GET" in takes) or not route
            if common:
                ROUTES.setdefault(name_of(method, route), len(ROUTES))
            statuses = map(str, STATUSES) if common else ("405",)
            REQUESTS.extend((route, method, status) for status in (*statuses, "other"))


def note(record: Record) -> None:
    """Count a request that has ended."""
    method = record.method if record.method in METHODS else "other"
    labels = (record.route, method, str(record.status or 499))
    if labels not in REQUESTS.places:  # which no code of ours answers
        labels = (record.route, method, "other")
    if record.code:
        PROBLEMS.add(record.code)
    with BOARD.lock:
        REQUESTS.put(record.duration, labels if labels in REQUESTS.places else ("", "other", "other"))
        if record.queued is not None:
            QUEUE_WAIT.put(record.queued, ("threads",))
        if record.queued_to_hash is not None:
            QUEUE_WAIT.put(record.queued_to_hash, ("hashing",))
        if record.waited is not None:
            WAIT_TIME.put(record.waited)
        if record.held is not None:
            USE_TIME.put(record.held)


def total(rows: Sequence[tuple[Row, bool]], family: Family, labels: Labels = ()) -> float:
    """Return the number of all workers together; of a gauge, of those that live."""
    place = family.places[labels]
    return sum(row[place] for row, alive in rows if alive or not isinstance(family, Gauge))


def whole(rows: Sequence[tuple[Row, bool]], family: Family) -> float:
    """Return the number of all workers and all labels together."""
    return sum(total(rows, family, labels) for labels in family.places)


def buckets(rows: Sequence[tuple[Row, bool]], family: Histogram, values: Iterable[Labels] = ((),)) -> list[float]:
    """Return how many there were up to each bound and above, those of `values` and all workers together."""
    counts = [0.0] * (len(BOUNDS) + 1)
    for place in (family.places[labels] for labels in values):
        for row, _ in rows:
            if any(row[place : place + len(counts)]):
                counts = [sum(pair) for pair in zip(counts, row[place : place + len(counts)], strict=True)]
    return counts


def quantile(counts: Sequence[float], share: float) -> float | None:
    """Return the time that `share` of them were within; between two bounds, as if they lay evenly there."""
    rank = share * sum(counts)
    if not rank:
        return None
    below = 0.0
    for bound, number in enumerate(counts):
        if number and below + number >= rank:
            lower = BOUNDS[bound - 1] if bound else 0.0
            upper = BOUNDS[min(bound, len(BOUNDS) - 1)]
            return lower + (upper - lower) * (rank - below) / number
        below += number
    return BOUNDS[-1]
