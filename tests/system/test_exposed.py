"""What stands before an exposed service: a browser, proxies, systemd."""

import http.client
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from service.web.api_keys import GRANTS, add_key
from tests.support.load import Load
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase, free_port, installed
from tests.support.process import CHECKOUT, Service, environment
from tests.system import reverse_proxy

# What is set up with as little as it takes: nginx adds no header then.
BARE_NGINX = """
events {{}}
http {{ access_log off; server {{ listen {port}; location / {{ proxy_pass {service}; }} }} }}
"""
BARE_HAPROXY = """
defaults
    timeout connect 5s
    timeout client 5s
    timeout server 5s
listen users
    mode {mode}
    bind :{port}
    server users {address}
"""
KINDS = ["nginx.conf", "haproxy.cfg", "bare nginx", "bare haproxy tcp", "bare haproxy http"]

Keys = dict[str, str]

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(scope="module")
def database() -> Iterator[TestDatabase]:
    with Cluster(installed()["18"]) as cluster:
        yield cluster.create_database()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "api-keys"


@pytest.fixture(scope="module")
def keys(file: Path) -> Keys:
    return {scope: add_key(file, scope, scope) for scope in GRANTS}


@pytest.fixture(scope="module")
def service(database: TestDatabase, file: Path, keys: Keys) -> Iterator[Service]:
    assert keys
    with Service(database.environment | {"API_KEYS_FILE": str(file), "WORKER_THREADS": "2"}) as service:
        yield service


@contextmanager
def opened(browser: Browser, service: Service, path: str, password: str = "") -> Iterator[Page]:
    """Open a page. In the end its policy may have stopped nothing, and no other host been asked for anything."""
    wrong: list[str] = []
    credentials = {"username": "", "password": password} if password else None
    with browser.new_context(http_credentials=credentials) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: wrong.append(asked.url) if service.url not in asked.url else None)
        page.goto(f"{service.url}{path}")
        yield page
    assert [text for text in wrong if not re.search("^data:|^blob:", text)] == []


@pytest.mark.parametrize("scheme", ["bearer", "basic"])
def test_authorize_in_the_documentation_sends_the_key(
    browser: Browser, service: Service, keys: Keys, scheme: str
) -> None:
    with opened(browser, service, "/docs") as page:
        page.get_by_role("button", name="Authorize").first.click()
        dialog = page.locator(".modal-ux")
        if scheme == "basic":
            dialog.locator("#auth-basic-username").fill("anybody")
        field = dialog.locator({"bearer": "#auth-bearer-value", "basic": "#auth-basic-password"}[scheme])
        field.fill(keys["read"])
        field.press("Enter")
        dialog.get_by_role("button", name="Close").first.click()
        operation = page.locator("#operations-users-listUsers")
        operation.locator(".opblock-summary-control").click()
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        expect(operation.locator(".live-responses-table .response-col_status").nth(1)).to_contain_text("200")


def test_redoc_renders_under_its_policy(browser: Browser, service: Service) -> None:
    with opened(browser, service, "/redoc") as page:
        expect(page.get_by_role("heading", name="List users").first).to_be_visible()


def test_a_browser_opens_the_pool_with_the_key_as_the_password(browser: Browser, service: Service, keys: Keys) -> None:
    with opened(browser, service, "/pool", keys["operator"]) as page:
        expect(page.locator("#headline")).to_have_attribute("data-state", "room")


@contextmanager
def proxied(service: Service, kind: str) -> Iterator[str]:
    """Yield the URL of a proxy before the service: as service/deploy/ has it, or set up with as little as it takes."""
    if kind in reverse_proxy.LISTEN:
        with reverse_proxy.before(kind, service) as url:
            yield url
        return
    port = free_port()
    bare = {
        "bare nginx": BARE_NGINX.format(port=port, service=service.url),
        "bare haproxy tcp": BARE_HAPROXY.format(mode="tcp", port=port, address=service.url.removeprefix("http://")),
        "bare haproxy http": BARE_HAPROXY.format(mode="http", port=port, address=service.url.removeprefix("http://")),
    }
    with reverse_proxy.running(kind.split()[1], bare[kind], port) as url:
        yield url


