"""Whatever one request of up to 64 KiB has in it, everybody else is served meanwhile."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self

import pytest

from service.web.api_keys import add_key
from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.process import Service
from tests.support.raw_http import connect, exchange

ORIGIN = "https://app.example.com"
SIZE = 64_000  # bytes: MAX_BODY_SIZE and the limit of the headers are 65,536
PROMISE = 0.02  # seconds
BOUND = 0.25  # seconds: what fails, as a machine has pauses of its own

MARKS = "\u0301\u0323" * 16_000
MANY_NAMES = [f"{number:x}" for number in range(7000)]


@dataclass(frozen=True)
class Request:
    line: str
    headers: tuple[str, ...] = ()
    body: bytes = b""


def fields(method: str, path: str, **fields: object) -> Request:
    return body(method, path, json.dumps(fields, ensure_ascii=False, separators=(",", ":")))


def body(method: str, path: str, content: str | bytes) -> Request:
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    assert len(content) <= 65_536
    return Request(
        f"{method} {path} HTTP/1.1", ("Content-Type: application/json", f"Content-Length: {len(content)}"), content
    )


def get(target: str, *headers: str) -> Request:
    assert len(target) + sum(map(len, headers)) <= 65_536
    return Request(f"GET {target} HTTP/1.1", headers)


def preflight(*headers: str) -> Request:
    return Request("OPTIONS /users HTTP/1.1", ("Access-Control-Request-Method: GET", *headers))


def chunked(size: int) -> Request:
    """Return a body that comes in chunks of `size` bytes, each of which the server takes by itself."""
    chunk = b"%x\r\n%b\r\n" % (size, b" " * size)
    headers = ("Content-Type: application/json", "Transfer-Encoding: chunked")
    return Request("POST /users HTTP/1.1", headers, chunk * (SIZE // size) + b"0\r\n\r\n")


def user(**values: object) -> dict[str, object]:
    return {"fname": "Ada", "lname": "Lovelace", "email": "ada@example.com", "password": "correct horse", **values}


SIGN_IN = "/users/authenticate"
NOBODY = {"email": "nobody@example.com", "password": "correct horse"}

REQUESTS = {
    # Texts
    "marks in a name": fields("POST", "/users", **user(fname="a" + MARKS[:31_000])),
    "marks in a name, replaced": fields("PUT", "/users/1", **user(lname="a" + MARKS[:31_000])),
    "marks in a name, changed": fields("PATCH", "/users/1", fname="a" + MARKS[:31_000]),
    "spaces and marks in a name": fields("PATCH", "/users/1", fname=" " * 32_000 + "a" + MARKS[:15_000]),
    "characters that grow in a name": fields("PATCH", "/users/1", fname="\U0001d160" * 15_900),
    "jamo in a name": fields("PATCH", "/users/1", fname="\u1100\u1161\u11a8" * 7_000),
    "marks in an email": fields("POST", "/users", **user(email="a" + MARKS[:31_000] + "@example.com")),
    "marks in an email, signing in": fields("POST", SIGN_IN, **{**NOBODY, "email": f"{MARKS[:31_000]}@example.com"}),
    "marks in a domain, signing in": fields("POST", SIGN_IN, **{**NOBODY, "email": f"a@{MARKS[:31_000]}.com"}),
    "a quoted email, signing in": fields("POST", SIGN_IN, **{**NOBODY, "email": '"' + "x" * 60_000 + '"@example.com'}),
    "a display name, signing in": fields("POST", SIGN_IN, **{**NOBODY, "email": "x" * 60_000 + "<a@example.com>"}),
    "digits in a domain, signing in": fields("POST", SIGN_IN, **{**NOBODY, "email": "a@" + "\u0661" * 30_000}),
    "the longest password, signing in": fields("POST", SIGN_IN, **{**NOBODY, "password": "\u00e9" * 31_000}),
    "a long password": fields("PATCH", "/users/1", password="\u00e9" * 31_000),
    "a long field": fields("PATCH", "/users/1", **{"x" * 60_000: 1}),
    # Counts
    "many fields": body("PATCH", "/users/1", json.dumps(dict.fromkeys(MANY_NAMES, 0), separators=(",", ":"))),
    "many fields, signing in": body("POST", SIGN_IN, json.dumps(dict.fromkeys(MANY_NAMES, 0), separators=(",", ":"))),
    "many fields in a field": fields("PATCH", "/users/1", fname=dict.fromkeys(MANY_NAMES[:6500], 0)),
    "a long list": body("POST", "/users", "[" + "0," * 31_000 + "0]"),
    "a long list in a field": fields("PATCH", "/users/1", fname=[[]] * 21_000),
    "a long list for an id": fields("POST", "/users", **user(id=[0] * 31_000)),
    # JSON
    "one field again and again": body("PATCH", "/users/1", "{" + '"x":1,' * 10_000 + '"x":1}'),
    "deep lists": body("POST", "/users", "[" * 32_000 + "]" * 32_000),
    "many deep lists": body("POST", "/users", "[" + ",".join(["[" * 900 + "]" * 900] * 35) + "]"),
    "deep objects": body("POST", "/users", '{"a":' * 10_000 + "1" + "}" * 10_000),
    "small objects": body("POST", "/users", "[" + "{}," * 21_000 + "{}]"),
    "long numbers": body("POST", "/users", "[" + ",".join(["9" * 4300] * 14) + "]"),
    "too long a number": body("POST", "/users", "9" * SIZE),
    "a long id": body("POST", "/users", json.dumps(user(id=0)).replace(" 0}", "9" * 4300 + "}")),
    "long fractions": body("POST", "/users", "[0." + "1" * 63_000 + "]"),
    "large exponents": body("POST", "/users", "[" + "1e99999," * 7_900 + "0]"),
    "escapes": body("PATCH", "/users/1", '{"fname":"' + "\\n" * 31_000 + '"}'),
    "escaped marks": body("PATCH", "/users/1", '{"fname":"a' + "\\u0301\\u0323" * 5_000 + '"}'),
    "escaped halves of surrogate pairs": body("PATCH", "/users/1", '{"fname":"' + "\\ud800" * 10_000 + '"}'),
    "halves of surrogate pairs": body("PATCH", "/users/1", '{"fname":"' + "\ud800" * 21_000 + '"}'),
    "no UTF-8": body("POST", "/users", b'"' + b"\xff" * SIZE + b'"'),
    "spaces": body("POST", "/users", " " * SIZE + "x"),
    "lines": body("POST", "/users", "\n" * SIZE + "x"),
    # A path
    "a long id in a path": get("/users/" + "9" * SIZE),
    "a long path": get("/users/1" + "/x" * 30_000),
    "slashes": get("/users" + "/" * SIZE),
    "a path of escapes": get("/users/" + "%41" * 20_000),
    "a path of marks": get("/users/" + "%CC%81%CC%A3" * 5_000),
    # A query, of which service/web/bodies.py tells what is too much
    "a query of marks": get("/users?limit=0&email=a" + "%CC%81%CC%A3" * 5_000),
    "a query of names": get("/users?" + "&".join(f"{number:x}" for number in range(11_000))),
    "a query of one name": get("/users?limit=0" + "&a=1" * 15_000),
    "a query of a long name": get("/users?" + "x" * SIZE),
    "a query of escapes": get("/users?limit=0&email=" + "%20" * 21_000),
    "a query of separators": get("/users?limit=0" + "&" * SIZE),
    "a query of names that nothing takes": get("/users/1?" + "&".join(f"{number:x}" for number in range(11_000))),
    # Headers, and what else service/http has in hand
    "a long request id": get("/users/1", "X-Request-ID: " + "x" * SIZE),
    "a long content type": Request(
        "POST /users HTTP/1.1", ("Content-Type: " + "a;" * 30_000, "Content-Length: 1"), b"1"
    ),
    "a long parameter of JSON": Request(
        "POST /users HTTP/1.1", ('Content-Type: application/json;a="' + '\\"' * 30_000, "Content-Length: 1"), b"1"
    ),
    "a long origin": preflight("Origin: " + "x" * SIZE),
    "many headers asked for": preflight("Origin: " + ORIGIN, "Access-Control-Request-Headers: " + "a," * 31_000),
    "many headers": get("/users/1", *(f"{number:x}:" for number in range(10_000))),
    "one header again and again": get("/users/1", *["a:"] * 15_000),
    "a long authorization": get("/pool", "Authorization: Basic " + "YWRh" * 15_000),
    "many addresses": get("/users/1", "X-Forwarded-For: " + "127.0.0.1," * 6_000),
    "many tags": get("/users/1", "If-None-Match: " + '"1",' * 16_000),
    "a list of tags that ends badly": get("/users/1", "If-Match: " + '"1",' * 15_000 + " ," * 2_000 + '"'),
    "separators of tags": get("/users/1", "If-Match: " + " ," * 32_000),
    "a long key": Request("DELETE /users/999 HTTP/1.1", ('Idempotency-Key: "' + '\\"' * 30_000 + '"',)),
    "many cookies": get("/users/1", "Cookie: " + "a=b;" * 15_000),
    "small chunks": chunked(1),
    "a path of percent signs": get("/users/1" + "%" * SIZE),
    "a long query": get("/users?email=" + "x" * SIZE),
    "a quoted cookie": get("/users/1", 'Cookie: a="' + '\\"' * 30_000 + '"'),
}  # fmt: skip


class Neighbour:
    """Somebody else, who asks /livez all the time on a connection of their own."""

    def __init__(self, url: str) -> None:
        self._peer = connect(url)
        self._answered = [time.monotonic()]
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._go_on = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._go_on = False
        self._thread.join(30)
        self._peer.close()

    def _ask(self) -> None:
        while self._go_on:
            self._peer.sendall(b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n")
            assert self._peer.recv(65_536).startswith(b"HTTP/1.1 200 ")
            self._answered.append(time.monotonic())
            time.sleep(0.001)  # a machine of two cores has others to serve

    def longest_wait(self, meanwhile: Callable[[], object]) -> float:
        """Return the longest time between two answers while something goes on, and until the first behind it."""
        before = len(self._answered) - 1
        meanwhile()
        end = time.monotonic()
        until(lambda: self._answered[-1] > end, "the neighbour is answered")
        return max(later - earlier for earlier, later in pairwise(self._answered[before:]))


@pytest.fixture(scope="module")
def service(database: TestDatabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    file = tmp_path_factory.mktemp("keys") / "api-keys"
    add_key(file, "anybody", "read")
    settings = {"API_KEYS_FILE": str(file), "ANONYMOUS_ACCESS": "write", "CORS_ORIGINS": ORIGIN}
    with Service(database.environment | settings) as service:
        yield service


@pytest.fixture(scope="module")
def neighbour(service: Service) -> Iterator[Neighbour]:
    with Neighbour(service.url) as neighbour:
        yield neighbour


@pytest.mark.parametrize("kind", REQUESTS)
def test_one_request_keeps_nobody_else_waiting(
    service: Service, neighbour: Neighbour, record_figure: Callable[[str], None], kind: str
) -> None:
    request = REQUESTS[kind]
    statuses: set[int] = set()
    waits: list[float] = []

    def send() -> None:
        statuses.add(exchange(service.url, request.line, *request.headers, body=request.body).status_code)

    while (
        len(waits) < 3 and min(waits, default=BOUND) > PROMISE
    ):  # a pause of the machine's own does not come each time
        waits.append(neighbour.longest_wait(send))
    record_figure(f"one request: {min(waits) * 1000:6.1f} ms is the longest wait of another beside: {kind}")
    assert all(400 <= status < 500 for status in statuses), statuses
    assert min(waits) < BOUND
