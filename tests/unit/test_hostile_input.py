"""Paths, queries and methods that do not fit. tests/api/test_hostile_input.py has one of each kind over HTTP."""

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.asgi import Application
from tests.support.problems import is_problem
from tests.support.users import new_user

LONG = "9" * 5000

BAD_IDS = [
    "0", "-1", "+1", "1.0", "1e3", "1E0", "0x1", "1_000", "1,000", "01x", " 1", "1 ", "\t1", "1\n", "\0", "1\0", "..",
    "\N{ARABIC-INDIC DIGIT ONE}", "\N{FULLWIDTH DIGIT ONE}", "\N{SUPERSCRIPT TWO}", str(2**63), str(2**64), LONG, "*",
    "null", "true", "NaN", "abc", "'", "1 OR 1=1", "1;", "%", "\ud800", "\xe9", "authenticate.", "x" * 30_000,
]  # fmt: skip
BAD_NUMBERS = [
    "-1", "0", "+1", "1.0", "%201", "1%20", "", "x", "%00", "%D9%A3", LONG, "1e2", "true", "NaN", "%FF", "[]", "1,2",
    "%ED%A0%80", str(2**63),
]  # fmt: skip
BAD_QUERIES = [
    *(f"{name}={number}" for name in ("limit", "after") for number in BAD_NUMBERS),
    "limit=1001", "limit=2147483648", "limit=1&x=1", "limit=1&limit=0", "email=%00", "email=a%00@example.com", "x=1",
    "Limit=1", "limit[]=1", "limit%00=1", "%00=1", "=1", "password=x", "x" * 30_000,
    "email='%20OR%201=1", "email=a%20b@example.com", "email=a+b@example.com",  # no email has a space: a + was meant
]  # fmt: skip


@pytest.fixture(scope="module")
def application() -> Iterator[Application]:
    with Application() as application:
        yield application


def short(value: object) -> str:
    return ascii(value)[:20]


@pytest.mark.parametrize("user_id", BAD_IDS, ids=short)
def test_an_id_that_is_none_is_invalid(application: Application, user_id: str) -> None:
    path = quote(user_id, safe="", errors="surrogatepass")
    for method, body in (("GET", None), ("PUT", new_user()), ("PATCH", {"fname": "A"}), ("DELETE", None)):
        answer = application.request(method, f"/users/{path}", json.dumps(body).encode() if body else b"")
        problem = is_problem(answer, 422, "invalid-request")
        assert [error["loc"] for error in problem["errors"]] == [["path", "user_id"]], method


@pytest.mark.parametrize("query", BAD_QUERIES, ids=short)
def test_a_query_that_does_not_fit_is_invalid(application: Application, query: str) -> None:
    answer = application.request("GET", f"/users?{query}")
    problem = is_problem(answer, 422, "invalid-request")
    assert all(error["loc"][0] == "query" for error in problem["errors"])
    assert len(answer.content) < 10_000


@settings(max_examples=300, deadline=None, database=None)
@given(st.binary(max_size=50), st.binary(max_size=50))
def test_no_path_and_no_query_makes_an_error_of_the_service(
    application: Application, segment: bytes, query: bytes
) -> None:
    answer = application.request("GET", f"/users/x{quote(segment, safe='')}?{quote(query, safe='&=+')}")
    is_problem(answer, *((404, "not-found") if answer.status_code == 404 else (422, "invalid-request")))


@pytest.mark.parametrize("path", ["/users", "/livez", "/openapi.json", "/docs", "/nowhere"])
@pytest.mark.parametrize("junk", ["%0A", "%00", "%0D%0A", "%2F%2F", "%FF", "%ED%A0%80", ";x", "%3F", "%23"])
def test_junk_behind_a_path_makes_it_another(application: Application, path: str, junk: str) -> None:
    is_problem(application.request("GET", path + junk), 404, "not-found")


@pytest.mark.parametrize("path", ["/users", "/users/1", "/users/authenticate", "/livez"])
@pytest.mark.parametrize("method", ["QUERY", "PROPFIND", "TRACE", "CONNECT", "OPTIONS", "PURGE"])
def test_a_method_that_no_path_takes_is_refused(application: Application, method: str, path: str) -> None:
    is_problem(application.request(method, path), 405, "method-not-allowed")