@pytest.mark.parametrize("kind", KINDS)
def test_behind_a_proxy_nothing_is_answered_without_a_key(service: Service, keys: Keys, kind: str) -> None:
    with proxied(service, kind) as url:
        for path in ("/users", "/pool", "/%70ool", "/metrics", "/pool/page.js", "/nowhere"):
            for host in ("users.example.com", "localhost", service.url.removeprefix("http://")):
                assert httpx.get(f"{url}{path}", headers={"Host": host}).status_code == 401
        assert httpx.get(f"{url}/pool", auth=("", keys["operator"])).status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_without_keys_a_proxy_is_not_answered(database: TestDatabase, kind: str) -> None:
    with Service(database.environment | {"ALLOWED_HOSTS": ""}) as service, proxied(service, kind) as url:
        for path in ("/users", "/pool", "/%70ool", "/metrics"):
            assert httpx.get(f"{url}{path}", headers={"Host": "users.example.com"}).status_code == 421


def ask_each_second(url: str, begin_at: float, stopped: threading.Event) -> int:
    """Ask over one connection and return how often; http.client replaces it only when it was told `Connection: close`.

    Raises RemoteDisconnected when the connection was closed without that.
    """
    asked, pause = 0, begin_at
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)) as client:
        while not stopped.wait(pause):
            client.request("GET", "/users?limit=1")
            with client.getresponse() as response:
                response.read()
                assert response.status == 200
            asked, pause = asked + 1, 1.0
    return asked


@pytest.mark.parametrize(("name", "mode"), [("nginx.conf", "http"), ("haproxy.cfg", "http"), ("haproxy.cfg", "tcp")])
def test_behind_a_proxy_a_rolling_restart_costs_no_request(database: TestDatabase, name: str, mode: str) -> None:
    settings = database.environment | {"ANONYMOUS_ACCESS": "write", "INSTANCES": "2", "WORKER_THREADS": "2"}
    settings["DRAIN_DELAY"] = "3" if name == "haproxy.cfg" else "0"
    stopped = threading.Event()
    with ExitStack() as stack:
        first, second = (stack.enter_context(Service(settings)) for _ in range(2))
        with database.connect() as conn:
            conn.execute('TRUNCATE public."user"')
        url = stack.enter_context(reverse_proxy.before(name, first, second, mode=mode))
        executor = stack.enter_context(ThreadPoolExecutor(4))
        stack.callback(stopped.set)
        with Load(url, clients=4, reconnecting=2) as load:
            seldom = [executor.submit(ask_each_second, url, number / 4, stopped) for number in range(4)]
            until(lambda: "GET /users" in first.log and "GET /users" in second.log, "both instances serve")
            for instance in (first, second):
                load.go_on(time.monotonic())
                assert instance.stop() == 0
                port = instance.url.rpartition(":")[2]
                again = stack.enter_context(Service(settings | {"PORT": port}))
                until(lambda: "GET /users" in again.log, "it serves again")  # noqa: B023
            load.go_on(time.monotonic())
        stopped.set()
        assert min(each.result() for each in seldom) > 3
        assert load.unexpected({200, 201}) == {}
        load.reconcile(database)


@pytest.mark.parametrize("workers", ["1", "4"])
def test_systemd_takes_the_unit_and_finds_little_to_expose(tmp_path: Path, workers: str) -> None:
    unit = tmp_path / "users.service"
    made = subprocess.run(
        [sys.executable, "-m", "service", "unit"],
        cwd=CHECKOUT, env=environment({"WORKERS": workers}), capture_output=True, check=True,
    )  # fmt: skip
    unit.write_bytes(made.stdout)
    verified = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0  # 2.0 of 10
