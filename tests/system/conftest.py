"""What needs root and Debian's packages: networks that lose packets, disks that fill up, a pooler, a nameserver."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.faults.conftest import SHORT
from tests.support import namespaces
from tests.support.postgres import Cluster, TestDatabase, installed
from tests.support.process import Service

LONGEST = ("test_soak.py", "test_long_outage.py")  # a minute and more: they begin first


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: it measures, so that nothing may run beside it")
    if lack := namespaces.missing():
        raise pytest.UsageError(lack)
    try:
        namespaces.enter()  # before there is a process that could be left behind outside
    except OSError as exc:
        raise pytest.UsageError(exc.strerror) from exc


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def victim() -> Iterator[Cluster]:
    with Cluster(installed()["18"]) as cluster:
        yield cluster


@pytest.fixture
def database(victim: Cluster) -> TestDatabase:
    return victim.create_database()


@pytest.fixture
def service(database: TestDatabase) -> Iterator[Service]:
    with Service({**database.environment, **SHORT}) as service:
        yield service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        expect.set_options(timeout=20_000)
        # Root's Chromium runs without a sandbox or not at all; it is shown nothing but the service's own pages.
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()
