"""Behind PgBouncer in transaction mode, where no session belongs to the service."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.conftest import SHORT
from tests.support.load import Load
from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.sessions import locked
from tests.support.users import create, new_user
from tests.system.pooler import Pooler

OPTIONS = {"refused": "", "ignored": "ignore_startup_parameters = options"}


@pytest.fixture(params=OPTIONS)
def pooler(request: pytest.FixtureRequest, database: TestDatabase) -> Iterator[Pooler]:
    """A pooler that refuses the options of a connection, as it does unless told otherwise, or ignores them."""
    with (
        tempfile.TemporaryDirectory(prefix="pooler-") as folder,
        Pooler(database, Path(folder), OPTIONS[request.param]) as pooler,
    ):
        yield pooler


@pytest.fixture
def service(pooler: Pooler) -> Iterator[Service]:
    with Service({**pooler.environment, **SHORT}) as service:
        yield service


def in_use(database: TestDatabase) -> int:
    """Count the sessions at PostgreSQL that the pooler has."""
    with database.as_superuser() as conn:
        row = conn.execute("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [database.name]).fetchone()
        assert row
        return int(row[0])


def test_eight_threads_share_three_sessions_and_nothing_is_lost(
    service: Service, pooler: Pooler, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    most = 0
    with Load(service.url) as load:

        def enough() -> bool:
            nonlocal most
            most = max(most, in_use(database))
            return load.statuses()[200] > 500

        until(enough, "the load runs")
    load.reconcile(database)
    record_figure(f"behind PgBouncer: {dict(load.statuses())} over {most} sessions")
    refused = [answer for answer in load.answers if answer.status == 503]
    assert not load.unexpected({200, 201}), f"{refused}\n{service.log[-4000:]}"
    assert most <= pooler.size


def test_the_timeouts_hold_there_too_and_reach_nobody_else(
    service: Service, pooler: Pooler, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with pooler.connect() as conn:
        before = conn.execute("SHOW lock_timeout").fetchone()
    with locked(database):
        answer = service.client.get("/users")
    record_figure(
        f"behind PgBouncer: locked table refused after {answer.elapsed.total_seconds():.2f} s, lock timeout 0.5 s"
    )
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline-exceeded")
    assert answer.elapsed.total_seconds() < 1, "the statement timeout, which would be the next"
    assert [service.client.get("/users").status_code for _ in range(20)] == [200] * 20
    for _ in range(2 * pooler.size):
        with pooler.connect() as conn, conn.transaction():
            for setting in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
                assert conn.execute(f"SHOW {setting}").fetchone() == before, setting


def test_a_restart_of_the_pooler_under_load_is_over_within_a_second(
    service: Service, pooler: Pooler, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Load(service.url) as load:
        pooler.stop()
        gone = time.monotonic()
        until(lambda: load.statuses(gone)[503] > 8, "requests are refused")
        pooler.start()
        back = time.monotonic()
        until(lambda: load.statuses(back + 1, "GET")[200] > 50, "reads are answered again")
    load.reconcile(database)
    first = load.first(200, back)
    record_figure(f"restart of PgBouncer: first 200 after {first:.3f} s; {dict(load.statuses())}")
    assert not load.unexpected({200, 201, 503})
    assert set(load.statuses(back + 1, "GET")) == {200}
    assert first < 1


def test_terminated_sessions_are_no_errors_of_the_service(
    service: Service, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    terminated = 0
    with Load(service.url) as load, database.as_superuser() as conn:
        until(lambda: load.statuses()[200] > 50, "the load runs")
        for _ in range(40):
            terminated += conn.execute(
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = %s",
                [database.name],
            ).fetchone()[0]  # type: ignore[index]
            seen = sum(load.statuses().values())
            until(lambda: sum(load.statuses().values()) > seen + 20, "requests are answered")  # noqa: B023
    load.reconcile(database)
    record_figure(f"behind PgBouncer: {terminated} sessions terminated; {dict(load.statuses())}")
    assert terminated >= 40
    assert not load.unexpected({200, 201, 503})


def test_a_deferred_constraint_fails_at_the_commit_and_is_reported_there(
    service: Service, database: TestDatabase
) -> None:
    user = create(service.client, fname="A")
    with database.connect() as conn:
        conn.execute('CREATE TABLE "order" (user_id bigint REFERENCES "user" DEFERRABLE INITIALLY DEFERRED)')
        conn.execute('INSERT INTO "order" VALUES (%s)', (user["id"],))
        is_problem(service.client.delete(f"/users/{user['id']}"), 409, "user-referenced")
        conn.execute('DROP TABLE "order"')
        conn.execute('ALTER TABLE "user" ADD CONSTRAINT other UNIQUE (fname) DEFERRABLE INITIALLY DEFERRED')
        is_problem(service.client.post("/users", json=new_user(fname="A")), 409, "rule-violated")
        conn.execute('ALTER TABLE "user" DROP CONSTRAINT other')


def test_a_generated_id_that_is_taken_is_skipped_there_too(service: Service, database: TestDatabase) -> None:
    last = create(service.client)["id"]
    with database.connect() as conn:
        conn.execute("""
            INSERT INTO "user" (id, fname, lname, email, password_hash)
            SELECT last_value + n, 'A', 'B', 'taken' || n || '@example.com', '$argon2id$'
            FROM user_id_seq, generate_series(1, 100) AS n
            """)
    assert create(service.client)["id"] == last + 101


def test_a_write_for_which_the_pooler_has_no_session_is_not_made_and_says_so(database: TestDatabase) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="pooler-") as folder,
        Pooler(database, Path(folder), "query_wait_timeout = 1") as pooler,
        Service({**pooler.environment, **SHORT, "WORKER_THREADS": "1"}) as service,
        ExitStack() as stack,
    ):
        for _ in range(pooler.size):
            conn = stack.enter_context(pooler.connect())
            stack.enter_context(conn.transaction())
            conn.execute("SELECT 1")  # keeps a session
        refused = is_problem(service.client.delete("/users/1"), 503, "database-unavailable")
    assert "Nothing was done" in refused["detail"]
