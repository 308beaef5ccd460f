"""What comes as bytes that no client library sends."""

import json
import re
import select
import signal
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.raw_http import Answer, connect, exchange
from tests.support.sessions import locked, waiting

SCRIPT = "/docs/assets/redoc.standalone.js"  # the largest of all answers
PROTOCOL = "service.extras.http.protocol:Protocol"
SIGN_UP = b'{"id":7,"fname":"A","lname":"B","email":"a@example.com","password":"correct horse"}'


@pytest.fixture(scope="module")
def hasty(database: TestDatabase) -> Iterator[Service]:
    """A service that waits a second for a body."""
    deadlines = {"LOCK_TIMEOUT": "0.2", "STATEMENT_TIMEOUT": "0.3", "LEAK_THRESHOLD": "0.4", "REQUEST_DEADLINE": "1"}
    with Service({**database.environment, **deadlines, "QUEUE_WAIT": "0.5"}) as service:
        yield service


@pytest.mark.protocol
def test_a_request_is_answered_though_garbage_comes_behind_it(service: Service) -> None:
    head = (
        f"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(SIGN_UP)}\r\n\r\n"
    )
    with connect(service.url) as peer:
        peer.sendall(head.encode() + SIGN_UP + b"garbage\r\n\r\n")
        answer = Answer(b"".join(iter(lambda: peer.recv(65536), b"")))
    assert answer.status_code == 201
    assert answer.headers["Location"] == "/users/7"


@pytest.mark.protocol
@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.0"])
def test_an_upgrade_is_not_taken_and_its_body_is_read(service: Service, upgrade: str) -> None:
    """As curl --http2 and Java's HttpClient send it (RFC 9110, 7.8)."""
    body = json.dumps({**json.loads(SIGN_UP), "id": 100 + len(upgrade), "email": f"{len(upgrade)}@example.com"})
    lines = ("Connection: Upgrade", f"uPgrade: {upgrade}", "Content-Type: application/json")
    head = "".join(
        f"{line}\r\n" for line in ("POST /users HTTP/1.1", "Host: x", *lines, f"Content-Length: {len(body)}")
    )
    with connect(service.url) as peer:
        peer.sendall(head.encode() + b"\r\n")
        assert service.client.get("/livez").status_code == 200
        peer.sendall(body.encode())
        assert Answer(peer.recv(65536)).status_code == 201


