import json

import httpx
import pytest

from tests.support.polling import until
from tests.support.process import Service
from tests.support.users import create, new_user

CANARY = "canary-5c1a9e77b2d0f346"
WRITES = [("POST", "/users"), ("PUT", "/users/1"), ("PATCH", "/users/1"), ("POST", "/users/authenticate")]
JSON = "application/json"

FIELDS: list[dict[str, object]] = [
    {"password": CANARY},
    {"password": CANARY * 20},
    {"password": CANARY + "\0"},
    {"password": CANARY + "\ud800"},
    {"password": [CANARY]},
    {"password": {"value": CANARY}},
    {"password": {"a": [{"b": [CANARY, CANARY]}]}},
    {"passwrod": CANARY},
    {"password": CANARY, "passwrod": [CANARY]},
    {"password": CANARY, "id": 0},
    {"password": CANARY, "id": CANARY},
    {"password": CANARY, "email": CANARY},
    {"password": CANARY, "email": f"{CANARY}@"},
    {"password": CANARY, "email": f"{CANARY}@localhost"},
    {"password": CANARY, "fname": CANARY + "\0"},
    {"password": CANARY, "lname": CANARY * 20},
    {"password": CANARY, "fname": [CANARY]},
]
BODIES = [
    (json.dumps({"password": CANARY}).encode()[:-1], JSON),
    (json.dumps({"password": CANARY}).encode() + b"\xff", JSON),
    (f"{{'password': '{CANARY}'}}".encode(), JSON),
    (f"password={CANARY}&email=ada@example.com".encode(), "application/x-www-form-urlencoded"),
    (f"password={CANARY}".encode(), JSON),
    (json.dumps(CANARY).encode(), JSON),
    (json.dumps([CANARY, {"password": CANARY}]).encode(), JSON),
    (json.dumps({"password": CANARY, "x": "x" * 70_000}).encode(), JSON),
    (json.dumps({"password": CANARY}).encode() + b"[" * 30_000, JSON),
    (b'{"password": "%b", "id": %b}' % (CANARY.encode(), b"9" * 5000), JSON),
    (b'{"password": "%b", "id": %b1%b}' % (CANARY.encode(), b"[" * 5000, b"]" * 5000), JSON),
]


@pytest.fixture(scope="module", autouse=True)
def _somebody(service: Service) -> None:
    create(service.client, id=1, password=CANARY)


def send(service: Service, method: str, path: str, content: bytes, kind: str = JSON) -> httpx.Response:
    return service.client.request(method, path, content=content, headers={"Content-Type": kind})


def leak_nothing(service: Service, responses: list[httpx.Response]) -> None:
    ids = [response.headers["X-Request-ID"] for response in responses]
    until(lambda: all(f"[{request_id}]" in service.log for request_id in ids), "the requests are logged")
    for response in responses:
        assert CANARY not in response.text + str(response.headers.multi_items())
        assert "$argon2" not in response.text
    assert CANARY not in service.log
    assert "$argon2" not in service.log


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: ascii(fields).replace(CANARY, "…")[:60])
def test_no_answer_and_no_log_tells_a_password_whatever_the_fields(service: Service, fields: dict[str, object]) -> None:
    responses = []
    for method, path in WRITES:
        body = fields if method == "PATCH" else {**new_user(), **fields}
        if path == "/users/authenticate":
            body = {"email": "ada@example.com", **fields}
        responses.append(send(service, method, path, json.dumps(body).encode()))
    leak_nothing(service, responses)


@pytest.mark.parametrize(("body", "kind"), BODIES, ids=range(len(BODIES)))
def test_no_answer_and_no_log_tells_a_password_whatever_the_body(service: Service, body: bytes, kind: str) -> None:
    responses = [send(service, method, path, body, kind) for method, path in WRITES]
    assert {response.status_code for response in responses} <= {400, 413, 415, 422}
    leak_nothing(service, responses)


@pytest.mark.parametrize("query", [f"password={CANARY}", f"email={CANARY}", f"limit={CANARY}", f"after={CANARY}"])
def test_no_answer_and_no_log_tells_a_password_of_the_query(service: Service, query: str) -> None:
    leak_nothing(
        service, [send(service, method, f"{path}?{query}", b"null") for method, path in [("GET", "/users"), *WRITES]]
    )


def test_no_answer_and_no_log_tells_the_password_of_a_good_login(service: Service) -> None:
    email = create(service.client, password=CANARY)["email"]
    response = send(service, "POST", "/users/authenticate", json.dumps({"email": email, "password": CANARY}).encode())
    assert response.status_code == 200
    leak_nothing(service, [response])
