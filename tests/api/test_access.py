"""Every route, with every way to present a key."""

import json
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from service.web.api_keys import GRANTS, add_key
from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.raw_http import Answer, exchange
from tests.support.sessions import locked, waiting
from tests.support.users import new_user

ROUTES = {
    ("GET", "/"): "open",
    ("GET", "/livez"): "open",
    ("GET", "/readyz"): "open",
    ("GET", "/docs"): "open",
    ("GET", "/docs/assets/{name}"): "open",
    ("GET", "/redoc"): "open",
    ("GET", "/openapi.json"): "open",
    ("GET", "/users"): "read",
    ("GET", "/users/{user_id}"): "read",
    ("POST", "/users"): "signup",
    ("POST", "/users/authenticate"): "signup",
    ("PUT", "/users/{user_id}"): "write",
    ("PATCH", "/users/{user_id}"): "write",
    ("DELETE", "/users/{user_id}"): "write",
    ("GET", "/metrics"): "operator",
    ("GET", "/pool"): "operator",
    ("GET", "/pool/{name}"): "operator",
}
VALUES = {"{user_id}": "999999", "/assets/{name}": "/assets/swagger-ui.css", "{name}": "page.css"}

Keys = dict[str, str]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "api-keys"


@pytest.fixture(scope="module")
def keys(file: Path) -> Keys:
    """A key of each scope, named for it."""
    return {scope: add_key(file, f"the-{scope}-key", scope) for scope in GRANTS}


@pytest.fixture(scope="module")
def service(database: TestDatabase, file: Path, keys: Keys) -> Iterator[Service]:
    """Two workers that take these keys."""
    assert keys
    settings = {"API_KEYS_FILE": str(file), "WORKERS": "2", "WORKER_THREADS": "2", "LOG_FORMAT": "json"}
    with Service(database.environment | settings) as service:
        yield service


def basic(user: str, password: str) -> str:
    return f"Authorization: Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


def concrete(path: str) -> str:
    for name, value in VALUES.items():
        path = path.replace(name, value)
    return path


def ways(key: str) -> list[str]:
    """Return each way to present a key."""
    return [
        f"Authorization: Bearer {key}",
        f"authorization: bEARER  {key} ",
        f"AUTHORIZATION: Bearer {key}",
        basic("", key),
        basic("any:body"[:3], key),
    ]


def wrong_ways(key: str, other: str) -> list[list[str]]:
    """Return the headers of requests that present no valid key."""
    encoded = b64encode(f":{key}".encode()).decode()
    return [
        [],
        ["Authorization:"],
        ["Authorization: Bearer"],
        ["Authorization: Bearer "],
        [f"Authorization: {key}"],
        [f"Authorization: Bearer{key}"],
        [f"Authorization: Bearer {key}", f"Authorization: Bearer {key}"],
        [f"Authorization: Bearer {key}", f"Authorization: Bearer {other}"],
        [f"Authorization: Bearer {key}, Bearer {key}"],
        [f"Authorization: Digest {key}"],
        [f"Authorization: Token {key}"],
        [f"Authorization: Bearer {encoded}"],
        [f"Authorization: Basic {key}"],
        [f"Authorization: Basic {encoded}!"],
        ["Authorization: Basic"],
        ["Authorization: Basic ????"],
        ["Authorization: Basic " + "e" * 99],
        [basic(key, "")],
        [basic("", f":{key}")],
        [f"Authorization: Bearer {key[:-1]}"],
        [f"Authorization: Bearer {key}0"],
        [f"Authorization: Bearer {key.swapcase()}"],
        [f"Authorization: Bearer {key[:20]}"],
        [f"Authorization: Bearer {other[:20]}{key[20:]}"],
        ["Authorization: Bearer \xff\xfe"],
        ["Authorization: Bearer " + "x" * 60_000],
        ["Authorization: Bearer " + key * 1500],
        ["Authorization: Basic " + "eDp4" * 15_000],
        [f"Cookie: Authorization={key}"],
        [f"X-API-Key: {key}"],
    ]


