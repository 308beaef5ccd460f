"""Clients that hang up, dawdle and stall, at every stage of a request."""

import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from tests.faults.conftest import SHORT
from tests.faults.load import Load
from tests.faults.sessions import locked, sessions, waiting
from tests.polling import until
from tests.postgres import Cluster, TestDatabase
from tests.process import Service
from tests.scrape import counted

THREADS = 8
MANY = 200  # sockets
HEAD = b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
PAGE = b"GET /users?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n"
PAGE_BYTES = 500_000  # at least: more than the buffers of a socket take

STAGES = {
    "before the headers end": HEAD,
    "before the first byte of the body": HEAD + b"Content-Length: 1000\r\n\r\n",
    "in mid-body": HEAD + b'Content-Length: 1000\r\n\r\n{"fname": "A',
    "in mid-chunk": HEAD + b'Transfer-Encoding: chunked\r\n\r\n100\r\n{"fname": "A',
    "before it reads the answer": b"GET /users/500001 HTTP/1.1\r\nHost: x\r\n\r\n",
    "with more requests on their way": b"GET /users/500001 HTTP/1.1\r\nHost: x\r\n\r\n" * 20,
}

FILL = """
    INSERT INTO public."user" (id, fname, lname, email, password_hash)
    SELECT 500000 + n, repeat('ż', 100), repeat('ö', 100), repeat('e', 200) || n || '@example.com', '$argon2id$' || n
    FROM generate_series(1, 1000) AS n
"""


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> TestDatabase:
    """One for all tests here: each of them is to leave it as it was."""
    return cluster.create_database()


@pytest.fixture(scope="module")
def shared(database: TestDatabase) -> Iterator[Service]:
    """A service over a table whose first page is large."""
    with Service({**database.environment, **SHORT}) as service:
        with database.connect() as conn:
            conn.execute(FILL)
        assert len(service.client.get("/users?limit=1000").content) > PAGE_BYTES
        yield service


@pytest.fixture
def service(shared: Service, database: TestDatabase) -> Iterator[Service]:
    """That service; when the test is over, everything is as it was before."""
    until(lambda: list(sessions(database).values()) == ["idle"] * THREADS, "every connection is open and rests")
    before, logged = set(sessions(database)), len(shared.log)
    yield shared
    until(lambda: list(sessions(database).values()) == ["idle"] * THREADS, f"all rest: {sessions(database)}")
    assert set(sessions(database)) == before, "connections were replaced"
    assert [shared.client.get("/users/500001").status_code for _ in range(2 * THREADS)] == [200] * 2 * THREADS
    assert shared.client.get("/readyz").status_code == 200
    with database.as_superuser() as conn:
        conn.execute('DELETE FROM public."user" WHERE id NOT BETWEEN 500001 AND 501000')  # the load's
    log = shared.log[logged:]
    assert not re.findall(r".* 500 [\d.]+ ms|Traceback.*|.* ERROR .*", log)


def connect(service: Service, buffer: int = 0) -> socket.socket:
    """Connect; with a receive buffer of so many bytes, which fills up soon when nobody reads."""
    url = urlsplit(service.url)
    assert url.hostname
    assert url.port
    peer = socket.socket()
    if buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    peer.settimeout(30)
    peer.connect((url.hostname, url.port))
    return peer


def hang_up(peer: socket.socket, how: str) -> None:
    """Close politely (FIN), or as a process that crashed (RST)."""
    if how == "RST":
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def abandoned(service: Service) -> float:
    """Return how many requests were given up by their clients before they were read."""
    return counted(service, "admission_abandoned_total", queue="threads")


