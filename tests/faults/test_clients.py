"""Clients that hang up, dawdle and stall, at every stage of a request."""

import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.faults.conftest import SHORT
from tests.support.load import Load
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.raw_http import connect
from tests.support.scrape import counted
from tests.support.sessions import locked, sessions, terminate, waiting
from tests.support.small_buffer import MAX_UNSENT

pytestmark = pytest.mark.real_hashes

THREADS = 8
MANY = 200  # sockets
FILES = 300  # that a process may have open: 1024 as Linux has it, 256 as macOS
HEAD = b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
PAGE = b"GET /users?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n"
PAGE_BYTES = 500_000  # at least: more than the buffers of a socket take
SCRIPT = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"  # of 1.4 MB, which cost no thread

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
            peer = connect(service.url)
            peer.sendall(STAGES[stage])
            hang_up(peer, how)
        answered(load, began)
    assert not load.unexpected({200, 201})


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_clients_that_hang_up_while_they_queue_and_while_they_hold_a_thread_leave_nothing(
    service: Service, database: TestDatabase, how: str, record_figure: Callable[[str], None]
) -> None:
    before = abandoned(service)
    with locked(database):
        peers = [connect(service.url) for _ in range(40)]
        for peer in peers:
            peer.sendall(f"GET /users/500001 HTTP/1.1\r\nHost: x\r\nX-Request-ID: gone-{how}\r\n\r\n".encode())
        until(lambda: waiting(database) == THREADS, "every thread waits for the table, others wait for a thread")
        for peer in peers:
            hang_up(peer, how)
        assert service.client.get("/livez").elapsed.total_seconds() < 1
    began = time.monotonic()
    assert service.client.get("/users/500001").status_code == 200
    took = time.monotonic() - began
    until(
        lambda: service.log.count(f"[gone-{how}] GET ") + abandoned(service) - before == 40,
        "each is over: told in the log, or counted as it had not been read",
    )
    assert service.client.get("/pool").json()["totals"]["abandoned"] == abandoned(service) > before
    record_figure(f"40 clients hung up ({how}) at a locked table: the next one was answered after {took:.3f} s")
    assert took < 1


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_hangs_up_while_its_answer_is_sent_disturbs_nobody(service: Service, how: str) -> None:
    with Load(service.url, clients=2) as load:
        began = time.monotonic()
        for _ in range(40):
            peer = connect(service.url, buffer=4096)
            peer.sendall(PAGE)
            assert peer.recv(100).startswith(b"HTTP/1.1 200")
            hang_up(peer, how)
        answered(load, began)
    assert not load.unexpected({200, 201})


@pytest.mark.parametrize("stage", ["before the headers end", "in mid-body", "in mid-chunk"])
def test_many_slow_senders_keep_nobody_waiting(
    service: Service, database: TestDatabase, stage: str, record_figure: Callable[[str], None]
) -> None:
    with ExitStack() as stack, Load(service.url, clients=2) as load:
        peers = [stack.enter_context(connect(service.url)) for _ in range(MANY)]
        began = time.monotonic()
        for position in range(len(STAGES[stage])):  # a byte at a time, all of them in turn
            for peer in peers[:: 10 if position else 1]:
                peer.sendall(STAGES[stage][position : position + 1])
        answered(load, began)
        assert "active" not in sessions(database).values() or len(sessions(database)) == THREADS
    longest = max(each.seconds for each in load.answers if each.began > began and each.method == "GET")
    record_figure(f"{MANY} slow senders ({stage}): reads answered, longest {longest:.3f} s")
    assert not load.unexpected({200, 201})
    assert longest < 1


