"""GET /metrics: read by Prometheus's own parser, and right for all workers together."""

import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from service.extras.admin.history import quantile
from service.telemetry.metrics import BUCKETS
from tests.support.checkout import workers
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.scrape import Samples, scrape
from tests.support.sessions import locked

ADA = {"id": 1, "fname": "Ada", "lname": "Lovelace", "email": "ada@example.com", "password": "correct horse"}
DURATION = "http_server_request_duration_seconds"
TWO = {"WORKERS": "2", "WORKER_THREADS": "2"}
FOUR = {"WORKERS": "4", "WORKER_THREADS": "2"}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def answered(samples: Samples, route: str, method: str, status: int) -> float:
    return value(
        samples, f"{DURATION}_count",
        http_route=route, http_request_method=method, http_response_status_code=str(status),
    )  # fmt: skip


@pytest.fixture
def database(cluster: Cluster) -> TestDatabase:
    return cluster.create_database()


@pytest.fixture
def service(database: TestDatabase) -> Iterator[Service]:
    with Service(database.environment | {"WORKER_THREADS": "2", "QUEUE_LENGTH": "1", "QUEUE_WAIT": "1"}) as service:
        yield service


def test_requests_are_counted_by_route_method_and_status(service: Service) -> None:
    client = service.client
    calls: list[tuple[Callable[[], httpx.Response], str, str, int]] = [
        (lambda: client.post("/users", json=ADA), "/users", "POST", 201),
        (lambda: client.post("/users", json={}), "/users", "POST", 422),
        (lambda: client.get("/users/"), "/users", "GET", 200),
        (lambda: client.head("/users/1"), "/users/{user_id}", "HEAD", 200),
        (lambda: client.get("/users/2"), "/users/{user_id}", "GET", 404),
        (lambda: client.patch("/livez"), "/livez", "PATCH", 405),
        (lambda: client.get("/a/b"), "", "GET", 404),
        (lambda: client.request("PROPFIND", "/users"), "/users", "other", 405),
    ]
    for call, route, method, status in calls:
        before = answered(scrape(service), route, method, status)
        assert call().status_code == status
        assert answered(scrape(service), route, method, status) == before + 1, (route, method, status)
    labels = {name for _, names in scrape(service) for name in names}
    assert not {text for _, text in labels if "ada" in text.lower() or text == "/users/1"}, "a user is named"


def test_histograms_are_whole_and_reach_from_ten_microseconds_to_ten_seconds(service: Service) -> None:
    service.client.get("/users")
    samples = scrape(service)
    assert (BUCKETS[0], BUCKETS[-1]) == (0.00001, 10.0)
    for name in ("db_client_connection_use_time_seconds", "db_client_connection_wait_time_seconds"):
        found = {
            float(dict(labels)["le"]): number for (each, labels), number in samples.items() if each == f"{name}_bucket"
        }
        counts = [found[bound] for bound in sorted(found)]
        assert len(counts) == len(BUCKETS) + 1
        assert counts == sorted(counts)
        assert counts[-1] == value(samples, f"{name}_count") > 0
        assert value(samples, f"{name}_sum") > 0


def refusals(samples: Samples) -> float:
    return sum(value(samples, "admission_refused_total", queue="threads", reason=reason) for reason in ("full", "late"))


def test_who_waited_too_long_is_counted_once_whether_read_or_not(database: TestDatabase) -> None:
    """One runs, three are ready, the others wait unread."""
    with Service({**database.environment, "WORKER_THREADS": "1", "QUEUE_WAIT": "0.3"}) as service:
        with ThreadPoolExecutor(15) as clients, locked(database):
            asked = [clients.submit(httpx.get, f"{service.url}/users", timeout=30) for _ in range(15)]
            statuses = Counter(request.result().status_code for request in asked)
        assert statuses == {504: 1, 503: 14}
        assert refusals(scrape(service)) == 14


def test_the_pool_and_the_queue_are_seen_while_they_are_full(service: Service, database: TestDatabase) -> None:
    def now() -> tuple[float, ...]:
        samples = scrape(service)
        return (
            value(samples, "db_client_connection_count", state="used"),
            value(samples, "db_client_connection_count", state="idle"),
            value(samples, "worker_threads", state="used"),
            value(samples, "admission_queued", queue="threads"),
        )

    until(lambda: now() == (0, 2, 0, 0), "both connections are open")
    before = scrape(service)
    with ThreadPoolExecutor(4) as clients, locked(database):
        asked = [clients.submit(service.client.get, "/users") for _ in range(4)]
        until(lambda: now() == (2, 0, 2, 1), "two connections are used, and one request waits")
    statuses = Counter(request.result().status_code for request in asked)
    samples = scrape(service)
    refused = refusals(samples) - refusals(before)
    assert refused == statuses[503] > 0
    assert value(samples, "http_server_problems_total", code="overloaded") == refused
    until(lambda: now() == (0, 2, 0, 0), "all is free again")


