"""What PostgreSQL refuses while it is up: connections, passwords, locks, space."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest

from tests.faults.conftest import SHORT
from tests.support.load import Load
from tests.support.polling import until
from tests.support.postgres import PASSWORD, Cluster, TestDatabase, installed
from tests.support.process import Service
from tests.support.scrape import counted
from tests.support.sessions import locked, sessions, terminate, waiting

THREADS = 8  # and connections: the default
CONNECTIONS, RESERVED = 20, 3  # of a small server, and of those for superusers


@pytest.fixture
def database(cluster: Cluster) -> TestDatabase:
    """On the cluster of the run: what these faults change is the database's own."""
    return cluster.create_database()


def codes(load: Load, since: float, until_then: float) -> Counter[tuple[int, str]]:
    """Count what was asked and answered between two moments."""
    found = [each for each in list(load.answers) if each.began >= since and each.ended <= until_then]
    return Counter((each.status, each.code) for each in found)


def goes_on(load: Load, since: float) -> None:
    """Wait until the load runs again, and see that not one read fails from a second after `since`."""
    until(lambda: load.statuses(since + 1, "GET")[200] > 50, "reads are answered again")
    assert set(load.statuses(since + 1, "GET")) == {200}


def healthy(service: Service, database: TestDatabase) -> None:
    """See that every connection is there again and rests, and that nothing was taken for a bug."""
    until(lambda: list(sessions(database).values()) == ["idle"] * THREADS, f"{THREADS} idle: {sessions(database)}")
    assert "unhandled" not in service.log
    assert "Traceback" not in service.log


@pytest.fixture
def small() -> Iterator[Cluster]:
    """A cluster with few connections."""
    few = {"max_connections": str(CONNECTIONS), "superuser_reserved_connections": str(RESERVED)}
    with Cluster(installed()["18"], few) as cluster:
        yield cluster


def test_connections_used_up_by_others_are_named_and_the_service_goes_on_when_they_leave(
    small: Cluster, record_figure: Callable[[str], None]
) -> None:
    database = small.create_database()
    with Service({**database.environment, **SHORT}) as service, Load(service.url) as load:
        with ExitStack() as others:
            held: list[psycopg.Connection] = []

            def crowded_out() -> bool:
                with suppress(psycopg.OperationalError):
                    terminate(database)
                    while True:  # before the service comes back
                        held.append(others.enter_context(database.connect()))
                return len(held) == CONNECTIONS - RESERVED

            until(crowded_out, "others hold every connection")
            began = time.monotonic()
            until(lambda: load.statuses(began)[503] > 50, "requests are refused")
            refused = service.client.get("/users")
            assert service.client.get("/livez").status_code == 200
            ended = time.monotonic()
            seen = codes(load, began, ended)
        back = time.monotonic()
        goes_on(load, back)
    load.reconcile(database)
    first = load.first(200, back)
    record_figure(f"max_connections used up: {dict(seen)}; first 200 {first:.3f} s after the others left")
    assert (refused.status_code, refused.json()["code"]) == (503, "database-unavailable")
    assert "max_connections" in refused.json()["detail"]
    assert refused.headers["Retry-After"]
    assert set(seen) == {(503, "database-unavailable")}
    assert not load.unexpected({200, 201, 503})
    assert first < 1
    with database.connect():  # the stopped service gave its connections back
        pass


