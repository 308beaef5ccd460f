from collections.abc import Iterator

import httpx
import pytest

from tests.support.postgres import TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.users import new_user

FRIEND = "https://app.example.com"
STRANGER = "https://evil.example.com"
COOKIE = {"Cookie": "session=1"}


@pytest.fixture(scope="module")
def listed(database: TestDatabase) -> Iterator[httpx.Client]:
    """A client of a service that lists two origins."""
    with Service({**database.environment, "CORS_ORIGINS": f"{FRIEND}, https://www.example.com"}) as service:
        yield service.client


@pytest.fixture(scope="module")
def anyone(database: TestDatabase) -> Iterator[httpx.Client]:
    """A client of a service that every web page may call."""
    with Service({**database.environment, "CORS_ORIGINS": "*"}) as service:
        yield service.client


def preflight(
    client: httpx.Client, origin: str, method: str = "PATCH", headers: str = "content-type"
) -> httpx.Response:
    asks = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return client.options("/users/1", headers={"Origin": origin, **asks})


def allowed(response: httpx.Response) -> str | None:
    origin: str | None = response.headers.get("Access-Control-Allow-Origin")
    return origin


def granted(response: httpx.Response) -> list[str]:
    return [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ["/users", "/users/999999", "/users?limit=0", "/nowhere"])
def test_a_listed_origin_may_read_every_answer(listed: httpx.Client, path: str) -> None:
    response = listed.get(path, headers={"Origin": FRIEND})
    assert allowed(response) == FRIEND
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert "Origin" in response.headers["Vary"]
    exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"ETag", "Link", "Location", "Retry-After", "X-Request-ID"} <= set(exposed)


def test_a_listed_origin_may_read_of_a_bug_too(listed: httpx.Client, database: TestDatabase) -> None:
    with database.connect() as conn:
        conn.execute('ALTER TABLE "user" RENAME COLUMN fname TO other')
        response = listed.get("/users", headers={"Origin": FRIEND})
        conn.execute('ALTER TABLE "user" RENAME COLUMN other TO fname')
    is_problem(response, 500, "internal-error")
    assert allowed(response) == FRIEND


@pytest.mark.parametrize("origin", [STRANGER, "null", "https://app.example.com.evil.com", "http://app.example.com"])
def test_another_origin_is_granted_nothing(listed: httpx.Client, origin: str) -> None:
    for headers in ({"Origin": origin}, {"Origin": origin, **COOKIE}):
        assert allowed(listed.get("/users", headers=headers)) is None
    refused = preflight(listed, origin)
    is_problem(refused, 400, "cors-refused")
    assert granted(refused) == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_a_listed_origin_may_use_every_method(listed: httpx.Client, method: str) -> None:
    response = preflight(listed, FRIEND, method)
    assert (response.status_code, allowed(response)) == (200, FRIEND)
    assert method in response.headers["Access-Control-Allow-Methods"].split(", ")


def test_a_listed_origin_may_send_a_key_and_the_headers_of_the_api(listed: httpx.Client) -> None:
    headers = "authorization, content-type, idempotency-key, if-match, traceparent, x-request-id"
    assert preflight(listed, FRIEND, headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/pool", "/pool/page.js", "/pool/", "/%70ool", "/nowhere/../pool"])
def test_no_origin_may_read_what_is_for_the_operator(listed: httpx.Client, anyone: httpx.Client, path: str) -> None:
    for client in (listed, anyone):
        answer = client.get(path, headers={"Origin": FRIEND})
        assert answer.status_code in {200, 404}
        assert granted(answer) == granted(client.get(path, headers={"Origin": FRIEND, **COOKIE})) == []
        asks = {"Origin": FRIEND, "Access-Control-Request-Method": "GET"}
        refused = client.options(path, headers={**asks, "Access-Control-Request-Headers": "authorization"})
        assert refused.status_code in {404, 405}
        assert granted(refused) == []


@pytest.mark.parametrize(("method", "headers"), [("TRACE", "content-type"), ("GET", "x-other")])
def test_a_preflight_for_what_the_api_does_not_take_is_refused(listed: httpx.Client, method: str, headers: str) -> None:
    is_problem(preflight(listed, FRIEND, method, headers), 400, "cors-refused")


def test_any_origin_means_without_credentials(anyone: httpx.Client) -> None:
    for response in (anyone.get("/users", headers={"Origin": STRANGER}), preflight(anyone, STRANGER)):
        assert (response.status_code, allowed(response)) == (200, "*")
        assert "Access-Control-Allow-Credentials" not in response.headers


def test_any_origin_with_a_cookie_is_not_given_credentials(anyone: httpx.Client) -> None:
    response = anyone.get("/users", headers={"Origin": STRANGER, **COOKIE})
    assert "Access-Control-Allow-Credentials" not in response.headers


def test_nothing_is_granted_when_no_origin_is_listed(client: httpx.Client) -> None:
    assert granted(client.get("/users", headers={"Origin": FRIEND})) == []
    assert granted(client.post("/users", json=new_user(), headers={"Origin": FRIEND})) == []
    refused = preflight(client, FRIEND)
    is_problem(refused, 405, "method-not-allowed")
    assert granted(refused) == []
