from typing import Any

import httpx
import pytest

from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.raw_http import exchange
from tests.support.users import create, new_user

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("status", "code", "request_"),
    [
        (422, "invalid-request", ("POST", "/users", {"json": {}})),
        (422, "invalid-request", ("GET", "/users?limit=0", {})),
        (422, "invalid-request", ("GET", "/users/x", {})),
        (400, "malformed-json", ("POST", "/users", {"content": b"{", "headers": JSON})),
        (415, "unsupported-media-type", ("POST", "/users", {"content": b"{}"})),
        (413, "body-too-large", ("POST", "/users", {"content": b" " * 65_537, "headers": JSON})),
        (404, "not-found", ("GET", "/nowhere", {})),
        (404, "not-found", ("POST", "/users/1/friends", {})),
        (404, "user-not-found", ("GET", "/users/999999", {})),
        (405, "method-not-allowed", ("DELETE", "/users", {})),
        (401, "wrong-credentials", ("POST", "/users/authenticate", {"json": {"email": "x", "password": "x"}})),
    ],
)
def test_a_mistake_of_the_client_is_answered_with_a_problem(
    client: httpx.Client, status: int, code: str, request_: tuple[str, str, dict[str, Any]]
) -> None:
    method, path, rest = request_
    is_problem(client.request(method, path, **rest), status, code)


def test_what_is_taken_is_answered_with_a_problem(client: httpx.Client) -> None:
    user = create(client, id=1)
    is_problem(client.post("/users", json=new_user(id=1)), 409, "id-taken")
    is_problem(client.post("/users", json=new_user(email=user["email"])), 409, "email-taken")


def test_a_missing_content_type_is_answered_with_the_curl_flag_that_mends_it(client: httpx.Client) -> None:
    problem = is_problem(client.post("/users", content=b"{}"), 415, "unsupported-media-type")
    assert "--json" in problem["detail"]


@pytest.mark.parametrize("size", [65_536, 65_537])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_refused_from_the_first_byte_over_the_limit(
    client: httpx.Client, size: int, *, chunked: bool
) -> None:
    body = b" " * size
    response = client.post("/users", content=iter([body]) if chunked else body, headers=JSON)
    assert response.status_code == (413 if size > 65_536 else 400)


def test_a_declared_length_over_the_limit_is_refused_before_the_body_comes(service: Service) -> None:
    headers = ("Content-Type: application/json", "Content-Length: 65537")
    is_problem(exchange(service.url, "POST /users HTTP/1.1", *headers), 413, "body-too-large")


def test_a_body_of_many_megabytes_is_answered_while_it_is_sent(client: httpx.Client) -> None:
    is_problem(client.post("/users", content=b" " * 20_000_000, headers=JSON), 413, "body-too-large")


def test_every_error_of_a_body_is_named_and_no_value(client: httpx.Client) -> None:
    body = {"fname": 1.5, "lname": "Lovelace", "email": "value", "password": "value", "other": "value"}
    response = client.post("/users", json=body)
    problem = is_problem(response, 422, "invalid-request")
    assert {tuple(error["loc"]) for error in problem["errors"]} == {
        ("body", name) for name in ("fname", "email", "password", "other")
    }
    assert "value" not in response.text
    assert "1.5" not in response.text
