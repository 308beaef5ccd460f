"""Behind a proxy that shows the service under /api: all links lead there, whether the proxy strips it or not."""

import re
from collections.abc import Iterator

import httpx
import pytest

from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.users import create, new_user


@pytest.fixture(scope="module")
def service(database: TestDatabase) -> Iterator[Service]:
    with Service({**database.environment, "ROOT_PATH": "api/", "WORKER_THREADS": "2"}) as service:
        yield service


@pytest.fixture(params=["", "/api"], ids=["stripped", "kept"])
def client(service: Service, request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    """A client whose requests arrive as a proxy sends them on."""
    with httpx.Client(base_url=service.url + request.param, timeout=30) as client:
        yield client


def test_location_and_link_lead_to_the_root_path(client: httpx.Client) -> None:
    first = client.post("/users", json=new_user())
    assert first.headers["Location"] == f"/api/users/{first.json()['id']}"
    create(client)
    page = client.get("/users", params={"limit": 1})
    assert page.headers["Link"] == f'</api/users?limit=1&after={page.json()[0]["id"]}>; rel="next"'
    assert client.get(f"/users/{first.json()['id']}/").json() == first.json()


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/pool", "/pool/"])
def test_a_page_finds_what_it_needs_below_the_root_path(service: Service, client: httpx.Client, path: str) -> None:
    page = client.get(path, headers={"Accept": "text/html"})
    assert page.headers["Content-Type"].startswith("text/html")
    links = re.findall(r"(?:src|href|url)[=:]\s*[\"']([^\"']*)", page.text)
    assert len(links) >= 3
    for link in links:
        assert link.startswith("/api/")
        assert httpx.get(service.url + link).status_code == 200


@pytest.mark.parametrize("path", ["", "/"])
def test_the_index_lists_paths_below_the_root_path(client: httpx.Client, path: str) -> None:
    paths = client.get(path).json()
    assert (paths["users"], paths["docs"], paths["readyz"]) == ("/api/users", "/api/docs", "/api/readyz")


def test_the_openapi_document_names_the_root_path_as_its_server(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["servers"] == [{"url": "/api"}]
    assert "/users" in document["paths"]


def test_the_page_that_asks_again_and_again_leaves_no_line_in_the_log(service: Service, client: httpx.Client) -> None:
    for path in ("/pool", "/pool/"):
        assert client.get(path, headers={"X-Request-ID": "asked-again"}).status_code == 200
    client.get("/users", headers={"X-Request-ID": "asked-once"})
    until(lambda: "asked-once" in service.log, "the last request is logged")
    assert "asked-again" not in service.log


@pytest.mark.parametrize("path", ["/apiusers", "/api/api/users", "/API/users"])
def test_a_path_that_only_resembles_the_root_path_is_not_found(service: Service, path: str) -> None:
    is_problem(service.client.get(path), 404, "not-found")
