"""The metrics. To add one, declare it here or beside your endpoint, as the documentation of prometheus_client says.

GET /metrics adds up counters, histograms and summaries over all workers, also those that ended, and gauges over those
that live. The gauges of threads, queues and connections are in extras/admin/pool_state.py, and the dropped lines of the
log are counted in extras/log_writer.py.
"""

import prometheus_client
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from service.telemetry.fast_histogram import FastHistogram
from service.telemetry.record import Record

# These are about one process. Added up over the workers they mean little.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY.unregister(prometheus_client.GC_COLLECTOR)
REGISTRY.unregister(prometheus_client.PLATFORM_COLLECTOR)
REGISTRY.unregister(prometheus_client.PROCESS_COLLECTOR)

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that disconnected before the response

# Seconds: four bounds for each power of ten, from 10 µs to 10 s.
BUCKETS = tuple(round(10 ** (exponent / 4), 8) for exponent in range(-20, 5))

REQUEST_DURATION = FastHistogram(
    "http_server_request_duration_seconds",
    "Duration of requests, by the template of their route.",
    ["http_route", "http_request_method", "http_response_status_code"],
    buckets=BUCKETS,
)
PROBLEMS = Counter("http_server_problems_total", "Error responses, by the code of their problem.", ["code"])
READS_RETRIED = Counter("http_server_reads_retried_total", "Reads repeated after their connection broke.")
READS_FROM_REPLICA = Counter("db_client_reads_from_replica_total", "Connections lent to read from a replica.")
WRITES_REPLAYED = Counter(
    "idempotency_replays_total",
    "Writes that were sent again with their Idempotency-Key, and answered as the first time.",
)
CLIENTS_EVICTED = Counter("http_server_connections_evicted_total", "Client connections closed to make room for others.")

QUEUE_WAIT = FastHistogram(
    "admission_queue_wait_seconds",
    "Time that admitted requests waited for a thread, or for a core to hash on.",
    ["queue"],
    buckets=BUCKETS,
)
REQUESTS_REFUSED = Counter(
    "admission_refused_total",
    "Requests refused: the queue was full, or they waited too long (late).",
    ["queue", "reason"],
)
REQUESTS_ABANDONED = Counter(
    "admission_abandoned_total", "Requests whose clients disconnected while they waited.", ["queue"]
)

CONNECTION_CREATE_TIME = Histogram(
    "db_client_connection_create_time_seconds", "Time to open a database connection.", buckets=BUCKETS
)
CONNECTION_WAIT_TIME = FastHistogram(
    "db_client_connection_wait_time_seconds", "Time that threads waited for a connection.", buckets=BUCKETS
)
CONNECTION_USE_TIME = FastHistogram(
    "db_client_connection_use_time_seconds", "Time that requests held a connection.", buckets=BUCKETS
)
CONNECTION_FAILURES = Counter("db_client_connection_create_failed_total", "Failed attempts to open a connection.")
CONNECTION_TIMEOUTS = Counter("db_client_connection_timeouts_total", "Threads that waited for a connection in vain.")
CONNECTION_LEAKS = Counter("db_client_connection_leaks_total", "Connections held longer than LEAK_THRESHOLD.")
CONNECTIONS_CUT = Counter("db_client_connection_cut_total", "Connections shut down at the deadline of their request.")

DATABASE_UP = Gauge("database_up", "1 while connections can be opened, otherwise 0.")
DATABASE_LATENCY = Gauge("database_latency_seconds", "Duration of the last SELECT 1.")
COLLATION_VERSION_MISMATCH = Gauge(
    "postgresql_collation_version_mismatch",
    "1 when the server's libc or ICU has changed since indexes on text were built, otherwise 0.",
)
DATABASE_SERVER_CONNECTIONS = Gauge(
    "database_server_connections",
    "Connections of the whole PostgreSQL server: its limit, and whose they are.",
    ["whose"],
)

WORKER_STARTS = Counter("worker_starts_total", "Worker processes started. Without the first WORKERS: the restarts.")

FAST_HISTOGRAMS = [REQUEST_DURATION, QUEUE_WAIT, CONNECTION_WAIT_TIME, CONNECTION_USE_TIME]

# Alerts need the zero before the first event.
for queue in ("threads", "hashing"):
    REQUESTS_ABANDONED.labels(queue)
    for reason in ("full", "late"):
        REQUESTS_REFUSED.labels(queue, reason)
for whose in ("limit", "ours", "others", "reserved", "free"):
    DATABASE_SERVER_CONNECTIONS.labels(whose)


def count_request(record: Record) -> None:
    """Count a request that has ended: 2 µs."""
    method = record.method if record.method in METHODS else "other"
    status = str(record.status or CLIENT_CLOSED_REQUEST)
    REQUEST_DURATION.labels(record.route, method, status).observe(record.duration)
    if record.code:
        PROBLEMS.labels(record.code).inc()
    if record.queued is not None:
        QUEUE_WAIT.labels("threads").observe(record.queued)
    if record.queued_to_hash is not None:
        QUEUE_WAIT.labels("hashing").observe(record.queued_to_hash)
    if record.waited is not None:
        CONNECTION_WAIT_TIME.observe(record.waited)
    if record.held is not None:
        CONNECTION_USE_TIME.observe(record.held)
