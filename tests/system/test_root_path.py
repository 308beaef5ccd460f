"""ROOT_PATH behind a real nginx, which strips the prefix or keeps it, and in a browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from service.web.api_keys import add_key
from tests.support.postgres import Cluster, free_port, installed
from tests.support.process import Service
from tests.support.users import new_user
from tests.system import reverse_proxy

# What proxy_pass says decides whether nginx strips the prefix.
PROXY_PASS = {"kept": "http://users;", "stripped": "http://users/;"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "api-keys"


@pytest.fixture(scope="module")
def keys(file: Path) -> dict[str, str]:
    return {scope: add_key(file, scope, scope) for scope in ("write", "operator")}


@pytest.fixture(scope="module")
def service(file: Path, keys: dict[str, str]) -> Iterator[Service]:
    assert keys
    with Cluster(installed()["18"]) as cluster:
        settings = {"ROOT_PATH": "/api", "API_KEYS_FILE": str(file), "WORKER_THREADS": "2"}
        with Service({**cluster.create_database().environment, **settings}) as service:
            yield service


@pytest.fixture(scope="module", params=["kept", "stripped"])
def url(service: Service, request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the URL under which nginx shows the service."""
    port = free_port()
    configuration = reverse_proxy.deployed("nginx.conf", [service], port)
    configuration = reverse_proxy.replaced(configuration, "location / {", "location /api/ {")
    configuration = reverse_proxy.replaced(configuration, "http://users;", PROXY_PASS[request.param])
    with reverse_proxy.running("nginx", configuration, port, probe="/api/livez") as url:
        yield f"{url}/api"


def test_links_can_be_followed_through_the_proxy(url: str, keys: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {keys['write']}"}
    for _ in range(2):
        created = httpx.post(f"{url}/users", json=new_user(), headers=headers)
        again = httpx.get(created.url.join(created.headers["Location"]), headers=headers)
        assert (created.status_code, again.json()) == (201, created.json())
    page = httpx.get(f"{url}/users?limit=1", headers=headers)
    (following,) = re.findall("<(.*)>", page.headers["Link"])
    assert httpx.get(page.url.join(following), headers=headers).status_code == 200


def test_the_pages_work_in_a_browser_through_the_proxy(url: str, keys: dict[str, str]) -> None:
    failed: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        context = browser.new_context(http_credentials={"username": "", "password": keys["operator"]})
        page = context.new_page()
        page.on("response", lambda answer: failed.append(answer.url) if answer.status not in {200, 401} else None)
        page.goto(f"{url}/pool")
        expect(page.locator("#headline")).to_have_attribute("data-state", "room", timeout=20_000)
        page.goto(f"{url}/redoc")
        expect(page.get_by_role("heading", name="List users").first).to_be_visible(timeout=20_000)
        page.goto(f"{url}/docs")
        operation = page.locator("#operations-service-livez")
        operation.locator(".opblock-summary-control").click(timeout=20_000)
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        status = operation.locator(".live-responses-table .response-col_status").nth(1)
        expect(status).to_contain_text("200", timeout=20_000)
        browser.close()
    assert failed == []