def test_four_workers_are_one_service(database: TestDatabase) -> None:
    with Service(database.environment | FOUR) as service:
        until(lambda: len(workers(service)) == 4, "four workers start")

        def ask(_: int) -> int:
            return httpx.get(f"{service.url}/users", timeout=30).status_code  # a connection each: any worker

        until(lambda: value(scrape(service), "worker_starts_total") == 4, "all four publish")
        with ThreadPoolExecutor(8) as clients:
            assert set(clients.map(ask, range(200))) == {200}
        until(lambda: answered(scrape(service), "/users", "GET", 200) == 200, "each has published what it counted")
        for _ in range(8):  # whichever worker answers
            samples = scrape(service)
            assert answered(samples, "/users", "GET", 200) == 200
            assert value(samples, "db_client_connection_max") == 8
        until(lambda: value(scrape(service), "db_client_connection_count", state="idle") == 8, "all are open")


def test_counters_never_fall_when_workers_are_killed_or_replaced(database: TestDatabase, tmp_path: Path) -> None:
    with Service(database.environment | TWO | {"TMPDIR": str(tmp_path)}) as service:
        until(lambda: value(scrape(service), "worker_starts_total") == 2, "both workers publish")
        for _ in range(20):
            httpx.get(f"{service.url}/users", timeout=30)
        until(lambda: answered(scrape(service), "/users", "GET", 200) == 20, "each has published what it counted")
        before = scrape(service)
        psutil.Process(workers(service)[0]).kill()

        def again() -> bool:
            try:
                return value(scrape(service), "worker_starts_total") == 3
            except httpx.TransportError:
                return False  # the one that was killed had taken the connection

        until(again, "another takes its place")
        after = scrape(service)
        counters = [key for key in before if key[0].endswith(("_total", "_bucket", "_sum", "_seconds_count"))]
        assert [key for key in counters if after[key] < before[key]] == []
        assert answered(after, "/users", "GET", 200) == 20
        service.process.send_signal(signal.SIGHUP)
        until(lambda: value(scrape(service), "worker_starts_total") == 5, "both are replaced")
        # A new worker may start while the old one still has its file.
        assert len(list(tmp_path.glob("*/*.metrics.json"))) <= 3, "new workers adopt the files of old ones"
        assert answered(scrape(service), "/users", "GET", 200) == 20
        until(lambda: value(scrape(service), "db_client_connection_max") == 4, "only those that live are counted")
        until(
            lambda: value(scrape(service), "database_server_connections", whose="limit") == 100,
            "one worker asks the server",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_an_endpoint_adds_is_right_with_two_workers_that_are_killed(database: TestDatabase) -> None:
    uvicorn = "-m uvicorn --factory tests.support.more_metrics:create_app --port 0 --workers 2"
    with Service(database.environment | TWO, argv=[sys.executable, *uvicorn.split()]) as service:

        def starts() -> float:
            try:
                return value(scrape(service), "worker_starts_total")
            except httpx.TransportError:
                return 0  # a worker that was killed had taken the connection

        until(lambda: starts() == 2, "both workers publish")
        for _ in range(20):
            assert httpx.post(f"{service.url}/orders", timeout=30).status_code == 200
        until(lambda: value(scrape(service), "orders_open") == 20, "each has published what it counted")
        for number, pid in enumerate(workers(service), start=3):
            psutil.Process(pid).kill()
            until(lambda number=number: starts() == number, "another takes its place")  # type: ignore[misc]
        samples = scrape(service)
        assert value(samples, "orders_total", kind="book") == 20
        assert value(samples, "order_size_bucket", le="1.0") == 0
        assert value(samples, "order_size_bucket", le="10.0") == 20
        assert value(samples, "order_size_sum") == 100
        assert value(samples, "order_price_sum") == 50
        assert value(samples, "orders_open") == 0, "a gauge is of the workers that live"


def test_a_folder_that_cannot_be_written_costs_one_warning(database: TestDatabase, tmp_path: Path) -> None:
    with Service(database.environment | {"TMPDIR": str(tmp_path)}) as service:
        (folder,) = tmp_path.iterdir()
        shutil.rmtree(folder)
        until(lambda: "WARNING" in service.log, "it says so")
        time.sleep(1.2)  # two more attempts
        assert service.log.count("cannot publish") == 1
        assert service.client.get("/users").status_code == 200
        assert answered(scrape(service), "/users", "GET", 200) == 1
        assert len(service.client.get("/pool").json()["workers"]) == 1


def test_reconnects_and_cut_connections_are_counted(database: TestDatabase) -> None:
    with Service(database.environment | {"WORKER_THREADS": "2"}) as service:
        until(lambda: value(scrape(service), "db_client_connection_count", state="idle") == 2, "both are open")
        with database.as_superuser() as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'users-service'"
            )
        assert service.client.get("/users").status_code == 200
        until(lambda: value(scrape(service), "db_client_connection_reconnects_total") == 2, "both are replaced")
        assert value(scrape(service), "db_client_connection_create_time_seconds_count") == 4


def test_a_quantile_lies_between_the_bounds_it_fell_between() -> None:
    counts = [0.0] * (len(BUCKETS) + 1)
    assert quantile(counts, 0.5) is None
    counts[9] = 99  # up to 1.78 ms
    counts[-1] = 1  # above 10 s
    middle = quantile(counts, 0.5)
    assert middle is not None
    assert BUCKETS[8] < middle < BUCKETS[9]
    assert quantile(counts, 0.999) == BUCKETS[-1]
