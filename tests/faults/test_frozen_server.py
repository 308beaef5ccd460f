"""A PostgreSQL that is frozen: it keeps acknowledging packets and answers nothing."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from signal import SIGCONT, SIGSTOP

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from service.users.passwords import concurrent_hashes
from tests.support.parallel import at_once
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase, installed
from tests.support.process import Service

pytestmark = pytest.mark.real_hashes

THREADS = 5  # one more than the tests need: the server statistics of /pool may be on it
DEADLINE = 2.0
LATE = 2.0  # seconds after the deadline, on a machine that is busy with something else
SETTINGS = {
    "WORKER_THREADS": str(THREADS),
    "QUEUE_WAIT": "0.5",
    "LOCK_TIMEOUT": "0.5",
    "STATEMENT_TIMEOUT": "1",
    "LEAK_THRESHOLD": "1.5",
    "REQUEST_DEADLINE": f"{DEADLINE:g}",
}
USER = {"fname": "Ada", "lname": "Lovelace", "email": "ada@example.com", "password": "correct horse"}


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A PostgreSQL of its own, as freezing it would disturb others."""
    with Cluster(installed()["18"]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def database(own_cluster: Cluster) -> TestDatabase:
    """A database there."""
    return own_cluster.create_database()


@pytest.fixture(scope="module")
def busy_service(database: TestDatabase) -> Iterator[Service]:
    """A service with little time, and a user whose id is 1."""
    with Service({**database.environment, **SETTINGS}) as service:
        assert service.client.post("/users", json={"id": 1, **USER}).status_code == 201
        yield service


@pytest.fixture
def service(busy_service: Service, database: TestDatabase) -> Service:
    """That service, with all of its connections open."""

    def open_connections() -> int:
        assert busy_service.client.get("/livez").status_code == 200
        busy_service.client.get("/users/1")  # which finds the connections that died
        with database.as_superuser() as conn:
            query = "SELECT FROM pg_stat_activity WHERE application_name = 'users-service' AND state = 'idle'"
            return len(conn.execute(query).fetchall())

    until(lambda: open_connections() == THREADS, "every thread has its connection")
    return busy_service


@contextmanager
def frozen(cluster: Cluster) -> Iterator[None]:
    """Stop every process of the server, the first one first, so that it starts no other; let them go on at the end."""
    postmaster = psutil.Process(cluster.process.pid)
    postmaster.send_signal(SIGSTOP)
    stopped = [postmaster, *postmaster.children(recursive=True)]
    try:
        for process in stopped:
            process.send_signal(SIGSTOP)
        yield
    finally:
        for process in reversed(stopped):
            process.send_signal(SIGCONT)


Timed = tuple[int, str, float]  # status, code, seconds


def timed(call: Callable[[], httpx.Response]) -> Timed:
    began = time.monotonic()
    answer = call()
    code = "" if answer.is_success else answer.json()["code"]
    return answer.status_code, code, time.monotonic() - began


def test_requests_that_hold_a_connection_end_at_their_deadline(service: Service, own_cluster: Cluster) -> None:
    calls = [
        partial(service.client.get, "/users"),
        partial(service.client.get, "/users/1"),
        partial(service.client.patch, "/users/1", json={"fname": "Grace"}),
        partial(service.client.post, "/users", json={**USER, "email": "new@example.com"}),
    ]
    with frozen(own_cluster):
        answers = at_once([partial(timed, call) for call in calls])
    print(answers)
    for status, code, seconds in answers:
        assert (status, code) == (504, "deadline-exceeded")
        assert DEADLINE - 0.5 < seconds < DEADLINE + LATE


def test_every_request_ends_by_its_deadline_and_the_process_lives_on(service: Service, own_cluster: Cluster) -> None:
    """Those in the queue are refused before; those who come when the connections are gone are refused as well."""
    credentials = {"email": USER["email"], "password": USER["password"]}
    with httpx.Client(base_url=service.url, timeout=30) as client:
        calls = [
            partial(client.get, "/users?limit=5"),
            partial(client.delete, "/users/999"),
            partial(client.post, "/users", json={**USER, "email": "newer@example.com"}),
            partial(client.post, "/users/authenticate", json=credentials),
            partial(client.get, "/livez"),
        ]
        with frozen(own_cluster):
            rounds = [at_once([partial(timed, call) for call in calls * 4]) for _ in range(2)]
            not_ready = client.get("/readyz")
    for answers in rounds:
        print(Counter((status, code) for status, code, _ in answers), f"{max(each[2] for each in answers):.2f} s")
        assert {status for status, *_ in answers} <= {200, 503, 504}
        assert max(seconds for *_, seconds in answers) < DEADLINE + LATE
        alive = [seconds for status, _, seconds in answers if status == 200]
        assert len(alive) == 4
        assert max(alive) < DEADLINE - 0.5, "/livez waited for the database"
    assert not_ready.status_code == 503
    assert not_ready.json()["failed"] == "database"


def test_a_server_that_goes_on_is_used_again(service: Service, own_cluster: Cluster) -> None:
    with frozen(own_cluster):
        reads = [partial(timed, partial(service.client.get, "/users/1"))] * (THREADS - 1)
        assert {status for status, *_ in at_once(reads)} == {504}
    began = time.monotonic()
    until(lambda: service.client.get("/users/1").status_code == 200, "a request is served")
    took = time.monotonic() - began
    print(f"served again {took:.2f} s after the server went on")
    assert took < 5
    answers = at_once([partial(service.client.get, "/users/1")] * 20)
    assert {answer.status_code for answer in answers} == {200}
    assert service.client.get("/readyz").status_code == 200


def test_waits_one_after_the_other_do_not_add_up_to_more_than_the_deadline(own_cluster: Cluster) -> None:
    """For a core, for a thread, for a connection: each may take nearly as long as the whole request."""
    settings = {**own_cluster.create_database().environment, **SETTINGS, "WORKER_THREADS": "1", "QUEUE_WAIT": "1.9"}
    with Service(settings) as service, httpx.Client(base_url=service.url, timeout=30) as client:
        read = partial(timed, partial(client.get, "/users"))
        sign_up = partial(timed, partial(client.post, "/users", json=USER))

        def later(call: Callable[[], Timed]) -> Timed:
            end = time.monotonic() + 0.5  # by then the earlier requests have every thread and every core
            until(lambda: time.monotonic() > end, "half a second passes")
            return call()

        with frozen(own_cluster):
            count = concurrent_hashes(workers=1, threads=1)
            first, then = [read, *[sign_up] * count], [partial(later, read), *[partial(later, sign_up)] * count]
            answers = at_once([*first, *then])
    print([(status, code, f"{seconds:.2f} s") for status, code, seconds in answers])
    assert max(seconds for *_, seconds in answers) < DEADLINE + 1


def test_a_sign_up_whose_password_took_the_rest_of_its_time_does_not_blame_the_database(cluster: Cluster) -> None:
    """Of so many at once, the last to get a core have less than the 19 ms left that it takes to hash."""
    short = {"QUEUE_WAIT": "0.199", "LOCK_TIMEOUT": "0.1", "STATEMENT_TIMEOUT": "0.15", "LEAK_THRESHOLD": "0.18"}
    database = cluster.create_database()
    with Service({**database.environment, **short, "REQUEST_DEADLINE": "0.2"}) as service:
        sign_ups = [partial(service.client.post, "/users", json={**USER, "email": f"{n}@a.org"}) for n in range(60)]
        codes = Counter(answer.json().get("code", "created") for answer in at_once(sign_ups))
    assert codes["deadline-exceeded"], codes
    assert not codes["database-unavailable"], codes


def test_a_write_that_was_cut_at_its_deadline_is_made_at_most_once(service: Service, own_cluster: Cluster) -> None:
    with frozen(own_cluster):
        assert service.client.post("/users", json={**USER, "email": "once@example.com"}).status_code == 504
    until(lambda: service.client.get("/users/1").status_code == 200, "a request is served")
    assert len(service.client.get("/users?email=once@example.com").json()) <= 1


def test_a_connection_held_too_long_is_reported_once_with_route_request_and_stack(
    service: Service, own_cluster: Cluster
) -> None:
    before = len(service.log)
    with frozen(own_cluster):
        assert service.client.get("/users/1", headers={"X-Request-ID": "leaky-1"}).status_code == 504
    log = service.log[before:]
    print(log)
    reports = re.findall(r".*connection held for.*", log)
    (report,) = [report for report in reports if " by server_stats:" not in report]  # of /pool, which may hold one, too
    assert re.search(r"WARNING.*connection held for (1\.[5-9]|2\.\d) s", report)
    assert "leaky-1" in report, f"it names no request: {report}"
    assert "in read_user\n" in log, "the stack leads to the endpoint"
    assert "in select_user\n" in log, "and to the statement"
    assert "/users/{user_id}" in report, f"it names no route: {report}"


def test_a_connection_held_for_a_shorter_time_is_not_reported(service: Service, database: TestDatabase) -> None:
    """One that waits for a lock ends by the lock's timeout, before it counts as a leak."""
    before = len(service.log)
    with database.connect() as conn, conn.transaction():
        conn.execute('LOCK TABLE "user" IN ACCESS EXCLUSIVE MODE')
        answers = at_once([partial(service.client.get, "/users/1")] * 4)
    assert {answer.status_code for answer in answers} == {504}
    assert "connection held" not in service.log[before:]
