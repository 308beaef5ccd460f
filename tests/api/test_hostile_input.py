"""One of each kind that does not fit, and what only a server sees. tests/unit/test_hostile_input.py tries the rest."""

import json
from urllib.parse import quote

import httpx
import pytest

from tests.support.problems import MEMBERS, is_problem
from tests.support.process import Service
from tests.support.raw_http import Answer, exchange
from tests.support.users import new_user

pytestmark = pytest.mark.usefixtures("first_user", "still_serves")

LONG = "9" * 5000

BAD_IDS = ["0", "+1", " 1", "\0", "..", "\N{ARABIC-INDIC DIGIT ONE}", LONG, "\ud800", "x" * 30_000]
BAD_QUERIES = ["limit=0", "after=%00", "email=%00", "x=1", "%FF=1", "email=a+b@example.com", "x" * 30_000]
HARMLESS_QUERIES = ["", "&", "&&", "email=%FF", "email=%ED%A0%80", "email='OR'1=1", f"email={'x' * 8000}",
                    "limit=1&limit=2", "limit=007", "email=%25"]  # fmt: skip


def short(value: object) -> str:
    return ascii(value)[:20]


def send(service: Service, method: str, path: str, body: bytes = b"") -> Answer:
    headers = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    return exchange(service.url, f"{method} {path} HTTP/1.1", *headers, body=body)


@pytest.mark.parametrize(
    ("method", "body"), [("GET", ""), ("PUT", new_user()), ("PATCH", {"fname": "A"}), ("DELETE", "")]
)
@pytest.mark.parametrize("user_id", BAD_IDS, ids=short)
def test_an_id_that_is_none_is_invalid(service: Service, method: str, body: object, user_id: str) -> None:
    path = quote(user_id, safe="", errors="surrogatepass")
    answer = send(service, method, f"/users/{path}", json.dumps(body).encode() if body else b"")
    problem = is_problem(answer, 422, "invalid-request")
    assert [error["loc"] for error in problem["errors"]] == [["path", "user_id"]]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("user_id", [2**31, 2**63 - 1])
def test_the_largest_ids_are_merely_absent(client: httpx.Client, method: str, user_id: int) -> None:
    is_problem(client.request(method, f"/users/{user_id}"), 404, "user-not-found")


@pytest.mark.parametrize("query", BAD_QUERIES, ids=short)
def test_a_query_that_does_not_fit_is_invalid(service: Service, query: str) -> None:
    answer = send(service, "GET", f"/users?{query}")
    problem = is_problem(answer, 422, "invalid-request")
    assert all(error["loc"][0] == "query" for error in problem["errors"])
    assert len(answer.content) < 10_000


@pytest.mark.parametrize("query", HARMLESS_QUERIES, ids=short)
def test_an_odd_query_that_fits_is_answered(service: Service, query: str) -> None:
    assert send(service, "GET", f"/users?{query}").status_code == 200


@pytest.mark.parametrize("path", ["/users"])
@pytest.mark.parametrize("junk", ["%0A", "%00", "%0D%0A", "%2F%2F", "%FF", "%ED%A0%80", ";x", "%3F", "%23"])
def test_junk_behind_a_path_makes_it_another(service: Service, path: str, junk: str) -> None:
    is_problem(send(service, "GET", path + junk), 404, "not-found")


@pytest.mark.parametrize(
    "path", ["/%", "/%zz", "/%u0041", "/\\..\\", "/..", "/../../etc/passwd", "/" + "x" * 30_000, "/a" * 9000]
)
def test_a_path_of_junk_is_not_found(service: Service, path: str) -> None:
    is_problem(send(service, "GET", path), 404, "not-found")


@pytest.mark.parametrize(
    "header",
    [
        'Cookie: a=b;;=;"',
        "Authorization: Basic !!!",
        "Range: bytes=5-1",
        "If-None-Match: *",
        "Accept: nothing/at-all",
        "Expect: 100-continue",
        "Origin: \xff",
        "X-Forwarded-Proto: ::::",
        "Accept-Encoding: \x80",
        "X-Huge: " + "x" * 60_000,
        "Upgrade: websocket\r\nConnection: upgrade",
        "Content-Length: 0",
    ],
    ids=short,
)
def test_an_odd_header_changes_nothing(service: Service, header: str) -> None:
    answer = exchange(service.url, "GET /users HTTP/1.1", header)
    assert answer.status_code == 200
    assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize(
    "header",
    ["X-Huge: " + "x" * 1_000_000, *("\r\n".join(f"X-{n}: {n}" for n in range(count)) for count in (100, 10_000))],
    ids=short,
)
def test_many_or_huge_headers_are_no_fault_of_the_service(service: Service, header: str) -> None:
    assert exchange(service.url, "GET /users HTTP/1.1", header).status_code in (200, 400, 431)


@pytest.mark.parametrize("path", ["/users/1"])
@pytest.mark.parametrize("method", ["QUERY", "PROPFIND", "TRACE", "CONNECT", "OPTIONS", "PURGE"])
def test_a_method_that_no_path_takes_is_refused(service: Service, method: str, path: str) -> None:
    is_problem(send(service, method, path), 405, "method-not-allowed")


@pytest.mark.protocol
@pytest.mark.parametrize("method", ["FOO", "get", "X" * 1000, "G-T"], ids=short)
def test_an_unknown_method_is_answered_with_a_problem(service: Service, method: str) -> None:
    answer = send(service, method, "/users")
    assert answer.status_code in (400, 405, 501)
    is_a_problem_of_some_kind(answer)


@pytest.mark.protocol
@pytest.mark.parametrize(
    ("request_line", "header"),
    [
        ("POST /users HTTP/1.1", "Content-Length: x"),
        ("POST /users HTTP/1.1", "Content-Length: -1"),
        ("POST /users HTTP/1.1", f"Content-Length: {LONG}"),
        ("POST /users HTTP/1.1", "Content-Length: 1\r\nContent-Length: 2"),
        ("POST /users HTTP/1.1", "Content-Length: 1\r\nTransfer-Encoding: chunked"),
        ("GET /users HTTP/1.1", "No colon"),
        ("GET /users HTTP/1.1", "X-Control: a\x01b"),
        ("GET /users\x01 HTTP/1.1", "X: y"),
        ("GET /\xe9 HTTP/1.1", "X: y"),
        ("GET", "X: y"),
        ("GET /users HTTP/9.9", "X: y"),
        ("\x16\x03\x01", "X: y"),
    ],
    ids=short,
)
def test_what_is_no_http_is_answered_with_a_problem(service: Service, request_line: str, header: str) -> None:
    answer = exchange(service.url, request_line, header)
    assert answer.status_code in (400, 505)
    is_a_problem_of_some_kind(answer)


def is_a_problem_of_some_kind(answer: Answer) -> None:
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-ID"]
    assert set(answer.json()) == MEMBERS
