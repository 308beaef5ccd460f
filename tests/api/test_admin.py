"""GET /pool: for the operator only, and true."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.sessions import locked

HTML = {"Accept": "text/html,application/xhtml+xml"}


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> TestDatabase:
    return cluster.create_database()


@pytest.fixture(scope="module")
def service(database: TestDatabase) -> Iterator[Service]:
    with Service(database.environment | {"WORKER_THREADS": "2", "WORKERS": "2", "LOCK_TIMEOUT": "4"}) as service:
        yield service


def test_a_program_gets_json_and_a_browser_a_page_that_may_load_nothing_else(service: Service) -> None:
    answer = service.client.get("/pool")
    assert answer.headers["content-type"] == "application/json"
    assert {"workers", "holders", "history", "totals", "database", "budget"} <= set(answer.json())
    page = service.client.get("/pool", headers=HTML)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        assert service.client.get(f"/pool/{name}").headers["content-type"].startswith(kind)
    assert service.client.get("/pool/pool.html").status_code == 404


def test_it_shows_who_holds_connections_who_waits_and_who_the_workers_are(
    service: Service, database: TestDatabase
) -> None:
    def two_workers() -> bool:
        pool = service.client.get("/pool").json()
        return [worker["connections"] for worker in pool["workers"]] == [{"size": 2, "open": 2, "used": 0}] * 2

    until(two_workers, "both workers are shown, with their connections")
    with ThreadPoolExecutor(12) as clients, locked(database):
        asked = [clients.submit(httpx.get, f"{service.url}/users/1", timeout=30) for _ in range(12)]

        def full() -> bool:
            workers = service.client.get("/pool").json()["workers"]
            waiting = sum(worker["queue"]["waiting"] for worker in workers)
            return bool(sum(worker["threads"]["busy"] for worker in workers) + waiting == 12)

        until(full, "all twelve are seen, on threads or in a queue")
        pool = service.client.get("/pool").json()
    assert pool["holders"]
    assert {holder["route"] for holder in pool["holders"]} == {"GET /users/{user_id}"}
    assert {holder["worker"] for holder in pool["holders"]} <= {worker["pid"] for worker in pool["workers"]}
    seconds = [holder["seconds"] for holder in pool["holders"]]
    assert seconds == sorted(seconds, reverse=True)
    assert {request.result().status_code for request in asked} == {404}


def test_it_knows_the_database_the_budget_and_the_last_minutes(service: Service, database: TestDatabase) -> None:
    def asked() -> bool:
        pool = service.client.get("/pool").json()
        return bool(pool["database"].get("version") and pool["budget"] and pool["budget"]["ours"] == 4)

    until(asked, "a worker has asked the database")
    for _ in range(5):
        service.client.get("/users")
    until(lambda: sum(service.client.get("/pool").json()["history"]["requests"]) > 0, "the requests are in the history")
    pool = service.client.get("/pool").json()
    assert pool["database"]["state"] == "up"
    assert 0 < pool["database"]["latency"] < 5
    assert pool["budget"]["limit"] == sum(pool["budget"][name] for name in ("ours", "others", "reserved", "free"))
    lengths = {len(series) for series in pool["history"].values() if isinstance(series, list)}
    assert len(lengths) == 1
    assert max(number for number in pool["history"]["p99"] if number) < 30
    assert database.name not in str(pool)


def test_the_history_counts_the_requests_of_every_endpoint_and_not_the_service_s_own(database: TestDatabase) -> None:
    uvicorn = "-m uvicorn --factory tests.support.more_endpoints:create_app --port 0"
    with Service(database.environment, argv=[sys.executable, *uvicorn.split()]) as service:

        def requests() -> list[float]:
            series: list[float] = service.client.get("/pool").json()["history"].get("requests", [])
            return series

        until(requests, "the history begins")
        for _ in range(5):
            assert service.client.post("/echo", json={"name": "ada", "agent": "test"}).status_code == 201
            for path in ("/", "/livez", "/readyz", "/metrics", "/docs"):
                assert service.client.get(path).status_code == 200
        until(lambda: sum(requests()) >= 5, "they are in the history")
        points = len(requests())
        until(lambda: len(requests()) > points, "one more point")
        assert sum(requests()) == 5


def test_a_database_that_was_not_asked_yet_is_not_called_down(database: TestDatabase) -> None:
    states: list[str] = []
    with Service(database.environment) as service:

        def up() -> bool:
            states.append(service.client.get("/pool").json()["database"]["state"])
            return states[-1] == "up"

        until(up, "the database was asked")
    assert set(states) <= {"unknown", "up"}
