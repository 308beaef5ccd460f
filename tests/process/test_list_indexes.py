"""The indexes that only lists need come to a table with rows while the service answers."""

from contextlib import ExitStack

import psycopg
import pytest

from tests.process.test_same_email import INSERT, builds
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.schemas import guest_of, make_schema, prepare
from tests.support.users import create

NAMES = {"user_lname_folded_idx", "user_updated_at_idx"}

SELECT_VALID = """
    SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = '"user"'::regclass AND indisvalid
"""


def valid(conn: psycopg.Connection) -> set[str]:
    """Return those of the indexes that are there."""
    return NAMES & {name for (name,) in conn.execute(SELECT_VALID)}


@pytest.fixture
def database(cluster: Cluster) -> TestDatabase:
    """A table of the release before, with one user and without these indexes."""
    database = cluster.create_database()
    prepare(database)
    with database.connect() as conn:
        conn.execute("DROP INDEX user_lname_folded_idx, user_updated_at_idx")
        conn.execute(INSERT, ["ada@example.com"])
    return database


def test_an_empty_table_has_them_from_the_beginning(cluster: Cluster) -> None:
    database = cluster.create_database()
    prepare(database)
    with database.connect() as conn:
        assert valid(conn) == NAMES


def test_the_service_answers_and_writes_while_they_are_built(database: TestDatabase) -> None:
    with database.connect() as conn, database.connect() as other:
        other.execute("BEGIN; UPDATE \"user\" SET fname = 'Augusta'")  # the build waits for this transaction
        with Service(database.environment) as service:  # waits for /readyz
            until(lambda: builds(database), "an index is being built")
            create(service.client, lname="Hopper")
            assert [user["lname"] for user in service.client.get("/users?q=hop").json()] == ["Hopper"]
            assert valid(conn) == set()
            other.execute("COMMIT")
            until(lambda: valid(conn) == NAMES, "both are built")
            assert "building the index of last names" in service.log


def test_an_invalid_one_is_built_again(database: TestDatabase) -> None:
    with database.connect() as conn, database.connect() as other:
        conn.execute('CREATE INDEX user_updated_at_idx ON "user" (updated_at, id)')
        with other.transaction():
            other.execute("UPDATE \"user\" SET fname = 'Augusta'")
            conn.execute("SET lock_timeout = '50ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                conn.execute('CREATE INDEX CONCURRENTLY user_lname_folded_idx ON "user" (lname)')
        assert valid(conn) == {"user_updated_at_idx"}
        assert make_schema(database).returncode == 0
        assert valid(conn) == NAMES
        assert "user_email_fold(lname)" in str(
            conn.execute("SELECT pg_get_indexdef('user_lname_folded_idx'::regclass)").fetchall()
        )


def test_postgresql_has_statistics_of_what_was_built(database: TestDatabase) -> None:
    assert make_schema(database).returncode == 0
    with database.connect() as conn:
        assert conn.execute("SELECT count(*) FROM pg_stats WHERE tablename = 'user_lname_folded_idx'").fetchone() == (
            1,
        )


def test_several_workers_and_services_at_once_build_each_once(database: TestDatabase) -> None:
    with ExitStack() as stack, database.connect() as conn:
        services = [Service({**database.environment, "WORKERS": "2", "WORKER_THREADS": "2"}) for _ in range(2)]
        for service in services:
            stack.enter_context(service)
        until(lambda: valid(conn) == NAMES, "both are built")
        logs = "".join(service.log for service in services)
        assert logs.count("building the index of last names") == 1
        assert "stay slow" not in logs


def test_a_role_that_may_not_build_them_serves_without(database: TestDatabase) -> None:
    guest = guest_of(database)
    with database.connect() as conn:
        role = guest.environment["DATABASE_USERNAME"]
        conn.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON "user", failed_login, idempotency_key TO {role};'
                     f" GRANT USAGE ON SEQUENCE user_id_seq TO {role}")  # fmt: skip
        with Service(guest.environment) as service:
            until(lambda: "some lists stay slow until the next start: the role" in service.log, "the log says why")
            assert len(service.client.get("/users?q=ada").json()) == 1
        assert valid(conn) == set()
