import re
from uuid import uuid4

import httpx
import pytest

from tests.support.polling import until
from tests.support.postgres import Cluster
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.raw_http import exchange
from tests.support.users import create, new_user

READABLE = [
    "/",
    "/users",
    "/users/1",
    "/livez",
    "/readyz",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/docs/assets/favicon.png",
]
METHODS = {path: {"GET", "HEAD"} for path in READABLE} | {
    "/users": {"GET", "HEAD", "POST"},
    "/users/1": {"GET", "HEAD", "PUT", "PATCH", "DELETE"},
    "/users/authenticate": {"POST"},
}
MISSING = ["/users/999999", "/users/x", "/nowhere", "/users?limit=0"]
EVERY_METHOD = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


@pytest.fixture(scope="module", autouse=True)
def _somebody(service: Service) -> None:
    create(service.client, id=1)


@pytest.mark.parametrize("path", READABLE[1:])
def test_a_slash_at_the_end_changes_nothing(client: httpx.Client, path: str) -> None:
    without, with_slash = client.get(path), client.get(f"{path}/")
    assert without.status_code == with_slash.status_code == 200
    assert without.content == with_slash.content


def test_a_slash_at_the_end_of_a_writing_path_changes_nothing(client: httpx.Client) -> None:
    user = new_user()
    created = client.post("/users/", json=user)
    path = created.headers["Location"]
    credentials = {"email": user["email"], "password": user["password"]}
    assert (created.status_code, path) == (201, f"/users/{created.json()['id']}")
    assert client.put(f"{path}/", json=user).status_code == 200
    assert client.patch(f"{path}/", json={"fname": "Grace"}).status_code == 200
    assert client.post("/users/authenticate/", json=credentials).status_code == 200
    assert client.delete(f"{path}/").status_code == 204
    assert client.get("/users/?limit=1").status_code == 200


@pytest.mark.parametrize("path", [*READABLE, *MISSING])
def test_head_answers_as_get_does_without_the_body(service: Service, path: str) -> None:
    get, head = (exchange(service.url, f"{method} {path} HTTP/1.1") for method in ("GET", "HEAD"))
    own = {"date", "x-request-id"}
    assert head.status_code == get.status_code
    assert head.content == b""
    assert get.content
    assert [item for item in head.headers.items() if item[0].lower() not in own] == [
        item for item in get.headers.items() if item[0].lower() not in own
    ]


def test_head_tells_of_the_next_page(client: httpx.Client) -> None:
    create(client)
    assert client.head("/users?limit=1").links == client.get("/users?limit=1").links != {}


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(
    ("path", "method"), [(path, method) for path in METHODS for method in EVERY_METHOD if method not in METHODS[path]]
)
def test_a_refused_method_is_answered_with_every_method_of_the_path(
    client: httpx.Client, path: str, method: str, slash: str
) -> None:
    response = client.request(method, path if path == "/" else path + slash)
    assert response.status_code == 405
    assert sorted(response.headers["Allow"].split(", ")) == sorted(METHODS[path])
    if method != "HEAD":
        is_problem(response, 405, "method-not-allowed")


@pytest.mark.parametrize("path", ["/nowhere", "/users/1/2", "/users//", "//users", "/Users", "/*"])
def test_a_path_that_is_none_is_not_found_whatever_the_method(service: Service, path: str) -> None:
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        is_problem(exchange(service.url, f"{method} {path} HTTP/1.1"), 404, "not-found")


@pytest.mark.parametrize("path", ["/", "/users", "/users/1", "/livez", "/readyz", "/openapi.json", *MISSING])
def test_every_json_body_ends_with_one_newline(client: httpx.Client, path: str) -> None:
    text = client.get(path).text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_the_root_leads_to_what_there_is(client: httpx.Client) -> None:
    answer = client.get("/").json()
    assert isinstance(answer["message"], str)
    for path in ("/users", "/docs", "/readyz"):
        assert path in str(answer)


@pytest.mark.parametrize(
    "given",
    ["a", "5bee3765-c036-4d4b-8274-542b8cfe64fd", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "x" * 64],
)
@pytest.mark.parametrize("path", ["/users", *MISSING])
def test_a_sane_request_id_is_kept(client: httpx.Client, path: str, given: str) -> None:
    assert client.get(path, headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize(
    "given", ["", " ", "a b", 'a"b', "a]b", "x" * 10_000, "\xe9", "${jndi:ldap://x}", "<script>", "%0a"]
)
def test_an_insane_request_id_is_replaced(service: Service, given: str) -> None:
    answer = exchange(service.url, "GET /livez HTTP/1.1", f"X-Request-ID: {given}")
    found = answer.headers["X-Request-ID"]
    assert re.fullmatch(r"[A-Za-z0-9-]{16,64}", found)


def test_every_request_without_an_id_gets_its_own(client: httpx.Client) -> None:
    ids = {client.get(path).headers["X-Request-ID"] for path in (*READABLE, *MISSING)}
    assert len(ids) == len(READABLE) + len(MISSING)


@pytest.mark.parametrize(("path", "status"), [("/users", 200), ("/users/999999", 404), ("/users?limit=0", 422)])
def test_the_log_has_the_id_of_the_request(service: Service, path: str, status: int) -> None:
    given = str(uuid4())

    def has_its_line() -> object:
        service.client.get(path, headers={"X-Request-ID": given})  # again: it may be one too many in its second
        return re.search(rf"\[{given}\] GET {re.escape(path.partition('?')[0])} {status} ", service.log)

    until(has_its_line, "its log line")


def test_a_service_with_its_database_is_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200


def test_a_service_without_its_database_is_alive_and_names_the_check_that_fails(cluster: Cluster) -> None:
    own = Cluster(cluster.programs)
    own.create()
    own.start()
    try:
        with Service(own.create_database().environment) as service:
            own.stop()
            response = until(
                lambda: (answer := service.client.get("/readyz")).status_code == 503 and answer, "it is not ready"
            )
            assert isinstance(response, httpx.Response)
            assert response.headers["Content-Type"] == "application/problem+json"
            assert response.json()["failed"] == "database"
            assert "X-Request-ID" in response.headers
            assert service.client.get("/readyz?exclude=database").status_code == 200, "the instance itself is ready"
            assert service.client.get("/livez").status_code == 200
            own.start()
            until(lambda: service.client.get("/readyz").status_code == 200, "it is ready again")
    finally:
        own.remove()
