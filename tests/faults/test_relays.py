"""Behind something that does not take the options of a connection, and that nobody announced."""

import socket
import time
from collections.abc import Iterator
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from service.database.sessions import connect_to_host
from tests.faults.conftest import SHORT
from tests.support.polling import until
from tests.support.postgres import PASSWORD, Cluster, TestDatabase
from tests.support.process import Service
from tests.support.proxy import Proxy
from tests.support.relay import Relay, error_response, parameter_status
from tests.support.sessions import locked

REFUSALS = {
    "RDS Proxy": error_response("0A000", "Feature not supported: RDS Proxy doesn't support command-line options."),
    "Supavisor": error_response("", "Unsupported or invalid startup parameter"),
    "in German": error_response("08P01", "nicht unterstützter Startparameter"),
    "closes": b"",
    "is silent": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> TestDatabase:
    return cluster.create_database()


@pytest.fixture
def relay(database: TestDatabase) -> Iterator[Relay]:
    with Relay(database.cluster.port) as relay:
        yield relay


def through(relay: Relay, database: TestDatabase) -> dict[str, str]:
    return {**database.environment, **SHORT, "DATABASE_PORT": str(relay.port)}


def has_its_timeouts(service: Service, database: TestDatabase) -> None:
    with locked(database):
        answer = service.client.get("/users")
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline-exceeded")
    assert answer.elapsed.total_seconds() < 1, "the lock timeout, and not the statement timeout"


@pytest.mark.parametrize("answer", REFUSALS)
def test_options_refused_in_any_way_are_left_out(answer: str, relay: Relay, database: TestDatabase) -> None:
    relay.answer = REFUSALS[answer]
    with Service(through(relay, database)) as service:
        has_its_timeouts(service, database)


def test_a_pooler_that_appears_while_the_service_runs_is_served_through(relay: Relay, database: TestDatabase) -> None:
    relay.refuses = False
    with Service(through(relay, database)) as service:
        assert service.client.get("/users").status_code == 200
        relay.refuses = True
        relay.cut()
        began = time.monotonic()
        until(lambda: service.client.get("/users").status_code == 200, "it serves again")
        assert time.monotonic() - began < 10
        has_its_timeouts(service, database)
        relay.refuses = False  # and disappears again
        relay.cut()
        until(lambda: service.client.get("/users").status_code == 200, "it serves again")


def test_a_server_that_comes_back_is_taken_for_no_pooler(relay: Relay, database: TestDatabase) -> None:
    relay.refuses = False
    with Service(through(relay, database)) as service:
        relay.refuses = relay.recovers = True
        relay.cut()
        until(lambda: service.client.get("/users").status_code == 200, "it serves again")
        assert "a pooler answers" not in service.log


def test_silent_hosts_do_not_hold_up_the_next_one_and_a_late_connection_is_closed(database: TestDatabase) -> None:
    with Proxy(database.cluster.port) as slow, socket.create_server(("127.0.0.1", 0)) as silent:
        slow.latency = 0.3
        ports = f"{slow.port},{silent.getsockname()[1]},{database.cluster.port}"
        others = {"host": ",".join(["127.0.0.1"] * 3), "port": ports, "application_name": "late"}
        conninfo = make_conninfo(database.conninfo, **others, target_session_attrs="read-write")
        began = time.monotonic()
        conn = connect_to_host(psycopg.connect, conninfo, autocommit=True)
        took = time.monotonic() - began
        count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'late'"
        with conn:
            until(lambda: conn.execute(count).fetchone() == (2,), "the slow one connects too")
            until(lambda: conn.execute(count).fetchone() == (1,), "and is closed")
            assert conn.info.port == database.cluster.port
    assert took < 2, "each silent host may take 2 s or more"


def test_connections_are_shared_among_the_hosts_when_the_url_says_so(database: TestDatabase) -> None:
    with Proxy(database.cluster.port) as other:
        hosts = {"host": "127.0.0.1,127.0.0.1", "port": f"{other.port},{database.cluster.port}"}
        wanted = {"target_session_attrs": "read-write", "load_balance_hosts": "random"}
        conninfo = make_conninfo(database.conninfo, **hosts, **wanted)
        ports = set()
        for _ in range(20):
            with connect_to_host(psycopg.connect, conninfo, autocommit=True) as conn:
                ports.add(conn.info.port)
    assert ports == {other.port, database.cluster.port}


def test_hosts_whose_reports_are_out_of_date_are_asked(database: TestDatabase) -> None:
    """PgBouncer repeats `in_hot_standby` of before a promotion."""
    with Relay(database.cluster.port, refuses=False) as relay:
        relay.replaced = (parameter_status("in_hot_standby", "off"), parameter_status("in_hot_standby", "on"))
        hosts = f"127.0.0.1:{relay.port},127.0.0.1:1"
        url = f"postgresql://{database.name}:{quote(PASSWORD)}@{hosts}/{database.name}"
        with pytest.raises(psycopg.OperationalError, match="read-only"):
            psycopg.connect(url, target_session_attrs="read-write")
        with Service({**SHORT, "DATABASE_URL": url}) as service:
            assert service.client.get("/users").status_code == 200
