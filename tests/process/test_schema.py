"""schema.sql and the one function that applies it: again and again, from many places, to a table in use."""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from service.database import schema
from service.database.schema import LOCK, SCHEMA, Report, SchemaError, Upgrade
from service.extras.embedded import programs
from tests.support.parallel import at_once
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.schemas import create_older_table, everything, guest_of, make_schema, prepare

pytestmark = pytest.mark.usefixtures("forked")

HASH = "$argon2id$v=19$m=19456,t=2,p=1$JVaaRw1TGs6dKNDtr74+TA$bQga5WV1dq5+WHhmDI++pDGOHw/3vqQNkclnp2pe3XE"
INSERT = f"""
    INSERT INTO "user" (fname, lname, email, password_hash) VALUES ('Ada', 'Lovelace', %s, '{HASH}') RETURNING id
"""


@pytest.fixture
def database(cluster: Cluster) -> TestDatabase:
    """An empty database for each test."""
    return cluster.create_database()


def psql(database: TestDatabase, **environment: str) -> None:
    command: list[str | Path] = [programs() / "psql", "--no-psqlrc", "--single-transaction", "--set=ON_ERROR_STOP=1"]
    done = subprocess.run(
        [*command, "--file", SCHEMA, database.conninfo], env={**os.environ, **environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr


def test_what_psql_applies_is_what_the_service_applies(database: TestDatabase) -> None:
    psql(database)
    before = everything(database)
    prepare(database)
    assert [row for row in everything(database) if "schema_applied" not in row[1]] == before


def test_applying_the_schema_again_changes_nothing(database: TestDatabase) -> None:
    prepare(database)
    with database.connect() as conn:
        conn.execute(INSERT, ("ada@example.com",))
    before = everything(database)
    psql(database)
    with database.connect() as conn, conn.transaction():
        conn.execute(SCHEMA.read_bytes())
    assert make_schema(database).returncode == 0
    assert everything(database) == before


def test_sixteen_starts_at_once_on_an_empty_database_all_succeed(cluster: Cluster) -> None:
    for _ in range(5):  # without a lock, 40 of 160 failed: five rounds would show it
        database = cluster.create_database()
        said = at_once([lambda database=database: prepare(database)] * 16)  # type: ignore[misc]
        appliers = [lines for lines in said if "schema.sql is applied" in lines]
        assert len(appliers) == 1, "one of them applies it, the others find it in place"


def test_several_services_at_once_start_on_an_empty_database(database: TestDatabase) -> None:
    with ExitStack() as stack:
        services = [Service({**database.environment, "WORKERS": "2", "WORKER_THREADS": "2"}) for _ in range(3)]
        for service in services:
            stack.enter_context(service)
        assert [service.client.get("/users").status_code for service in services] == [200] * 3
        assert not any("Traceback" in service.log for service in services)


def hold_the_turn(conn: psycopg.Connection) -> None:
    """Take the lock of whoever applies the schema, in a query without parameters: those leave a snapshot behind."""
    conn.execute(f"SELECT pg_advisory_xact_lock({LOCK})")


def test_a_start_that_finds_the_schema_in_place_waits_for_no_lock(database: TestDatabase) -> None:
    prepare(database)
    with ThreadPoolExecutor() as executor, database.connect() as blocker, blocker.transaction():
        blocker.execute('LOCK TABLE "user" IN ACCESS EXCLUSIVE MODE')
        hold_the_turn(blocker)
        start = executor.submit(prepare, database)
        wait([start], timeout=10)
        in_time = start.done()  # asked before the locks are given back, so that a failure ends too
    assert in_time, "it waited for a lock that another session holds"
    assert start.result() == []


def test_a_start_goes_on_when_the_process_that_applies_the_schema_is_gone(database: TestDatabase) -> None:
    with ThreadPoolExecutor() as executor, database.connect() as holder:
        with holder.transaction():
            hold_the_turn(holder)
            start = executor.submit(prepare, database)
            until(lambda: sessions(database) == 2, "the start polls for the lock, from a second connection")
            assert not start.done()
        assert start.result(timeout=30)[-1] == "schema.sql is applied"


def sessions(database: TestDatabase) -> int:
    with database.as_superuser() as conn:
        found = conn.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'users-service'"
                             " AND datname = current_database()").fetchone()  # fmt: skip
        assert found
        return int(found[0])


def test_a_start_that_waits_for_its_turn_does_not_hold_up_an_index_built_concurrently(database: TestDatabase) -> None:
    """The one that holds the lock may wait for the index in turn: that would be a deadlock."""
    with ThreadPoolExecutor() as executor, database.connect() as holder, database.connect() as builder:
        builder.execute("CREATE TABLE other (n int)")
        with holder.transaction():
            hold_the_turn(holder)
            start = executor.submit(prepare, database)
            until(lambda: sessions(database) == 2, "the start polls for the lock, from a second connection")
            builder.execute("SET statement_timeout = '10s'")
            builder.execute("CREATE INDEX CONCURRENTLY ON other (n)")
        assert start.result(timeout=30)[-1] == "schema.sql is applied"


def test_an_older_table_is_upgraded_after_an_index_is_built_on_it_concurrently(database: TestDatabase) -> None:
    create_older_table(database, [("ada@example.com", "correct horse")])
    with ThreadPoolExecutor() as executor, database.connect() as writer, database.connect() as builder:
        with writer.transaction():
            writer.execute("UPDATE \"user\" SET fname = 'Augusta'")
            built = executor.submit(builder.execute, 'CREATE INDEX CONCURRENTLY ON "user" (fname)')
            until(lambda: waiters(database) == 1, "the index waits for the writer")
            start = executor.submit(prepare, database)
            until(lambda: waiters(database) == 2, "the upgrade waits for the index")
        built.result(timeout=30)
        assert start.result(timeout=30)[-1] == "schema.sql is applied"


def waiters(database: TestDatabase) -> int:
    with database.as_superuser() as conn:
        found = conn.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                             " AND datname = current_database()").fetchone()  # fmt: skip
        assert found
        return int(found[0])


