"""The name in DATABASE_HOSTNAME stops resolving, and comes back with another address."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.faults.conftest import SHORT
from tests.support.load import Load
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase, installed
from tests.support.process import Service
from tests.support.sessions import sessions, terminate
from tests.system.nameserver import NAME, Nameserver

THREADS = 8
OLD, NEW = "127.0.0.1", "127.0.0.2"
DEADLINE = float(SHORT["REQUEST_DEADLINE"])
RESEND = 5.0  # seconds after which a resolver that heard nothing asks again: resolv.conf(5), options timeout


@pytest.fixture
def victim() -> Iterator[Cluster]:
    """A cluster that listens at two addresses."""
    with Cluster(installed()["18"], {"listen_addresses": f"{OLD},{NEW}"}) as cluster:
        yield cluster


@pytest.fixture
def nameserver(tmp_path: Path) -> Iterator[Nameserver]:
    with Nameserver(tmp_path) as nameserver:
        nameserver.address = OLD
        yield nameserver


@pytest.fixture
def service(nameserver: Nameserver, database: TestDatabase) -> Iterator[Service]:
    with Service({**database.environment, **SHORT, "DATABASE_HOSTNAME": NAME}) as service:
        assert nameserver.asked
        yield service


def peers(service: Service, port: int) -> list[str]:
    """Return the address that each connection of the service to `port` leads to."""
    connections = psutil.Process(service.process.pid).net_connections("tcp")
    return [found.raddr.ip for found in connections if found.status == "ESTABLISHED" and found.raddr.port == port]


def alive(service: Service) -> bool:
    began = time.monotonic()
    assert service.client.get("/livez").status_code == 200
    assert time.monotonic() - began < 1
    return True


@pytest.mark.parametrize(("fault", "within"), [("unknown", 1.0), ("silent", RESEND + 1)])
def test_while_the_name_does_not_resolve_requests_are_refused_and_then_its_new_address_is_used(  # noqa: PLR0913, PLR0917 - what it takes is fixtures
    fault: str,
    within: float,
    nameserver: Nameserver,
    service: Service,
    database: TestDatabase,
    record_figure: Callable[[str], None],
) -> None:
    port = database.cluster.port
    with Load(service.url) as load:
        assert peers(service, port) == [OLD] * THREADS
        nameserver.address, nameserver.silent = "", fault == "silent"
        asked = nameserver.asked
        until(lambda: load.statuses()[201] > 20, "open connections go on")
        assert nameserver.asked == asked
        assert not load.unexpected({200, 201})
        terminate(database)
        began = time.monotonic()
        until(lambda: alive(service) and load.statuses(began + 1)[503] > 50, "requests are refused")
        refused = service.client.get("/users")
        assert nameserver.asked > asked
        nameserver.address, nameserver.silent = NEW, False
        back = time.monotonic()
        until(lambda: alive(service) and load.statuses(back + within, "GET")[200] > 50, "reads are answered again")
        until(lambda: peers(service, port) == [NEW] * THREADS, "every connection leads to the new address")
    load.reconcile(database)
    until(lambda: list(sessions(database).values()) == ["idle"] * THREADS, "PostgreSQL's side is clean")
    longest, first = max(answer.seconds for answer in load.answers), load.first(200, back)
    record_figure(
        f"name {fault}: longest answer {longest:.2f} s, the last refusal {refused.elapsed.total_seconds():.3f} s;"
        f" first 200 {first:.3f} s after it resolved again; {dict(load.statuses())}"
    )
    assert (refused.status_code, refused.json()["code"]) == (503, "database-unavailable")
    assert longest < DEADLINE + 0.5
    assert not load.unexpected({200, 201, 503})
    assert set(load.statuses(back + within, "GET")) == {200}
    assert first < within