@pytest.mark.protocol
def test_the_body_of_an_upgrade_is_not_taken_for_a_request(service: Service, client: httpx.Client) -> None:
    """A proxy would pass it on as somebody's body."""
    body = b"DELETE /users/8 HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"POST /users HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nContent-Length: {len(body)}\r\n\r\n"
    assert client.post("/users", json={**json.loads(SIGN_UP), "id": 8, "email": "b@example.com"}).status_code == 201
    with connect(service.url) as peer:
        peer.sendall(head.encode())
        assert client.get("/livez").status_code == 200
        peer.sendall(body + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b"".join(iter(partial(peer.recv, 65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"415", b"200"]
    assert client.get("/users/8").status_code == 200


@pytest.mark.protocol
def test_a_client_that_speaks_no_http_learns_that_the_connection_ends(service: Service) -> None:
    answer = exchange(service.url, "garbage")
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed-request")
    assert answer.headers["Connection"] == "close"


def test_an_upgrade_without_a_body_is_not_taken_and_answered(service: Service) -> None:
    assert exchange(service.url, "GET /users HTTP/1.1", "Upgrade: h2c").status_code == 200


@pytest.mark.protocol
def test_headers_without_an_end_are_refused_before_they_fill_the_memory(service: Service) -> None:
    answer = exchange(service.url, "GET /users HTTP/1.1", "X-Huge: " + "x" * 4_000_000)
    assert (answer.status_code, answer.json()["code"]) == (431, "head-too-large")
    assert answer.headers["X-Request-ID"]


def test_a_body_that_does_not_come_is_given_up_at_the_deadline(hasty: Service, client: httpx.Client) -> None:
    answer = exchange(
        hasty.url, "POST /users HTTP/1.1", "Content-Type: application/json", "Content-Length: 50", body=b"{"
    )
    assert (answer.status_code, answer.json()["code"]) == (408, "body-too-slow")
    assert client.get("/livez").status_code == 200


@pytest.mark.protocol
@pytest.mark.parametrize(("length", "status"), [(65_000, 200), (65_536, 431), (200_000, 431)])
def test_a_head_of_more_than_64_kib_is_refused_however_it_comes(service: Service, length: int, status: int) -> None:
    """The network may bring all of it at once."""
    assert exchange(service.url, "GET /users HTTP/1.1", f"X-Long: {'x' * length}").status_code == status


@pytest.fixture(scope="module")
def impatient(database: TestDatabase) -> Iterator[Service]:
    """A service that closes a connection on which nothing happens for a second."""
    uvicorn = "-m uvicorn --factory service.app:create_app --port 0 --timeout-keep-alive 1 --http"
    with Service(database.environment, argv=[sys.executable, *uvicorn.split(), PROTOCOL]) as service:
        yield service


@pytest.mark.parametrize("sent", [b"", b"GET /users HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /users HTT"])
def test_a_connection_on_which_nothing_happens_is_closed(impatient: Service, sent: bytes) -> None:
    """Whether it was never used, is not used any more, or began a request and does not end it."""
    with connect(impatient.url) as peer:
        began = time.monotonic()
        peer.sendall(sent)
        received = b"".join(iter(partial(peer.recv, 65536), b""))
        assert time.monotonic() - began > 0.9
        assert received.count(b"HTTP/1.1") == sent.endswith(b"\n")


def test_a_client_that_takes_none_of_its_answers_is_cut_off(impatient: Service) -> None:
    """It would have kept its connection, and what was written to it, for as long as it liked."""
    with connect(impatient.url, buffer=4096) as peer:
        peer.sendall(f"GET {SCRIPT} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 20)  # more than the kernel keeps
        here = peer.getsockname()[1]
        process = psutil.Process(impatient.process.pid)

        def is_there() -> bool:
            return any(each.raddr and each.raddr.port == here for each in process.net_connections("tcp"))

        until(is_there, "it is connected")
        until(lambda: not is_there(), "it is not any more")


def test_a_connection_whose_request_takes_long_is_not_idle(impatient: Service, database: TestDatabase) -> None:
    with connect(impatient.url) as peer:
        with locked(database):
            peer.sendall(b"GET /users HTTP/1.1\r\nHost: x\r\n\r\n")
            closed, _, _ = select.select([peer], [], [], 1.5)
            assert not closed
        received = peer.recv(65536)
    assert Answer(received).status_code == 200


def test_an_answer_that_breaks_off_before_its_body_is_an_error_and_no_silence() -> None:
    uvicorn = f"-m uvicorn tests.support.broken_response:app --port 0 --http {PROTOCOL}"
    with Service({}, argv=[sys.executable, *uvicorn.split()]) as service:
        assert exchange(service.url, "GET / HTTP/1.1").status_code == 500


def test_requests_that_come_behind_one_that_waits_unread_are_answered_in_their_order(database: TestDatabase) -> None:
    """One thread, so that nearly all wait; each client sends its next requests before it has an answer."""
    ids = [1, 2, 3]
    with Service({**database.environment, "WORKER_THREADS": "1"}) as service, ExitStack() as stack:
        peers = [stack.enter_context(connect(service.url)) for _ in range(60)]
        for number in ids:
            for peer in peers:
                last = "Connection: close\r\n" if number == ids[-1] else ""
                peer.sendall(
                    f"GET /users/{10_000 + number} HTTP/1.1\r\nHost: x\r\n{last}X-Request-ID: {number}\r\n\r\n".encode()
                )
        for peer in peers:
            received = b"".join(iter(partial(peer.recv, 65536), b""))
            assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"404"] * 3
            assert re.findall(rb"x-request-id: (\d+)", received) == [b"1", b"2", b"3"]


def test_many_requests_in_one_piece_are_answered_one_after_the_other(service: Service) -> None:
    """Five thousand of them, each made ready, took the memory of the service and held up all others."""
    last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connect(service.url) as peer, ThreadPoolExecutor(1) as sender:
        sent = sender.submit(peer.sendall, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 4_999 + last)
        received = b"".join(iter(partial(peer.recv, 65536), b""))
        sent.result()
    assert received.count(b"HTTP/1.1 200 ") == received.count(b"alive") == 5_000


@pytest.mark.parametrize("cut", [0, 4, 24, 40])
def test_a_request_that_has_begun_to_come_behind_another_is_answered_when_it_is_there(
    service: Service, cut: int
) -> None:
    whole = b"GET /users?limit=1 HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(service.url) as peer:
        peer.sendall(whole + whole[:cut])
        received = peer.recv(65536)  # both answers, perhaps, when both requests are whole
        peer.sendall(whole[cut:])
        while received.count(b"HTTP/1.1 ") < 2:
            received += (part := peer.recv(65536))
            assert part, received
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200"] * 2


@pytest.mark.protocol
@pytest.mark.parametrize("behind", [b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 70_000, b"garbage\r\n\r\n"])
def test_a_write_is_answered_whatever_comes_behind_it_while_it_is_done(service: Service, behind: bytes) -> None:
    """It is done, and who sent it must know."""
    user = {**json.loads(SIGN_UP), "id": 1000 + len(behind), "email": f"{len(behind)}@example.com"}
    body = json.dumps(user).encode()
    head = f"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    logged = len(service.log)
    with connect(service.url) as peer:
        peer.sendall(head.encode() + body)
        until(lambda: service.client.get("/livez").status_code == 200, "it has been read")
        peer.sendall(behind)
        received = b"".join(iter(partial(peer.recv, 65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", received) in ([b"201", b"431"], [b"201", b"400"])
    assert "ERROR" not in service.log[logged:]


@pytest.mark.protocol
def test_a_body_that_is_wrong_on_its_way_is_logged_once_and_is_no_bug(service: Service) -> None:
    logged = len(service.log)
    expect = "Expect: 100-continue\r\nTransfer-Encoding: chunked"
    with connect(service.url) as peer:
        peer.sendall(f"POST /users HTTP/1.1\r\nHost: x\r\n{expect}\r\n\r\nZZ\r\n".encode())
        received = b"".join(iter(partial(peer.recv, 65536), b""))
    assert Answer(received).json()["code"] == "malformed-request"
    assert received.count(b"HTTP/1.1") == 1
    assert service.client.get("/livez").status_code == 200
    assert not re.search("ERROR|Traceback", service.log[logged:])


def test_a_client_that_takes_its_answers_slowly_gets_all_of_them(impatient: Service) -> None:
    """It takes longer than a connection may be idle."""
    size = len(impatient.client.get(SCRIPT).content)
    requests = [f"GET {SCRIPT} HTTP/1.1\r\nHost: x\r\n{last}\r\n" for last in ["", "", "", "Connection: close\r\n"]]
    began, received = time.monotonic(), 0
    with connect(impatient.url, buffer=65536) as peer:
        peer.sendall("".join(requests).encode())
        while part := peer.recv(65536):
            received += len(part)
            time.sleep(len(part) / size)  # 1 s for each, as long as a connection may be idle
    assert time.monotonic() - began > 3
    assert received > 4 * size


@pytest.mark.protocol
@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\n",  # RFC 9112, 3.2: one Host, and a valid one
        b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: x\r\n",
        b"GET /livez HTTP/1.0\r\nHost: x\r\nHost: y\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x y\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x/y\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a@b\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x:80a\r\n",
        b"GET  /livez HTTP/1.1\r\nHost: x\r\n",  # RFC 9112, 3
        b"GET /livez  HTTP/1.1\r\nHost: x\r\n",
        b"GET\t/livez HTTP/1.1\r\nHost: x\r\n",
        b"GET /livez HTTP/1.1 \r\nHost: x\r\n",
        b"GET /livez HTTP/2.0\r\nHost: x\r\n",
        b"GET /livez HTTP/1.2\r\nHost: x\r\n",
        b"GET /livez http/1.1\r\nHost: x\r\n",
        b"GET /livez\r\n",
        b"get /livez HTTP/1.1\r\nHost: x\r\n",
        b"GET /l\xc3\xafvez HTTP/1.1\r\nHost: x\r\n",
        b"GET /livez HTTP/1.1\nHost: x\n",
        b"GET /livez HTTP/1.1\r\nHost : x\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-ID: a\r\n b\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
        b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"POST /users HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
@pytest.mark.parametrize("behind", ["", "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", "POST /nowhere"])
def test_a_head_that_is_malformed_is_refused_also_behind_another_request(
    service: Service, head: bytes, behind: str
) -> None:
    name = f"malformed-{zlib.crc32(head + behind.encode())}"
    before = behind.encode()
    if behind.startswith("POST"):
        before = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n123\r\n0\r\n\r\n"
    line, end, headers = head.partition(b"\r\n")
    with connect(service.url) as peer:
        peer.sendall(before + line + end + f"X-Request-ID: {name}\r\n".encode() + headers + b"\r\n")
        received = b"".join(iter(partial(peer.recv, 65536), b""))
    statuses = re.findall(rb"HTTP/1.1 (\d+)", received)
    assert (len(statuses), statuses[-1]) == (1 + bool(behind), b"400")
    answer = Answer(received[received.rindex(b"HTTP/1.1 ") :])
    assert answer.json()["code"] == "malformed-request"
    assert answer.headers["Date"]
    if end and head.count(b"X-Request-ID") == 0 and b"\r\n" in head[:-2]:
        assert answer.headers["X-Request-ID"] == name
        if not behind:  # with all of them there would be more lines than fit in a second
            until(lambda: f"[{name}]" in service.log, "its line is in the log")


@pytest.mark.parametrize("host", ["", "example.com", "example.com:8000", "[::1]:8000", "127.0.0.1", "a_b.internal:"])
def test_a_valid_host_is_taken(service: Service, host: str) -> None:
    with connect(service.url) as peer:
        peer.sendall(f"GET /livez HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert Answer(peer.recv(65536)).status_code == 200


@pytest.mark.parametrize(
    "first", ["GET /livez HTTP/1.0", "\r\nGET /livez HTTP/1.1\r\nHost: x", "GET http://x/livez HTTP/1.1\r\nHost: x"]
)
def test_what_the_standard_lets_a_client_send_is_taken(service: Service, first: str) -> None:
    with connect(service.url) as peer:
        peer.sendall(f"{first}\r\n\r\n".encode())
        assert Answer(peer.recv(65536)).status_code == 200


@pytest.mark.protocol
@pytest.mark.parametrize("end", ["\r\n", ""], ids=["whole", "unfinished"])
def test_headers_are_counted_as_they_come(service: Service, end: str) -> None:
    """Thirteen thousand of three bytes took 17 ms and 1.6 MiB, of each connection."""
    many = "a:b\r\n"
    with connect(service.url) as peer:
        peer.sendall(f"GET /livez HTTP/1.1\r\nHost: x\r\n{many * 99}\r\n".encode())
        assert Answer(peer.recv(65536)).status_code == 200
        peer.sendall(f"GET /livez HTTP/1.1\r\nHost: x\r\n{many * 200}{end}".encode())
        assert Answer(peer.recv(65536)).json()["code"] == "head-too-large"


def test_an_answer_in_flight_when_the_service_ends_says_that_it_is_the_last(cluster: Cluster) -> None:
    database = cluster.create_database()
    with Service(database.environment) as service, connect(service.url) as peer:
        with locked(database):
            peer.sendall(b"GET /users HTTP/1.1\r\nHost: x\r\n\r\n")
            until(lambda: waiting(database) == 1, "it waits for the table")
            service.process.send_signal(signal.SIGTERM)
            until(lambda: "Shutting down" in service.log, "the service ends")
        answer = Answer(b"".join(iter(partial(peer.recv, 65536), b"")))
    assert (answer.status_code, answer.headers["Connection"]) == (200, "close")