def test_the_table_above_has_every_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.telemetry.log.configure", lambda *_: None)  # the log of this process is pytest's
    routes = create_app(Settings()).routes
    found = {(method, route.path_format) for route in routes for method in route.methods - {"HEAD"}}  # type: ignore[attr-defined]
    assert found == set(ROUTES)


@pytest.mark.parametrize(("method", "path", "scope"), [(*route, scope) for route, scope in ROUTES.items()])
class TestRoute:
    def test_every_key_opens_what_its_scope_allows(
        self, service: Service, keys: Keys, method: str, path: str, scope: str
    ) -> None:
        for name, key in keys.items():
            for header in ways(key):
                answer = exchange(service.url, f"{method} {concrete(path)} HTTP/1.1", header)
                if scope == "open" or scope in GRANTS[name]:
                    assert answer.status_code in {200, 404, 422}, (header, answer.text)
                else:
                    is_problem(answer, 403, "forbidden")
                    assert f'scope="{scope}"' in answer.headers["WWW-Authenticate"]

    def test_without_a_valid_key_only_what_is_open_is_answered(
        self, service: Service, keys: Keys, method: str, path: str, scope: str
    ) -> None:
        other = keys["read" if scope == "operator" else "operator"]
        for headers in wrong_ways(keys[scope if scope in keys else "write"], other):
            answer = exchange(service.url, f"{method} {concrete(path)} HTTP/1.1", *headers)
            if scope == "open":
                assert answer.status_code == 200, (headers, answer.text)
            else:
                is_problem(answer, 401, "unauthenticated")
                assert answer.headers["WWW-Authenticate"].startswith("Basic ")

    def test_a_nul_in_a_key_is_refused(self, service: Service, keys: Keys, method: str, path: str, scope: str) -> None:
        header = f"Authorization: Bearer {keys['write']}\0"
        is_problem(exchange(service.url, f"{method} {concrete(path)} HTTP/1.1", header), 400, "malformed-request")
        encoded = exchange(service.url, f"{method} {concrete(path)} HTTP/1.1", basic("", keys["write"] + "\0"))
        assert encoded.status_code == (200 if scope == "open" else 401)


@pytest.mark.parametrize(
    "line",
    [
        "GET /nowhere", "GET /users/1/x", "DELETE /users", "OPTIONS /users", "TRACE /users", "GET /users/authenticate",
        "GET /%70ool", "GET /pool/", "GET /%6detrics", "HEAD /metrics", "HEAD /users", "GET /users/", "GET /%75sers",
        "GET //users", "GET /livez/../users", "GET /users?key=KEY", "GET http://localhost/users", "GET /docs/../pool",
        "GET /users%2f", "GET /pool/page.js",
    ],
)  # fmt: skip
def test_no_other_spelling_of_a_path_or_method_is_answered_without_a_key(
    service: Service, keys: Keys, line: str
) -> None:
    answer = exchange(service.url, f"{line.replace('KEY', keys['write'])} HTTP/1.1")
    assert (answer.status_code, answer.headers["Content-Type"]) == (401, "application/problem+json")


@pytest.mark.parametrize(("name", "status"), [("operator", 200), ("write", 403)])
def test_an_encoded_path_takes_the_scope_of_the_plain_one(service: Service, keys: Keys, name: str, status: int) -> None:
    for path in ("/%70ool", "/pool/", "/%6detrics", "/p%6fol/page.js"):
        assert exchange(service.url, f"GET {path} HTTP/1.1", *ways(keys[name])[:1]).status_code == status


def test_what_a_bare_proxy_sends_is_not_answered_without_a_key(service: Service) -> None:
    for path in ("/pool", "/metrics", "/users"):
        is_problem(exchange(service.url, f"GET {path} HTTP/1.0"), 401, "unauthenticated")  # as nginx by default