@pytest.mark.parametrize("limit", [0, 3])
def test_a_connection_limit_of_the_role_lowered_at_run_time_is_lived_with(
    limit: int, service: Service, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Load(service.url) as load, database.as_superuser() as conn:
        conn.execute(f"ALTER ROLE {database.name} CONNECTION LIMIT {limit}")
        terminate(database)
        began = time.monotonic()
        until(lambda: len(sessions(database)) == limit, f"{limit} connections are left")
        expected = 200 if limit else 503
        until(lambda: load.statuses(began)[expected] > 50, "requests are served by what is left, or refused")
        if not limit:
            refused = service.client.get("/users")
            assert (refused.status_code, refused.json()["code"]) == (503, "database-unavailable")
            assert "limit" in refused.json()["detail"]
        assert len(sessions(database)) <= limit
        seen = codes(load, began, time.monotonic())
        conn.execute(f"ALTER ROLE {database.name} CONNECTION LIMIT -1")
        back = time.monotonic()
        goes_on(load, back)
        until(lambda: len(sessions(database)) == THREADS, "every connection is there again")
        whole = time.monotonic() - back
    load.reconcile(database)
    healthy(service, database)
    longest = max(each.seconds for each in load.answers)
    record_figure(
        f"role limited to {limit} connections: {dict(seen)}, longest {longest:.2f} s;"
        f" first 200 {load.first(200, back):.3f} s and all {THREADS} connections {whole:.2f} s after it was lifted"
    )
    assert not load.unexpected({200, 201, 503})
    assert load.first(200, back) < 1
    assert longest < 2 + 0.5


def test_connections_that_were_kept_out_are_made_as_soon_as_they_may_be_though_nobody_asks(
    service: Service, database: TestDatabase
) -> None:
    with database.as_superuser() as conn:
        conn.execute(f"ALTER ROLE {database.name} CONNECTION LIMIT 3")
        terminate(database)
        until(lambda: service.client.get("/users").status_code == 200, "what is left serves")
        until(lambda: counted(service, "db_client_connections") <= 4, "the others are given up")
        conn.execute(f"ALTER ROLE {database.name} CONNECTION LIMIT -1")
    until(lambda: len(sessions(database)) == THREADS, "every connection is there again")


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    return path


@pytest.fixture
def by_file(database: TestDatabase, password_file: Path) -> Iterator[Service]:
    """A service that reads its password from a file."""
    given = {name: value for name, value in database.environment.items() if name != "DATABASE_PASSWORD"}
    with Service({**given, **SHORT, "DATABASE_PASSWORD_FILE": str(password_file)}) as service:
        yield service


def change_password(database: TestDatabase, password: str) -> None:
    with database.as_superuser() as conn:
        conn.execute(f"ALTER ROLE {database.name} PASSWORD '{password}'")


def test_a_password_changed_in_both_places_is_noticed_by_no_read(
    by_file: Service, password_file: Path, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Load(by_file.url) as load:
        before = set(sessions(database))
        change_password(database, "rotated secret")
        changed = time.monotonic()
        until(lambda: load.statuses(changed)[200] > 50, "the open connections go on")
        assert set(sessions(database)) == before
        assert not load.unexpected({200, 201}, changed), "as long as connections last"
        password_file.write_text("rotated secret\n")
        terminate(database)
        ended = time.monotonic()
        until(lambda: load.statuses(ended)[200] > 50, "new connections are open")
        assert not before & set(sessions(database))
    change_password(database, PASSWORD)
    load.reconcile(database)
    healthy(by_file, database)
    record_figure(f"password rotated: {dict(load.statuses())}; reads {dict(load.statuses(method='GET'))}")
    assert set(load.statuses(method="GET")) == {200}
    assert not load.unexpected({200, 201, 503}), "a write that was on its way may break"


@pytest.mark.parametrize("wrong", ["old", "missing"])
def test_a_password_file_that_is_wrong_for_a_while_is_read_anew(
    wrong: str, by_file: Service, password_file: Path, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Load(by_file.url) as load:
        change_password(database, "rotated secret")
        if wrong == "missing":
            password_file.unlink()
        terminate(database)
        began = time.monotonic()
        until(lambda: load.statuses(began)[503] > 50, "requests are refused")
        refused = by_file.client.get("/users")
        seen = codes(load, began, time.monotonic())
        password_file.write_text("rotated secret\n")
        back = time.monotonic()
        goes_on(load, back)
    change_password(database, PASSWORD)
    load.reconcile(database)
    longest = max(each.seconds for each in load.answers)
    last = refused.elapsed.total_seconds()
    record_figure(
        f"password file {wrong}: {dict(seen)}, longest {longest:.2f} s, the last {last:.3f} s;"
        f" first 200 {load.first(200, back):.3f} s after it was right"
    )
    assert (refused.status_code, refused.json()["code"]) == (503, "database-unavailable")
    for secret in (PASSWORD, "rotated secret"):
        assert secret not in refused.text + by_file.log
    assert {status for status, _ in seen} == {503}
    assert last < 0.5, "in an outage that lasts, each thread is held for a moment only"
    assert load.first(200, back) < 1
    assert longest < 2 + 0.5
    healthy(by_file, database)


def test_while_the_table_is_locked_every_request_is_ended_by_the_lock_timeout(
    service: Service, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Load(service.url) as load:
        with locked(database):
            began = time.monotonic()
            until(lambda: load.statuses(began)[504] > 40, "requests are given up")
            assert waiting(database) <= THREADS
            seen = codes(load, began, time.monotonic())
            reads = load.statuses(began, "GET")
        back = time.monotonic()
        goes_on(load, back)
    load.reconcile(database)
    healthy(service, database)
    longest = max(each.seconds for each in load.answers if each.method != "POST")  # a creation waits for a core first
    record_figure(
        f"table locked: {dict(seen)}, longest {longest:.2f} s with a lock timeout of 0.5 s; {dict(load.statuses())}"
    )
    assert set(seen) <= {(504, "deadline-exceeded"), (503, "overloaded")}, "503: a creation that waited for a core"
    assert set(reads) == {504}
    assert longest < 2, "the request's deadline, which the lock timeout comes before"
    assert max(each.seconds for each in load.answers) < 2 + 0.5, "which ends a creation that waits for a core, too"


def test_a_row_held_by_a_long_statement_of_another_session_costs_its_writers_only(
    service: Service, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    user = {"id": 1, "fname": "Ada", "lname": "Row", "email": "row@example.com", "password": "p" * 8}
    assert service.client.post("/users", json=user).status_code == 201
    path = "/users/1"

    def change(number: int) -> tuple[int, float]:
        began = time.monotonic()
        status = service.client.patch(path, json={"lname": f"Changed {number}"}).status_code
        return status, time.monotonic() - began

    with (
        Load(service.url, clients=4) as load,
        database.connect() as conn,
        ThreadPoolExecutor(5) as executor,
    ):
        conn.execute("BEGIN")
        conn.execute('UPDATE public."user" SET lname = lname WHERE id = 1')
        sleeping = executor.submit(conn.execute, "SELECT pg_sleep(60)")
        began = time.monotonic()
        changes = [executor.submit(change, number) for number in range(12)]
        until(lambda: waiting(database) >= 4, "the changes wait for the row")
        assert service.client.get(path).json()["lname"] == "Row"
        refused = [change.result() for change in changes]
        assert not sleeping.done()
        seen = codes(load, began, time.monotonic())
        conn.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            sleeping.result()
        conn.execute("ROLLBACK")
        assert change(99)[0] == 200
        assert service.client.get(path).json()["lname"] == "Changed 99"
    load.reconcile(database)
    healthy(service, database)
    longest = max(seconds for _, seconds in refused)
    record_figure(
        f"row held: {dict(Counter(status for status, _ in refused))}, longest {longest:.2f} s; others {dict(seen)}"
    )
    assert {status for status, _ in refused} == {504}
    assert longest < 2
    assert not load.unexpected({200, 201})
