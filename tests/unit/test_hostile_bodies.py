"""Bodies that do not fit, in every field of every endpoint; tests/api/ sends one of each kind over HTTP."""

import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.asgi import Application
from tests.support.problems import is_problem
from tests.support.users import new_user

WRITES = [("POST", "/users"), ("PUT", "/users/1"), ("PATCH", "/users/1"), ("POST", "/users/authenticate")]
LONG = "9" * 5000

NOT_JSON = [
    b" ", b"{", b"}", b"nan", b"undefined", b"{'fname': 'Ada'}", b'{"fname": "Ada",}', b"{} {}", b"{}x", b"01", b"+1",
    b"fname=Ada", b"<user/>", b"\x00", b"\xff\xfe", b'{"fname": "\xff"}', b'{"fname": "\xc3"}', b'{"a": "\xc0\x80"}',
    b'{"fname": "\\ud8"}', b'{"fname": "\\x41"}', b'{"fname": "a\nb"}', b'{"fname": "a\x00b"}', b'{"fname": "Ada"',
    b'{"fname": "\xed\xa0\x80"}', b'"' + b"\xed\xa0\x80" * 20_000 + b'"',  # half a surrogate pair is no UTF-8
    *(json.dumps(new_user()).encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32-be")),
]  # fmt: skip

NO_FIT = [
    b"", b"null", b"true", b"0", b"-1", b'"text"', b"[]", b"[{}]", b"NaN", b"Infinity", b"-Infinity", b"1e999",
    b"[" * 500 + b"]" * 500, b"[" * 30_000 + b"]" * 30_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, LONG.encode(),
    b'"\\ud800"', b'{"\\ud800": 1}', b'{"\\u0000": 1}', b'{"": 1}', b'{"__proto__": {}}', b'{"fname": {"$ne": null}}',
    b'{"fname": ' + b"[" * 900 + b"]" * 900 + b"}", b'{"fname": NaN}', b'{"fname": 1e999}', b'{"fname": -Infinity}',
    f'{{"fname": {LONG}}}'.encode(), f'{{"{"x" * 60_000}": 1}}'.encode(),
    json.dumps({str(number): number for number in range(3000)}).encode(),
]  # fmt: skip

NO_TEXT: list[Any] = [None, True, False, 0, 1.5, -1, [], ["Ada"], {}, {"Ada": "Ada"}, "\ud800", "a\udfffb"]
MARKS = "\N{COMBINING ACUTE ACCENT}\N{COMBINING DOT BELOW}" * 5000
GROWS = "\N{HEBREW LETTER SHIN WITH DAGESH AND SHIN DOT}"  # to three characters, in NFC
NO_NAME = ["", " ", "\t", "\N{IDEOGRAPHIC SPACE}", "x" * 101, "x" * 60_000, "\0", "Ada\0", "a\nb", "a\tb", "\x1b[31m",
           "\x7f", "\x85", "\x9f", " " * 60_000, MARKS, "a" + MARKS[:400],
           GROWS * 34]  # fmt: skip
NO_EMAIL = ["", "ada", "ada@", "@example.com", "a@b@example.com", "a b@example.com", "a@exam ple.com", "a@example..com",
            "a@.com", "a\0@example.com", "a@example.com\0", "a@example.com\r\nBcc: b@example.com", "a@example.com\n",
            "Ada <a@example.com>", "a@-example.com", "a@" + "x." * 126 + "com",
            "a@" + "x" * 60_000, "\x7f@example.com", MARKS, f"a{MARKS}@example.com", f"a@{MARKS}.com",
            "\N{LATIN SMALL LETTER E WITH ACUTE}" * 122 + "@example.com"]  # fmt: skip
NO_PASSWORD = ["", "1234567", "x" * 129, "x" * 60_000, "correct\0horse", "\0" * 8, "\ud800" * 8]
BAD_IDS: list[Any] = [
    0,
    -1,
    2**31,
    2**63,
    2**64,
    10**4000,
    1.5,
    1e999,
    float("nan"),
    True,
    False,
    None,
    "1",
    "",
    [],
    [1],
    {},
]

BAD_FIELDS = [
    *(("fname", value) for value in NO_TEXT + NO_NAME),
    *(("lname", value) for value in NO_TEXT + NO_NAME),
    *(("email", value) for value in NO_TEXT + NO_EMAIL),
    *(("password", value) for value in NO_TEXT + NO_PASSWORD),
    *((name, 1) for name in ("admin", "password_hash", "created_at", "updated_at", "Fname", "fname ", "")),
]

OTHER_TYPES = [
    None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx",
    "application", "json", "text/json", "application/xml; application/json", "application/merge-patch+json", "*/*",
]  # fmt: skip


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text() | st.sampled_from(list(new_user())), values),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def application() -> Iterator[Application]:
    with Application() as application:
        yield application


