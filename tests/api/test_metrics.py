"""GET /metrics: read by Prometheus's own parser, and right for all workers together."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics

from service.extras.admin.history import quantile
from service.telemetry.metrics import BUCKETS
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


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text",
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    ],
)
def test_openmetrics_is_given_to_who_asks_for_it(service: Service, accept: str) -> None:
    service.client.get("/users")
    answer = service.client.get("/metrics", headers={"Accept": accept})
    assert answer.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert answer.headers["Vary"] == "Accept"
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(answer.text)}  # type: ignore[no-untyped-call]
    assert families["http_server_problems"].type == "counter"
    assert families[DURATION].type == "histogram"


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain;version=0.0.4;q=1", "application/json"])
def test_anybody_else_is_given_the_text_format(service: Service, accept: str) -> None:
    answer = service.client.get("/metrics", headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert "# EOF" not in answer.text


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
            value(samples, "db_client_connections", state="used"),
            value(samples, "db_client_connections", state="idle"),
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


def test_reconnects_and_cut_connections_are_counted(database: TestDatabase) -> None:
    with Service(database.environment | {"WORKER_THREADS": "2"}) as service:
        until(lambda: value(scrape(service), "db_client_connections", state="idle") == 2, "both are open")
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