def test_a_key_with_no_scope_for_it_still_learns_that_a_path_does_not_exist(service: Service, keys: Keys) -> None:
    is_problem(exchange(service.url, "GET /nowhere HTTP/1.1", *ways(keys["read"])[:1]), 404, "not-found")


def test_a_request_without_a_key_is_refused_before_its_body_is_read(service: Service) -> None:
    lines = ("Content-Type: application/json", "Content-Length: 60000")
    is_problem(exchange(service.url, "POST /users HTTP/1.1", *lines), 401, "unauthenticated")


def test_a_request_without_a_key_is_refused_before_it_waits(database: TestDatabase, file: Path, keys: Keys) -> None:
    small = {"API_KEYS_FILE": str(file), "WORKER_THREADS": "1", "QUEUE_LENGTH": "0", "LOCK_TIMEOUT": "4"}
    with Service(database.environment | small) as service, ThreadPoolExecutor(1) as clients:

        def read(*headers: str) -> Answer:
            return exchange(service.url, "GET /users/1 HTTP/1.1", *headers)

        mine = f"Authorization: Bearer {keys['read']}"
        with locked(database):
            first = clients.submit(read, mine)
            until(lambda: waiting(database) == 1, "the first has the only thread")
            is_problem(read(mine), 503, "overloaded")
            is_problem(read(), 401, "unauthenticated")
            is_problem(read(f"Authorization: Bearer {keys['signup']}"), 403, "forbidden")
        assert first.result().status_code == 404


def test_a_change_of_the_file_is_followed_within_a_second_by_all_workers(
    service: Service, file: Path, keys: Keys
) -> None:
    def statuses(key: str) -> set[int]:
        return {exchange(service.url, "GET /users HTTP/1.1", *ways(key)[:1]).status_code for _ in range(20)}

    content = file.read_bytes()
    key = add_key(file, f"new-{token_hex(4)}", "read")
    time.sleep(1)
    assert statuses(key) == {200}
    file.write_bytes(b"garbage\n" + content)
    time.sleep(1)
    assert (statuses(key), statuses(keys["read"])) == ({401}, {200})
    assert "line 1" in service.log
    file.unlink()
    time.sleep(1)
    assert statuses(keys["read"]) == {401}
    file.write_bytes(content)
    file.chmod(0o600)
    time.sleep(1)
    assert statuses(keys["read"]) == {200}


def test_every_write_and_every_refusal_is_logged_with_the_key_and_the_user(service: Service, keys: Keys) -> None:
    client, user, mark = service.client, new_user(), f"audit-{token_hex(4)}"

    def ask(key: str, method: str, path: str, body: object = None) -> httpx.Response:
        return client.request(method, path, json=body, headers={"Authorization": f"Bearer {key}", "X-Request-ID": mark})

    created = ask(keys["write"], "POST", "/users", user).json()["id"]
    for method, path, body in (
        ("POST", "/users/authenticate", {"email": user["email"], "password": user["password"]}),
        ("POST", "/users/authenticate", {"email": user["email"], "password": "not my password"}),
        ("PUT", f"/users/{created}", user),
        ("PATCH", f"/users/{created}", {"fname": "Grace"}),
        ("DELETE", f"/users/{created}", None),
    ):
        ask(keys["write"], method, path, body)
    ask(keys["signup"], "GET", "/users")
    ask(keys["signup"] + "x", "GET", "/users")

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in service.log.splitlines() if mark in line]

    until(lambda: len(lines()) == 8, "each has a line")
    assert [(line.get("caller"), line.get("subject"), line["status"], line.get("code")) for line in lines()] == [
        ("the-write-key", str(created), 201, None),
        ("the-write-key", str(created), 200, None),
        ("the-write-key", str(created), 401, "wrong-credentials"),
        ("the-write-key", str(created), 200, None),
        ("the-write-key", str(created), 200, None),
        ("the-write-key", str(created), 204, None),
        ("the-signup-key", None, 403, "forbidden"),
        (None, None, 401, "unauthenticated"),
    ]
    assert user["email"] not in service.log
    assert not [key for key in keys.values() if key in service.log]


