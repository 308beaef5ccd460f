"""An endpoint that forgets to give its connection back is found."""

import re
import sys
from collections.abc import Iterator

import pytest

from tests.support.polling import until
from tests.support.postgres import Cluster, free_port
from tests.support.process import Service
from tests.support.scrape import counted

TIMEOUTS = {
    "LOCK_TIMEOUT": "0.1",
    "STATEMENT_TIMEOUT": "0.2",
    "LEAK_THRESHOLD": "0.4",
    "QUEUE_WAIT": "0.3",
    "REQUEST_DEADLINE": "1",
}


@pytest.fixture
def service(cluster: Cluster) -> Iterator[Service]:
    uvicorn = ["-m", "uvicorn", "--factory", "tests.support.leaky_endpoint:create_app", "--port", str(free_port())]
    settings = {**cluster.create_database().environment, **TIMEOUTS, "WORKER_THREADS": "2"}
    with Service(settings, argv=[sys.executable, *uvicorn]) as service:
        yield service


def test_a_connection_that_was_never_given_back_is_reported_once_and_counted_once(service: Service) -> None:
    assert service.client.get("/forget", headers={"X-Request-ID": "forgetful-1"}).status_code == 200
    until(lambda: counted(service, "db_client_connection_leaks_total") == 1, "the leak is counted")
    reports = until(lambda: re.findall(r"WARNING .*connection held for .*\n.*", service.log), "it is in the log")
    assert len(reports) == 1
    assert re.search(r"\[forgetful-1\] connection held for (0\.[4-9]|[1-9]\.\d) s by GET /forget:\n", reports[0])
    assert reports[0].endswith("it was never given back")
    holders = service.client.get("/pool").json()["holders"]
    assert [holder["route"] for holder in holders if holder["route"]] == ["GET /forget"], (
        "the question of /pool to the server has no route"
    )
    until(lambda: counted(service, "db_client_connection_cut_total") == 1, "it is cut at its deadline")
    assert counted(service, "db_client_connection_leaks_total") == 1
    assert service.log.count("connection held for") == 1
    assert {service.client.get("/users").status_code for _ in range(10)} == {200}, "the other connection serves"


def test_endpoints_that_give_theirs_back_are_not_suspected(service: Service) -> None:
    for _ in range(20):
        assert service.client.get("/users").status_code == 200
    assert counted(service, "db_client_connection_use_time_seconds_count") >= 20
    assert counted(service, "db_client_connection_leaks_total") == 0
    # It is looked ten times a second, and may have been just when a request held one.
    until(lambda: service.client.get("/pool").json()["holders"] == [], "nobody holds a connection")
