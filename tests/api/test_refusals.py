"""Who finds the queue full is answered with little work, and must not be able to tell."""

import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.raw_http import Answer, connect
from tests.support.scrape import counted
from tests.support.sessions import locked, waiting

PAGE = "https://app.example.com"
FULL = {
    "WORKER_THREADS": "1", "QUEUE_LENGTH": "0", "LOG_FORMAT": "json", "CORS_ORIGINS": PAGE,
    "LOCK_TIMEOUT": "60", "STATEMENT_TIMEOUT": "70", "LEAK_THRESHOLD": "80", "REQUEST_DEADLINE": "90",
    "GRACEFUL_SHUTDOWN_TIMEOUT": "100",
}  # fmt: skip


@contextmanager
def filled(database: TestDatabase, **settings: str) -> Iterator[Service]:
    """Run a service whose only thread is held while the block runs; there is no queue unless `settings` have one."""
    with Service({**database.environment, **FULL, **settings}) as service, ThreadPoolExecutor(1) as holder:
        with locked(database):
            held = holder.submit(service.client.get, "/users", timeout=120)
            until(lambda: waiting(database) == 1, "its place is taken")
            yield service
        assert held.result().status_code == 200


@pytest.fixture(scope="module")
def full(database: TestDatabase) -> Iterator[Service]:
    with filled(database) as service:
        yield service


def send(peer: socket.socket, *lines: str) -> Answer:
    """Send a request and return what comes until its end, or that of the connection."""
    first, *headers = lines
    peer.sendall("".join(f"{line}\r\n" for line in (first, "Host: x", *headers, "")).encode())
    received = b""
    while not received.endswith(b"}\n") and (part := peer.recv(65536)):
        received += part
    return Answer(received)


def ask(service: Service, *lines: str) -> Answer:
    with connect(service.url) as peer:
        return send(peer, *lines)


@pytest.mark.parametrize("path", ["/users", "/users/1", "/users?limit=5", "/users/none", "/users?email=a@example.com"])
def test_it_is_refused_as_one_that_was_read(full: Service, path: str) -> None:
    """A page of another origin must be read to be answered."""
    plain, read = (ask(full, f"GET {path} HTTP/1.1", *more) for more in ((), ("Origin: https://evil.example.com",)))
    is_problem(plain, 503, "overloaded")
    assert plain.content == read.content
    unlike = {"x-request-id", "date", "server"}
    ours, theirs = ({name.lower(): value for name, value in each.headers.items()} for each in (plain, read))
    assert {name: ours[name] for name in ours if name not in unlike} == {
        name: theirs[name] for name in theirs if name not in unlike | {"vary"} and not name.startswith("access-control")
    }


def test_a_page_of_a_listed_origin_may_read_that_it_was_refused(full: Service) -> None:
    answer = ask(full, "GET /users HTTP/1.1", f"Origin: {PAGE}")
    is_problem(answer, 503, "overloaded")
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE


def test_it_keeps_its_name_and_has_one_line_in_the_log_and_is_counted_once(full: Service) -> None:
    counts = {
        "admission_refused_total": {"queue": "threads", "reason": "full"},
        "http_server_problems_total": {"code": "overloaded"},
        "http_server_request_duration_seconds_count": {
            "http_route": "/users/{user_id}", "http_request_method": "GET", "http_response_status_code": "503",
        },
    }  # fmt: skip
    before = {name: counted(full, name, **labels) for name, labels in counts.items()}
    assert ask(full, "GET /users/5?x=1 HTTP/1.1", "X-Request-ID: mine/1").headers["X-Request-ID"] == "mine/1"
    assert {name: counted(full, name, **labels) - before[name] for name, labels in counts.items()} == dict.fromkeys(
        counts, 1
    )
    (line,) = until(
        lambda: [json.loads(line) for line in full.log.splitlines() if '"mine/1"' in line], "its line is in the log"
    )
    told = {name: line[name] for name in ("method", "path", "route", "status", "code")}
    assert told == {
        "method": "GET", "path": "/users/5", "route": "/users/{user_id}", "status": 503, "code": "overloaded",
    }  # fmt: skip


