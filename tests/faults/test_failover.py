"""Two hosts in DATABASE_URL: a primary and its streaming standby, which takes over."""

import signal
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

import psycopg
import pytest

from tests.faults.conftest import SHORT
from tests.support.load import Load
from tests.support.polling import until
from tests.support.postgres import PASSWORD, Cluster, TestDatabase
from tests.support.process import Service
from tests.support.replication import promote, start_standby
from tests.support.sessions import sessions, terminate

THREADS = 8
WRITES = 7  # of them, that may be held by writes


@pytest.fixture
def standby(victim: Cluster) -> Iterator[Cluster]:
    """What `victim` acknowledges from here on has been applied there."""
    standby = start_standby(victim)
    yield standby
    standby.remove()


@pytest.fixture
def database(victim: Cluster, standby: Cluster) -> TestDatabase:  # noqa: ARG001 - the standby has it too
    return victim.create_database()


@pytest.fixture
def service(database: TestDatabase, standby: Cluster) -> Iterator[Service]:
    """A service that knows of both, the standby first."""
    hosts = f"127.0.0.1:{standby.port},127.0.0.1:{database.cluster.port}"
    url = f"postgresql://{database.name}:{quote(PASSWORD)}@{hosts}/{database.name}"
    with Service({**SHORT, "DATABASE_URL": url}) as service:
        yield service


@pytest.fixture
def heir(standby: Cluster, database: TestDatabase) -> TestDatabase:
    """The same database at the standby."""
    return TestDatabase(standby, database.name)


def test_after_the_primary_is_gone_writes_go_on_at_the_promoted_standby_and_nothing_is_lost(
    service: Service,
    heir: TestDatabase,
    database: TestDatabase,
    record_figure: Callable[[str], None],
) -> None:
    with Load(service.url) as load:
        until(lambda: load.statuses()[201] > 30, "users are created")
        assert not sessions(heir), "nobody works at the standby"
        database.cluster.stop(signal.SIGQUIT)
        gone = time.monotonic()
        until(lambda: load.statuses(gone)[503] > 20, "requests are refused")
        assert service.client.get("/livez").status_code == 200
        promote(heir.cluster)
        promoted = time.monotonic()
        until(lambda: load.statuses(promoted + 1)[201] > 10, "users are created again")
        until(lambda: len(sessions(heir)) == THREADS, "every connection is there again")
    load.reconcile(heir)
    first = load.first_write(promoted)
    record_figure(
        f"failover: first write {first:.3f} s after the promotion,"
        f" {load.first_write(gone):.3f} s after the primary's end; {dict(load.statuses())}"
    )
    assert not load.unexpected({200, 201, 503})
    assert not load.unexpected({200, 201}, promoted + 1)
    assert first < 2
    assert "unhandled" not in service.log