def test_what_needs_a_key_declares_it(service: Service) -> None:
    openapi = service.client.get("/openapi.json").json()
    schemes = openapi["components"]["securitySchemes"]
    assert {name: (each["type"], each["scheme"]) for name, each in schemes.items()} == {
        "bearer": ("http", "bearer"), "basic": ("http", "basic"),
    }  # fmt: skip
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            needs_key = ROUTES[method.upper(), path] != "open"
            assert operation.get("security", []) == [{"bearer": []}, {"basic": []}] * needs_key


def test_users_are_kept_by_no_cache(service: Service, keys: Keys) -> None:
    mine = {"Authorization": f"Bearer {keys['write']}"}
    user = new_user()
    created = service.client.post("/users", json=user, headers=mine)
    credentials = {"email": user["email"], "password": user["password"]}
    for answer in (
        created,
        service.client.get("/users", headers=mine),
        service.client.get(created.headers["Location"], headers=mine),
        service.client.post("/users/authenticate", json=credentials, headers=mine),
    ):
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(("anonymous", "allowed"), [("read", {"open", "read"}), ("write", {"open", *GRANTS["write"]})])
def test_everybody_may_do_what_anonymous_access_says_and_a_wrong_key_nothing(
    database: TestDatabase, file: Path, keys: Keys, anonymous: str, allowed: set[str]
) -> None:
    settings = {"API_KEYS_FILE": str(file), "ANONYMOUS_ACCESS": anonymous, "WORKER_THREADS": "1"}
    with Service(database.environment | settings) as service:
        for (method, route), scope in ROUTES.items():
            line = f"{method} {concrete(route)} HTTP/1.1"
            answer = exchange(service.url, line, "X-Forwarded-For: 203.0.113.7", "Via: 1.1 proxy")
            assert (answer.status_code != 401) == (scope in allowed), (line, answer.text)
            if scope != "open":
                assert exchange(service.url, line, "Authorization: Bearer wrong").status_code == 401
        assert exchange(service.url, "GET /pool HTTP/1.1", *ways(keys["operator"])[:1]).status_code == 200


def test_without_keys_a_page_that_rebinds_its_name_gets_nothing(database: TestDatabase) -> None:
    with Service(database.environment | {"ALLOWED_HOSTS": "", "WORKER_THREADS": "1"}) as service:
        for (method, route), scope in ROUTES.items():
            line, path = f"{method} {concrete(route)} HTTP/1.1", concrete(route)
            answer = exchange(service.url, line)  # Host: test
            if path in {"/livez", "/readyz"}:
                assert answer.status_code == 200
            else:
                is_problem(answer, 421, "unknown-host")
            for name, status in ((f"{'a.' * 9}localhost:8000", None), ("evil.example.com", 421)):
                found = service.client.request(method, path, headers={"Host": name}).status_code
                assert scope == "open" or found == status or (status is None and found in {200, 404, 422}), line
        is_problem(service.client.get("/users", headers={"Via": "1.1 proxy"}), 421, "unknown-host")
        is_problem(service.client.get("/nowhere", headers={"Host": "evil.example.com"}), 421, "unknown-host")


def test_an_idempotency_key_is_another_one_for_each_api_key(service: Service, keys: Keys) -> None:
    users = {scope: new_user() for scope in ("write", "signup")}

    def send(scope: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {keys[scope]}", "Idempotency-Key": "the-same"}
        return service.client.post("/users", json=users[scope], headers=headers)

    first = {scope: send(scope) for scope in users}
    again = {scope: send(scope) for scope in users}
    for scope, user in users.items():
        assert (first[scope].status_code, first[scope].json()["email"]) == (201, user["email"])
        assert again[scope].headers["Idempotency-Replayed"] == "true"
        assert again[scope].content == first[scope].content