def right_body(method: str, path: str) -> dict[str, Any]:
    if path == "/users/authenticate":
        return {"email": "ada@example.com", "password": "correct horse"}
    return {} if method == "PATCH" else new_user()


def send(application: Application, method: str, path: str, **fields: object) -> httpx.Response:
    """Send a body that is right but for these fields."""
    return application.request(method, path, json.dumps({**right_body(method, path), **fields}).encode())


def named(response: httpx.Response) -> list[list[str | int]]:
    return [error["loc"] for error in is_problem(response, 422, "invalid-request")["errors"]]


def short(value: object) -> str:
    return ascii(value)[:20]


@pytest.mark.parametrize("body", NOT_JSON, ids=short)
def test_what_is_no_json_is_malformed(application: Application, body: bytes) -> None:
    for method, path in WRITES:
        is_problem(application.request(method, path, body), 400, "malformed-json")


@pytest.mark.parametrize("body", NO_FIT, ids=short)
def test_json_that_does_not_fit_is_invalid(application: Application, body: bytes) -> None:
    for method, path in WRITES:
        response = application.request(method, path, body)
        is_problem(response, 422, "invalid-request")
        assert len(response.content) < 10_000, "a large mistake gets no larger answer"


@settings(max_examples=100, deadline=None, database=None)
@given(st.binary() | any_json.map(lambda value: json.dumps(value).encode()))
def test_no_body_makes_an_error_of_the_service(application: Application, body: bytes) -> None:
    response = application.request("POST", "/users", body)
    is_problem(response, *((422, "invalid-request") if response.status_code == 422 else (400, "malformed-json")))


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_more_fields_than_any_body_has_are_one_error(application: Application, method: str, path: str) -> None:
    required = len(right_body(method, path))
    few, many = ({f"x{number}": number for number in range(count - required)} for count in (100, 101))
    assert ["body", "x0"] in named(send(application, method, path, **few))
    assert named(send(application, method, path, **many)) == [["body"]]


@pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["lists", "objects"])
def test_json_of_any_depth_is_invalid(application: Application, start: bytes, end: bytes) -> None:
    # Python's own limit is near a thousand, and depends on who calls.
    for depth in (*range(95, 105), *range(900, 1010)):
        is_problem(application.request("POST", "/users", start * depth + b"0" + end * depth), 422, "invalid-request")


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=short)
def test_a_field_that_does_not_fit_is_named(application: Application, field: str, value: object) -> None:
    for method, path in WRITES[:3]:
        assert named(send(application, method, path, **{field: value})) == [["body", field]], method


@pytest.mark.parametrize("value", BAD_IDS, ids=short)
def test_an_id_that_does_not_fit_is_named(application: Application, value: object) -> None:
    assert named(send(application, "POST", "/users", id=value)) == [["body", "id"]]


@pytest.mark.parametrize(("method", "path"), WRITES[1:])
def test_an_id_is_taken_at_creation_only(application: Application, method: str, path: str) -> None:
    assert ["body", "id"] in named(send(application, method, path, id=1))


@pytest.mark.parametrize("field", ["email", "password"])
@pytest.mark.parametrize("value", [*NO_TEXT, "\0", "ada\0@example.com"], ids=short)
def test_a_credential_that_is_no_text_is_named(application: Application, field: str, value: object) -> None:
    assert named(send(application, "POST", "/users/authenticate", **{field: value})) == [["body", field]]


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_a_body_of_another_type_is_refused(application: Application, kind: str | None) -> None:
    for method, path in WRITES:
        headers = {} if kind is None else {"Content-Type": kind}
        response = application.request(method, path, json.dumps(right_body(method, path)).encode(), headers)
        is_problem(response, 415, "unsupported-media-type")


def test_a_compressed_body_is_malformed(application: Application) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    for method, path in WRITES:
        body = gzip.compress(json.dumps(new_user()).encode())
        is_problem(application.request(method, path, body, headers), 400, "malformed-json")
