"""Signals to the service while it is busy."""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.faults.conftest import SHORT
from tests.support.checkout import descendants, gone, workers
from tests.support.load import Load
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.raw_http import connect
from tests.support.scrape import counted
from tests.support.sessions import locked, sessions, waiting

# Eight clients may all be at one worker, and hash there one by one, on a machine that is busy with something else.
FOUR_THREADS = {"WORKER_THREADS": "4", "QUEUE_WAIT": "9", "REQUEST_DEADLINE": "10"}
TWO = {"WORKERS": "2", **FOUR_THREADS}

# The queue behind a lock stands for as long: a busy machine sees it, too.
SECONDS_AT_A_LOCK = {
    "LOCK_TIMEOUT": "3",
    "STATEMENT_TIMEOUT": "3.2",
    "LEAK_THRESHOLD": "3.5",
    "REQUEST_DEADLINE": "4",
    "QUEUE_WAIT": "3",
}

# What a client meets on a connection that the service closed while the request was on its way to it.
CLOSED = {"RemoteProtocolError", "ReadError", "WriteError"}


@pytest.fixture
def database(cluster: Cluster) -> TestDatabase:
    """On the cluster of the run: nothing here hurts it."""
    return cluster.create_database()


def started(database: TestDatabase, settings: dict[str, str]) -> Service:
    return Service({**database.environment, **SHORT, **settings})


def all_there(service: Service, database: TestDatabase) -> None:
    """Wait until both workers serve, with all their connections."""
    until(lambda: len(workers(service)) == 2 and len(sessions(database)) == 8, "two workers with four connections each")
    until(lambda: service.log.count("Application startup complete") >= 2, "both serve")


def failures(load: Load) -> Counter[str]:
    """Count the requests that got no answer, by what the client met."""
    return Counter(answer.code for answer in load.answers if not answer.status)


def errors(load: Load) -> Counter[str]:
    """Count the errors that the service answered with."""
    return Counter(answer.code for answer in load.answers if answer.status >= 400)


def none_was_lost(service: Service, load: Load) -> None:
    """See that whatever the service says it answered has reached the client: its log has a line for each answer."""
    answered = +Counter({status: count for status, count in load.statuses().items() if status})

    def logged() -> Counter[int]:
        return Counter(int(status) for status in re.findall(r"\] \w+ /users\S* (\d{3}) [\d.]+ ms", service.log))

    until(lambda: logged().total() >= answered.total(), "the last lines are written")
    assert logged() == answered