def test_an_upgrade_that_finds_the_table_locked_gives_up_and_holds_up_no_reader_for_long(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader comes behind the ALTER TABLE in the lock's queue: it waits as long as the ALTER does, 2 s."""
    monkeypatch.setattr(schema, "ATTEMPTS", 2)
    create_older_table(database, [("ada@example.com", "correct horse")])
    over, slowest = threading.Event(), 0.0

    def read() -> None:
        nonlocal slowest
        with database.connect() as reader:
            while not over.is_set():
                began = time.monotonic()
                reader.execute('SELECT count(*) FROM "user"')
                slowest = max(slowest, time.monotonic() - began)

    with ThreadPoolExecutor() as executor, database.connect() as blocker, blocker.transaction():
        blocker.execute('SELECT FROM "user"')  # and then forgets to commit
        reading = executor.submit(read)
        began = time.monotonic()
        try:
            with pytest.raises(SchemaError, match="too busy to change"):
                prepare(database)
        finally:
            over.set()
        took = time.monotonic() - began
        reading.result(timeout=30)
    print(f"gave up after {took:.1f} s, the slowest read took {slowest:.1f} s")
    assert took < 15
    assert 1 < slowest < 8, "a read waits behind the ALTER TABLE for its lock_timeout of 2 s, no longer"
    assert prepare(database)[-1] == "schema.sql is applied"


def test_a_table_of_another_kind_is_left_alone(database: TestDatabase) -> None:
    with database.connect() as conn:
        conn.execute('CREATE TABLE "user" (id int, nickname text); INSERT INTO "user" VALUES (1, \'Countess\')')
    before = everything(database)
    done = make_schema(database)
    assert done.returncode == 2
    assert 'public."user" lacks what this service needs: column id bigint, column fname text' in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert everything(database) == before


def test_a_role_that_may_not_create_is_refused_with_one_line(database: TestDatabase) -> None:
    done = make_schema(guest_of(database))
    assert done.returncode == 2
    assert f"the role {database.name}_guest may not change the schema: run `make schema` as the owner" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("applied_by", [psql, prepare])
def test_a_role_that_may_not_create_starts_on_a_schema_that_is_in_place(
    database: TestDatabase, applied_by: Callable[[TestDatabase], object]
) -> None:
    guest = guest_of(database)
    applied_by(database)
    with database.connect() as conn:
        role = guest.environment["DATABASE_USERNAME"]
        conn.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON "user", failed_login, idempotency_key TO {role}')
        conn.execute(f"GRANT USAGE ON SEQUENCE user_id_seq TO {role}")
    user = {"fname": "Ada", "lname": "Lovelace", "email": "ada@example.com", "password": "correct horse"}
    with Service(guest.environment) as service:
        assert service.client.post("/users", json=user).status_code == 201


def test_every_constraint_has_the_name_that_the_code_knows(database: TestDatabase) -> None:
    prepare(database)
    with database.connect() as conn:
        found = conn.execute("""
            SELECT conname FROM pg_constraint WHERE conrelid = '"user"'::regclass AND contype <> 'n'
            UNION ALL
            SELECT relname FROM pg_index JOIN pg_class ON oid = indexrelid WHERE indrelid = '"user"'::regclass
            """).fetchall()
    assert {name for (name,) in found} == {
        "user_pkey", "user_email_folded_key", "user_email_lower_key", "user_password_hash_check",
        "user_lname_folded_idx", "user_updated_at_idx",
    }  # fmt: skip


def test_the_database_itself_refuses_emails_that_differ_by_case_and_passwords_in_plain_text(
    database: TestDatabase,
) -> None:
    prepare(database)
    with database.connect() as conn:
        conn.execute(INSERT, ("ada@example.com",))
        with pytest.raises(errors.UniqueViolation) as taken:
            conn.execute(INSERT, ("Ada@EXAMPLE.com",))
        assert taken.value.diag.constraint_name == "user_email_folded_key"
        with pytest.raises(errors.CheckViolation):
            conn.execute("UPDATE \"user\" SET password_hash = 'correct horse'")


def test_the_rule_of_the_release_before_is_replaced_by_one_that_takes_bcrypt(cluster: Cluster) -> None:
    database = cluster.create_database()
    prepare(database)
    with database.connect() as conn:
        conn.execute("""
            ALTER TABLE "user"
                DROP CONSTRAINT user_password_hash_check,
                ADD CONSTRAINT user_password_hash_check CHECK (password_hash LIKE '$argon2id$%')
            """)
        conn.execute("TRUNCATE schema_applied")
        conn.execute(INSERT, ("ada@example.com",))
        prepare(database)
        for prefix in ("2a", "2b", "2y"):
            conn.execute('UPDATE "user" SET password_hash = %s', (f"${prefix}$12$",))
        for plain in ("correct horse", "2b$12$", "$2x$12$", "a\n$2b$12$", "$argon2id"):
            with pytest.raises(errors.CheckViolation):
                conn.execute('UPDATE "user" SET password_hash = %s', (plain,))
        validated = "SELECT convalidated FROM pg_constraint WHERE conname = 'user_password_hash_check'"
        assert conn.execute(validated).fetchall() == [(True,)]


def test_a_table_that_was_dropped_is_made_again(cluster: Cluster) -> None:
    database = cluster.create_database()
    prepare(database)
    with database.connect() as conn:
        conn.execute('DROP TABLE "user" CASCADE')
    assert prepare(database) == ["schema.sql is applied"]
    assert prepare(database) == []


def test_a_stray_sequence_does_not_give_out_ids_that_clients_may_choose(cluster: Cluster) -> None:
    database = cluster.create_database()
    with database.connect() as conn:
        conn.execute("CREATE SEQUENCE user_id_seq")
    user = {"fname": "A", "lname": "B", "email": "ada@example.com", "password": "correct horse"}
    with Service(database.environment) as service:
        assert service.client.post("/users", json=user).json()["id"] == 2**31


def refuse(name: str) -> Upgrade:
    """Return the upgrade of a resource whose table cannot be brought up to date."""

    def check(_conn: psycopg.Connection, _report: Report) -> bool:
        raise SchemaError(f"{name} lacks a column")

    return Upgrade(check)


def test_the_tables_of_all_resources_are_checked_before_a_start_is_refused(database: TestDatabase) -> None:
    outdated = Upgrade(lambda _conn, _report: False)
    with pytest.raises(SchemaError, match=r"^orders lacks a column; teams lacks a column$"):
        prepare(database, [outdated, refuse("orders"), outdated, refuse("teams")])


def test_a_resource_whose_table_is_outdated_hides_no_report_of_another(database: TestDatabase) -> None:
    prepare(database)
    outdated = Upgrade(lambda _conn, _report: False)

    def warn(_conn: psycopg.Connection, report: Report) -> bool:
        report("orders cannot be created")
        return True

    assert "orders cannot be created" in prepare(database, [outdated, Upgrade(warn)])
