"""A network that loses every packet and tells nobody: no reset, no unreachable, only silence."""

import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.faults.conftest import SHORT
from tests.support.load import Load
from tests.support.load_clients import quantile
from tests.support.namespaces import Detour
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase, installed
from tests.support.process import Service
from tests.support.sessions import locked, sessions, waiting

THREADS = 8
DEADLINE = float(SHORT["REQUEST_DEADLINE"])
KNOWN = DEADLINE + 2 + 1 + 0.2  # seconds: statements are cut, a connect is given up, and patience runs out
LONGER_THAN_TCP = 10.0  # seconds: after 8 s without a word from its peer, either side gives a connection up
SERVE = [sys.executable, "-m", "service", "serve"]


@pytest.fixture
def detour() -> Iterator[Detour]:
    with Detour() as detour:
        yield detour


@pytest.fixture
def victim(detour: Detour) -> Iterator[Cluster]:
    """A cluster at the far end of the detour."""
    cluster = Cluster(installed()["18"], {"listen_addresses": f"127.0.0.1,{detour.server}"})
    cluster.create()
    try:
        with (cluster.data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {detour.far_end}/32 scram-sha-256\n")
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def settings(detour: Detour, database: TestDatabase) -> dict[str, str]:
    host = {"HOST": detour.service, "ANONYMOUS_ACCESS": "write"}
    return {**database.environment, **SHORT, **host, "DATABASE_HOSTNAME": detour.server}


@pytest.fixture
def service(detour: Detour, settings: dict[str, str]) -> Iterator[Service]:
    with Service(settings, argv=[*detour.prefix, *SERVE]) as service:
        yield service


def alive(service: Service) -> bool:
    began = time.monotonic()
    assert service.client.get("/livez").status_code == 200
    assert time.monotonic() - began < 1
    return True


def summary(load: Load, back: float) -> str:
    longest = max(answer.seconds for answer in load.answers)
    return (
        f"longest answer {longest:.2f} s with a deadline of {DEADLINE:g} s;"
        f" first 200 {load.first(200, back):.3f} s after its end; {dict(load.statuses())}"
    )


def test_statements_whose_answers_vanish_end_at_the_deadline_and_their_sessions_are_not_left_behind(
    detour: Detour, service: Service, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Load(service.url) as load:
        with locked(database):
            until(lambda: waiting(database) > THREADS // 2, "statements are being carried out")
            detour.drop()
            began = time.monotonic()
        until(lambda: alive(service) and load.statuses(began)[503] > 50, "requests are refused")
        detour.forward()
        back = time.monotonic()
        until(lambda: load.statuses(back + 2, "GET")[200] > 50, "reads are answered again")
    load.reconcile(database)
    until(lambda: list(sessions(database).values()) == ["idle"] * THREADS, "PostgreSQL's side is clean")
    clean = time.monotonic() - back
    record_figure(f"black hole under statements: {summary(load, back)}; PostgreSQL's side clean after {clean:.1f} s")
    assert max(answer.seconds for answer in load.answers) < DEADLINE + 0.5
    assert not load.unexpected({200, 201, 503, 504})
    assert set(load.statuses(back + 2, "GET")) == {200}


def test_a_black_hole_that_lasts_holds_no_request_and_is_over_within_two_seconds_of_its_end(
    detour: Detour, service: Service, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Load(service.url) as load:
        detour.drop()
        began = time.monotonic()
        until(lambda: alive(service) and time.monotonic() > began + LONGER_THAN_TCP, "it lasts")
        detour.forward()
        back = time.monotonic()
        until(lambda: load.statuses(back + 2, "GET")[200] > 50, "reads are answered again")
    load.reconcile(database)
    until(lambda: list(sessions(database).values()) == ["idle"] * THREADS, "PostgreSQL's side is clean")
    later = [answer for answer in load.answers if answer.began > began + KNOWN and answer.ended < back]
    # Not all of them: a machine that is busy with other suites stalls a few at a time.
    most = quantile([answer.seconds for answer in later], 0.9)
    told = f"{len(later)} refused, nine of ten within {most:.2f} s"
    record_figure(f"black hole of {LONGER_THAN_TCP:g} s: {summary(load, back)}; {told}")
    assert max(answer.seconds for answer in load.answers) < DEADLINE + 0.5
    assert {(answer.status, answer.code) for answer in later} == {(503, "database-unavailable")}
    assert most < 0.25, "in an outage that lasts, each thread is held for a moment only"
    assert not load.unexpected({200, 201, 503, 504})
    assert set(load.statuses(back + 2, "GET")) == {200}


def test_a_service_started_in_a_black_hole_says_so_and_serves_within_two_seconds_of_its_end(
    detour: Detour, settings: dict[str, str], database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    detour.drop()
    service = Service(settings, argv=[*detour.prefix, *SERVE])
    try:
        with httpx.Client(base_url=service.url, timeout=30) as client:
            # "starting" until both tries, with options and as for a pooler, are over: each is a CONNECT_TIMEOUT.
            until(lambda: client.get("/readyz").json()["failed"] == "database", "it says what fails")
            failed = client.get("/readyz")
            refused = client.get("/users")
            assert client.get("/livez").status_code == 200
            detour.forward()
            back = time.monotonic()
            until(lambda: client.get("/readyz").status_code == 200, "the service is ready")
            ready = time.monotonic() - back
        with Load(service.url) as load:
            until(lambda: load.statuses()[200] > 50, "reads are answered")
        load.reconcile(database)
    finally:
        service.stop()
    took = refused.elapsed.total_seconds()
    record_figure(f"started in a black hole: refused in {took:.3f} s, ready {ready:.2f} s after its end")
    assert (failed.status_code, failed.json()["failed"]) == (503, "database")
    assert (refused.status_code, refused.json()["code"]) == (503, "database-unavailable")
    assert took < 0.5
    assert ready < 2 + 0.5, "a packet on its way at the end is sent again, or given up, within two seconds"
    assert not load.unexpected({200, 201})
