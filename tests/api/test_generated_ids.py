"""A generated id that is taken, by rows restored by hand say, is skipped: no client notices."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from secrets import token_hex

import pytest

from service.database.connection import PooledConnection
from service.database.outage import Outage
from service.users import queries
from service.users.errors import EmailTaken, IdTaken
from service.users.queries import select_user
from service.web.idempotency import Outcome
from tests.api.test_queries import HASH
from tests.process.test_schema import waiters
from tests.support.parallel import at_once
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.schemas import guest_of, prepare
from tests.support.users import create, new_user
from tests.support.writes import plain_write

FIRST = 2**31
LARGEST = 2**63 - 1

TAKE = f"""
    INSERT INTO "user" (id, fname, lname, email, password_hash)
    SELECT id, 'Ada', 'Lovelace', id || '@taken.example.com', '{HASH}' FROM generate_series(%s, %s::bigint) AS id
"""


@pytest.fixture
def database(cluster: Cluster) -> TestDatabase:
    """A database with the schema, for each test."""
    database = cluster.create_database()
    prepare(database)
    return database


@pytest.fixture
def conn(database: TestDatabase) -> Iterator[PooledConnection]:
    """A connection such as the pool lends."""
    with connect(database) as conn:
        yield conn


def connect(database: TestDatabase) -> PooledConnection:
    return PooledConnection.connect(database.conninfo, outage=Outage(), autocommit=True)


def insert_user(conn: PooledConnection, user_id: int | None, fields: dict[str, str]) -> Outcome:
    return queries.insert_user(conn, plain_write(), user_id, fields)


def fields(**others: str) -> dict[str, str]:
    return {
        "fname": "Ada",
        "lname": "Lovelace",
        "email": f"{token_hex(8)}@example.com",
        "password_hash": HASH,
        **others,
    }


def test_a_client_that_chose_no_id_never_learns_that_one_was_taken(
    database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Service(database.environment) as service, database.connect() as conn:
        for start, end in ((FIRST, FIRST), (FIRST + 2, FIRST + 10_001)):
            conn.execute(TAKE, (start, end))
            began = time.monotonic()
            assert create(service.client)["id"] == end + 1
            record_figure(f"created after {end - start + 1} ids that were taken: {time.monotonic() - began:.3f} s")
        is_problem(service.client.post("/users", json=new_user(id=create(service.client, id=7)["id"])), 409, "id-taken")


def test_a_hundred_thousand_taken_ids_are_skipped_within_one_statement(
    conn: PooledConnection, record_figure: Callable[[str], None]
) -> None:
    conn.execute(TAKE, (FIRST, FIRST + 99_999))
    began = time.monotonic()
    assert insert_user(conn, None, fields())[0] == FIRST + 100_000
    took = time.monotonic() - began
    record_figure(f"100,000 taken ids were skipped in {took:.3f} s")
    assert took < 5, "longer than a statement may run"


def test_sixty_four_creators_at_once_each_get_an_id_of_their_own(database: TestDatabase) -> None:
    with database.connect() as conn:
        conn.execute(TAKE, (FIRST, FIRST + 999))
        conn.execute(TAKE, (FIRST + 1050, FIRST + 1100))

    def create_users() -> list[int]:
        with connect(database) as conn:
            return [insert_user(conn, None, fields())[0] for _ in range(5)]

    ids = [user_id for found in at_once([create_users] * 64) for user_id in found]
    assert len(set(ids)) == 320
    assert min(ids) == FIRST + 1000


def test_gaps_between_taken_ids_are_used(conn: PooledConnection) -> None:
    conn.execute(TAKE, (FIRST, FIRST))
    conn.execute(TAKE, (FIRST + 2, FIRST + 3))
    assert [insert_user(conn, None, fields())[0] for _ in range(3)] == [FIRST + 1, FIRST + 4, FIRST + 5]


def test_the_largest_id_being_taken_changes_nothing(conn: PooledConnection) -> None:
    conn.execute(TAKE, (LARGEST, LARGEST))
    assert insert_user(conn, None, fields())[0] == FIRST


@pytest.mark.parametrize("taken", [1, 1000])
def test_after_the_largest_id_the_free_ones_from_the_first_on_are_used(conn: PooledConnection, taken: int) -> None:
    """As after `SELECT setval('user_id_seq', max(id))`, which is what one does after a restore."""
    conn.execute(TAKE, (FIRST, FIRST + taken - 1))
    conn.execute(TAKE, (LARGEST, LARGEST))
    conn.execute("SELECT setval('user_id_seq', max(id)) FROM \"user\"")
    assert [insert_user(conn, None, fields())[0] for _ in range(2)] == [FIRST + taken, FIRST + taken + 1]


def test_a_table_made_before_its_ids_cycled_does_so_after_a_start(database: TestDatabase) -> None:
    with connect(database) as conn:
        conn.execute('ALTER TABLE "user" ALTER id SET NO CYCLE; DROP TABLE schema_applied')
        conn.execute(f"SELECT setval('user_id_seq', {LARGEST - 1})")
        assert prepare(database) == ["schema.sql is applied"]
        assert [insert_user(conn, None, fields())[0] for _ in range(2)] == [LARGEST, FIRST]


def test_a_sequence_that_somebody_ended_is_logged_and_is_no_bug(database: TestDatabase) -> None:
    with database.connect() as conn, Service(database.environment) as service:
        conn.execute(f"ALTER TABLE \"user\" ALTER id SET NO CYCLE; SELECT setval('user_id_seq', {LARGEST})")
        is_problem(service.client.post("/users", json=new_user()), 503, "database-unavailable")
        until(lambda: "refused a statement: nextval: reached maximum value of sequence" in service.log, "it is logged")
        assert create(service.client, id=1)["id"] == 1


def test_a_role_that_may_only_use_the_sequence_is_enough(database: TestDatabase) -> None:
    guest = guest_of(database)
    role = guest.environment["DATABASE_USERNAME"]
    with database.connect() as conn:
        conn.execute(f'GRANT SELECT, INSERT ON "user" TO {role}; GRANT USAGE ON SEQUENCE user_id_seq TO {role}')
        conn.execute(TAKE, (FIRST, FIRST + 9))
    with PooledConnection.connect(database.conninfo, outage=Outage(), user=role, autocommit=True) as conn:
        assert insert_user(conn, None, fields())[0] == FIRST + 10


def test_an_id_that_is_taken_at_the_same_moment_is_skipped_too(database: TestDatabase, conn: PooledConnection) -> None:
    """Also inside a transaction, which an error would end."""
    conn.execute("SET lock_timeout = 0")
    with ThreadPoolExecutor() as executor, database.connect() as other:
        for start in (FIRST, FIRST + 11):
            with other.transaction():
                other.execute(TAKE, (start, start + 9))
                with conn.transaction():
                    creating = executor.submit(insert_user, conn, None, fields())
                    until(lambda: waiters(database) == 1, "the creation waits for the other's commit")
                    other.execute("COMMIT; BEGIN")
                    assert creating.result(timeout=30)[0] == start + 10
                    assert f'"id":{start + 10}' in select_user(conn, start + 10)[1]


def test_inside_a_transaction_a_taken_id_and_a_taken_email_differ(conn: PooledConnection) -> None:
    insert_user(conn, 1, fields(email="ada@example.com"))
    with conn.transaction():
        with pytest.raises(IdTaken):
            insert_user(conn, 1, fields())
        assert insert_user(conn, 2, fields())[0] == 2, "the transaction goes on"
    with pytest.raises(EmailTaken), conn.transaction():
        insert_user(conn, None, fields(email="Ada@example.com"))


def test_an_id_that_was_generated_is_never_reported_as_taken(database: TestDatabase) -> None:
    """However often it is: here by a trigger that has every row dropped."""
    with database.connect() as conn, Service(database.environment) as service:
        conn.execute("""
            CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
            CREATE TRIGGER drop_row BEFORE INSERT ON "user" FOR EACH ROW EXECUTE FUNCTION drop_row()
            """)
        is_problem(service.client.post("/users", json=new_user()), 503, "database-unavailable")
