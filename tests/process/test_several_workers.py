"""Several workers are one service: one sum of metrics, one limit of connections."""

import shutil
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.api.test_concurrency import COUNT_CONNECTIONS, NO_LIMIT, PATIENT, connections
from tests.api.test_metrics import answered, value
from tests.support.checkout import workers
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.scrape import scrape

pytestmark = pytest.mark.usefixtures("cheap_hashes")

TWO = {"WORKERS": "2", "WORKER_THREADS": "2"}
FOUR = {"WORKERS": "4", "WORKER_THREADS": "2"}


@pytest.fixture
def database(cluster: Cluster) -> TestDatabase:
    return cluster.create_database()


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
        until(lambda: value(scrape(service), "db_client_connections", state="idle") == 8, "all are open")


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


def test_a_hundred_clients_never_make_more_connections_than_threads(cluster: Cluster) -> None:
    database = cluster.create_database()
    statuses: Counter[int] = Counter()
    seen: Counter[int] = Counter()
    over = Event()
    with Service({**database.environment, **PATIENT, "WORKERS": "2", "WORKER_THREADS": "3"}) as service:
        until(lambda: connections(database)[0] == 6, "both workers have their connections")

        with (
            database.as_superuser() as conn,
            httpx.Client(base_url=service.url, timeout=60, limits=NO_LIMIT) as client,
            ThreadPoolExecutor(100) as executor,
        ):

            def hammer() -> None:
                while not over.is_set():
                    statuses[client.get("/users").status_code] += 1

            def sample() -> bool:
                found = conn.execute(COUNT_CONNECTIONS).fetchone()
                assert found
                seen[found[0]] += 1
                return statuses.total() > 1000 and seen.total() > 20

            hammering = [executor.submit(hammer) for _ in range(100)]
            try:
                until(sample, "a thousand requests are answered and twenty samples taken", within=60)
            finally:
                over.set()
            for each in hammering:
                each.result(timeout=60)
    print(f"connections seen, and how often: {dict(seen)}; answers: {dict(statuses)}")
    assert statuses.keys() == {200}
    assert max(seen) <= 6