@pytest.mark.parametrize("count", [1, 2])
def test_sigterm_under_load_answers_every_request_that_was_taken_and_leaves_nothing(
    count: int, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with started(database, {"WORKERS": str(count), **FOUR_THREADS}) as service:
        until(lambda: len(sessions(database)) == 4 * count, "every worker has its connections")
        until(lambda: service.log.count("Application startup complete") == count, "all serve")
        everyone = descendants(service)
        with Load(service.url) as load:
            until(lambda: load.statuses()[200] > 100, "the load runs")
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(20) == 0
            took = time.monotonic() - began
        load.reconcile(database)
        none_was_lost(service, load)
        assert "Traceback" not in service.log
    until(lambda: gone(everyone), "every process ends")
    until(lambda: not sessions(database), "PostgreSQL has no session left")
    record_figure(f"SIGTERM under load, {count} workers: ended after {took:.2f} s; no answer: {closed(load)}")
    assert not errors(load)
    assert set(failures(load)) <= {"ConnectError", *CLOSED}


def closed(load: Load) -> dict[str, int]:
    """Count the requests whose connection was closed under them; one that was refused is the client's to see."""
    return {code: count for code, count in failures(load).items() if code in CLOSED}


@pytest.mark.parametrize("count", [1, 2])
def test_while_it_drains_a_new_connection_is_refused_at_once_and_not_left_hanging(
    count: int, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    """A socket that listens and that nobody accepts from takes requests and gives no answer."""
    with (
        started(database, {"WORKERS": str(count), **FOUR_THREADS}) as service,
        ThreadPoolExecutor(1) as executor,
    ):
        until(lambda: service.log.count("Application startup complete") == count, "all serve")
        url = service.url
        with locked(database):
            asked = executor.submit(service.client.get, "/users")
            until(lambda: waiting(database) == 1, "a request waits for the table")
            service.process.send_signal(signal.SIGTERM)
            until(lambda: service.log.count("Shutting down") == count, "every worker stops to accept")
            began = time.monotonic()
            try:
                met = str(httpx.get(f"{url}/readyz", timeout=5).status_code)
            except httpx.TransportError as exc:
                met = type(exc).__name__
            took = time.monotonic() - began
        assert asked.result().status_code in {200, 504}
        assert service.process.wait(20) == 0
    record_figure(f"a new connection during the drain, {count} workers: {met} after {took:.3f} s")
    assert met in {"ConnectError", "503"}


@pytest.mark.parametrize("body", ["", "x"], ids=["before its body", "in mid-body"])
def test_a_client_that_never_ends_its_request_keeps_the_process_for_the_graceful_time_only(
    body: str, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    head = f"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{body}"
    with started(database, {"GRACEFUL_SHUTDOWN_TIMEOUT": "3"}) as service:
        with connect(service.url) as peer:
            peer.sendall(head.encode())
            assert service.client.get("/livez").status_code == 200
            service.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            status = service.process.wait(20)
            took = time.monotonic() - began
            answer = peer.recv(65536)
        log = service.log
    record_figure(f"SIGTERM and a client that stalls: ended after {took:.2f} s of 3, the client got {answer[:12]!r}")
    assert status == 0
    assert took < 3 + 3
    assert b" 500 " not in answer[:20], answer
    assert "Traceback" not in log, log


def test_sigterm_with_requests_queued_behind_a_locked_table_answers_each_of_them(
    database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with started(database, {"WORKER_THREADS": "2", **SECONDS_AT_A_LOCK}) as service, ThreadPoolExecutor(20) as executor:
        with locked(database):
            asked = [executor.submit(service.client.get, "/users") for _ in range(20)]
            until(lambda: waiting(database) == 2, "two requests wait for the table")
            until(lambda: counted(service, "admission_queued", queue="threads") == 18, "and eighteen for a thread")
            service.process.send_signal(signal.SIGTERM)
            until(lambda: "Shutting down" in service.log, "the shutdown begins")
            statuses = Counter(request.result().status_code for request in asked)
        assert service.process.wait(20) == 0
        assert "Traceback" not in service.log
    record_figure(f"SIGTERM with 2 requests at a locked table and 18 queued: {dict(statuses)}")
    assert set(statuses) <= {200, 503, 504}
    assert statuses.total() == 20


def test_sigterm_ends_the_process_though_postgresql_is_frozen(
    victim: Cluster, record_figure: Callable[[str], None]
) -> None:
    """The service's own question to the database is nobody's request, and still hangs."""
    with started(victim.create_database(), {}) as service:
        frozen = victim.freeze()
        try:
            until(lambda: service.client.get("/pool").json()["holders"], "it asks the database how it is")
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            status = service.process.wait(10)
            took = time.monotonic() - began
        finally:
            victim.thaw(frozen)
    record_figure(f"SIGTERM while PostgreSQL is frozen: ended after {took:.2f} s")
    assert status == 0


def test_a_second_ctrl_c_does_not_wait_for_the_requests_in_progress(database: TestDatabase) -> None:
    """Their threads hear no signal: the process ends when the statements do, at their limit, and the queue is cut."""
    with started(database, {**FOUR_THREADS, "WORKERS": "1"}) as service, locked(database):
        with ThreadPoolExecutor(6) as clients:
            asked = [clients.submit(service.client.get, "/users/1") for _ in range(6)]
            until(lambda: waiting(database) == 4, "every thread waits for the lock")
            for _ in range(2):
                service.process.send_signal(signal.SIGINT)
                until(lambda: "Shutting down" in service.log, "it has heard the signal")
            service.process.wait(10)
        assert {request.result().json()["code"] for request in asked if not request.exception()} <= {"stopping"}


def test_a_worker_killed_under_load_is_replaced_and_postgresql_is_left_clean(
    database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with started(database, TWO) as service:
        all_there(service, database)
        before = set(sessions(database))
        with Load(service.url) as load:
            killed = workers(service)[0]
            os.kill(killed, signal.SIGKILL)
            began = time.monotonic()
            until(lambda: gone([killed]) and len(before & set(sessions(database))) == 4, "its sessions end")
            all_there(service, database)
            whole = time.monotonic() - began
            back = time.monotonic()
            until(lambda: load.statuses(back + 1)[200] > 50, "the load goes on")
        load.reconcile(database)
        until(lambda: list(sessions(database).values()) == ["idle"] * 8, f"all rest: {sessions(database)}")
        assert "unhandled" not in service.log
    record_figure(f"one of two workers killed: whole again after {whole:.2f} s; no answer: {dict(failures(load))}")
    assert not errors(load)
    assert set(failures(load)) <= CLOSED, "the other worker takes new connections all the while"
    assert failures(load).total() <= load.clients, "each connection can break once"
    assert not load.unexpected({200, 201}, back + 1)


def test_a_worker_killed_while_the_supervisor_waits_for_its_sign_of_life_is_replaced_as_soon(
    database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with started(database, TWO) as service:
        all_there(service, database)
        hung = workers(service)[0]
        supervisor = psutil.Process(service.process.pid)
        os.kill(hung, signal.SIGSTOP)
        rested = time.monotonic(), supervisor.num_ctx_switches()

        def waits() -> bool:
            nonlocal rested
            if supervisor.num_ctx_switches() != rested[1]:
                rested = time.monotonic(), supervisor.num_ctx_switches()
            return time.monotonic() > rested[0] + 1.5  # it asks every 0.5 s

        until(waits, "the supervisor waits for the worker")
        began = time.monotonic()
        os.kill(hung, signal.SIGKILL)
        until(lambda: gone([hung]) and len(workers(service)) == 2, "the worker is replaced", within=15)
        took = time.monotonic() - began
        all_there(service, database)
    record_figure(f"a hung worker killed: replaced after {took:.2f} s")


def test_sighup_under_load_replaces_the_workers_one_by_one(
    database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with started(database, TWO) as service:
        all_there(service, database)
        old = workers(service)
        with Load(service.url) as load:
            began = time.monotonic()
            most = 0
            service.process.send_signal(signal.SIGHUP)

            def replaced() -> bool:
                nonlocal most
                most = max(most, len(sessions(database)))
                return gone(old) and len(workers(service)) == 2

            until(replaced, "both workers are replaced")
            took = time.monotonic() - began
            back = time.monotonic()
            until(lambda: load.statuses(back + 1)[200] > 50, "the load goes on")
        load.reconcile(database)
        all_there(service, database)
        none_was_lost(service, load)
        assert "Traceback" not in service.log
    answered = load.statuses().total()
    record_figure(
        f"SIGHUP, 2 workers: replaced after {took:.2f} s, {most} connections at the most;"
        f" {dict(failures(load))} of {answered} requests met a closed connection"
    )
    assert not errors(load)
    assert not failures(load), "each worker answers one request more of each connection, and says that it is the last"
    assert not load.unexpected({200, 201}, back + 1)