def test_a_name_that_could_forge_a_line_is_not_taken(full: Service) -> None:
    answer = ask(full, "GET /users/1 HTTP/1.1", 'X-Request-ID: a","b":"c')
    is_problem(answer, 503, "overloaded")
    assert answer.headers["X-Request-ID"].isalnum()


def test_one_connection_is_refused_as_often_as_it_asks(full: Service) -> None:
    with connect(full.url) as peer:
        for _ in range(3):
            is_problem(send(peer, "GET /users/1 HTTP/1.1"), 503, "overloaded")
        assert send(peer, "GET /livez HTTP/1.1").status_code == 200
        is_problem(send(peer, "GET /users/1 HTTP/1.1"), 503, "overloaded")


def test_head_is_refused_without_a_body(full: Service) -> None:
    with connect(full.url) as peer:
        peer.sendall(b"HEAD /users HTTP/1.1\r\nHost: x\r\n\r\n")
        head = peer.recv(65536)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert head.endswith(b"\r\n\r\n")
        is_problem(send(peer, "GET /users/1 HTTP/1.1"), 503, "overloaded")  # which begins where it should


@pytest.mark.parametrize("first", [b"/users/1", b"/users?limit=1"])
def test_two_that_come_together_get_two_answers(full: Service, first: bytes) -> None:
    with connect(full.url) as peer:
        peer.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\nGET /users/2 HTTP/1.1\r\nHost: x\r\n\r\n" % first)
        received = b""
        while received.count(b"}\n") < 2:
            received += (part := peer.recv(65536))
            assert part, received
    assert received.count(b"HTTP/1.1 503 ") == 2


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("GET /users/1/friends HTTP/1.1",), 404),
        (("GET /users HTTP/1.1", "Bad Header: x"), 400),
        (("GET /users HTTP/1.1", "Content-Length: x"), 400),
        (("GET /users HTTP/9.9",), 400),
        (("GET /users HTTP/1.1", "Upgrade: h2c", "Connection: Upgrade"), 503),
        (("GET /users/ HTTP/1.1",), 503),
        (("GET /users/%31 HTTP/1.1",), 503),
    ],
)
def test_a_full_queue_hides_no_other_mistake_of_the_request(full: Service, lines: tuple[str, ...], status: int) -> None:
    assert ask(full, *lines).status_code == status


def test_what_looks_like_a_read_in_a_refused_body_is_none(full: Service) -> None:
    """The request is refused before its body has come."""
    inner = b"GET /users/1 HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(full.url) as peer:
        peer.sendall(f"POST /users HTTP/1.1\r\nHost: x\r\nContent-Length: {len(inner) + 100_000}\r\n\r\n".encode())
        is_problem(Answer(peer.recv(65536)), 503, "overloaded")
        peer.sendall(inner)
        assert ask(full, "GET /livez HTTP/1.1").status_code == 200  # the service has had time to read it
        peer.sendall(b"x" * 100_000)
        assert send(peer, "GET /livez HTTP/1.1").json() == {"status": "alive"}


def test_the_rest_of_a_head_that_looks_like_a_read_is_none(full: Service) -> None:
    with connect(full.url) as peer:
        peer.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nX-Quoted: ")
        assert Answer(peer.recv(65536)).json() == {"status": "alive"}
        assert send(peer, "GET /users/1 HTTP/1.1").json() == {"status": "alive"}


def test_who_asks_for_the_end_of_the_connection_gets_it(cluster: Cluster) -> None:
    with filled(cluster.create_database(), ANONYMOUS_ACCESS="read") as service:  # without keys, HTTP/1.0 is a 421
        for lines in (("GET /users HTTP/1.0",), ("GET /users HTTP/1.1", "Connection: close")):
            with connect(service.url) as peer:
                answer = send(peer, *lines)
                is_problem(answer, 503, "overloaded")
                assert answer.headers["Connection"] == "close"
                assert peer.recv(65536) == b""


def test_the_last_answer_before_the_end_of_the_service_says_so(cluster: Cluster) -> None:
    with filled(cluster.create_database()) as service, connect(service.url) as peer:
        service.process.send_signal(signal.SIGTERM)
        while (answer := send(peer, "GET /users/1 HTTP/1.1")).headers["Connection"] != "close":
            is_problem(answer, 503, "overloaded")
        is_problem(answer, 503, "overloaded")
