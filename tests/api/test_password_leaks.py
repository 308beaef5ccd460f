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


def tells_nothing(service: Service, response: httpx.Response) -> None:
    request_id = response.headers["X-Request-ID"]
    until(lambda: f"[{request_id}]" in service.log, "the request is logged")
    told = response.text + str(response.headers.multi_items()) + service.log
    assert CANARY not in told
    assert "$argon2" not in told


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: ascii(fields).replace(CANARY, "…")[:60])
def test_no_answer_and_no_log_tells_a_password_whatever_the_fields(
    service: Service, method: str, path: str, fields: dict[str, object]
) -> None:
    body = fields if method == "PATCH" else {**new_user(), **fields}
    if path == "/users/authenticate":
        body = {"email": "ada@example.com", **fields}
    response = service.client.request(method, path, content=json.dumps(body), headers={"Content-Type": JSON})
    tells_nothing(service, response)


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize(("body", "kind"), BODIES, ids=range(len(BODIES)))
def test_no_answer_and_no_log_tells_a_password_whatever_the_body(
    service: Service, method: str, path: str, body: bytes, kind: str
) -> None:
    response = service.client.request(method, path, content=body, headers={"Content-Type": kind})
    assert response.status_code in (400, 413, 415, 422)
    tells_nothing(service, response)


@pytest.mark.parametrize("query", [f"password={CANARY}", f"email={CANARY}", f"limit={CANARY}", f"after={CANARY}"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/users"), *WRITES])
def test_no_answer_and_no_log_tells_a_password_of_the_query(
    service: Service, method: str, path: str, query: str
) -> None:
    tells_nothing(service, service.client.request(method, f"{path}?{query}", json=None))


def test_no_answer_and_no_log_tells_the_password_of_a_good_login(service: Service) -> None:
    email = create(service.client, password=CANARY)["email"]
    credentials = {"email": email, "password": CANARY}
    response = service.client.post("/users/authenticate", json=credentials)
    assert response.status_code == 200
    tells_nothing(service, response)