def answered(load: Load, since: float) -> None:
    """Wait for reads that began after `since`."""
    until(lambda: load.statuses(since, "GET")[200] > 20, "reads are answered all the while")


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_hangs_up_disturbs_nobody(service: Service, stage: str, how: str) -> None:
    with Load(service.url, clients=2) as load:
        began = time.monotonic()
        for _ in range(40):
            peer = connect(service)
            peer.sendall(STAGES[stage])
            hang_up(peer, how)
        answered(load, began)
    assert set(load.statuses()) == {200, 201}


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_clients_that_hang_up_while_they_queue_and_while_they_hold_a_thread_leave_nothing(
    service: Service, database: TestDatabase, how: str, tell: Callable[[str], None]
) -> None:
    logged, before = len(service.log), abandoned(service)
    with locked(database):
        peers = [connect(service) for _ in range(40)]
        for peer in peers:
            peer.sendall(b"GET /users/500001 HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: waiting(database) == THREADS, "every thread waits for the table, others wait for a thread")
        for peer in peers:
            hang_up(peer, how)
        assert service.client.get("/livez").elapsed.total_seconds() < 1
    began = time.monotonic()
    assert service.client.get("/users/500001").status_code == 200
    took = time.monotonic() - began
    until(
        lambda: len(re.findall(r"GET /users/500001 \d+", service.log[logged:])) + abandoned(service) - before == 41,
        "each is over: told in the log, or counted as it had not been read",
    )
    assert service.client.get("/pool").json()["totals"]["abandoned"] == abandoned(service) > before
    tell(f"40 clients hung up ({how}) at a locked table: the next one was answered after {took:.3f} s")
    assert took < 1


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_hangs_up_while_its_answer_is_sent_disturbs_nobody(service: Service, how: str) -> None:
    with Load(service.url, clients=2) as load:
        began = time.monotonic()
        for _ in range(40):
            peer = connect(service, buffer=4096)
            peer.sendall(PAGE)
            assert peer.recv(100).startswith(b"HTTP/1.1 200")
            hang_up(peer, how)
        answered(load, began)
    assert set(load.statuses()) == {200, 201}


@pytest.mark.parametrize("stage", ["before the headers end", "in mid-body", "in mid-chunk"])
def test_many_slow_senders_keep_nobody_waiting(
    service: Service, database: TestDatabase, stage: str, tell: Callable[[str], None]
) -> None:
    with ExitStack() as stack, Load(service.url, clients=2) as load:
        peers = [stack.enter_context(connect(service)) for _ in range(MANY)]
        began = time.monotonic()
        for position in range(len(STAGES[stage])):  # a byte at a time, all of them in turn
            for peer in peers[:: 10 if position else 1]:
                peer.sendall(STAGES[stage][position : position + 1])
        answered(load, began)
        assert "active" not in sessions(database).values() or len(sessions(database)) == THREADS
    longest = max(each.seconds for each in load.answers if each.began > began and each.method == "GET")
    tell(f"{MANY} slow senders ({stage}): reads answered, longest {longest:.3f} s")
    assert set(load.statuses()) == {200, 201}
    assert longest < 1


def test_many_slow_readers_hold_no_connection(
    service: Service, database: TestDatabase, tell: Callable[[str], None]
) -> None:
    with ExitStack() as stack, Load(service.url, clients=2) as load:
        began = time.monotonic()
        peers = [stack.enter_context(connect(service, buffer=4096)) for _ in range(60)]
        for peer in peers:
            peer.sendall(PAGE)
        for peer in peers:
            assert peer.recv(100).startswith(b"HTTP/1.1 200")
        stalled = time.monotonic()
        answered(load, stalled)
        until(lambda: "idle" in sessions(database).values(), "the answers hold no connection")
        longest = max(each.seconds for each in list(load.answers) if each.began > stalled)
        rest = iter(lambda: peers[0].recv(65536), b"")
        received = 0
        while received < PAGE_BYTES:  # one of them reads on after all, and gets its answer whole
            received += len(next(rest))
    slowest = max(each.seconds for each in load.answers if each.began > began)
    tell(
        f"60 slow readers of {PAGE_BYTES // 1000} kB: reads while they stall {longest:.3f} s at the longest"
        f" ({slowest:.3f} s while their pages were made)"
    )
    assert set(load.statuses()) == {200, 201}
    assert longest < 1