def test_a_primary_that_becomes_read_only_under_its_connections_is_left_for_the_new_one(
    service: Service, heir: TestDatabase, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    """As after a switchover behind the same address: the connections live, and refuse writes."""
    with Load(service.url) as load, psycopg.connect(database.cluster.conninfo(), autocommit=True) as conn:
        conn.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        conn.execute("SELECT pg_reload_conf()")
        began = time.monotonic()
        until(lambda: load.statuses(began, "POST")[503] > 5, "writes are refused")
        promote(heir.cluster)
        promoted = time.monotonic()
        until(lambda: load.statuses(promoted + 1)[201] > 10, "users are created again")
        until(lambda: len(sessions(heir)) == THREADS and not sessions(database), "every connection has moved")
    load.reconcile(heir)
    first = load.first_write(promoted)
    record_figure(
        f"read-only primary: first write {first:.3f} s after the standby's promotion; {dict(load.statuses())}"
    )
    assert not load.unexpected({200, 201, 503})
    assert not load.unexpected({200, 201}, promoted + 1)
    assert first < 2


def test_connections_that_take_no_writes_are_left_when_new_ones_would(cluster: Cluster) -> None:
    """As behind one address at which another server answers."""
    database = cluster.create_database()
    url = f"{database.url(cluster)}?target_session_attrs=any"
    with Service({**SHORT, "DATABASE_URL": url}) as service, database.as_superuser() as conn:
        conn.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
        terminate(database)
        until(lambda: service.client.delete("/users/1").status_code == 503, "writes are refused")
        until(lambda: len(sessions(database)) == THREADS, "every connection is there again")
        assert {service.client.delete("/users/1").status_code for _ in range(THREADS)} == {503}
        assert service.client.get("/users").status_code == 200
        conn.execute(f"ALTER DATABASE {database.name} RESET default_transaction_read_only")
        until(lambda: service.client.delete("/users/1").status_code == 404, "writes are taken", within=5)


@pytest.mark.parametrize("wanted", ["read-write", "any"])
def test_a_server_that_stays_read_only_keeps_its_connections_for_reads(victim: Cluster, wanted: str) -> None:
    database = victim.create_database()
    server = f"{database.name}:{quote(PASSWORD)}@127.0.0.1:{database.cluster.port}/{database.name}"
    url = f"postgresql://{server}?target_session_attrs={wanted}"
    with (
        Service({**SHORT, "DATABASE_URL": url}) as service,
        psycopg.connect(database.cluster.conninfo(), autocommit=True) as conn,
    ):
        until(lambda: len(sessions(database)) == THREADS, "every connection is there")
        before = set(sessions(database))
        conn.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        conn.execute("SELECT pg_reload_conf()")
        until(lambda: service.client.delete("/users/1").status_code == 503, "writes are refused")
        end = time.monotonic() + 2
        while time.monotonic() < end:  # several times the period of the search for a server that takes writes
            assert service.client.delete("/users/1").status_code == 503
            assert service.client.get("/users").status_code == 200
        assert before <= set(sessions(database))


def test_a_standby_that_stops_holds_up_one_write_to_its_deadline_and_no_read(
    service: Service, standby: Cluster, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    """A write that waits for its replica cannot be cancelled: PostgreSQL would call it done."""
    reads = [service.client.get("/users").status_code]
    standby.stop()
    users = [
        {"fname": "Ada", "lname": "Alone", "email": f"alone{number}@example.com", "password": "p" * 8}
        for number in range(2)
    ]
    began = time.monotonic()
    refused = [service.client.post("/users", json=user) for user in users]
    took = time.monotonic() - began
    reads += [service.client.get("/users").status_code for _ in range(20)]
    until(lambda: len(sessions(database)) >= THREADS, "every connection is there again")
    left = len(sessions(database)) - THREADS
    standby.start()
    until(lambda: len(sessions(database)) == THREADS, "PostgreSQL's side is clean")
    together = {**users[0], "email": "together@example.com"}
    until(lambda: service.client.post("/users", json=together).status_code == 201, "writes go on", within=2)
    record_figure(
        f"standby stopped: two writes given up after {took:.2f} s, {left} sessions wait at PostgreSQL meanwhile"
    )
    assert [answer.status_code for answer in refused] == [504, 503]
    assert "may or may not" in refused[0].json()["detail"]
    assert "Nothing was done" in refused[1].json()["detail"]
    assert set(reads) == {200}


def test_a_synchronous_standby_that_hangs_holds_up_no_read_and_few_writes(
    service: Service, standby: Cluster, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    """Each write that is cut leaves a session that waits at PostgreSQL: there is no way to end it that is safe."""
    with Load(service.url, clients=16) as load:
        until(lambda: load.statuses()[201] > 30, "users are created")
        frozen = standby.freeze()
        began = time.monotonic()
        try:
            until(lambda: "writes are refused" in service.log, "the stall is seen")
            seen = time.monotonic()
            until(lambda: load.statuses()[504], "the writes that wait are cut")
            cut = time.monotonic()
            until(lambda: load.statuses(cut, "POST")[503] > 100, "the others are refused")
            left = len(sessions(database)) - THREADS
        finally:
            standby.thaw(frozen)
        thawed = time.monotonic()
        until(lambda: load.statuses(thawed)[201] > 10, "users are created again")
        until(lambda: len(sessions(database)) == THREADS, "PostgreSQL's side is clean")
    load.reconcile(database)
    reads = [answer for answer in load.answers if answer.method == "GET" and began < answer.began < thawed]
    refused = [answer for answer in load.answers if answer.status == 503 and seen < answer.began < thawed]
    record_figure(
        f"a frozen standby: {len(reads)} reads answered within {max(answer.seconds for answer in reads):.2f} s,"
        f" {left} sessions left, first 201 {load.first(201, thawed):.2f} s after its end; {dict(load.statuses())}"
    )
    assert left <= 2 * WRITES, "those in progress, and those that took the place of the first that were cut"
    assert {answer.status for answer in reads} == {200}
    assert max(answer.seconds for answer in reads) < 2
    assert max(answer.seconds for answer in refused) < 1
    assert load.first(201, thawed) < 2