def test_many_slow_readers_hold_no_connection(
    service: Service, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with ExitStack() as stack, Load(service.url, clients=2) as load:
        began = time.monotonic()
        peers = [stack.enter_context(connect(service.url, buffer=4096)) for _ in range(60)]
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
    record_figure(
        f"60 slow readers of {PAGE_BYTES // 1000} kB: reads while they stall {longest:.3f} s at the longest"
        f" ({slowest:.3f} s while their pages were made)"
    )
    assert not load.unexpected({200, 201})
    assert longest < 1


@pytest.mark.parametrize(
    "sent", [b"", STAGES["in mid-body"], SCRIPT * 8], ids=["ask nothing", "send no more", "take no answer"]
)
def test_more_idle_clients_than_files_keep_neither_a_new_one_nor_postgresql_out(
    sent: bytes, cluster: Cluster, record_figure: Callable[[str], None]
) -> None:
    database = cluster.create_database()
    command = ["sh", "-c", f"ulimit -n {FILES}; exec {sys.executable} -m service serve"]
    with Service(database.environment, argv=command) as service, ExitStack() as stack:
        with database.connect() as conn:
            conn.execute(FILL)
        for _ in range(2 * FILES):
            peer = stack.enter_context(connect(service.url, buffer=4096))
            peer.sendall(sent)
            if sent.startswith(b"GET"):
                peer.recv(100)  # of an answer that is not taken
        assert httpx.get(f"{service.url}/users").status_code == 200
        terminate(database)
        assert httpx.get(f"{service.url}/users").status_code == 200
        until(lambda: len(sessions(database)) == THREADS, "every connection is there again")
        evicted = counted(service, "http_server_connections_evicted_total")
        assert f"as ulimit -n is {FILES}" in service.log
        assert not re.search("Too many open files|ERROR|Traceback", service.log)
    record_figure(f"{2 * FILES} clients of a process that may open {FILES} files: {evicted:.0f} had to make room")
    assert evicted >= FILES


def test_answers_that_nobody_takes_are_given_up_from_the_oldest_on(
    cluster: Cluster, record_figure: Callable[[str], None]
) -> None:
    """The last of them goes on to take its own, and gets all."""
    database = cluster.create_database()
    protocol = "service.extras.http.protocol:Protocol"
    uvicorn = f"-m uvicorn --factory tests.support.small_buffer:create_app --port 0 --http {protocol}"
    with Service(database.environment, argv=[sys.executable, *uvicorn.split()]) as service, ExitStack() as stack:
        with database.connect() as conn:
            conn.execute(FILL)
        for _ in range(MANY // 4):
            peer = stack.enter_context(connect(service.url, buffer=4096))
            peer.sendall(PAGE * 7 + PAGE.replace(b"Host", b"Connection: close\r\nHost"))
            assert peer.recv(100).startswith(b"HTTP/1.1 200")
        until(lambda: counted(service, "http_server_connections_evicted_total") > MANY // 8, "most are given up")
        received = sum(map(len, iter(lambda: peer.recv(65536), b"")))
        evicted = counted(service, "http_server_connections_evicted_total")
    record_figure(
        f"{MANY // 4} clients that take no answer, and room for {MAX_UNSENT >> 20} MiB: {evicted:.0f} were given up"
    )
    assert received > 8 * PAGE_BYTES


def test_sign_ups_whose_clients_have_gone_are_not_carried_out(cluster: Cluster) -> None:
    """They would keep the cores from those who still wait."""
    database = cluster.create_database()
    sign_up = '{"fname":"A","lname":"B","email":"%s@example.com","password":"correct horse"}'
    patient = {"QUEUE_WAIT": "20", "REQUEST_DEADLINE": "25", "GRACEFUL_SHUTDOWN_TIMEOUT": "30"}  # refuses none of them
    with Service({**database.environment, **patient}) as service:
        peers = [connect(service.url) for _ in range(100)]
        for number, peer in enumerate(peers):
            body = (sign_up % f"gone{number}").encode()
            peer.sendall(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        until(lambda: counted(service, "admission_queued", queue="hashing") > 60, "most of them wait for a core")
        for peer in peers:
            hang_up(peer, "RST")
        new = {"fname": "A", "lname": "B", "email": "stays@example.com", "password": "correct horse"}
        assert service.client.post("/users", json=new).status_code == 201
        until(lambda: not counted(service, "admission_in_progress"), "all is done")
        with database.connect() as conn:
            row = conn.execute('SELECT count(*) FROM public."user"').fetchone()
        left = counted(service, "admission_abandoned_total", queue="hashing")
    assert row
    assert row[0] + left == 101
    assert left > 50
