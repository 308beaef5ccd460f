"""One body of each kind that does not fit, for each endpoint. tests/unit/test_hostile_bodies.py tries every field."""

import json

import httpx
import pytest

from tests.support.problems import is_problem
from tests.support.users import new_user

pytestmark = pytest.mark.usefixtures("first_user", "still_serves")

WRITES = [("POST", "/users"), ("PUT", "/users/1"), ("PATCH", "/users/1"), ("POST", "/users/authenticate")]
JSON = {"Content-Type": "application/json"}
MARKS = "\N{COMBINING ACUTE ACCENT}\N{COMBINING DOT BELOW}" * 5000

KINDS: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "no JSON": (b"{", JSON, 400, "malformed-json"),
    "half a character": (b'{"fname": "\xc3"}', JSON, 400, "malformed-json"),
    "compressed": (b"\x1f\x8b\x08", {**JSON, "Content-Encoding": "gzip"}, 400, "malformed-json"),
    "empty": (b"", JSON, 422, "invalid-request"),
    "too deep": (b"[" * 30_000 + b"]" * 30_000, JSON, 422, "invalid-request"),
    "too many": (json.dumps(dict.fromkeys(map(str, range(3000)), 0)).encode(), JSON, 422, "invalid-request"),
    "no text": (b'{"password": {"$ne": null}}', JSON, 422, "invalid-request"),
    "half a surrogate pair": (b'{"email": "\\ud800", "\\udfff": 1}', JSON, 422, "invalid-request"),
    "undeclared": (b"{}", {}, 415, "unsupported-media-type"),
    "declared as a form": (b"{}", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "unsupported-media-type"),
}


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_body_that_does_not_fit_is_refused(client: httpx.Client, method: str, path: str, kind: str) -> None:
    body, headers, status, code = KINDS[kind]
    is_problem(client.request(method, path, content=body, headers=headers), status, code)


@pytest.mark.parametrize(("method", "path"), WRITES)
def test_each_field_that_does_not_fit_is_named(client: httpx.Client, method: str, path: str) -> None:
    right = {"email": "ada@example.com", "password": "correct horse"} if "auth" in path else new_user()
    problem = is_problem(client.request(method, path, json={**right, "email": None, "x": 1}), 422, "invalid-request")
    assert sorted(error["loc"] for error in problem["errors"]) == [["body", "email"], ["body", "x"]]


@pytest.mark.parametrize("field", ["email", "password"])
@pytest.mark.parametrize(
    "value",
    ["", "x", " ", "x" * 60_000, "a\nb", "%", "' OR 1=1 --", "\N{PILE OF POO}", "\uffff", MARKS, f"{MARKS}@example.com",
     f'"{"x" * 60_000}"@example.com'],
    ids=lambda value: ascii(value)[:20],
)  # fmt: skip
def test_any_other_text_is_a_wrong_credential(client: httpx.Client, field: str, value: str) -> None:
    credentials = {"email": new_user()["email"], "password": "correct horse"}  # its logins are not throttled
    is_problem(client.post("/users/authenticate", json={**credentials, field: value}), 401, "wrong-credentials")


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/json ;charset=UTF-8"]
)
def test_json_may_be_declared_in_any_spelling(client: httpx.Client, kind: str) -> None:
    body = json.dumps(new_user())
    assert client.post("/users", content=body, headers={"Content-Type": kind}).status_code == 201
